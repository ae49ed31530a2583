"""The verbs that ask something of a running sweep: `add`, `stop`, `pause`, `go`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from buttress.cli.options import Sweep
from buttress.cli.output import say
from buttress.cli.results import load
from buttress.errors import BadInput

Trial = Annotated[
    str | None, typer.Argument(metavar="TRIAL", help="A trial, such as 7 or 0007. Default: the whole sweep.")
]


def add(
    sweep: Sweep,
    values: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH=VALUE...", help="Searched values: `loss.beta=0.3`. Others are drawn at random."),
    ] = None,
    from_: Annotated[
        Path | None, typer.Option("--from", help="Begin from the searched values in this config (YAML).")
    ] = None,
    trial: Annotated[str | None, typer.Option("--trial", "-t", help="Begin from the values of this trial.")] = None,
) -> None:
    """Run a configuration of your own next, ahead of the sampler, which learns from it."""
    found = load(sweep)
    base = _searched(found.journal.header.spec.get("search") or {}, from_) if from_ is not None else {}
    say(found.add({**base, **_parsed(values or [])}, trial=trial))


def stop(
    sweep: Sweep,
    trial: Trial = None,
    complete: Annotated[
        bool, typer.Option("--complete", help="Its best epoch counts, as if it had come to its end.")
    ] = False,
    fail: Annotated[
        bool, typer.Option("--fail", help="Nothing of it counts, and the sampler avoids such configs.")
    ] = False,
) -> None:
    """End one trial of a running sweep, or the whole sweep as Ctrl-C does; from any terminal."""
    if complete and fail:
        raise BadInput("one trial cannot be both", key="--complete, --fail", accepted="one of them")
    if trial is None and (complete or fail):
        raise BadInput("is for one trial", key="--complete" if complete else "--fail", accepted="with TRIAL")
    say(load(sweep).stop(trial, ending="completed" if complete else "failed" if fail else "stopped"))


def pause(sweep: Sweep, trial: Trial = None) -> None:
    """A trial, or all of them, leaves its slot with a checkpoint until `buttress go`."""
    say(load(sweep).pause(trial))


def go(sweep: Sweep, trial: Trial = None) -> None:
    """A paused trial, or the paused sweep, goes on where it was."""
    say(load(sweep).go(trial))


def _parsed(texts: list[str]) -> dict[str, Any]:
    from buttress.spec.overrides import parse_override

    return dict(parse_override(text) for text in texts)


def _searched(search: dict[str, Any], path: Path) -> dict[str, Any]:
    """The values of searched parameters in a config's file."""
    from buttress.spec.yaml_io import read_yaml

    config = read_yaml(path)
    found = {}
    for name in search:
        value: Any = config
        for key in name.split("."):
            value = value.get(key, ...) if isinstance(value, dict) else ...
        if value is not ...:
            found[name] = value
    return found
