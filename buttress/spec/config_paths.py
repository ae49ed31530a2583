"""Paths of a trainable's pydantic `Config`: which exist, what a misspelt one may mean, and how to set values at them.

A path leaves the rest of its group at the trainable's defaults; a mapping given as a *value* replaces the group. So
`loss.beta.end: 2` keeps a default `loss.beta = Linear(start=0, end=1, epochs=50)` but for its end, and
`loss.beta: {kind: constant, value: 1}` replaces it.
"""

from __future__ import annotations

import difflib
import functools
import typing
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from buttress.errors import BadInput, members

MAX_DEPTH = 8  # groups inside groups that are listed


class PathTarget(NamedTuple):
    """What a config path may hold.

    Attributes:
        groups: the groups (pydantic models) that it may hold.
        value: whether it may hold a plain value.
    """

    groups: tuple[type[BaseModel], ...]
    value: bool


class PartialGroup(dict[str, Any]):
    """A group of which paths set a part: what is not in it keeps the trainable's default."""


def find(Config: type[BaseModel], path: str) -> PathTarget | None:
    """What `path` holds in some form of the config (unions and optional groups included); None if it does not exist."""
    here: list[Any] = [Config]
    for part in path.split("."):
        here = [inner for member in members(here) for inner in _below(member, part)]
        if not here:
            return None
    kinds = members(here)
    groups = tuple(kind for kind in kinds if _is_group(kind))
    return PathTarget(groups, len(groups) < len(kinds) or not kinds)


def leaves(Config: type[BaseModel]) -> list[str]:
    """The paths of all plain values, in the order of the config's fields."""
    return list(dict.fromkeys(_leaves([Config], "", 0)))


def unknown_path(Config: type[BaseModel], path: str) -> BadInput:
    """The error for a `path` that `Config` does not have, with a similar path, or with those of its group."""
    known = leaves(Config)
    close = difflib.get_close_matches(path, known, 1, cutoff=0.75)
    last = path.rpartition(".")[2]
    if not close:
        close = [name for name in known if name.rpartition(".")[2] == last][:1]
    if not close:
        close = [n for n in known if difflib.get_close_matches(last, [n.rpartition(".")[2]], 1, cutoff=0.8)][:1]
    if close:
        return BadInput(f"no such parameter; did you mean {close[0]}?", key=path)
    group = path
    while group and find(Config, group) is None:
        group = group.rpartition(".")[0]
    inside = [name for name in known if not group or name.startswith(f"{group}.")]
    return BadInput("no such parameter", key=path, accepted=_abbreviated_list(inside))


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Values at dotted paths as a nested mapping; a deeper path overrides what a shorter one gives."""
    tree: dict[str, Any] = PartialGroup()
    for path in sorted(flat, key=lambda path: path.count(".")):
        *groups, last = path.split(".")
        here = tree
        for step in groups:
            inner = here.get(step)
            here[step] = type(inner)(inner) if isinstance(inner, dict) else PartialGroup()
            here = here[step]
        here[last] = flat[path]
    return tree


def layered(
    Config: type[BaseModel], given: Mapping[str, Any], *, fill: bool = False, base: BaseModel | None = None
) -> dict[str, Any]:
    """Values merged over the trainable's defaults, ready for validation by `Config`.

    Args:
        Config: a group of the trainable's config.
        given: nested values, from `nested` or from a config file.
        fill: writes every default out, without validating anything: the draft over which `when` is evaluated while
            some parameters are not drawn yet.
        base: the instance of `Config` whose values are the defaults. Default: those of its fields.
    """
    result: dict[str, Any] = {}
    for name, info in Config.model_fields.items():
        default = getattr(base, name) if base is not None else _default(info)
        if name in given:
            result[name] = _layer(info.annotation, given[name], default, fill)
        elif base is not None or (fill and default is not PydanticUndefined):
            result[name] = default
        elif fill and len(groups := [kind for kind in members([info.annotation]) if _is_group(kind)]) == 1:
            result[name] = layered(groups[0], {}, fill=True)
    return result | {name: value for name, value in given.items() if name not in result}


def _layer(annotation: Any, value: Any, default: Any, fill: bool) -> Any:
    if not isinstance(value, dict):
        return value
    partial = isinstance(value, PartialGroup)
    groups = [kind for kind in members([annotation]) if _is_group(kind)]
    if not groups:
        if partial and isinstance(default, Mapping):
            inner = {k: _layer(type(default.get(k)), v, default.get(k), fill) for k, v in value.items()}
            return {**default, **inner}
        return value
    group = _choose_group(groups, value, type(default) if partial else None)
    return layered(group, value, fill=fill, base=default if partial and type(default) is group else None)


def _choose_group(groups: list[type[BaseModel]], value: dict[str, Any], preferred: Any) -> type[BaseModel]:
    """The member of a union of groups that `value` is meant for: by its tags, else by its keys."""

    def fits(group: type[BaseModel]) -> bool:
        return all(value[name] == tag for name, tag in _tags(group).items() if name in value)

    candidates = [group for group in groups if fits(group)] or groups
    if preferred in candidates:
        return preferred
    return next((group for group in candidates if set(value) <= set(group.model_fields)), candidates[0])


@functools.cache  # needed hundreds of times per draw
def _tags(group: type[BaseModel]) -> dict[str, Any]:
    """The fields of a group that allow a single value, and that value."""
    return {name: tag[0] for name, info in group.model_fields.items() if len(tag := _literal(info.annotation)) == 1}


def _literal(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()


def _default(info: Any) -> Any:
    if info.default_factory is not None and info.default_factory_takes_validated_data:
        return PydanticUndefined
    return info.get_default(call_default_factory=True)


def _below(member: Any, part: str) -> list[Any]:
    if _is_group(member):
        if part in member.model_fields:
            return [member.model_fields[part].annotation]
        return [Any] if member.model_config.get("extra") == "allow" else []
    if member is Any or member is dict:
        return [Any]
    return list(typing.get_args(member)[1:]) if typing.get_origin(member) in (dict, Mapping) else []


def _leaves(annotations: list[Any], path: str, depth: int) -> Iterator[str]:
    kinds = members(annotations)
    groups = [kind for kind in kinds if _is_group(kind)]
    if path and (len(groups) < len(kinds) or not kinds):
        yield path
    for group in groups if depth < MAX_DEPTH else ():
        for name, info in group.model_fields.items():
            yield from _leaves([info.annotation], f"{path}.{name}" if path else name, depth + 1)


def _is_group(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _abbreviated_list(names: list[str], limit: int = 30) -> str:
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")
