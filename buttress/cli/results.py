"""The verbs that read sweeps: `table`, `why`, `export`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from buttress.cli.options import Json, Sweep, named
from buttress.cli.output import console, leave, print_json, say
from buttress.errors import BadInput

if TYPE_CHECKING:
    from buttress.analysis import results


class Format(StrEnum):
    """Formats of a table for other programs."""

    csv = "csv"
    parquet = "parquet"
    markdown = "markdown"


def table(
    sweep: Sweep,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", "-w", metavar="COLUMN=VALUE", help="Only such rows: `outcome=collapsed`, `margin>1`."),
    ] = None,
    sort: Annotated[str | None, typer.Option(help="Sort by this column, `-column` for descending.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every config value, not only the searched ones.")] = False,
    format_: Annotated[
        Format | None, typer.Option("--format", "-f", help="For another program, to --output or on the screen.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", callback=named,
                     help="The file, in the format of its suffix: .csv, .parquet or .md."),
    ] = None,
    json_: Json = False,
) -> None:
    """The trial table: every trial, its parameters, its outcome, and why it was stopped."""
    from buttress.analysis.render import render_sweep

    found = load(sweep)
    if format_ is not None or output is not None:
        from buttress.analysis.table import write_table

        table = found.table(where=where or (), sort=sort, all=all_)
        text = write_table(table, format_.value if format_ else None, output)
        say(f"wrote {output}" if output is not None else text.rstrip("\n"))
        return
    rows = found.rows(where=where or (), sort=sort, all=all_)
    if json_:
        print_json(rows)
    else:
        console().print(render_sweep(found.journal, rows))


def why(
    sweep: Sweep, trial: Annotated[str, typer.Argument(metavar="TRIAL", help="A trial, such as 7 or 0007.")]
) -> None:
    """Explain one trial: its outcome, the rule, values and thresholds behind it, and what was saved."""
    from buttress.analysis.render import render_explanation

    console().print(render_explanation(load(sweep).explain(trial)))


def export(
    sweep: Sweep,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write the config; `-`: standard output.")
    ] = Path("best.yaml"),
    trial: Annotated[str | None, typer.Option("--trial", help="This trial instead of the best one.")] = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="Also copy the best epoch's weights, beside the config.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Export a trial that did not complete; write over foreign files.")
    ] = False,
    optuna: Annotated[
        str | None,
        typer.Option(
            metavar="STORAGE",
            help="Write the whole sweep as an Optuna study instead, for optuna-dashboard: "
            "`sqlite:///study.db`, or a .log file.",
        ),
    ] = None,
) -> None:
    """Write the best trial's config, ready for `buttress train` or for the original trainer."""
    from buttress.analysis.export import NothingHealthy
    from buttress.analysis.export import export as export_text

    if optuna is not None:
        from buttress.search.optuna_export import export_study

        say(f"wrote study {export_study(load(sweep).journal, optuna)}; look at it: optuna-dashboard {optuna}")
        return
    found = load(sweep)
    if found.status == "killed" or found.journal.torn:
        cut = f"; {found.journal.torn} bytes at its end are torn" if found.journal.torn else ""
        note = f"note: the journal of {found.name} does not end with the sweep's end{cut}"
        say(f"{note}: this is the best of what it holds", error=True)
    try:
        if str(output) == "-":
            if weights:
                raise BadInput("weights are not written to standard output", key="-o", accepted="the name of a file")
            say(export_text(found.journal, trial, force=force).rstrip("\n"))
            return
        for path in found.export(output, trial=trial, weights=weights, force=force):
            say(f"wrote {path}")
    except NothingHealthy as error:
        leave(str(error), error.exit_code)


def load(name: str) -> results.Sweep:
    """The sweep called `name`; which one was chosen of several is said on standard error."""
    from buttress import api

    sweep = api.load(name)
    if sweep.note:
        say(sweep.note, error=True)
    return sweep
