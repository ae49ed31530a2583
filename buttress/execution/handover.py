"""Exports the best config of a sweep and its weights, and checks a family's data."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from buttress import journal
from buttress.analysis.export import checkpoint_of, chosen, export, export_weights, write
from buttress.errors import BadInput, from_pydantic
from buttress.training import registry
from buttress.training.trainable import Trainable


def export_best(
    sweep: str, output: Path, *, trial: str | None = None, weights: bool = False, force: bool = False
) -> list[Path]:
    """Writes the config (and the weights, as a plain state dict in a `.pt` beside it); returns the files."""
    found = journal.read(journal.find(sweep).path)
    text = export(found, trial, force=force)
    written = [write(text, output, force=force)]
    if weights:
        import torch

        source = checkpoint_of(found, chosen(found, trial, force=force))
        trainable = registry.load(found.header.trainable)
        load = partial(weights_of, trainable)
        written.append(export_weights(source, output.with_suffix(".pt"), load=load, save=torch.save, force=force))
    return written


def weights_of(trainable: Trainable[Any], checkpoint: Path) -> dict[str, Any]:
    """The model of a checkpoint as a plain state dict.

    A trainable that has `weights(checkpoint)` says itself; else the loop's modules (`module.<pass>`), or `model`.
    """
    from buttress.training.checkpoints import load_checkpoint

    content = load_checkpoint(checkpoint)
    own = getattr(trainable, "weights", None)
    if own is not None:
        return dict(own(content))
    modules = {key.removeprefix("module."): value for key, value in content.items() if key.startswith("module.")}
    if len(modules) == 1:
        return dict(next(iter(modules.values())))
    if modules:
        return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.items()}
    if isinstance(content.get("model"), dict):
        return content["model"]
    raise BadInput("holds no model", where=checkpoint, accepted="a checkpoint with a state dict under `model`")


def check_data(family: str, path: Path, overrides: Sequence[str] = ()) -> Any:
    """What is in a family's data at `path`, as a table: the rows of the trainable's `check_data`."""
    from rich.table import Table

    from buttress.spec.config_paths import layered
    from buttress.spec.overrides import override_config

    trainable = registry.load(family)
    own = getattr(trainable, "check_data", None)
    if own is None:
        raise BadInput("this trainable cannot check data", key="FAMILY", value=family)
    content: dict[str, Any] = {}
    sources = override_config(content, overrides, example="data.layout=force2020")
    try:
        config = trainable.Config.model_validate(layered(trainable.Config, content))
    except ValidationError as error:
        raise sources.locate(from_pydantic(error, trainable.Config)) from None
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in own(path, config):
        table.add_row(name, text)
    return table
