"""Real sweeps on this machine, ours against stock Ray Tune: same space, same two slots, same clock, paired seeds.

    python benchmarks/real_sweeps.py --json                      # 3 families x 3 seeds x 4 arms x 5 minutes: 3.5 hours
    python benchmarks/real_sweeps.py --only lithology ours slots # some families, some arms
    python benchmarks/real_sweeps.py --report                    # run nothing: the table of what has been run

Every sweep is a process of its own with a Ray of its own, whose start begins the clock; arms take turns, in an order
that moves on with the seed. What a sweep came to is kept under --work (default runs/real_sweeps), so that a command
that was interrupted goes on with what is missing; `buttress table` reads the journals of ours that lie beside it. All
arms are judged alike, by the written definitions of CollapseBench and the reports until the clock stops.
benchmarks/README.md says what the keys mean. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.collapsebench.family import FAMILIES  # noqa: E402
from benchmarks.real_arms import ARMS, run_arm, space  # noqa: E402
from benchmarks.real_figures import Run, compare  # noqa: E402
from benchmarks.real_target import target_of  # noqa: E402
from buttress.errors import BadInput  # noqa: E402
from buttress.execution.setup import commit  # noqa: E402
from buttress.spec import trial_config  # noqa: E402

NAMES = tuple(sorted(path.stem for path in FAMILIES.glob("[a-z]*.py")))
GRACE_S = 600.0  # beyond its clock, for a Ray to start and stop and for the trials that a sweep of ours lets end


class Planned(NamedTuple):
    family: str
    arm: str
    seed: int

    def record(self, work: Path) -> Path:
        return work / f"{self.family}-{self.seed}-{self.arm}.json"


def planned(families: Sequence[str], arms: Sequence[str], seeds: int) -> Iterator[Planned]:
    """Seed by seed and family by family all arms in a row, the first of them another one for every seed."""
    for seed in range(seeds):
        turn = seed % len(arms)
        for family in families:
            for arm in (*arms[turn:], *arms[:turn]):
                yield Planned(family, arm, seed)


def kept(plan: Planned, work: Path, minutes: float) -> Run | None:
    """What an earlier command has run; raises BadInput where that had another clock or searched another space."""
    path = plan.record(work)
    if not path.is_file():
        return None
    run = Run.from_dict(json.loads(path.read_text()))
    if run.limit != minutes * 60:
        accepted = f"--minutes {run.limit / 60:g}, or another --work"
        raise BadInput("was run for another time", where=path, key="--minutes", value=minutes, accepted=accepted)
    if (searched := run.notes.get("space")) is not None and searched != digest(plan.family):
        raise BadInput("was run in another search space", where=path, accepted="another --work")
    return run


@functools.cache
def digest(family: str) -> str:
    """Of the family's search space."""
    return hashlib.blake2b(json.dumps(space(family).to_dict(), sort_keys=True).encode(), digest_size=8).hexdigest()


# --- a run, in a process of its own ---------------------------------------------------------------------------------


def alone(part: str, work: Path, limit_s: float, *arguments: Any) -> str | None:
    """Runs `part` of this file as a process of its own, its output in a log under `work`; what went wrong, if so."""
    cache = os.environ.get("BUTTRESS_CACHE", str(ROOT / ".cache" / "buttress"))
    own = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT), "BUTTRESS_CACHE": cache}
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | own
    log = work / "logs" / ("-".join(str(each) for each in arguments[:3]) + f".{part}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--part", part, json.dumps([*arguments, str(work)])]
    try:
        with log.open("w") as out:
            given: dict[str, Any] = {"cwd": ROOT, "env": environment, "stdout": out, "stderr": subprocess.STDOUT}
            code = subprocess.run(command, timeout=limit_s, **given).returncode
    except subprocess.TimeoutExpired:
        return f"not over after {limit_s:.0f} s (see {log})"
    return f"exit code {code} (see {log})" if code else None


def part_sweep(family: str, seed: int, arm: str, minutes: float, work: str) -> None:
    folder = Path(work) / family / f"{seed}-{arm}"
    shutil.rmtree(folder, ignore_errors=True)  # of a command that did not come to its end
    folder.mkdir(parents=True)
    run = run_arm(family, arm, seed, minutes, folder)
    run = replace(run, notes={**run.notes, "space": digest(family), "commit": commit()})
    path = Planned(family, arm, seed).record(Path(work))
    part = path.with_suffix(".part")
    part.write_text(json.dumps(run.to_dict()))
    part.replace(path)


def part_data(family: str, work: str) -> None:
    """Builds what all sweeps of the family read from the cache, so that the first of them does not pay for it."""
    from buttress.training import registry
    from buttress.training.local_run import train

    class Once:
        stop = True

        def send(self, reported: Any) -> None: ...

    spec, trainable = space(family), registry.load(family)
    config = trial_config.build(spec, trial_config.sample(spec, random.Random(0), trainable.Config), trainable.Config)
    with tempfile.TemporaryDirectory() as folder:
        train(config, trainable, Path(folder), sink=Once(), workers=1, device="cpu")


