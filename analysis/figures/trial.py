"""Figures of one trial: its curves with beta and phases, and the KL of each dimension over time."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from buttress.analysis.figures.course import steps_per_epoch, thinned
from buttress.analysis.figures.style import ACCENT, THRESHOLD, canvas, finite, look, nothing, symlog
from buttress.journal import Journal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The vector that holds the KL of each dimension (monitors/latent.py).
KL_PER_DIMENSION = "latent/kl"
MAX_COLUMNS = 400


class Series(NamedTuple):
    """One metric over epochs (fractions inside an epoch)."""

    metric: str
    epochs: tuple[float, ...]
    values: tuple[float, ...]


class TrialCurves(NamedTuple):
    """All numbers that a trial reported, by the first part of their name (`train`, `val`, `latent`, ...).

    Attributes:
        trial: Its id.
        state: What became of it.
        groups: Prefix -> series, objectives' group first.
        beta: The weight of the KL over epochs; None for a trainer that reports none.
        full_beta: Epoch at which the schedule is full; None where it never was.
        phases: (begin, end, phase) in epochs.
        ended: The epoch of its last report.
    """

    trial: str
    state: str
    groups: dict[str, tuple[Series, ...]]
    beta: Series | None
    full_beta: float | None
    phases: tuple[tuple[float, float, int], ...]
    ended: float


def compute_trial(journal: Journal, trial: str) -> TrialCurves:
    """A trial's curves.

    Args:
        journal: The sweep.
        trial: Number or id.

    Raises:
        BadInput: There is no such trial.
    """
    record = journal.trial(trial)
    per_epoch = steps_per_epoch(record)
    places = [report.step / per_epoch for report in record.reports]
    metrics = list(dict.fromkeys(name for report in record.reports for name in report.metrics))
    series = [_series(metric, places, [report.metrics.get(metric) for report in record.reports]) for metric in metrics]
    series = [each for each in series if each.values]
    order = [objective.metric.partition("/")[0] for objective in journal.objectives]
    groups: dict[str, tuple[Series, ...]] = {}
    for prefix in dict.fromkeys([*order, *(each.metric.partition("/")[0] for each in series)]):
        if own := tuple(each for each in series if each.metric.partition("/")[0] == prefix):
            groups[prefix] = own
    beta = next((each for each in series if each.metric in ("train/beta", "beta")), None)
    full = next(((report.step - report.full_beta_steps) / per_epoch for report in record.reports
                 if report.full_beta_steps > 0), None)  # fmt: skip
    phases: list[tuple[float, float, int]] = []
    for place, report in zip(places, record.reports, strict=True):
        if phases and phases[-1][2] == report.phase:
            phases[-1] = (phases[-1][0], place, report.phase)
        else:
            phases.append((phases[-1][1] if phases else 0.0, place, report.phase))
    return TrialCurves(record.id, record.state, groups, beta, full, tuple(phases), places[-1] if places else 0.0)


def _series(metric: str, places: list[float], values: list[float | None]) -> Series:
    have = [index for index, value in enumerate(values) if finite(value) is not None]
    kept = [have[place] for place in thinned(len(have), MAX_COLUMNS)]
    return Series(metric, tuple(places[index] for index in kept), tuple(float(values[index] or 0.0) for index in kept))


def draw_trial(info: TrialCurves) -> Figure:
    """A panel for each metric, beta in grey behind it, warm-up and phases shaded."""
    drawn = [each for group in info.groups.values() for each in group if len(set(each.values)) > 1][:24]
    columns = 3
    rows = max(1, -(-len(drawn) // columns))
    height = 1.9 * rows + 0.9
    figure = canvas(11, height, arranged=False)
    if not drawn:
        return nothing(figure, f"Trial {info.trial} has reported no curve yet.")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    figure.subplots_adjust(left=0.06, right=0.985, bottom=0.5 / height, top=1 - 0.65 / height, hspace=0.4, wspace=0.2)
    for axes, each in zip(grid.flat, drawn, strict=False):
        axes.plot(each.epochs, each.values, color=look(info.state).colour, lw=1.3, zorder=3)
        symlog(axes, each.values)
        axes.set_title(each.metric, fontsize=9)
        if info.full_beta:
            axes.axvspan(0, info.full_beta, color="#999999", alpha=0.12, lw=0)
        for begin, end, phase in info.phases:
            if phase % 2:
                axes.axvspan(begin, end, color="#5b7db1", alpha=0.08, lw=0)
        if info.beta is not None and each.metric != info.beta.metric and len(set(info.beta.values)) > 1:
            behind = axes.twinx()
            behind.plot(info.beta.epochs, info.beta.values, color="#aaaaaa", lw=0.9, zorder=1)
            behind.set_yticks([])
            behind.grid(visible=False)
    for axes in grid.flat[len(drawn) :]:
        axes.axis("off")
    for axes in grid[-1]:
        axes.set_xlabel("epochs")
    figure.suptitle(f"Trial {info.trial}, {info.state}; grey: warm-up, and beta where it changes", fontsize=10)
    return figure


class KlMap(NamedTuple):
    """KL in nats of each dimension at each report: `values[dimension][report]`, dimensions by their last KL, largest
    first; `order` are their original numbers."""

    trial: str
    state: str
    epochs: tuple[float, ...]
    order: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]


def compute_kl(journal: Journal, trial: str) -> KlMap:
    """KL per dimension over time; arguments and errors as in `compute_trial`."""
    record = journal.trial(trial)
    per_epoch = steps_per_epoch(record)
    have = [report for report in record.reports if report.vectors.get(KL_PER_DIMENSION)]
    size = len(have[-1].vectors[KL_PER_DIMENSION]) if have else 0
    have = [report for report in have if len(report.vectors[KL_PER_DIMENSION]) == size]
    have = [have[place] for place in thinned(len(have), MAX_COLUMNS)]
    columns = [[finite(value) or 0.0 for value in report.vectors[KL_PER_DIMENSION]] for report in have]
    order = sorted(range(size), key=lambda dimension: -columns[-1][dimension])
    values = tuple(tuple(column[dimension] for column in columns) for dimension in order)
    return KlMap(record.id, record.state, tuple(report.step / per_epoch for report in have), tuple(order), values)


def draw_kl(info: KlMap) -> Figure:
    """A row a dimension, dark: carries nothing; the line above is how many carry at least 0.01 nat."""
    figure = canvas(8, 4.2)
    if not info.epochs:
        return nothing(figure, f"Trial {info.trial} has reported no KL per dimension.")
    from matplotlib.colors import SymLogNorm

    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1, 3])
    alive = [sum(row[column] >= 0.01 for row in info.values) for column in range(len(info.epochs))]
    top.step(info.epochs, alive, where="post", color=ACCENT, lw=1.2)
    top.set(ylabel="dimensions", ylim=(0, len(info.order) + 0.5))
    top.set_title(f"Trial {info.trial}: dimensions with 0.01 nat or more")
    edges = [info.epochs[0] * 2 - info.epochs[1] if len(info.epochs) > 1 else info.epochs[0] - 1, *info.epochs]
    high = max(max(row) for row in info.values)
    mesh = bottom.pcolormesh(edges, range(len(info.order) + 1), info.values, cmap="magma",
                             norm=SymLogNorm(linthresh=0.01, vmin=0, vmax=max(high, 0.02)))  # fmt: skip
    figure.colorbar(mesh, ax=bottom, label="KL (nats)")
    bottom.set(xlabel="epochs", ylabel="dimension, by its last KL")
    bottom.invert_yaxis()
    bottom.grid(visible=False)
    if info.state in ("collapsed", "diverged"):
        for axes in (top, bottom):
            axes.axvline(info.epochs[-1], color=THRESHOLD, lw=1.2)
    return figure
