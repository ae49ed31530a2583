"""Figures to brush in a browser: parallel coordinates and slices, as one HTML file each (Plotly)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from buttress.analysis.figures.search import MAX_PARAMETERS, Axis, Parameters
from buttress.analysis.figures.style import LOOKS, look, shown
from buttress.wording import number

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def parallel(info: Parameters) -> Figure:
    """Parallel coordinates: drag along an axis to keep a range, drag an axis to move it; colours are outcomes."""
    import plotly.graph_objects as go

    points = [point for point in info.points if point.params]
    states = [state for state in LOOKS if any(point.state == state for point in points)]
    dimensions = []
    for axis in info.axes[:MAX_PARAMETERS]:
        at = [axis.place(point.params.get(axis.path)) for point in points]
        dimensions.append(_dimension(axis, at))
    values = [point.value for point in points]
    known = [value for value in values if value is not None]
    if known:
        worst = min(known) if info.direction == "max" else max(known)
        label = f"{_plain(info.objective)} (worst: none)" if len(known) < len(values) else _plain(info.objective)
        dimensions.append({"label": label, "values": [worst if value is None else value for value in values]})
    scale = [[(i + side) / len(states), look(state).colour] for i, state in enumerate(states) for side in (0, 1)]
    codes = [states.index(point.state) for point in points]
    line = {"color": codes, "colorscale": scale, "cmin": -0.5, "cmax": len(states) - 0.5, "showscale": True,
            "colorbar": {"tickvals": list(range(len(states))), "ticktext": states, "title": "outcome"}}  # fmt: skip
    figure = go.Figure(go.Parcoords(line=line, dimensions=dimensions, labelangle=-20))
    figure.update_layout(margin={"l": 90, "r": 60, "t": 110, "b": 40}, font={"size": 12})
    return figure


def _dimension(axis: Axis, at: list[float | None]) -> dict[str, Any]:
    """One axis; a trial without the parameter lies on a place of its own below all others."""
    import math

    label = _plain(axis.path)
    ticks: list[float]
    if axis.categories is not None:
        values = [-1.0 if place is None else place for place in at]
        ticks = [float(index) for index in range(len(axis.categories))]
        names = [_plain(shown(each)) for each in axis.categories]
    else:
        values = [math.nan if place is None else math.log10(place) if axis.log else place for place in at]
        present = [value for value in values if not math.isnan(value)]
        low, high = (min(present), max(present)) if present else (0.0, 1.0)
        below = low - 0.15 * ((high - low) or 1.0)
        values = [below if math.isnan(value) else value for value in values]
        ticks = [low + (high - low) * share / 4 for share in range(5)] if high > low else [low]
        names = [number(10**tick if axis.log else tick, 3) for tick in ticks]
    missing = any(place is None for place in at)
    if missing:
        ticks, names = [-1.0 if axis.categories is not None else below, *ticks], ["not in play", *names]
    return {"label": label, "values": values, "tickvals": ticks, "ticktext": names}


def slices(info: Parameters) -> Figure:
    """The objective over each parameter; hover over a point for its trial, click a state in the legend to hide it."""
    from plotly.subplots import make_subplots

    axes = info.axes[:MAX_PARAMETERS] or (Axis("trial", False, None),)
    columns = min(3, len(axes))
    rows = -(-len(axes) // columns)
    titles = [_plain(axis.path) for axis in axes]
    figure = make_subplots(rows=rows, cols=columns, shared_yaxes=True, subplot_titles=titles)
    named: set[str] = set()
    for index, axis in enumerate(axes):
        row, column = index // columns + 1, index % columns + 1
        for state in LOOKS:
            points = [
                (place, point) for point in info.points
                if point.state == state and point.value is not None
                and (place := axis.place(point.params.get(axis.path))) is not None
            ]  # fmt: skip
            if not points:
                continue
            figure.add_scatter(
                x=[place for place, _ in points], y=[point.value for _, point in points], mode="markers", name=state,
                legendgroup=state, showlegend=state not in named, row=row, col=column,
                marker={"color": look(state).colour, "size": 8},
                text=[_described(point) for _, point in points], hoverinfo="text",
            )  # fmt: skip
            named.add(state)
        if axis.categories is not None:
            names = [_plain(shown(each)) for each in axis.categories]
            figure.update_xaxes(tickvals=list(range(len(names))), ticktext=names, row=row, col=column)
        elif axis.log:
            figure.update_xaxes(type="log", row=row, col=column)
    figure.update_yaxes(title_text=_plain(info.objective), col=1)
    figure.update_layout(height=280 * rows + 80)
    return figure


def _described(point: Any) -> str:
    lines = [f"trial {point.trial}: {point.state}", f"value {number(point.value, 4)}"]
    lines += [f"{path} {number(value, 4)}" for path, value in point.params.items()]
    return "<br>".join(_plain(line) for line in lines)


def _plain(text: str) -> str:
    """A text of the user's as Plotly shows it: no markup, no mathematics."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("$", "&#36;")


def to_html(figure: Figure) -> str:
    """A page with Plotly inside: it needs nothing beside it (5 MB)."""
    page: str = figure.to_html(include_plotlyjs=True, full_html=True)
    return page
