"""A real sweep by stock Ray Tune: `OptunaSearch` and `ASHAScheduler` at their defaults, and a Tune function that builds
a fresh `TorchTrainer` per trial and passes its reports on by `TuneReportCallback` (benchmarks/stock.py, with a search).

What happens is written down as lines of a journal, so that such a sweep is read like one of ours: the driver notes
when a trial begins and ends, the worker appends every report with its time, also those that Tune does not get. Tune
gets an epoch's end only, as a user would do it: every `train.report` costs a trial seconds. Favours to the stock
side: no checkpoints are written; a draw that violates `require` fails at once instead of after a start of Ray Train;
and what a trial asks for is next to nothing, while Tune itself holds their number to that of the slots. For a trial
that ASHA stops leaves Train's placement group behind (ray#54305, #62753): with a CPU for each worker such a sweep
stands still on two CPUs after its second stop.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from benchmarks.collapsebench.family import Family, load
from buttress.journal.events import AttemptStarted, Event, Outcome, Report, TrialCreated
from buttress.journal.fields import plain
from buttress.spec import trial_config
from buttress.spec.spec import SweepSpec
from buttress.training.trainable import Reported

LINES, REPORTS = "journal.jsonl", "reports"  # of the driver, and the folder of the workers' files
SHARE = 0.001  # of a CPU, for Tune's part of a trial and for its worker
LOG = logging.getLogger(__name__)

#: What a tuner optimises, of an epoch's metrics; None where a report does not hold it.
Value = Callable[[Mapping[str, float | None]], float | None]


def run(
    spec: SweepSpec, family: str, watch: str, direction: str, folder: Path, *, until: float, concurrency: int
) -> str | None:
    """Sweeps until `until` (of `time.monotonic()`) on the Ray that is connected; the trial that Tune calls its best.

    `watch`: `loss` (the family's validation loss) or `objective`; `direction` is that value's.
    """
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    from buttress.training import registry

    trainable = registry.load(spec.trainable)
    epochs = trainable.schedule(trial_config.build(spec, {}, trainable.Config)).epochs
    (folder / REPORTS).mkdir(parents=True)
    common: dict[str, Any] = {"metric": "value", "mode": direction}
    given = {"spec": spec.to_dict(), "family": family, "watch": watch, "here": str(Path.cwd())}
    with tempfile.TemporaryDirectory() as storage:
        given |= {"storage": storage, "reports": str((folder / REPORTS).absolute())}
        tuner = tune.Tuner(
            tune.with_resources(tune_function(given), {"cpu": SHARE}),
            tune_config=tune.TuneConfig(
                search_alg=OptunaSearch(space=Space(spec, trainable.Config), seed=spec.seed, **common),
                scheduler=ASHAScheduler(time_attr="epoch", max_t=epochs, **common),
                num_samples=-1,
                max_concurrent_trials=concurrency,
                time_budget_s=max(1.0, until - time.monotonic()),
            ),
            run_config=tune.RunConfig(
                name="stock", storage_path=storage, verbose=0, callbacks=[noting(folder / LINES, spec)]
            ),
        )
        results = tuner.fit()
    for error in results.errors:
        LOG.warning("a trial failed: %s", error)
    told = [(results[index].metrics or {}).get("value", math.nan) for index in range(len(results))]
    if not any(math.isfinite(each) for each in told):
        return None
    best = results.get_best_result(**common)
    return name_of(best.config["number"]) if best.config else None


def name_of(number: int) -> str:
    return f"{number:04d}"


class Space:
    """The search space as OptunaSearch's define-by-run function, the trials numbered as they are drawn. (An object,
    because OptunaSearch pickles what it is given.)"""

    def __init__(self, spec: SweepSpec, Config: type[Any]) -> None:
        self.spec, self.Config, self.drawn = spec, Config, 0

    def __call__(self, trial: Any) -> dict[str, Any]:
        from buttress.compat.optuna import suggest
        from buttress.search.optuna_study import decoded, distribution

        params: dict[str, Any] = {}
        for path, parameter in trial_config.active_parameters(self.spec, params, self.Config):
            params[path] = decoded(parameter, suggest(trial, path, distribution(parameter)))
        self.drawn += 1
        return {"number": self.drawn - 1, "params": json.dumps(params)}


def tune_function(given: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """The Tune trial. `given`: what does not change from trial to trial, as plain values."""

    def trial(config: dict[str, Any]) -> None:
        import os

        os.chdir(given["here"])
        from ray import train
        from ray.train.torch import TorchTrainer
        from ray.tune.integration.ray_train import TuneReportCallback

        config_of(given, config)  # raises for a draw that the space refuses
        TorchTrainer(
            loop,
            train_loop_config={**given, **config},
            scaling_config=train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": SHARE}),
            run_config=train.RunConfig(
                name=f"train-{config['number']}",
                storage_path=given["storage"],
                callbacks=[TuneReportCallback()],  # type: ignore[list-item]
            ),
        ).fit()

    return trial


def config_of(given: Mapping[str, Any], drawn: Mapping[str, Any]) -> tuple[Any, Any]:
    """Trainable and config of a draw; raises BadInput for one that the space refuses."""
    from buttress.training import registry

    spec = SweepSpec.from_dict(given["spec"])
    trainable = registry.load(spec.trainable)
    config = trial_config.build(spec, json.loads(drawn["params"]), trainable.Config, seed=spec.seed_of(drawn["number"]))
    if (violated := trial_config.violated_requirement(spec, config)) is not None:
        raise spec.error("does not hold for this draw", key="require", value=violated)
    return trainable, config


def loop(settings: dict[str, Any]) -> None:
    """The one worker of a trial: the trainable as a user would bring it to `ray.train`, and a file beside it."""
    import os

    os.chdir(settings["here"])
    from ray import train

    from buttress.training.reporting import Reporter
    from buttress.training.world import World

    trainable, config = config_of(settings, settings)
    name = name_of(settings["number"])
    value = value_of(load(settings["family"]), settings["watch"], config.buttress.objective)
    with tempfile.TemporaryDirectory() as folder:
        buttress = config.buttress
        world = World.single(Path(folder), seed=buttress.seed, threads=buttress.threads, device="cpu")
        sink = Recorder(Path(settings["reports"]) / f"{name}.jsonl", name)
        with Reporter(world, trainable.schedule(config), sink) as reporter:

            def report(metrics: Mapping[str, Any], **_: Any) -> None:
                reporter(metrics)
                if (told := sink.told(value)) is not None:
                    train.report({"epoch": int(metrics["epoch"]), "value": told})

            trainable.train(config, world, report, None)


def value_of(family: Family, watch: str, objective: str) -> Value:
    """What a tuner is told of a report: the family's validation `loss`, or the `objective`."""
    if watch == "objective":
        return lambda metrics: metrics.get(objective)
    assert family.validation_loss is not None
    return family.validation_loss


