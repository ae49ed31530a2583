"""What lies over a spec's file: the chosen profile, then the `key.path=value` overrides of the command line.

Mappings merge, lists and scalars replace, a parameter under `search` is replaced as a whole, null removes a key.
`Sources` remembers which layer gave a key, so that an error about it can say where it stands.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from buttress.errors import BadInput
from buttress.spec.parameters import KINDS
from buttress.spec.yaml_io import parse_yaml

DOTTED = ("fixed", "search", "data")  # sections whose keys are config paths, dots and all
_SECRET = re.compile(r"(^|_)(api_?key|password|secret)$")
_SET = "--set"


@dataclass(frozen=True)
class Sources:
    """Where a spec came from: its file, the profile laid over it (`layer`; both together: `written`), and the keys
    given on the command line."""

    file: str | os.PathLike[str] | None = None
    profile: str | None = None
    layer: Mapping[str, Any] = field(default_factory=dict)
    written: Mapping[str, Any] = field(default_factory=dict)
    overridden: tuple[str, ...] = ()

    def place(self, key: str | None) -> tuple[str | os.PathLike[str] | None, str | None]:
        """The `where` and `key` by which a person finds the spec's `key`."""
        if not key:
            return self.file, key
        for given in self.overridden:
            inside, created = f"{key}.".startswith(f"{given}."), given.startswith(f"{key}.")
            if inside or (created and not _gives(self.written, key)):
                return _SET, key
        if self.profile and _gives(self.layer, key):
            return self.file, f"profiles.{self.profile}.{key}"
        return self.file, key

    def told(self, error: BadInput) -> BadInput:
        """`error`, about a key of the spec, said to stand where that key was given."""
        if error.where:
            return error
        where, key = self.place(error.key)
        return BadInput(error.problem, where=where, key=key, value=error.value, accepted=error.accepted)


def laid_over(
    raw: Mapping[str, Any], *, profile: str | None, overrides: Sequence[str], where: str | os.PathLike[str] | None
) -> tuple[dict[str, Any], Sources]:
    """The spec `raw` (as read, `profiles` and all) under `profile` and `overrides`, and where each key comes from."""
    _refuse_secrets(raw, where)
    base = {key: value for key, value in raw.items() if value is not None and key != "profiles"}
    profiles = _profiles(raw, where)
    layer: dict[str, Any] = {}
    if profile is not None:
        if profile not in profiles:
            accepted = ", ".join(profiles) or "none: the spec has no profiles"
            raise BadInput("unknown profile", where=where, key="profiles", value=profile, accepted=accepted)
        layer = profiles[profile]
        base = merged(base, layer)
    written = deepcopy(base)
    keys = tuple(_override(base, text) for text in overrides)
    _refuse_secrets(base, _SET)
    return base, Sources(where, profile, layer, written, keys)


def merged(base: Mapping[str, Any], over: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """`over` laid over `base`; neither is changed."""
    result = dict(base)
    for key, value in over.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping) and path != ("search",):
            below = result.get(key)
            result[key] = merged(below if isinstance(below, Mapping) else {}, value, (*path, key))
        else:
            result[key] = value
    return result


def _profiles(raw: Mapping[str, Any], where: Any) -> dict[str, dict[str, Any]]:
    profiles = raw.get("profiles") or {}
    if not isinstance(profiles, dict):
        raise BadInput("has to be a mapping of names to layers", where=where, key="profiles", value=profiles)
    for name, layer in profiles.items():
        if layer is not None and not isinstance(layer, dict):
            raise BadInput("has to be a mapping (key: value)", where=where, key=f"profiles.{name}", value=layer)
        for key in ("profiles", "profile", "name"):
            if key in (layer or {}):
                raise BadInput("cannot be set by a profile", where=where, key=f"profiles.{name}.{key}")
    return {name: layer or {} for name, layer in profiles.items()}


