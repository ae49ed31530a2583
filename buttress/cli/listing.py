"""The verbs that look at several sweeps: `ls` and `diff`."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from buttress.cli.options import Json
from buttress.cli.output import console, print_json
from buttress.cli.results import load
from buttress.errors import BadInput


def ls(
    runs: Annotated[
        str, typer.Argument(metavar="[RUNS]", help="The folder that holds sweeps, or a URL: s3://bucket/sweeps.")
    ] = "runs",
    json_: Json = False,
) -> None:
    """List sweeps, the newest first: state, trials, best value, age."""
    from rich.table import Table
    from rich.text import Text

    from buttress.analysis.listing import list_sweeps
    from buttress.wording import duration, number

    found = list_sweeps(runs)
    if json_:
        print_json([each._asdict() for each in found])
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for title in ("sweep", "state", "trials", "best", "begun"):
        table.add_column(title, no_wrap=title == "sweep", overflow="fold")
    for each in found:
        trials = ", ".join(f"{count} {state}" for state, count in each.trials.items())
        best = f"{each.objective} {number(each.best, 4)}" if each.best is not None else "-"
        ago = f"{duration(max(0.0, time.time() - each.time))} ago" if each.time else "-"
        table.add_row(*map(Text, (each.name, each.state, trials or "-", best, ago)))
    console().print(table if found else f"no sweep in {runs}")


def diff(
    one: Annotated[str, typer.Argument(metavar="SWEEP[:TRIAL]", help="A sweep, or one of its trials: `lithology:7`.")],
    other: Annotated[str, typer.Argument(metavar="SWEEP[:TRIAL]", help="What to compare it with; `:3`: same sweep.")],
    json_: Json = False,
) -> None:
    """Say in what two sweeps, or two trials, differ: config, outcome, metrics."""
    from rich.table import Table
    from rich.text import Text

    from buttress.analysis.listing import compare_sweeps, compare_trials
    from buttress.wording import number

    (first, trial), (second, against) = _parts(one), _parts(other)
    if (trial is None) != (against is None):
        accepted = "two sweeps, or two trials (SWEEP:TRIAL)"
        raise BadInput("a trial is compared with a trial", key="SWEEP[:TRIAL]", value=other, accepted=accepted)
    left = load(first).journal
    right = load(second).journal if second else left
    if trial is not None and against is not None:
        found = compare_trials((left, trial), (right, against))
    else:
        found = compare_sweeps(left, right)
    if json_:
        print_json([each._asdict() for each in found])
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for title in ("", one, other):
        table.add_column(Text(title), overflow="fold")
    for each in found:
        table.add_row(*map(Text, (each.where, number(each.one, 4), number(each.other, 4))))
    console().print(table if found else "no difference")


def _parts(name: str) -> tuple[str, str | None]:
    """`lithology:7` as sweep and trial; colons inside a URL stay with the sweep."""
    sweep, colon, trial = name.rpartition(":")
    return (sweep, trial) if colon and not {*"/@"} & {*trial} else (name, None)
