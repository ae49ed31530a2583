"""Figures of a sweep's search: history, parameters, importance, where trials collapse, Pareto front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from buttress.analysis.collapse_regions import collapse_regions
from buttress.analysis.figures.style import (
    ACCENT,
    THRESHOLD,
    canvas,
    finite,
    legend_of_states,
    look,
    nothing,
    scatter,
    shown,
    spans_decades,
    symlog,
)
from buttress.analysis.selection import best_trial, objective_value, pareto_front
from buttress.analysis.table import searched_paths
from buttress.errors import BadInput
from buttress.journal import Journal
from buttress.search.separation import Region
from buttress.spec.parameters import choice_key
from buttress.wording import duration, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Parameters that are drawn at most, the most important ones first.
MAX_PARAMETERS = 12
#: Choices of which all stand on an axis; of more, those that were drawn.
MAX_CATEGORIES = 50
DEAD = ("collapsed", "diverged")


# --- history ----------------------------------------------------------------------------------------------------------


class HistoryPoint(NamedTuple):
    """One ended trial.

    `spent_s`: training seconds of all trials up to its end, its own `cost_s` included; `value`: the objective at its
    best valid epoch; `best`: the best completed value up to then; `regret`: how much worse that is than the best in the
    end.
    """

    trial: str
    state: str
    cost_s: float
    spent_s: float
    value: float | None
    best: float | None
    regret: float | None


class History(NamedTuple):
    """Ended trials in the order in which they ended."""

    objective: str
    direction: Literal["min", "max"]
    points: tuple[HistoryPoint, ...]


def compute_history(journal: Journal) -> History:
    """What each trial reached and cost, and the best so far."""
    first = journal.objectives[0]
    ended = sorted(
        (record for record in journal.trials.values() if record.outcome is not None),
        key=lambda record: (record.outcome.time if record.outcome else 0.0, record.id),
    )
    winner = best_trial(journal)
    final = objective_value(winner, journal.objectives) if winner is not None else None
    points, spent, best = [], 0.0, None
    for record in ended:
        assert record.outcome is not None
        cost = record.outcome.seconds or 0.0
        spent += cost
        value = objective_value(record, journal.objectives)
        if record.state == "completed" and value is not None and (best is None or first.better(value, best)):
            best = value
        regret = None if best is None or final is None else abs(final - best)
        points.append(HistoryPoint(record.id, record.state, cost, spent, value, best, regret))
    return History(first.metric, first.direction, tuple(points))


def draw_history(info: History) -> Figure:
    """Objective and best so far; regret; and cost, trial by trial."""
    figure = canvas(8.5, 6.2)
    if not info.points:
        return nothing(figure, "No trial has ended yet.")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[5, 2, 2])
    places = range(1, len(info.points) + 1)
    ended = list(zip(places, info.points, strict=True))
    scatter(top, [(place, point.value, point.state) for place, point in ended], size=28)
    below = [(place, 0.02, point.state) for place, point in ended if point.value is None]  # died without a valid epoch
    scatter(top, below, size=28, clip_on=False, alpha=0.7, transform=top.get_xaxis_transform())
    best = [(place, point.best) for place, point in ended if point.best is not None]
    if best:
        top.step(*zip(*best, strict=True), where="post", color=ACCENT, lw=1.4)
    top.set(ylabel=info.objective, title="Objective of each trial; line: best completed so far")
    symlog(top, [point.value for point in info.points if point.value is not None])
    legend_of_states(top, [point.state for point in info.points])
    regret = [(place, point.regret) for place, point in ended if point.regret is not None]
    if regret:
        middle.step(*zip(*regret, strict=True), where="post", color=ACCENT, lw=1.2)
        positive = [value for _, value in regret if value > 0]
        if positive:
            middle.set_yscale("symlog", linthresh=min(positive))
    middle.set(ylabel="regret", ylim=(0, None), title="Distance of the best so far from the best in the end")
    bottom.bar(places, [point.cost_s / 60 for point in info.points], color=[look(p.state).colour for p in info.points])
    title = f"Training time of each: {duration(info.points[-1].spent_s)} in all"
    bottom.set(xlabel="trials, in the order of their ends", ylabel="minutes", title=title)
    return figure


# --- parameters -------------------------------------------------------------------------------------------------------


class Point(NamedTuple):
    """One trial: searched values by path (those in play), objective at the best valid epoch, and where it ended."""

    trial: str
    state: str
    params: Mapping[str, Any]
    value: float | None
    margin: float | None


class Axis(NamedTuple):
    """One searched parameter. `categories`: the values of a choice; else numbers, on a `log` scale or not."""

    path: str
    log: bool
    categories: tuple[Any, ...] | None

    def place(self, value: Any) -> float | None:
        """Where a value lies on the axis: its number, or the index of its category; None where it is missing."""
        if self.categories is None:
            return float(value) if isinstance(value, int | float) else None
        same = (i for i, each in enumerate(self.categories) if choice_key(each) == choice_key(value))
        return next((float(i) for i in same), None)

    def prepare(self, axis: Any, which: Literal["x", "y"]) -> None:
        """Scale, ticks and label of one side of Matplotlib axes."""
        getattr(axis, f"set_{which}label")(self.path)
        if self.categories is not None:
            labels = [shown(each) for each in self.categories]
            getattr(axis, f"set_{which}ticks")(range(len(labels)), labels)
            getattr(axis, f"set_{which}lim")(-0.5, len(labels) - 0.5)
        elif self.log:
            getattr(axis, f"set_{which}scale")("log")


class Parameters(NamedTuple):
    """Every trial over the searched parameters; `axes` most important first."""

    objective: str
    direction: Literal["min", "max"]
    axes: tuple[Axis, ...]
    points: tuple[Point, ...]


def compute_parameters(journal: Journal) -> Parameters:
    """Searched values, objective and end of every trial."""
    first, search = journal.objectives[0], journal.header.spec.get("search") or {}
    points = tuple(
        Point(
            record.id, record.state, record.params, objective_value(record, journal.objectives),
            record.outcome.margin if record.outcome else None,
        )
        for record in journal.trials.values()
    )  # fmt: skip
    found = compute_importance(journal)
    weight = {path: max(found.objective.get(path, 0.0), found.survival.get(path, 0.0)) for path in search}
    paths = sorted(searched_paths(journal), key=lambda path: -weight.get(path, 0.0))
    values = {path: [point.params[path] for point in points if path in point.params] for path in paths}
    axes = tuple(_axis(path, search.get(path) or {}, values[path]) for path in paths)
    return Parameters(first.metric, first.direction, axes, points)


def _axis(path: str, parameter: Mapping[str, Any], values: Sequence[Any]) -> Axis:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if "choice" in parameter or not numbers:
        choices = parameter.get("choice") or ()
        shown_anyway = choices if len(choices) <= MAX_CATEGORIES else ()
        return Axis(path, False, tuple({choice_key(value): value for value in (*shown_anyway, *values)}.values()))
    return Axis(path, any(kind in parameter for kind in ("loguniform", "logint")), None)


def draw_slices(info: Parameters) -> Figure:
    """The objective over each parameter; a trial that died without a value is marked on the lower edge."""
    axes_of = info.axes[:MAX_PARAMETERS]
    columns = min(3, max(1, len(axes_of)))
    rows = max(1, -(-len(axes_of) // columns))
    figure = canvas(3.2 * columns + 0.6, 2.5 * rows + 0.5)
    if not axes_of or not info.points:
        return nothing(figure, "No trial was drawn yet.")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, axis in zip(grid.flat, axes_of, strict=False):
        at = [(axis.place(point.params.get(axis.path)), point) for point in info.points]
        scatter(axes, [(place, point.value, point.state) for place, point in at], size=22, alpha=0.85)
        below = [(place, 0.03, point.state) for place, point in at if point.value is None]
        scatter(axes, below, size=22, alpha=0.6, transform=axes.get_xaxis_transform())
        axis.prepare(axes, "x")
    for axes in grid.flat[len(axes_of) :]:
        axes.axis("off")
    for axes in grid[:, 0]:
        axes.set_ylabel(info.objective)
    symlog(grid[0, 0], [point.value for point in info.points if point.value is not None])
    legend_of_states(grid[0, -1], [point.state for point in info.points])
    left = len(info.axes) - len(axes_of)
    more = f" ({plural(left, 'less important parameter')} not drawn)" if left else ""
    figure.suptitle(f"{info.objective} over each parameter; on the lower edge: died without a value{more}", fontsize=10)
    return figure


def draw_parallel(info: Parameters) -> Figure:
    """A line a trial over all parameters to the objective; what is not in play is left out of the line."""
    axes_of = [axis for axis in info.axes[:MAX_PARAMETERS] if any(axis.path in point.params for point in info.points)]
    figure = canvas(1.5 * (len(axes_of) + 1) + 1, 4.2)
    if not axes_of:
        return nothing(figure, "No trial was drawn yet.")
    axes = figure.subplots()
    known = [point.value for point in info.points if point.value is not None]
    objective = Axis(info.objective, spans_decades(known), None)
    scales = [_scale(axis, [axis.place(point.params.get(axis.path)) for point in info.points]) for axis in axes_of]
    scales.append(_scale(objective, known))
    order = sorted((point for point in info.points if point.params), key=lambda point: point.state == "completed")
    for point in order:
        given = [axis.place(point.params.get(axis.path)) for axis in axes_of]
        heights = [scale(value) for scale, value in zip(scales, [*given, point.value], strict=True)]
        line = [(place, height) for place, height in enumerate(heights) if height is not None]
        axes.plot(*zip(*line, strict=True), color=look(point.state).colour, lw=1.0, alpha=0.65, marker=".", ms=4)
    for place, (axis, scale) in enumerate(zip([*axes_of, objective], scales, strict=True)):
        axes.axvline(place, color="0.75", lw=0.8, zorder=0)
        for value, name in scale.ticks(axis):
            axes.text(place + 0.03, scale(value) or 0.0, name, fontsize=7, va="center", color="0.25", clip_on=False)
    names = [*(axis.path for axis in axes_of), info.objective]
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
    axes.set(yticks=[], xlim=(-0.1, len(names) - 0.5), ylim=(-0.05, 1.05))
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)
    legend_of_states(axes, [point.state for point in info.points], above=True)
    return figure


class _Scale(NamedTuple):
    """From values of an axis to heights, 0 to 1."""

    low: float
    high: float
    log: bool

    def __call__(self, value: float | None) -> float | None:
        if value is None or (self.log and value <= 0):
            return None
        place, low, high = (math.log(each) if self.log else each for each in (value, self.low, self.high))
        return 0.5 if high <= low else (place - low) / (high - low)

    def ticks(self, axis: Axis) -> list[tuple[float, str]]:
        """A few values with their labels."""
        if axis.categories is not None:
            return [(float(index), shown(each)) for index, each in enumerate(axis.categories)]
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return [(value, shown(value)) for value in dict.fromkeys((self.low, middle, self.high))]


def _scale(axis: Axis, places: Sequence[float | None]) -> _Scale:
    if axis.categories is not None:
        return _Scale(0.0, float(max(1, len(axis.categories) - 1)), False)
    present = [place for place in places if place is not None]
    return _Scale(min(present, default=0.0), max(present, default=1.0), axis.log)


def draw_contour(info: Parameters) -> Figure:
    """The objective over the most important pairs of numeric parameters, interpolated between trials that have one."""
    numeric = [axis for axis in info.axes if axis.categories is None][:3]
    pairs = list(combinations(numeric, 2))
    figure = canvas(4.2 * max(1, len(pairs)), 3.8)
    if not pairs:
        return nothing(figure, "Fewer than two numeric parameters are searched.")
    if not any(point.value is not None for point in info.points):
        return nothing(figure, "No trial has a value yet.")
    for axes, (x, y) in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
        _contour(axes, info, x, y)
        x.prepare(axes, "x")
        y.prepare(axes, "y")
    legend_of_states(figure.axes[0], [point.state for point in info.points])
    return figure


def _contour(axes: Axes, info: Parameters, x: Axis, y: Axis) -> None:
    import numpy as np

    def unit(axis: Axis, value: float) -> float:
        return float(np.log10(value)) if axis.log else value

    at = [(x.place(point.params.get(x.path)), y.place(point.params.get(y.path)), point) for point in info.points]
    scatter(axes, [(px, py, point.state) for px, py, point in at], size=24, edgecolors="white", linewidths=0.4)
    known = [(px, py, point.value) for px, py, point in at if None not in (px, py, point.value)]
    if len(known) < 5:
        axes.set_title("too few values to interpolate")
        return
    from scipy.interpolate import griddata

    xs, ys, values = (np.array(each) for each in zip(*known, strict=True))
    ux, uy = np.array([unit(x, each) for each in xs]), np.array([unit(y, each) for each in ys])
    if np.ptp(ux) == 0 or np.ptp(uy) == 0:
        return
    scaled = np.stack([(ux - ux.min()) / np.ptp(ux), (uy - uy.min()) / np.ptp(uy)], axis=1)
    side = np.linspace(0, 1, 60)
    gx, gy = np.meshgrid(side, side)
    between = griddata(scaled, values, (gx, gy), method="linear")
    wx, wy = ux.min() + gx * np.ptp(ux), uy.min() + gy * np.ptp(uy)
    wx, wy = (10**wx if x.log else wx), (10**wy if y.log else wy)
    better = "viridis" if info.direction == "max" else "viridis_r"
    drawn = axes.contourf(wx, wy, between, levels=10, cmap=better, alpha=0.75, zorder=1)
    axes.figure.colorbar(drawn, ax=axes, label=info.objective)


# --- importance -------------------------------------------------------------------------------------------------------


class Importance(NamedTuple):
    """Shares of importance by path, largest first: for the objective, and for whether a trial lives; empty where there
    are too few trials. `trials` and `fates` are how many the two rest on."""

    metric: str
    objective: Mapping[str, float]
    survival: Mapping[str, float]
    trials: int
    fates: int
    dead: int


def compute_importance(journal: Journal) -> Importance:
    """PED-ANOVA of the objective (completed and pruned trials, best quarter) and of survival (all ended trials)."""
    from buttress.search.importance import importances

    search = journal.header.spec.get("search") or {}
    first = journal.objectives[0]
    sign = 1.0 if first.direction == "min" else -1.0
    valued = [
        (record.params, sign * value)
        for record in journal.trials.values()
        if record.state in ("completed", "pruned")
        and (value := finite(objective_value(record, journal.objectives))) is not None
    ]
    ended = [record for record in journal.trials.values() if record.state in ("completed", "pruned", *DEAD)]
    dead = [float(record.state in DEAD) for record in ended]
    alive = 1 - sum(dead) / len(dead) if dead else 0.0
    return Importance(
        first.metric,
        importances([params for params, _ in valued], [value for _, value in valued], search, good=0.25),
        importances([record.params for record in ended], dead, search, good=alive) if 0 < alive < 1 else {},
        len(valued), len(ended), int(sum(dead)),
    )  # fmt: skip


def draw_importance(info: Importance) -> Figure:
    """Two bars a parameter: what decides the objective, and what decides whether a trial lives."""
    paths = list(dict.fromkeys([*info.objective, *info.survival]))[:MAX_PARAMETERS]
    figure = canvas(8, 0.42 * max(3, len(paths)) + 1.2)
    if not paths:
        return nothing(figure, f"Too few trials to tell: {info.trials} with a value, {info.dead} dead of {info.fates}.")
    axes = figure.subplots()
    places = range(len(paths))
    axes.barh([place - 0.2 for place in places], [info.objective.get(path, 0.0) for path in paths], height=0.38,
              color=look("completed").colour, label=f"for {info.metric} ({plural(info.trials, 'trial')})")  # fmt: skip
    axes.barh([place + 0.2 for place in places], [info.survival.get(path, 0.0) for path in paths], height=0.38,
              color=look("collapsed").colour, label=f"for survival ({info.dead} of {info.fates} died)")  # fmt: skip
    axes.set_yticks(places, paths)
    axes.invert_yaxis()
    axes.set(xlabel="share of the importance (PED-ANOVA)", xlim=(0, 1), title="What decides")
    axes.legend(loc="lower right")
    return figure


# --- collapse map -----------------------------------------------------------------------------------------------------


class CollapseMap(NamedTuple):
    """Where trials die: at most three parameters that decide it, with the ranges that separate dead from living, and
    critical values that a trainable foretells, by path."""

    axes: tuple[Axis, ...]
    points: tuple[Point, ...]
    regions: tuple[Region, ...]
    critical: Mapping[str, float]


def compute_collapse_map(journal: Journal, critical: Mapping[str, float] | None = None) -> CollapseMap:
    """The parameters that separate dead from living trials.

    Args:
        journal: The sweep.
        critical: Values beyond which a trainable's `forecast` expects collapse, by path.
    """
    everything = compute_parameters(journal)
    found = tuple(collapse_regions(journal))
    survival = compute_importance(journal).survival
    paths = list(dict.fromkeys([*(region.path for region in found), *survival]))[:3]
    by_path = {axis.path: axis for axis in everything.axes}
    points = tuple(point for point in everything.points if point.state not in ("failed", "waiting"))
    return CollapseMap(tuple(by_path[path] for path in paths if path in by_path), points, found, critical or {})


def draw_collapse_map(info: CollapseMap) -> Figure:
    """Trials over the pairs of parameters that decide whether they live; shaded: ranges in which they collapse."""
    pairs = list(combinations(info.axes, 2))
    figure = canvas(4.6 * max(1, len(pairs)), 4.4)
    if not any(point.state in DEAD for point in info.points):
        return nothing(figure, "No trial has collapsed.")
    if not pairs:
        return nothing(figure, "Too few trials to say which parameters decide.")
    for axes, (x, y) in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
        at = [(x.place(each.params.get(x.path)), y.place(each.params.get(y.path)), each.state) for each in info.points]
        scatter(axes, at, size=30, edgecolors="white", linewidths=0.4)
        x.prepare(axes, "x")
        y.prepare(axes, "y")
        _shade(axes, x, info, axes.axvspan, axes.axvline, axes.get_xlim())
        _shade(axes, y, info, axes.axhspan, axes.axhline, axes.get_ylim())
    legend_of_states(figure.axes[0], [point.state for point in info.points])
    said = "; ".join(str(region) for region in info.regions)
    figure.suptitle(said or "No range separates dead from living trials clearly", fontsize=10, wrap=True)
    return figure


def _shade(axes: Axes, axis: Axis, info: CollapseMap, span: Any, line: Any, limits: tuple[float, float]) -> None:
    for region in info.regions:
        if region.path != axis.path:
            continue
        if region.side == "is":
            place = axis.place(region.value)
            ends = None if place is None else (place - 0.5, place + 0.5)
        else:
            ends = (region.value, limits[1]) if region.side == "above" else (limits[0], region.value)
        if ends is not None:
            span(*ends, color=THRESHOLD, alpha=0.1, zorder=0)
    if (critical := info.critical.get(axis.path)) is not None:
        line(critical, color=THRESHOLD, ls="--", lw=1.2)
    (axes.set_xlim if span == axes.axvspan else axes.set_ylim)(limits)


# --- Pareto front -----------------------------------------------------------------------------------------------------


class ParetoPoint(NamedTuple):
    """One trial with a value of every objective; `front`: no other healthy trial beats it in all of them."""

    trial: str
    state: str
    values: tuple[float, ...]
    front: bool


class Pareto(NamedTuple):
    """Trials over the objectives."""

    objectives: tuple[tuple[str, str], ...]
    points: tuple[ParetoPoint, ...]


def compute_pareto(journal: Journal) -> Pareto:
    """Every trial's objectives.

    Raises:
        BadInput: The sweep has one objective.
    """
    if len(journal.objectives) < 2:
        accepted = "a sweep with two objectives or more"
        raise BadInput("a Pareto front needs two objectives", key="NAME", value="pareto", accepted=accepted)
    front = {record.id for record in pareto_front(journal)}
    points = []
    for record in journal.trials.values():
        values = [objective_value(record, journal.objectives, which) for which in range(len(journal.objectives))]
        if all(value is not None for value in values):
            points.append(ParetoPoint(record.id, record.state, tuple(v or 0.0 for v in values), record.id in front))
    return Pareto(tuple((each.metric, each.direction) for each in journal.objectives), tuple(points))


def draw_pareto(info: Pareto) -> Figure:
    """Each pair of objectives; framed: on the front."""
    pairs = list(combinations(range(len(info.objectives)), 2))[:6]
    figure = canvas(4.6 * min(3, len(pairs)), 4.2 * -(-len(pairs) // 3))
    if not info.points:
        return nothing(figure, "No trial has a value of every objective yet.")
    grid = figure.subplots(-(-len(pairs) // 3), min(3, len(pairs)), squeeze=False)
    for axes, (x, y) in zip(grid.flat, pairs, strict=False):
        at = [(point.values[x], point.values[y], point.state, point.front) for point in info.points]
        scatter(axes, [each[:3] for each in at if not each[3]], size=22)
        scatter(axes, [each[:3] for each in at if each[3]], size=46, edgecolors=ACCENT)
        front = sorted((point.values[x], point.values[y]) for point in info.points if point.front)
        if len(info.objectives) == 2:
            where = "post" if info.objectives[1][1] == "min" else "pre"
            axes.step(*zip(*front, strict=True), where=where, color=ACCENT, lw=1)
        names = [f"{info.objectives[each][0]} ({info.objectives[each][1]})" for each in (x, y)]
        axes.set(xlabel=names[0], ylabel=names[1])
    for axes in grid.flat[len(pairs) :]:
        axes.axis("off")
    legend_of_states(grid.flat[0], [point.state for point in info.points])
    return figure
