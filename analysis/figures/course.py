"""Figures of a sweep's course: health of all trials, comparisons at rungs, and what the slots did when."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal, NamedTuple

from buttress.analysis.figures.style import (
    ACCENT,
    THRESHOLD,
    canvas,
    finite,
    legend_of_states,
    look,
    nothing,
    scatter,
    symlog,
)
from buttress.analysis.header_rules import kill_rules, signs_of
from buttress.analysis.table import epochs_saved
from buttress.journal import Journal, TrialRecord
from buttress.wording import duration, percent, plural

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Health metrics that are drawn at most, and points of one curve (thinned evenly, ends kept).
MAX_METRICS, MAX_POINTS = 4, 200


# --- health -----------------------------------------------------------------------------------------------------------


class HealthCurve(NamedTuple):
    """One trial's values of a metric over its age in epochs at the full beta (negative during the warm-up)."""

    trial: str
    state: str
    ages: tuple[float, ...]
    values: tuple[float, ...]
    killed: bool


class HealthMetric(NamedTuple):
    """A metric that kill rules look at, with their thresholds on its plain value: (threshold, `above` or `below`)."""

    metric: str
    rules: tuple[str, ...]
    thresholds: tuple[tuple[float, Literal["above", "below"]], ...]
    curves: tuple[HealthCurve, ...]


class Health(NamedTuple):
    """The metrics that decided most verdicts first."""

    metrics: tuple[HealthMetric, ...]


def compute_health(journal: Journal) -> Health:
    """Curves of the metrics that kill rules look at, with thresholds and kills."""
    by_metric: dict[str, list[str]] = {}
    thresholds: dict[str, list[tuple[float, Literal["above", "below"]]]] = {}
    sides: tuple[Literal["above", "below"], ...] = ("above", "below")
    for name, rule in kill_rules(journal).items():
        for sign in signs_of(rule):
            metric = str(sign["metric"])
            if name not in by_metric.setdefault(metric, []):
                by_metric[metric].append(name)
            for side in sides:
                if sign.get("transform", "value") == "value" and isinstance(sign.get(side), int | float):
                    threshold = float(sign[side]), side
                    if threshold not in thresholds.setdefault(metric, []):
                        thresholds[metric].append(threshold)
    decided = Counter(
        str(entry.get("metric")) for record in journal.trials.values() if record.outcome and record.outcome.dead
        for entry in record.outcome.evidence
    )  # fmt: skip
    made = []
    for metric in sorted(by_metric, key=lambda each: (-decided[each], list(by_metric).index(each))):
        curves = tuple(curve for record in journal.trials.values() if (curve := _curve(record, metric)).values)
        if len({value for curve in curves for value in curve.values}) > 1:  # else nothing to see
            made.append(HealthMetric(metric, tuple(by_metric[metric]), tuple(thresholds.get(metric, ())), curves))
    return Health(tuple(made[:MAX_METRICS]))


def age_of(record: TrialRecord, index: int) -> float:
    """Epochs at the full beta at report number `index`; before it, minus the epochs that are left of the warm-up."""
    per_epoch = steps_per_epoch(record)
    report = record.reports[index]
    if report.full_beta_steps > 0:
        return report.full_beta_steps / per_epoch
    first = next((each for each in record.reports if each.full_beta_steps > 0), None)
    begins = first.step - first.full_beta_steps if first is not None else record.reports[-1].step
    return (report.step - begins) / per_epoch


def steps_per_epoch(record: TrialRecord) -> float:
    """Optimiser steps of an epoch, at least 1; of a trial without a whole epoch, its steps."""
    ends = [report for report in record.reports if report.epoch > 0]
    last = ends[-1].step / ends[-1].epoch if ends else record.reports[-1].step if record.reports else 1
    return max(1.0, float(last))


def thinned(count: int, most: int = MAX_POINTS) -> list[int]:
    """Indices of `count` values, at most `most` of them, evenly spread, both ends included."""
    if count <= most:
        return list(range(count))
    return sorted({round(place * (count - 1) / (most - 1)) for place in range(most)})


def _curve(record: TrialRecord, metric: str) -> HealthCurve:
    have = [i for i, report in enumerate(record.reports) if finite(report.metrics.get(metric)) is not None]
    kept = [have[place] for place in thinned(len(have))]
    return HealthCurve(
        record.id, record.state, tuple(age_of(record, index) for index in kept),
        tuple(float(record.reports[index].metrics[metric] or 0.0) for index in kept),
        record.outcome is not None and record.outcome.dead,
    )  # fmt: skip


