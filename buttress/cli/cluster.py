"""The verbs that get a cluster ready: `cluster check`, `cluster token`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from buttress.cli.options import Json, Profile, Set
from buttress.cli.output import print_json, say


def check(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Files for `ray up`, or RayCluster manifests for KubeRay.")
    ],
    spec: Annotated[
        str | None, typer.Option("--spec", help="A sweep, as `buttress run` takes it: do its trials fit, and how many?")
    ] = None,
    profile: Profile = None,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Find what would go wrong, without contacting anything: one sentence per fault; exit code 2 if there is one."""
    from buttress import api
    from buttress.cluster.check import check as checked_file

    sweep = api.resolve_spec(spec, profile=profile, set=set_) if spec else None
    checked = [checked_file(path, sweep) for path in files]
    for each in checked:
        for finding in each.findings:
            say(str(finding))
        if not each.findings:
            say(each.line())
    if json_:
        print_json([each.to_dict() for each in checked])
    if any(each.findings for each in checked):
        raise typer.Exit(2)


def token(
    path: Annotated[
        Path | None, typer.Option("--path", help="Where to write it; default: where Ray looks, ~/.ray/auth_token.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a token that is there.")] = False,
) -> None:
    """Make the token that a cluster asks for, as a file that only you can read. It is not printed."""
    from buttress.execution.auth_token import default_path, make

    say(f"wrote {make(path or default_path(), force=force)}")