PARTS: dict[str, Callable[..., None]] = {"sweep": part_sweep, "data": part_data}


def run_missing(plans: Sequence[Planned], work: Path, minutes: float) -> int:
    """Runs what has no record yet; how many runs failed."""
    missing = [plan for plan in plans if kept(plan, work, minutes) is None]
    failed, ready = 0, set[str]()
    for number, plan in enumerate(missing, 1):
        if plan.family not in ready:
            ready.add(plan.family)
            if (problem := alone("data", work, 600.0, plan.family)) is not None:
                raise BadInput(f"the data cannot be made: {problem}", key="family", value=plan.family)
        began = time.monotonic()
        problem = alone("sweep", work, minutes * 60 + GRACE_S, plan.family, plan.seed, plan.arm, minutes)
        failed += problem is not None
        done = f"{plan.family}, seed {plan.seed}, {plan.arm}: {problem or f'{time.monotonic() - began:.0f} s'}"
        left = (len(missing) - number) * (minutes + 0.7)
        print(f"{done}; {number} of {len(missing)}, {left:.0f} min to go", file=sys.stderr, flush=True)
    return failed


# --- what they came to ----------------------------------------------------------------------------------------------


def result(family: str, runs: Sequence[Run]) -> dict[str, Any]:
    target, source = target_of(family, space(family), runs)
    objective = space(family).objectives[0].metric
    return {
        "objective": objective,
        "direction": runs[0].direction,
        "target": target,
        "target_from": source,
        "minutes": runs[0].limit / 60,
        "arms": compare(runs, target),
        "runs": [{"arm": run.arm, "seed": run.seed, **run.notes} for run in runs],
    }


def table(family: str, found: dict[str, Any]) -> str:
    """One family's arms as Markdown; of what has several seeds, all of them in order."""
    aim = "no target" if found["target"] is None else f"target {found['target']:.4g}"
    lines = [
        f"{family}, `{found['objective']}` ({found['direction']}), {found['minutes']:g} minutes; {aim}: "
        f"{found['target_from']}\n",
        "| arm | best | of its winner | collapsed winners | begun / finished / dead | time on dead trials | "
        "to the target (s) | ours is faster |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for arm, entry in found["arms"].items():
        seeds = entry["seeds"]
        best, own = (_listed(seeds, key, "{:.3f}") for key in ("best", "winner_best"))
        counts = f"{entry['begun']} / {entry['finished']} / {entry['dead']}"
        share = _listed(seeds, "dead_time_share", "{:.0%}")
        least = "at least " if any(pair["they_never"] for pair in entry["paired"]) else ""
        faster = "" if entry["ratio"] is None else f"{least}{entry['ratio']:.2f} times"
        lines.append(
            f"| {ARMS[arm]} | {best} | {own} | {entry['collapsed_winners']} of {entry['winners']} | {counts} | {share} "
            f"| {_listed(seeds, 'to_target_s', '{:.0f}')} | {faster} |"
        )
    return "\n".join(lines)


def _listed(seeds: Sequence[dict[str, Any]], key: str, how: str) -> str:
    return " · ".join("-" if each[key] is None else how.format(each[key]) for each in seeds)


def rounded(value: Any) -> Any:
    """Five significant digits are enough."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="of each sweep, from the start of its Ray")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=(), choices=(*NAMES, *ARMS), metavar="NAME",
                        help=f"families ({', '.join(NAMES)}) and arms ({', '.join(ARMS)})")  # fmt: skip
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "real_sweeps", help="where runs are kept")
    parser.add_argument("--report", action="store_true", help="run nothing, only tell what has been run")
    parser.add_argument("--json", action="store_true", help="the figures as one object in the last line")
    parser.add_argument("--part", nargs=2, metavar=("NAME", "ARGUMENTS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        PARTS[given.part[0]](*json.loads(given.part[1]))
        return
    wanted = [name for name in NAMES if name in given.only] or list(NAMES)
    arms = [arm for arm in ARMS if arm in given.only] or list(ARMS)
    work, failed, found = given.work.absolute(), 0, {}
    work.mkdir(parents=True, exist_ok=True)
    try:
        plans = list(planned(wanted, arms, given.seeds))
        if not given.report:
            failed = run_missing(plans, work, given.minutes)
        for family in wanted:
            ordered = sorted((plan for plan in plans if plan.family == family), key=lambda plan: arms.index(plan.arm))
            runs = [run for plan in ordered if (run := kept(plan, work, given.minutes)) is not None]
            if runs:
                found[family] = result(family, runs)
                print(table(family, found[family]) + "\n")
    except BadInput as error:
        sys.exit(f"error: {error}")
    if given.json:
        told = {"command": " ".join(["python benchmarks/real_sweeps.py", *sys.argv[1:]]), "families": found}
        print(json.dumps(rounded(told | {"machine": {"cpus": os.cpu_count()}}), allow_nan=False))
    if failed:
        sys.exit(f"{failed} sweeps failed; the same command runs them again")


if __name__ == "__main__":
    main()
