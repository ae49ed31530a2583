"""A family's pydantic `Config` seen as a tree of dotted paths: which exist, what is near a misspelt one, and how values
given at some paths become the nested mapping that the `Config` validates.

A path step touches a group and leaves the rest of it at the family's defaults; a mapping given as a *value* is taken
as it is. So `loss.beta.end: 2` keeps a default `loss.beta = Linear(start=0, end=1, epochs=50)` but for its end, and
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

_DEEPEST = 8


class Found(NamedTuple):
    """What stands at a config path: the groups it may be, and whether it may be a plain value."""

    groups: tuple[type[BaseModel], ...]
    value: bool


class PartialGroup(dict[str, Any]):
    """A group reached by the steps of a path: what is not in it keeps the family's default."""


def find(Config: type[BaseModel], path: str) -> Found | None:
    """What stands at `path` in some shape of the config (unions and optional groups included); None if nothing does."""
    here: list[Any] = [Config]
    for part in path.split("."):
        here = [inner for member in members(here) for inner in _below(member, part)]
        if not here:
            return None
    kinds = members(here)
    groups = tuple(kind for kind in kinds if _is_group(kind))
    return Found(groups, len(groups) < len(kinds) or not kinds)


def leaves(Config: type[BaseModel]) -> list[str]:
    """The paths of all plain values, in the order of the config's fields."""
    return list(dict.fromkeys(_leaves([Config], "", 0)))


def unknown(Config: type[BaseModel], path: str) -> BadInput:
    """The error for a `path` that `Config` does not have: what was perhaps meant, or what its group holds."""
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
    return BadInput("no such parameter", key=path, accepted=_listed(inside))


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Values at dotted paths as a nested mapping; of two paths, the one that goes deeper has the last word."""
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
    """`given` (from `nested`) over the family's defaults, ready for validation by `Config`.

    With `fill` every default is written out, without validating anything: the draft over which `when` is evaluated
    while some parameters are still to be drawn.
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
    touched = isinstance(value, PartialGroup)
    groups = [kind for kind in members([annotation]) if _is_group(kind)]
    if not groups:
        if touched and isinstance(default, Mapping):
            inner = {k: _layer(type(default.get(k)), v, default.get(k), fill) for k, v in value.items()}
            return {**default, **inner}
        return value
    group = _chosen(groups, value, type(default) if touched else None)
    return layered(group, value, fill=fill, base=default if touched and type(default) is group else None)


def _chosen(groups: list[type[BaseModel]], value: dict[str, Any], preferred: Any) -> type[BaseModel]:
    """The member of a union of groups that `value` is meant for: by its tags, else by its keys."""

    def fits(group: type[BaseModel]) -> bool:
        return all(value[name] == tag for name, tag in _tags(group).items() if name in value)

    candidates = [group for group in groups if fits(group)] or groups
    if preferred in candidates:
        return preferred
    return next((group for group in candidates if set(value) <= set(group.model_fields)), candidates[0])


@functools.cache  # a draw asks for them hundreds of times
def _tags(group: type[BaseModel]) -> dict[str, Any]:
    """The fields of a group that allow one value alone, and that value."""
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
    for group in groups if depth < _DEEPEST else ():
        for name, info in group.model_fields.items():
            yield from _leaves([info.annotation], f"{path}.{name}" if path else name, depth + 1)


def _is_group(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _listed(names: list[str], limit: int = 30) -> str:
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")
