"""The verbs around one training: `train`, `data check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from buttress.cli.options import Json, SetConfig, named
from buttress.cli.output import console, leave, print_json, say


def train(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A config, such as one written by `buttress export`.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", callback=named, help="The folder to write to; default: runs/train-TIME.")
    ] = None,
    set_: SetConfig = None,
    wandb: Annotated[bool, typer.Option("--wandb", help="Write a W&B run: online with a key, else offline.")] = False,
    wandb_project: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its project; default: the trainable's name. Implies --wandb.")
    ] = None,
    wandb_entity: Annotated[
        str | None, typer.Option(metavar="NAME", help="The user or team that it belongs to. Implies --wandb.")
    ] = None,
    wandb_run_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Its id; a run that has it is gone on with. Implies --wandb.")
    ] = None,
    wandb_run_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its name; default: the folder's. Implies --wandb.")
    ] = None,
    wandb_tags: Annotated[str | None, typer.Option(metavar="TAG,TAG", help="Its tags. Implies --wandb.")] = None,
    json_: Json = False,
) -> None:
    """Train one config, judged by the rules of its sweep: writes history.json, and model.pt where the trainer reports
    checkpoints."""
    import buttress
    from buttress.execution.local_training import wandb_options, written

    options = wandb_options(wandb, wandb_project, wandb_entity, wandb_run_id, wandb_run_name, wandb_tags)
    try:
        result = buttress.train(config, out, set=set_, wandb=False if options is None else options)
    except buttress.Collapsed as error:
        leave(str(error), error.exit_code)
    if result["epoch"] is not None:
        say(f"{written(result)}; best valid epoch {result['epoch']}")
    if json_:
        print_json(result)  # the last line, as everywhere
    if result["epoch"] is None:
        leave(written(result), 1)


def data_check(
    family: Annotated[str, typer.Argument(help="A family, such as lithology.")],
    path: Annotated[Path, typer.Argument(help="Its file or folder.")],
    set_: SetConfig = None,
) -> None:
    """Read data as the trainer would, and say what is in it."""
    from rich.table import Table
    from rich.text import Text

    from buttress import api

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in api.check_data(family, path, set=set_):
        table.add_row(Text(name), Text(text))
    console().print(table)
