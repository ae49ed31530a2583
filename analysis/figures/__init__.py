"""Figures of sweeps and trials: numbers are computed apart from drawn.

`compute_x(journal)` gives a named tuple of plain numbers, `draw_x(info)` a Matplotlib figure of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from buttress.errors import BadInput, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from buttress.journal import Journal

FORMATS = (".svg", ".png", ".pdf")
#: Figures that can be an .html file, too.
INTERACTIVE = ("parallel", "slices")


class Kind(NamedTuple):
    """One figure: what it shows, and the functions behind it; `of_trial`: it is of one trial."""

    shows: str
    module: str
    compute: str
    draw: str
    of_trial: bool = False


FIGURES = {
    "history": Kind("objective, best so far, regret and cost, trial by trial", "search", "history", "history"),
    "slices": Kind("the objective over each searched parameter; as .html to hover", "search", "parameters", "slices"),
    "parallel": Kind("every trial over all parameters; as .html to brush", "search", "parameters", "parallel"),
    "contour": Kind("the objective over pairs of parameters", "search", "parameters", "contour"),
    "importance": Kind("which parameters decide the objective, and which decide survival", "search", "importance",
                       "importance"),
    "collapse": Kind("where in the search space trials collapse", "search", "collapse_map", "collapse_map"),
    "pareto": Kind("the objectives of a sweep that has several", "search", "pareto", "pareto"),
    "health": Kind("health of every trial, with thresholds and kills", "course", "health", "health"),
    "rungs": Kind("who was compared with whom at which age", "course", "rungs", "rungs"),
    "timeline": Kind("what each slot did when, and what stopping early saved", "course", "timeline", "timeline"),
    "trial": Kind("all curves of one trial", "trial", "trial", "trial", of_trial=True),
    "gan": Kind("the losses of one VAE-GAN trial: alone, on one scale, normalised, on their own axes", "adversarial",
                "adversarial", "adversarial", of_trial=True),
    "kl": Kind("the KL of each latent dimension of one trial over time", "trial", "kl", "kl", of_trial=True),
}  # fmt: skip


def figure(journal: Journal, name: str, trial: str | None = None) -> Figure:
    """Draws one figure.

    Args:
        journal: The sweep.
        name: A key of `FIGURES`.
        trial: Number or id of the trial, for figures of one.

    Returns:
        A Matplotlib figure; a notebook shows it, `save` writes it.

    Raises:
        BadInput: There is no such figure or trial, or the sweep cannot have it.
    """
    from importlib import import_module

    from buttress.analysis.figures.style import label_decades, styled

    kind = FIGURES.get(name)
    if kind is None:
        raise BadInput("no such figure", key="NAME", value=name, accepted=", ".join(FIGURES))
    if kind.of_trial and trial is None:
        raise BadInput("this figure is of one trial", key="--trial", accepted="its number or id")
    module = import_module(f"{__name__}.{kind.module}")
    compute: Callable[..., Any] = getattr(module, f"compute_{kind.compute}")
    draw: Callable[[Any], Figure] = getattr(module, f"draw_{kind.draw}")
    info = compute(journal, trial) if kind.of_trial else compute(journal)
    with styled():
        drawn = draw(info)
        label_decades(drawn)
    return drawn


def save(drawn: Figure, path: Path) -> Path:
    """Writes a figure as its suffix says.

    Raises:
        BadInput: Another suffix than those of `FORMATS`, or a file that cannot be written.
    """
    from buttress.analysis.figures.style import styled

    if path.suffix.lower() not in FORMATS:
        raise BadInput("is not a format of figures", key="--output", value=str(path), accepted=", ".join(FORMATS))
    metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with styled():
            drawn.savefig(path, dpi=150, metadata=metadata)
        if path.suffix.lower() == ".svg":
            path.write_text(printable(path.read_text(encoding="utf-8")), encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot be written ({error.strerror})", key="--output", value=str(path)) from None
    return path


def save_interactive(journal: Journal, name: str, path: Path) -> Path:
    """Writes a figure of `INTERACTIVE` as a page to brush and hover.

    Args:
        journal: The sweep.
        name: A key of `FIGURES`.
        path: An .html file.

    Raises:
        BadInput: The figure has no such page, or the file cannot be written.
    """
    from buttress.analysis.figures import interactive
    from buttress.analysis.figures.search import compute_parameters

    if name not in INTERACTIVE:
        accepted = f"{', '.join(FORMATS)}, or {' and '.join(INTERACTIVE)} as .html"
        raise BadInput("this figure is no page", key="--output", value=str(path), accepted=accepted)
    page = interactive.to_html(getattr(interactive, name)(compute_parameters(journal)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot be written ({error.strerror})", key="--output", value=str(path)) from None
    return path
