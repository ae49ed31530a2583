"""What a real sweep came to, judged alike whoever ran it (benchmarks/real_sweeps.py).

In go runs: the trials that an arm began, every report of each with its wall-clock time and what the family's written
definition says of it, and the trial that the arm itself calls its best. Out come figures per run and per arm. Nothing
here knows the rules or what an arm was told: a trial is dead when its last report that can tell looks dead.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import geometric_mean, median
from typing import Any


@dataclass(frozen=True)
class Seen:
    """One report. `t`: seconds on the run's clock; `age`: whole epochs at full beta; `value`: the objective; `told`:
    what the arm's tuner optimises; `dead`: by the family's definition (a loss or objective that is not finite counts
    as dead), None where the report cannot tell; `counts`: at full beta and past the family's minimum of steps."""

    t: float
    epoch: int
    age: int
    value: float | None
    told: float | None
    dead: bool | None
    counts: bool
    closing: bool


@dataclass(frozen=True)
class Ran:
    """One trial; `busy`: when it held a slot, start and end in seconds on the run's clock (None: it still did)."""

    trial: str
    params: dict[str, Any]
    begun: float
    busy: tuple[tuple[float, float | None], ...]
    seen: tuple[Seen, ...]


@dataclass(frozen=True)
class Run:
    """One arm, one seed; `winner`: the trial that the arm calls its best when the clock stops at `limit` seconds."""

    family: str
    arm: str
    seed: int
    limit: float
    direction: str
    winner: str | None
    trials: tuple[Ran, ...]
    notes: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Run:
        trials = tuple(
            Ran(
                each["trial"], each["params"], each["begun"], tuple((start, end) for start, end in each["busy"]),
                tuple(Seen(**seen) for seen in each["seen"]),
            )
            for each in tree["trials"]
        )  # fmt: skip
        return cls(**{**tree, "trials": trials})


# --- one run --------------------------------------------------------------------------------------------------------


def in_time(run: Run, trial: Ran) -> list[Seen]:
    return [seen for seen in trial.seen if seen.t <= run.limit]


def dead(run: Run, trial: Ran) -> bool | None:
    """Whether the last report that can tell looks dead; None for a trial that has none (too young)."""
    told = [seen.dead for seen in in_time(run, trial) if seen.counts and seen.dead is not None]
    return told[-1] if told else None


def living(run: Run, trial: Ran) -> list[Seen]:
    """Reports of an epoch at full beta that look alive and hold the objective."""
    return [
        seen for seen in in_time(run, trial)
        if seen.age >= 1 and seen.dead is False and seen.value is not None and math.isfinite(seen.value)
    ]  # fmt: skip


def best_value(seen: Iterable[Seen], direction: str) -> float | None:
    values = [each.value for each in seen if each.value is not None]
    return (max if direction == "max" else min)(values, default=None)


def last_told(run: Run) -> str | None:
    """The trial with the best last value of what the tuner optimises, stopped ones included: what
    `ResultGrid.get_best_result` returns."""
    last: dict[str, float] = {}
    for trial in run.trials:
        told = [seen.told for seen in in_time(run, trial) if seen.told is not None]
        if told and math.isfinite(told[-1]):
            last[trial.trial] = told[-1]
    sign = 1.0 if run.notes["told_direction"] == "max" else -1.0
    return max(last, key=lambda trial: sign * last[trial], default=None)


def figures(run: Run, target: float | None) -> dict[str, Any]:
    """The keys of benchmarks/README.md for one arm and seed."""
    begun = [trial for trial in run.trials if trial.begun <= run.limit]
    fate = {trial.trial: dead(run, trial) for trial in begun}
    spent = {trial.trial: _held(trial, run.limit) for trial in begun}
    on_dead = sum(seconds for trial, seconds in spent.items() if fate[trial])
    alive = [seen for trial in begun for seen in living(run, trial)]
    winner = next((trial for trial in begun if trial.trial == run.winner), None)
    return {
        "seed": run.seed,
        "best": best_value(alive, run.direction),
        "winner": run.winner,
        "winner_best": None if winner is None else best_value(living(run, winner), run.direction),
        "winner_collapsed": None if winner is None else fate[winner.trial],
        "begun": len(begun),
        "finished": sum(any(seen.closing for seen in in_time(run, trial)) for trial in begun),
        "dead": sum(state is True for state in fate.values()),
        "too_young": sum(state is None for state in fate.values()),
        "dead_time_share": on_dead / total if (total := sum(spent.values())) else 0.0,
        "to_first_report_s": min((seen.t for trial in begun for seen in in_time(run, trial)), default=None),
        "to_target_s": None if target is None else _reached(alive, target, run.direction),
    }


def _held(trial: Ran, limit: float) -> float:
    """Slot-seconds until the clock stops."""
    return sum(max(0.0, min(limit if end is None else end, limit) - start) for start, end in trial.busy)


def _reached(alive: Iterable[Seen], target: float, direction: str) -> float | None:
    sign = 1.0 if direction == "max" else -1.0
    times = [seen.t for seen in alive if seen.value is not None and sign * seen.value >= sign * target]
    return min(times, default=None)


# --- arms against each other ----------------------------------------------------------------------------------------


def compare(runs: Sequence[Run], target: float | None, ours: str = "ours") -> dict[str, dict[str, Any]]:
    """Per arm its seeds' figures and what they come to; `paired`: its time to the target over ours, seed by seed.

    A run that never gets there counts the whole time: where that is the arm's, the ratio is at least what it says.
    """
    arms: dict[str, dict[str, Any]] = {}
    found = {(run.arm, run.seed): figures(run, target) for run in runs}
    spent = {(run.arm, run.seed): found[run.arm, run.seed]["to_target_s"] or run.limit for run in runs}
    for arm in dict.fromkeys(run.arm for run in runs):
        seeds = [seed for each, seed in found if each == arm]
        others = [seed for seed in seeds if arm != ours and target is not None and (ours, seed) in found]
        pairs = [
            {
                "seed": seed,
                "ratio": spent[arm, seed] / spent[ours, seed],
                "they_never": found[arm, seed]["to_target_s"] is None,
                "we_never": found[ours, seed]["to_target_s"] is None,
            }
            for seed in others
        ]
        ratios = [spent[arm, seed] / spent[ours, seed] for seed in others]
        arms[arm] = {
            "seeds": [found[arm, seed] for seed in seeds],
            **_summary([found[arm, seed] for seed in seeds]),
            "median_to_target_s": None if target is None else median(spent[arm, seed] for seed in seeds),
            "paired": pairs,
            "ratio": geometric_mean(ratios) if ratios else None,
        }
    return arms


def _summary(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def middle(key: str) -> float | None:
        values = [each[key] for each in seeds if each[key] is not None]
        return median(values) if values else None

    return {
        "median_best": middle("best"),
        "median_winner_best": middle("winner_best"),
        "winners": sum(each["winner_collapsed"] is not None for each in seeds),
        "collapsed_winners": sum(each["winner_collapsed"] is True for each in seeds),
        "never": sum(each["to_target_s"] is None for each in seeds),
        **{key: sum(each[key] for each in seeds) for key in ("begun", "finished", "dead", "too_young")},
        "median_dead_time_share": middle("dead_time_share"),
    }
