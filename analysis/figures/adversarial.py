"""The losses of one VAE-GAN trial in seven panels: each alone, then together in three ways."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from buttress.analysis.figures.style import canvas, nothing, symlog
from buttress.analysis.figures.trial import Series, compute_trial
from buttress.journal import Journal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What is drawn, by the metric that holds it, and in which colour.
LOSSES = {
    "train/loss": ("total", "#111111"),
    "train/kl": ("KL", "#7b3fa0"),
    "train/recon": ("reconstruction", "#1b7f5c"),
    "train/disc_loss": ("discriminator", "#c2311f"),
}


class AdversarialLosses(NamedTuple):
    """The losses of a trial that trains a discriminator.

    Attributes:
        trial: Its id.
        state: What became of it.
        losses: Those of `LOSSES` that it reported.
        began: Epoch at which the discriminator began; None where there is none.
    """

    trial: str
    state: str
    losses: dict[str, Series]
    began: float | None


def compute_adversarial(journal: Journal, trial: str) -> AdversarialLosses:
    """The losses; arguments and errors as in `compute_trial`."""
    curves = compute_trial(journal, trial)
    found = {each.metric: each for each in curves.groups.get("train", ())}
    losses = {metric: found[metric] for metric in LOSSES if metric in found}
    judged = losses.get("train/disc_loss")
    return AdversarialLosses(curves.trial, curves.state, losses, judged.epochs[0] if judged else None)


def normalised(series: Series) -> tuple[float, ...]:
    """Its values from 0, its least, to 1, its largest; a constant is 0."""
    low, high = min(series.values), max(series.values)
    return tuple((value - low) / (high - low) if high > low else 0.0 for value in series.values)


def draw_adversarial(info: AdversarialLosses) -> Figure:
    """Four losses alone; then all on one scale, each from its least to its largest value, and each on its own axis."""
    figure = canvas(11, 9)
    if "train/disc_loss" not in info.losses:
        return nothing(figure, f"Trial {info.trial} has reported no loss of a discriminator (train/disc_loss).")
    mosaic: Any = [[*LOSSES][:2], [*LOSSES][2:], ["overview", "scaled"], ["own", "own"]]
    panels = figure.subplot_mosaic(mosaic, sharex=True)
    for metric, (name, colour) in LOSSES.items():
        axes = panels[metric]
        if series := info.losses.get(metric):
            axes.plot(series.epochs, series.values, color=colour, lw=1.3, label=name)
            symlog(axes, series.values)
            panels["overview"].plot(series.epochs, series.values, color=colour, lw=1.2)
            panels["scaled"].plot(series.epochs, normalised(series), color=colour, lw=1.2)
        axes.set_title(name)
    symlog(panels["overview"], [value for series in info.losses.values() for value in series.values])
    panels["overview"].set_title("on one scale")
    panels["scaled"].set_title("each from its least to its largest value")
    _on_own_axes(panels["own"], info)
    panels["own"].set_xlabel("epochs")
    for axes in panels.values():
        if info.began:
            axes.axvspan(0, info.began, color="#999999", alpha=0.12, lw=0)
    figure.legend(loc="outside lower center", ncols=len(LOSSES), frameon=False)
    figure.suptitle(f"Trial {info.trial}, {info.state}; grey: before the discriminator begins", fontsize=10)
    return figure


def _on_own_axes(first: Any, info: AdversarialLosses) -> None:
    """Each loss on an axis of its own, in its colour; those beyond the first stand beside each other on the right."""
    for place, (metric, series) in enumerate(info.losses.items()):
        name, colour = LOSSES[metric]
        axes = first if not place else first.twinx()
        if place > 1:
            axes.spines["right"].set_position(("axes", 1 + 0.09 * (place - 1)))
        if place:
            axes.spines["right"].set_visible(True)
            axes.grid(visible=False)
        axes.plot(series.epochs, series.values, color=colour, lw=1.2)
        axes.tick_params(axis="y", colors=colour)
        axes.set_ylabel(name, color=colour)
    first.set_title("each on its own axis")