def _override(spec: dict[str, Any], text: str) -> str:
    """Applies one `key=value` to `spec`; the key it addressed, as it stands in the spec."""
    key, sign, rest = text.partition("=")
    key = key.strip()
    if not sign or not all(key.split(".")):
        raise BadInput("is not of the form key.path=value", where=_SET, value=text, accepted="budget.trials=8, for one")
    try:
        value = parse_yaml(rest)
    except BadInput as error:
        raise BadInput(error.problem, where=_SET, key=key, value=rest) from None
    section, _, path = key.partition(".")
    if section == "profiles":
        raise BadInput("a profile is chosen by its name", where=_SET, key=key, accepted="--profile NAME")
    if section == "config":
        return _fix(spec, path, value)
    if section in DOTTED and path and value is not None:
        other = "search" if section == "fixed" else "fixed"
        if section != "data" and path in (spec.get(other) or {}):
            spec[other] = {name: given for name, given in spec[other].items() if name != path}
    _put(spec, key, value, above="")
    return key


def _fix(spec: dict[str, Any], path: str, value: Any) -> str:
    """`config.<path>=value`: fixes a training parameter, whatever searched or fixed it (or a part of it) before."""
    if not path:
        raise BadInput("names no parameter", where=_SET, key="config", value=value, accepted="config.<path>=value")
    for section in ("search", "fixed"):
        held = spec.get(section)
        if isinstance(held, dict):
            spec[section] = {name: old for name, old in held.items() if not f"{name}.".startswith(f"{path}.")}
    key = path if path.startswith("data.") else f"fixed.{path}"
    _put(spec, key, value, above="", remove=False)
    return key


def _put(tree: dict[str, Any], key: str, value: Any, *, above: str, remove: bool = True) -> None:
    """Sets `key` in `tree` in place; null removes it unless `remove` is off."""
    if key in tree:
        if value is None and remove:
            del tree[key]
        else:
            tree[key] = value
        return
    held = max((name for name in tree if key.startswith(f"{name}.")), key=len, default=None)
    if held is None:
        if above.partition(".")[0] in DOTTED:
            if value is not None or not remove:
                tree[key] = value
            return
        held = key.partition(".")[0]
        if "." not in key:
            if value is not None or not remove:
                tree[key] = value
            return
    rest, here = key[len(held) + 1 :], f"{above}.{held}" if above else held
    inner = tree.get(held)
    if isinstance(inner, list):
        index = rest.partition(".")[0]
        if not index.isdigit() or int(index) >= len(inner):
            accepted = f"0 to {len(inner) - 1}" if inner else "the list as a whole"
            raise BadInput("is not an entry of the list", where=_SET, key=f"{here}.{index}", accepted=accepted)
        as_mapping = {str(place): entry for place, entry in enumerate(inner)}
        _put(as_mapping, rest, value, above=here, remove=remove)
        tree[held] = list(as_mapping.values())
        return
    if inner is not None and not isinstance(inner, dict):
        raise BadInput("holds a value, so nothing can be set below it", where=_SET, key=here, value=inner)
    tree[held] = inner or {}
    _put(tree[held], rest, value, above=here, remove=remove)
    if above == "search" and rest in KINDS:
        tree[held] = {name: given for name, given in tree[held].items() if name == rest or name not in KINDS}


def _gives(layer: Any, key: str) -> bool:
    """Whether the nested `layer` says something about the key path `key` (or replaces something above it)."""
    while isinstance(layer, Mapping):
        held = max((name for name in layer if key == name or key.startswith(f"{name}.")), key=len, default=None)
        if held is None:
            return False
        if held == key:
            return True
        layer, key = layer[held], key[len(held) + 1 :]
    return True


def _refuse_secrets(tree: Any, where: Any, above: str = "") -> None:
    pairs = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    for name, value in pairs:
        key = f"{above}.{name}" if above else str(name)
        last = str(name).rpartition(".")[2].lower().replace("-", "_")
        if _SECRET.search(last):
            accepted = "WANDB_API_KEY in the environment" if "api" in last else "an environment variable"
            problem = "secrets come from the environment, never from a spec"
            raise BadInput(problem, where=where, key=key, accepted=accepted)
        _refuse_secrets(value, where, key)