class Recorder:
    """A sink that appends every report to a file, and hands it to the training thread."""

    stop = False

    def __init__(self, path: Path, trial: str) -> None:
        self._path, self._trial = path, trial
        self._newest: SimpleQueue[Reported] = SimpleQueue()
        self._count, self._epoch = 0, 0

    def send(self, reported: Reported) -> None:
        append(self._path, Report.of(self._trial, 1, self._count, reported))
        self._count += 1
        self._newest.put(reported)

    def told(self, value: Value) -> float | None:
        """What the tuner is told of the report that was just made: once per epoch, None for other reports."""
        reported = self._newest.get(timeout=60.0)
        found = value(reported.metrics) if reported.epoch > self._epoch else None
        if found is not None:
            self._epoch = reported.epoch
        return found


_appending = threading.Lock()


def append(path: Path, event: Event) -> None:
    with _appending, path.open("a") as file:
        file.write(json.dumps(event.to_line(), allow_nan=False) + "\n")


def noting(path: Path, spec: SweepSpec) -> Any:
    """A Tune callback that writes a line when a trial begins and when it ends, however that comes."""
    from ray import tune

    class Noting(tune.Callback):
        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            number, params = trial.config["number"], json.loads(trial.config["params"])
            name, seed = name_of(number), spec.seed_of(number)
            append(path, TrialCreated(trial=name, ask=number, params=plain(params), config={}, seed=seed))
            append(path, AttemptStarted(trial=name, attempt=1))

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            append(path, Outcome(trial=name_of(trial.config["number"]), attempt=1, outcome="pruned"))

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            append(path, Outcome(trial=name_of(trial.config["number"]), attempt=1, outcome="failed"))

    return Noting()
