"""Makes the curves of CollapseBench: `python -m benchmarks.collapsebench.make FAMILY`, as often as it takes.

Every trial that has run lies as one JSON file under `runs/collapsebench/<family>/`; a command that is started again
goes on with those that are missing, and always ends by packing what is there into `curves/<family>-<part>.parquet`.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.collapsebench.family import ROOT, Family, load
from benchmarks.collapsebench.pack import overview, pack
from buttress.errors import BadInput
from buttress.journal import plain
from buttress.search.proposals import never_settles
from buttress.spec import trial_config
from buttress.spec.spec import SweepSpec
from buttress.training.local_run import train
from buttress.training.trainable import Reported

SOBOL_SEED = 2024
CONFIGURATIONS, REPEATED, SEEDS = 300, 20, 5


class Planned(NamedTuple):
    """One trial: `configuration` numbers the parameter sets, `trial` everything that is run."""

    trial: int
    configuration: int
    seed: int
    params: dict[str, Any]


@dataclass
class Point:
    """A point of the sequence, handed out coordinate by coordinate as a generator of random numbers would."""

    share: float = 0.0

    def random(self) -> float:
        return self.share


def configurations(spec: SweepSpec, trainable: Any, count: int) -> list[dict[str, Any]]:
    """The first `count` points of the scrambled Sobol sequence that the space accepts, as parameters.

    Every searched path has a coordinate of its own, also where it is inactive, so that activity moves no other one.
    """
    import numpy as np
    from scipy.stats import qmc

    sequence = qmc.Sobol(len(spec.search), scramble=True, rng=np.random.default_rng(SOBOL_SEED))
    column = {path: index for index, path in enumerate(spec.search)}
    accepted: list[dict[str, Any]] = []
    rows: Any = iter(())
    while len(accepted) < count:
        row = next(rows, None)
        if row is None:
            rows = iter(sequence.random_base2(9))
            continue
        params: dict[str, Any] = {}
        for name, parameter in trial_config.active_parameters(spec, params, trainable.Config):
            params[name] = parameter.draw(Point(float(row[column[name]])))
        try:
            path = epochs_path(trainable)
            config = trial_config.build(spec, params, trainable.Config, schedule=trainable.schedule, epochs_path=path)
        except BadInput:
            continue
        refused = trial_config.violated_requirement(spec, config) or never_settles(trainable.schedule(config))
        if refused is None:
            accepted.append(params)
    return accepted


def epochs_path(trainable: Any) -> str:
    return str(getattr(trainable, "epochs_path", "train.epochs"))


def planned(spec: SweepSpec, trainable: Any, count: int, repeated: int, seeds: int) -> Iterator[Planned]:
    """`count` configurations once, then every `count / repeated`-th of them with `seeds` further seeds."""
    sets = configurations(spec, trainable, count)
    for number, params in enumerate(sets):
        yield Planned(number, number, spec.seed_of(number), params)
    trial = count
    for index in range(repeated):
        number = index * count // repeated
        for _ in range(seeds):
            yield Planned(trial, number, spec.seed_of(trial), sets[number])
            trial += 1


class Recorder:
    """A sink that keeps every report with the core-seconds so far, and stops nothing."""

    stop = False

    def __init__(self) -> None:
        self._began = time.process_time()
        self.reports: list[dict[str, Any]] = []

    def send(self, reported: Reported) -> None:
        names = ("epoch", "step", "full_beta_epochs", "full_beta_steps", "phase", "closing", "nonfinite", "metrics")
        entry = {name: getattr(reported, name) for name in names}
        self.reports.append(entry | {"cpu_s": time.process_time() - self._began})


def run(family: Family, spec: SweepSpec, trainable: Any, trial: Planned) -> dict[str, Any]:
    """One trial to its full budget and what the trained model measures up to; an exception is part of the record."""
    config = trial_config.build(
        spec,
        trial.params, trainable.Config, seed=trial.seed, schedule=trainable.schedule, epochs_path=epochs_path(trainable)
    )
    config = config.model_copy(update={"buttress": config.buttress.model_copy(update={"checkpoint_every": 10**9})})
    recorder, measured, error = Recorder(), {}, None
    with tempfile.TemporaryDirectory() as folder:
        try:
            train(config, trainable, Path(folder), sink=recorder, workers=1)
            if family.measure is not None and (found := sorted(Path(folder).glob("checkpoints/*.pt"))):
                measured = family.measure(config, found[-1], Path(folder))
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
            traceback.print_exc()
    return {
        **trial._asdict(),
        "budget_epochs": trainable.schedule(config).epochs,
        "measured": measured,
        "error": error,
        "reports": recorder.reports,
    }


def run_missing(family: Family, folder: Path, given: argparse.Namespace) -> None:
    spec, trainable = family.spec(), family.trainable()
    trials = list(planned(spec, trainable, given.configurations, given.repeated, given.seeds))
    missing = [trial for trial in trials if not (folder / f"{trial.trial:04d}.json").exists()]
    for done, trial in enumerate(missing, 1):
        began = time.monotonic()
        record = run(family, spec, trainable, trial)
        path = folder / f"{trial.trial:04d}.json"
        part = path.with_suffix(".part")
        part.write_text(json.dumps(plain(record), allow_nan=False))
        part.replace(path)
        cpu = record["reports"][-1]["cpu_s"] if record["reports"] else 0.0
        left = (len(missing) - done) * (time.monotonic() - began)
        print(f"trial {trial.trial}: {cpu:.1f} core-s; {done} of {len(missing)}, {left / 60:.0f} min to go", flush=True)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Two commands on one folder would run every trial twice."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput("another command is making these curves", where=folder) from None
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family")
    parser.add_argument("--configurations", type=int, default=CONFIGURATIONS)
    parser.add_argument("--repeated", type=int, default=REPEATED, help="configurations that get more seeds")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "collapsebench")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "curves")
    parser.add_argument("--pack", action="store_true", help="run nothing, only pack what has been run")
    given = parser.parse_args()
    try:
        family = load(given.family)
        folder = given.work / family.name
        with alone(folder):
            if not given.pack:
                run_missing(family, folder, given)
            print(json.dumps(overview(pack(family, folder, given.out))))
    except BadInput as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
