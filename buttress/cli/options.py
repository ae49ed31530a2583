"""Arguments and options that several verbs share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from buttress.errors import BadInput


def named(path: Any) -> Any:
    """Refuses `-` for a file or folder to write: elsewhere it means standard output."""
    if str(path) == "-":
        raise BadInput("is not the name of a file", key="-o", value="-", accepted="a file; `export` alone takes -")
    return path


Spec = Annotated[
    str,
    typer.Argument(
        metavar="SPEC", help="A search space that comes with Buttress (`lithology`), or the path of a YAML file."
    ),
]
Sweep = Annotated[
    str, typer.Argument(metavar="SWEEP", help="A sweep's folder or URL, or its name (or how that begins) under runs/.")
]
Profile = Annotated[str | None, typer.Option("--profile", "-p", help="A profile of the spec, such as `quick`.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change the spec (`budget.trials=8`) or fix a training "
                 "parameter (`config.train.epochs=5`). May be given several times."),
]
SetConfig = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="PATH=VALUE", help="Change the config (`train.epochs=5`). May be given several "
                 "times."),
]
WarmStart = Annotated[
    list[str] | None,
    typer.Option("--warm-start", metavar="SWEEP", help="Tell the sampler the trials of this earlier sweep first, "
                 "collapsed ones included. May be given several times."),
]
Address = Annotated[
    str | None,
    typer.Option("--address", envvar="RAY_ADDRESS", help="A running Ray cluster; by default Ray is started here."),
]
StepsPerEpoch = Annotated[
    int | None,
    typer.Option(min=1, help="Of curves that have epochs only (default 1,000) or steps only (default: no epoch ends).")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on the last line of standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress display.")]
Report = Annotated[
    bool, typer.Option("--report", help="Keep report.html in the sweep's folder up to date, about once a minute.")
]
