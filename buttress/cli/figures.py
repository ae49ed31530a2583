"""The verbs that show: `plot`, `report` and `show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from buttress.cli.options import Sweep, named
from buttress.cli.output import say
from buttress.cli.results import load

NAMES = (
    "history, slices, parallel, contour, importance, collapse, pareto, health, rungs, timeline; trial, kl and gan "
    "(of one trial, with --trial)"
)


def plot(
    sweep: Sweep,
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"{NAMES}.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            callback=named,
            help="A .svg, .png or .pdf file; slices and parallel also as .html, to brush. Default: SWEEP-NAME.png.",
        ),
    ] = None,
    trial: Annotated[str | None, typer.Option("--trial", "-t", help="A trial, such as 7 or 0007.")] = None,
) -> None:
    """Draw one figure of a sweep, running or ended, or of one of its trials."""
    from buttress.analysis.figures import FIGURES, save, save_interactive

    found = load(sweep)
    if output is not None and output.suffix.lower() == ".html" and name in FIGURES:
        say(f"wrote {save_interactive(found.journal, name, output)}: {FIGURES[name].shows}")
        return
    drawn = found.plot(name, trial=trial)
    one = f"-{found.journal.trial(trial).id}" if trial is not None and FIGURES[name].of_trial else ""
    path = save(drawn, output or Path(f"{found.name}-{name}{one}.png"))
    say(f"wrote {path}: {FIGURES[name].shows}")


def report(
    sweep: Sweep,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", callback=named,
                     help="The .html file. Default: report.html in the sweep's folder."),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Show it in a browser.")] = False,
) -> None:
    """Write the whole sweep as one HTML page that opens anywhere, for people who were not there."""
    path = load(sweep).report(output)
    say(f"wrote {path}")
    if open_:
        typer.launch(str(path))


def show(
    sweep: Sweep,
    trial: Annotated[str, typer.Argument(metavar="TRIAL", help="A trial, such as 7 or 0007.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", callback=named,
                     help="The .html file. Default: trial.html in the trial's folder."),
    ] = None,
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Show it in a browser.")] = True,
) -> None:
    """Open the page of one trial: why it ended, curves, pictures, config and what its trainer printed."""
    found = load(sweep)
    path = found.trials[found.journal.trial(trial).id].page(output)
    say(f"wrote {path}")
    if open_:
        typer.launch(str(path))
