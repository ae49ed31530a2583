"""Families with the loss on validation data that a user of a stock tuner would watch, as trainables of their own:
`benchmarks.watched:occupancy` is occupancy with what CollapseBench's family of that name makes of it."""

from __future__ import annotations

from typing import Any

from benchmarks.collapsebench.family import load


def __getattr__(family: str) -> Any:
    """The class of the trainable, so that a worker finds it by name; AttributeError where there is none of its own."""
    made = None if family.startswith("_") else load(family).watched
    if made is None:
        raise AttributeError(f"{family} needs no trainable of its own to report its validation loss")
    return type(made())


def name_of(family: str) -> str:
    """What `trainables.load` finds: the family itself where it reports that loss anyway."""
    return family if load(family).watched is None else f"{__name__}:{family}"
