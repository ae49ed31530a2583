"""The verbs that hold rules against recorded curves: `replay`, `calibrate`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from buttress.cli.options import Json, StepsPerEpoch, named
from buttress.cli.output import console, print_json, say


def replay(
    curves: Annotated[
        str,
        typer.Argument(metavar="CURVES", help="A sweep, a CSV, Parquet or CollapseBench file, or a folder of files."),
    ],
    family: Annotated[str, typer.Option("--family", "-f", help="Whose rules, such as lithology or radio.")],
    rules: Annotated[Path | None, typer.Option(help="This rules file instead of the family's.")] = None,
    steps_per_epoch: StepsPerEpoch = None,
    json_: Json = False,
) -> None:
    """Show what rules would have done to recorded curves: kills, warnings, and where the truth is known, how right."""
    from buttress import api
    from buttress.analysis.render import render_replay

    found = {**api.replay(curves, rules or family, steps_per_epoch=steps_per_epoch).result, "family": family}
    console().print(render_replay(found))
    if json_:
        print_json(found)


def calibrate(
    curves: Annotated[
        str, typer.Argument(metavar="CURVES", help="Curves whose end is known: CollapseBench, or a column `truth`.")
    ],
    family: Annotated[str, typer.Option("--family", "-f", help="Whose rules to begin with.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", callback=named, help="Where to write the rules.")
    ] = Path("rules.yaml"),
    false_kill: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="At most this share of the healthy curves may be killed.")
    ] = 0.02,
    delay: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="A mean delay of this share of the budget is soon enough.")
    ] = 0.05,
    rules: Annotated[Path | None, typer.Option(help="Begin with this rules file instead of the family's.")] = None,
    steps_per_epoch: StepsPerEpoch = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that was edited, or is foreign.")] = False,
    json_: Json = False,
) -> None:
    """Propose thresholds, grace and patience for a family's rules from curves whose end is known."""
    from buttress import api
    from buttress.analysis.calibration import write_rules
    from buttress.analysis.export import check_replaceable

    check_replaceable(output, force)  # before minutes of search
    limits = {"false_kill": false_kill, "delay": delay}
    made = api.calibrate(curves, rules or family, **limits, steps_per_epoch=steps_per_epoch, on_round=say)
    given = {"family": family, "rules": rules, "steps-per-epoch": steps_per_epoch, **limits}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]
    say(write_rules(made, output, command=shlex.join(["buttress", "calibrate", curves, *options]), force=force))
    if json_:
        print_json({"rules": str(output), **made.to_dict()})
