"""The verb `init`: writes a spec, and for a model of one's own a trainer, into the current folder."""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from buttress.cli.output import say
from buttress.errors import BadInput

OWN = "own"


def init(
    family: Annotated[
        str, typer.Argument(metavar="FAMILY|own", help="A family, such as lithology, or `own` for a model of your own.")
    ] = OWN,
    force: Annotated[bool, typer.Option("--force", help="Write over files that exist.")] = False,
) -> None:
    """Write a search space (and for `own` a trainer) into the current folder, to be changed and run."""
    contents = _own() if family == OWN else _of_family(family)
    existing = [name for name in contents if Path(name).exists()]
    if existing and not force:
        raise BadInput("this file exists", where=existing[0], accepted="another folder, or --force to write over it")
    for name, text in contents.items():
        try:
            Path(name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise BadInput(f"cannot be written ({error.strerror})", where=name) from None
        say(f"wrote {name}")
    spec = next(name for name in contents if name.endswith(".yaml"))
    profile = "" if family == OWN else " --profile quick"
    say(f"\nNext:\n  buttress plan {spec}{profile}\n  buttress run {spec}{profile}")
    if family == OWN:
        say("  buttress table my_vae")


def _own() -> dict[str, str]:
    folder = files("buttress.cli.templates")
    return {name: (folder / name).read_text(encoding="utf-8") for name in ("my_vae.py", "my_vae.yaml")}


def _of_family(family: str) -> dict[str, str]:
    from buttress.api import search_spaces

    spaces = search_spaces()
    if family not in spaces:
        close = difflib.get_close_matches(family, [*spaces, OWN], 1)
        problem = "no such family" + (f"; did you mean {close[0]}?" if close else "")
        raise BadInput(problem, key="FAMILY", value=family, accepted=f"{', '.join(spaces)}, or {OWN}")
    return {f"{family}.yaml": spaces[family].read_text(encoding="utf-8")}
