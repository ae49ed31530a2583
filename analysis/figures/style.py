"""Colours, markers and settings that all figures share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from buttress.wording import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Look(NamedTuple):
    """How the trials of one state are drawn; shape and colour both tell states apart."""

    colour: str
    marker: str


#: Every state of a trial (`journal.STATES`), in the order of legends.
LOOKS: Mapping[str, Look] = {
    "completed": Look("#1b7f5c", "o"),
    "collapsed": Look("#c2311f", "X"),
    "diverged": Look("#7b3fa0", "P"),
    "pruned": Look("#5b7db1", "v"),
    "failed": Look("#3a3a3a", "s"),
    "stopped": Look("#8a6d3b", "D"),
    "running": Look("#e08a00", ">"),
    "paused": Look("#b59b00", "<"),
    "waiting": Look("#9a9a9a", "."),
}
#: Lines that are no trial: best so far, thresholds.
ACCENT, THRESHOLD = "#111111", "#c2311f"

_SETTINGS: Any = {
    "text.parse_math": False,  # a `$` in a name of the user's is a dollar
    "svg.fonttype": "none",  # texts stay texts: searchable, and read by screen readers
    "svg.hashsalt": "buttress",  # the same journal gives the same file
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.2,
    "legend.fontsize": 8,
    "legend.framealpha": 0.9,
}


def look(state: str) -> Look:
    """The look of a state; that of `waiting` for one that is not known."""
    return LOOKS.get(state, LOOKS["waiting"])


@contextmanager
def styled() -> Iterator[None]:
    """The settings of all figures, for the duration of the context."""
    import matplotlib

    with matplotlib.rc_context(_SETTINGS):
        yield


def canvas(width: float, height: float, *, arranged: bool = True) -> Figure:
    """An empty figure of this size in inches, outside pyplot's own list of figures; `arranged`: Matplotlib finds places
    for labels, which takes seconds for twenty axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained" if arranged else None)
    FigureCanvasAgg(figure)
    return figure


def scatter(
    axes: Axes, places: Iterable[tuple[float | None, float | None, str]], *, size: float = 26, **more: Any
) -> None:
    """Draws trials, (x, y, state) each, those of one state at once; left out where a place is missing."""
    by_state: dict[str, list[tuple[float, float]]] = {}
    for x, y, state in places:
        if x is not None and y is not None:
            by_state.setdefault(state, []).append((x, y))
    for state, points in by_state.items():
        each = look(state)
        looks = {"c": each.colour, "marker": each.marker, "s": size, "zorder": 3, **more}
        axes.scatter(*zip(*points, strict=True), **looks)


def legend_of_states(axes: Axes, states: Iterable[str], *, above: bool = False) -> None:
    """Names the states that are drawn, in the order of `LOOKS`; `above`: over the axes, on the right."""
    from matplotlib.lines import Line2D

    drawn = set(states)
    handles = [
        Line2D([], [], color=each.colour, marker=each.marker, ls="", label=state)
        for state, each in LOOKS.items()
        if state in drawn
    ]
    if handles and above:
        axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(handles), frameon=False)
    elif handles:
        axes.legend(handles=handles)


def spans_decades(values: Sequence[float]) -> bool:
    """Whether positive values span a factor of more than 50, so that a log scale shows them better."""
    return bool(values) and min(values) > 0 and max(values) > 50 * min(values)


def symlog(axes: Any, values: Sequence[float]) -> None:
    """A log scale on the vertical axis for values that span decades and may be zero or negative."""
    positive = sorted(abs(value) for value in values if value)
    if not positive or positive[-1] <= 50 * positive[len(positive) // 20]:
        return
    if all(value > 0 for value in values):
        axes.set_yscale("log")
    else:
        axes.set_yscale("symlog", linthresh=max(positive[len(positive) // 20], positive[-1] * 1e-6))


def label_decades(figure: Figure) -> None:
    """Plain numbers on log axes, whose own labels are mathematics; 1, 2 and 5 where there is less than two decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, SymmetricalLogLocator

    plain = FuncFormatter(lambda value, _: number(value, 2))
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            if axis.get_scale() == "log":
                steps = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)
                axis.set_major_locator(LogLocator(subs=steps, numticks=7))
            elif axis.get_scale() == "symlog":
                threshold = axis.get_transform().linthresh  # type: ignore[attr-defined]
                places = SymmetricalLogLocator(base=10, linthresh=threshold)
                places.set_params(numticks=5)
                axis.set_major_locator(places)
            else:
                continue
            axis.set_major_formatter(plain)
            axis.set_minor_formatter(NullFormatter())


def finite(value: float | None) -> float | None:
    """The value, or None where it is missing or not finite."""
    return value if value is not None and math.isfinite(value) else None


def shown(value: Any) -> str:
    """A parameter's value as a tick label: at most 18 characters."""
    text = number(value, 3)
    return text if len(text) <= 18 else text[:17] + "…"


def nothing(figure: Figure, why: str) -> Figure:
    """A figure that says why there is nothing to see yet."""
    axes = figure.subplots()
    axes.axis("off")
    axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes, wrap=True, fontsize=11, color="0.35")
    return figure