def draw_health(info: Health) -> Figure:
    """A curve a trial; dashed: the thresholds of the rules; a cross: killed there."""
    figure = canvas(5.2 * min(2, max(1, len(info.metrics))), 3.4 * max(1, -(-len(info.metrics) // 2)))
    if not info.metrics:
        return nothing(figure, "No trial has reported a metric that a kill rule looks at.")
    grid = figure.subplots(-(-len(info.metrics) // 2), min(2, len(info.metrics)), squeeze=False)
    for axes, each in zip(grid.flat, info.metrics, strict=False):
        for curve in each.curves:
            colour = look(curve.state).colour
            axes.plot(curve.ages, curve.values, color=colour, lw=0.9, alpha=0.7)
            if curve.killed:
                axes.plot(curve.ages[-1], curve.values[-1], "X", color=colour, ms=6, mec="white", mew=0.5, zorder=4)
        for threshold, _ in each.thresholds:
            axes.axhline(threshold, color=THRESHOLD, ls="--", lw=1)
        if any(curve.ages[0] < 0 for curve in each.curves):
            axes.axvline(0, color="#888888", lw=0.8)
        symlog(axes, [value for curve in each.curves for value in curve.values])
        axes.set(xlabel="epochs at the full beta", ylabel=each.metric, title=f"watched by {', '.join(each.rules)}")
    for axes in grid.flat[len(info.metrics) :]:
        axes.axis("off")
    legend_of_states(grid[0, 0], [curve.state for each in info.metrics for curve in each.curves])
    return figure


# --- rungs ------------------------------------------------------------------------------------------------------------


class Comparison(NamedTuple):
    """A trial at a rung. `cutoff`: None while there are too few to be compared with."""

    trial: str
    state: str
    age: int
    phase: int
    value: float | None
    cutoff: float | None
    peers: int
    stopped: bool
    time: float


class Rungs(NamedTuple):
    """All comparisons, in the order of time."""

    objective: str
    direction: Literal["min", "max"]
    comparisons: tuple[Comparison, ...]


def compute_rungs(journal: Journal) -> Rungs:
    """Who was compared at which age, with how many, when and against what."""
    first = journal.objectives[0]
    made = [
        Comparison(record.id, record.state, rung.age, rung.phase, rung.value, rung.cutoff, rung.peers,
                   rung.decision == "stop", rung.time - journal.header.time)
        for record in journal.trials.values() for rung in record.rungs
    ]  # fmt: skip
    return Rungs(first.metric, first.direction, tuple(sorted(made, key=lambda each: each.time)))


def draw_rungs(info: Rungs) -> Figure:
    """A column a rung, trials in the order of their coming; the line is the cut-off that each met."""
    ages = sorted({(each.age, each.phase) for each in info.comparisons})
    figure = canvas(2.2 + 2.2 * max(1, min(5, len(ages))), 3.8)
    if not ages:
        return nothing(figure, "No trial has reached a rung.")
    grid = figure.subplots(1, len(ages), squeeze=False, sharey=True)
    for axes, (age, phase) in zip(grid[0], ages, strict=True):
        here = [each for each in info.comparisons if (each.age, each.phase) == (age, phase)]
        states = ["pruned" if each.stopped else "completed" for each in here]
        values = [each.value for each in here]
        scatter(axes, list(zip(range(1, len(here) + 1), values, states, strict=True)))
        for place, each in enumerate(here, 1):
            if each.cutoff is not None:
                axes.plot([place - 0.45, place + 0.45], [each.cutoff] * 2, color=ACCENT, lw=1.4)
        part = f", phase {phase}" if phase else ""
        axes.set(title=f"{plural(age, 'epoch')}{part}", xlabel="in order of time", xticks=[])
        axes.set_xlim(0.3, len(here) + 0.7)
    grid[0, 0].set_ylabel(info.objective)
    stopped = sum(each.stopped for each in info.comparisons)
    count = plural(len(info.comparisons), "comparison")
    title = f"Compared at equal age; {stopped} of {count} stopped a trial (triangles); lines: cut-offs"
    figure.suptitle(title, fontsize=10)
    return figure


# --- timeline ---------------------------------------------------------------------------------------------------------


class Bar(NamedTuple):
    """One attempt on a slot, in seconds since the sweep began.

    `state` is the trial's, or `lost` for an attempt that the infrastructure took.
    """

    slot: str
    trial: str
    begin_s: float
    end_s: float
    state: str


class Saved(NamedTuple):
    """Training that a stopped trial did not need, from its own seconds per epoch."""

    trial: str
    state: str
    time_s: float
    saved_s: float


class Timeline(NamedTuple):
    """What the slots did, and what stopping early saved."""

    bars: tuple[Bar, ...]
    saved: tuple[Saved, ...]
    spent_s: float


def compute_timeline(journal: Journal) -> Timeline:
    """Attempts by slot, and training time saved by every stopped trial."""
    begin = journal.header.time
    newest = max((_last_time(record) for record in journal.trials.values()), default=begin)
    until = journal.ended.time if journal.ended is not None else newest
    bars, saved, spent = [], [], 0.0
    for record in journal.trials.values():
        ends = [*(attempt.time for attempt in record.attempts[1:]), record.outcome.time if record.outcome else until]
        for number, (attempt, end) in enumerate(zip(record.attempts, ends, strict=False)):
            lost = next((loss.time for loss in record.losses if loss.attempt == attempt.attempt), None)
            last = number == len(record.attempts) - 1 and lost is None
            bars.append(Bar(str(attempt.slot), record.id, attempt.time - begin, (lost or end) - begin,
                            record.state if last else "lost"))  # fmt: skip
        outcome = record.outcome
        if outcome is not None and outcome.seconds:
            spent += outcome.seconds
            left = epochs_saved(record) or 0
            if left and outcome.epochs and record.state in ("collapsed", "diverged", "pruned"):
                each = outcome.seconds / outcome.epochs
                saved.append(Saved(record.id, record.state, outcome.time - begin, each * left))
    return Timeline(tuple(sorted(bars, key=lambda bar: (bar.slot, bar.begin_s))),
                    tuple(sorted(saved, key=lambda each: each.time_s)), spent)  # fmt: skip


def _last_time(record: TrialRecord) -> float:
    times = [record.time, *(each.time for each in record.attempts), *(each.time for each in record.reports[-1:])]
    return max([*times, record.outcome.time] if record.outcome else times)


def draw_timeline(info: Timeline) -> Figure:
    """A bar an attempt, slot by slot; below: training time saved so far."""
    slots = sorted({bar.slot for bar in info.bars}, key=lambda slot: (len(slot), slot))
    figure = canvas(9, 1.9 + 0.32 * len(slots) + (1.6 if info.saved else 0))
    if not info.bars:
        return nothing(figure, "No trial has started yet.")
    heights = [max(1.0, 0.32 * len(slots) + 0.6), 1.6] if info.saved else [1.0]
    rows = figure.subplots(len(heights), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for bar in info.bars:
        lost = bar.state == "lost"
        rows[0].barh(
            slots.index(bar.slot), (bar.end_s - bar.begin_s) / 60, left=bar.begin_s / 60, height=0.7, lw=0.6,
            color="white" if lost else look(bar.state).colour, edgecolor="0.5" if lost else "white",
            hatch="///" if lost else None,
        )  # fmt: skip
    rows[0].set_yticks(range(len(slots)), slots)
    rows[0].invert_yaxis()
    rows[0].grid(axis="y", visible=False)
    end = max(bar.end_s for bar in info.bars)
    busy = sum(bar.end_s - bar.begin_s for bar in info.bars) / max(end * len(slots), 1e-9)
    rows[0].set_title(f"{plural(len(slots), 'slot')}, {percent(min(1.0, busy))} of the time on a trial")
    legend_of_states(rows[0], [bar.state for bar in info.bars], above=True)
    if info.saved:
        total, minutes, sums = 0.0, [0.0], [0.0]
        for each in info.saved:
            total += each.saved_s
            minutes += [each.time_s / 60]
            sums += [total / 60]
        rows[1].step([*minutes, end / 60], [*sums, sums[-1]], where="post", color=ACCENT)
        share = percent(total / max(total + info.spent_s, 1e-9))
        rows[1].set(ylabel="minutes saved", ylim=(0, None),
                    title=f"Stopping early saved {duration(total)} of training ({share})")  # fmt: skip
    rows[-1].set_xlabel("minutes since the sweep began")
    return figure
