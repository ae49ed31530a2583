"""Applies a profile and `--set key.path=value` overrides to a spec, and overrides to a config.

In a spec, mappings merge, lists and scalars replace, a parameter under `search` is replaced as a whole and null removes
a key. `Sources` remembers where each key was given, so that an error about it can say so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from buttress.errors import BadInput
from buttress.spec.config_paths import PartialGroup
from buttress.spec.parameters import KINDS
from buttress.spec.yaml_io import parse_yaml

DOTTED_SECTIONS = ("fixed", "search", "data")  # sections whose keys are config paths, dots and all
SET_OPTION = "--set"
_SECRET = re.compile(r"(^|_)(api_?key|password|secret)$")


@dataclass(frozen=True)
class Sources:
    """Where the keys of a spec or a config were given.

    Attributes:
        file: the file that was read.
        profile: name of the profile applied to it.
        profile_values: what the profile holds, nested.
        written: file and profile together, before any override.
        overridden: key paths given on the command line.
    """

    file: str | os.PathLike[str] | None = None
    profile: str | None = None
    profile_values: Mapping[str, Any] = field(default_factory=dict)
    written: Mapping[str, Any] = field(default_factory=dict)
    overridden: tuple[str, ...] = ()

    def locate(self, error: BadInput) -> BadInput:
        """The same error, with the file or option and the key path under which its key was given."""
        if error.where:
            return error
        where, key = self._place(error.key)
        return BadInput(error.problem, where=where, key=key, value=error.value, accepted=error.accepted)

    def _place(self, key: str | None) -> tuple[str | os.PathLike[str] | None, str | None]:
        if not key:
            return self.file, key
        for given in self.overridden:
            inside, created = f"{key}.".startswith(f"{given}."), given.startswith(f"{key}.")
            if inside or (created and not _mentions(self.written, key)):
                return SET_OPTION, key
        if self.profile and _mentions(self.profile_values, key):
            return self.file, f"profiles.{self.profile}.{key}"
        return self.file, key


def resolve(
    raw: Mapping[str, Any], *, profile: str | None, overrides: Sequence[str], where: str | os.PathLike[str] | None
) -> tuple[dict[str, Any], Sources]:
    """A spec's file under a profile and overrides.

    Args:
        raw: the spec as read, with its `profiles`.
        profile: name of the profile to apply; None: none.
        overrides: `key.path=value` texts, values in YAML, applied in order.
        where: the file that errors name.

    Returns:
        The spec without `profiles`, and where each of its keys was given.

    Raises:
        BadInput: an unknown profile, an override that does not fit, or a secret in the spec.
    """
    _refuse_secrets(raw, where)
    base = {key: value for key, value in raw.items() if value is not None and key != "profiles"}
    profiles = _profiles(raw, where)
    values: dict[str, Any] = {}
    if profile is not None:
        if profile not in profiles:
            accepted = ", ".join(profiles) or "none: the spec has no profiles"
            raise BadInput("unknown profile", where=where, key="profiles", value=profile, accepted=accepted)
        values = profiles[profile]
        base = merge(base, values)
    written = deepcopy(base)
    keys = tuple(_override_spec(base, text) for text in overrides)
    _refuse_secrets(base, SET_OPTION)
    return base, Sources(where, profile, values, written, keys)


def override_config(
    config: dict[str, Any], overrides: Sequence[str], *, where: str | os.PathLike[str] | None = None,
    example: str = "train.epochs=5",
) -> Sources:
    """Applies overrides to a training config, in place; where each of its keys was given.

    Args:
        config: nested mapping, as a config file holds it.
        overrides: `path=value` texts, values in YAML; `config.path=value` means the same, as in a spec.
        where: the config's file.
        example: an override that errors offer.
    """
    written = deepcopy(config)
    keys = []
    for text in overrides:
        key, value = parse_override(text, example)
        keys.append(key.removeprefix("config."))
        set_value(config, keys[-1], value)
    return Sources(where, written=written, overridden=tuple(keys))


def parse_override(text: str, example: str = "budget.trials=8") -> tuple[str, Any]:
    """Key path and YAML value of one `key.path=value`; raises `BadInput` for anything else, offering `example`."""
    key, sign, rest = text.partition("=")
    key = key.strip()
    if not sign or not all(key.split(".")):
        raise BadInput("is not of the form key.path=value", where=SET_OPTION, value=text, accepted=example)
    try:
        return key, parse_yaml(rest)
    except BadInput as error:
        raise BadInput(error.problem, where=SET_OPTION, key=key, value=rest) from None


def merge(base: Mapping[str, Any], over: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """`over` merged into a copy of `base`: null removes a key, a parameter under `search` is replaced as a whole."""
    result = dict(base)
    for key, value in over.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping) and path != ("search",):
            below = result.get(key)
            result[key] = merge(below if isinstance(below, Mapping) else {}, value, (*path, key))
        else:
            result[key] = value
    return result


def set_value(
    tree: dict[str, Any],
    key: str,
    value: Any,
    *,
    dotted_sections: Sequence[str] = (),
    null_removes: bool = False,
    above: str = "",
) -> None:
    """Sets the key path `key` of a nested mapping, in place; groups that are not there yet are made.

    Args:
        tree: mappings and lists; a number in the path is an index of a list.
        key: `group.name`; a key of `tree` may itself hold dots.
        value: replaces what is there.
        dotted_sections: top-level keys below which a new key keeps its dots.
        null_removes: None removes the key.
        above: the key path of `tree` itself.

    Raises:
        BadInput: the path leads below a plain value or to an entry that a list does not have.
    """
    held = max((name for name in tree if key.startswith(f"{name}.")), key=len, default=None)
    is_leaf = held is None and ("." not in key or above.partition(".")[0] in dotted_sections)
    if key in tree or is_leaf:
        if value is None and null_removes:
            tree.pop(key, None)
        else:
            tree[key] = value
        return
    held = held or key.partition(".")[0]
    rest, here = key[len(held) + 1 :], f"{above}.{held}" if above else held
    inner = tree.get(held)
    below: dict[str, Any] = PartialGroup()
    if isinstance(inner, list):
        below = {str(index): entry for index, entry in enumerate(inner)}
        if (index := rest.partition(".")[0]) not in below:
            accepted = f"0 to {len(below) - 1}" if below else "the list as a whole"
            raise BadInput("is not an entry of the list", where=SET_OPTION, key=f"{here}.{index}", accepted=accepted)
    elif isinstance(inner, dict):
        below = inner
    elif inner is not None:
        raise BadInput("holds a value, so nothing can be set below it", where=SET_OPTION, key=here, value=inner)
    set_value(below, rest, value, dotted_sections=dotted_sections, null_removes=null_removes, above=here)
    if above == "search" and "search" in dotted_sections and rest in KINDS:
        below = {name: given for name, given in below.items() if name == rest or name not in KINDS}
    tree[held] = list(below.values()) if isinstance(inner, list) else below


def _override_spec(spec: dict[str, Any], text: str) -> str:
    """Applies one `key=value` to `spec`; returns the key it addressed, as it stands in the spec."""
    key, value = parse_override(text)
    section, _, path = key.partition(".")
    if section in ("profile", "profiles"):
        raise BadInput("a profile is chosen by its name", where=SET_OPTION, key=key, accepted="--profile NAME")
    if section == "config":
        return _fix_parameter(spec, path, value)
    if section in ("fixed", "search") and path and value is not None:
        other = "search" if section == "fixed" else "fixed"
        if path in (spec.get(other) or {}):
            spec[other] = {name: given for name, given in spec[other].items() if name != path}
    set_value(spec, key, value, dotted_sections=DOTTED_SECTIONS, null_removes=True)
    return key


def _fix_parameter(spec: dict[str, Any], path: str, value: Any) -> str:
    """`config.<path>=value`: fixes a training parameter, whatever searched or fixed it (or a part of it) before."""
    if not path:
        raise BadInput(
            "names no parameter", where=SET_OPTION, key="config", value=value, accepted="config.<path>=value"
        )
    for section in ("search", "fixed"):
        held = spec.get(section)
        if isinstance(held, dict):
            spec[section] = {name: old for name, old in held.items() if not f"{name}.".startswith(f"{path}.")}
    key = path if path.startswith("data.") else f"fixed.{path}"
    set_value(spec, key, value, dotted_sections=DOTTED_SECTIONS)
    return key


def _profiles(raw: Mapping[str, Any], where: Any) -> dict[str, dict[str, Any]]:
    profiles = raw.get("profiles") or {}
    if not isinstance(profiles, dict):
        raise BadInput("has to be a mapping of names to profiles", where=where, key="profiles", value=profiles)
    for name, values in profiles.items():
        if values is not None and not isinstance(values, dict):
            raise BadInput("has to be a mapping (key: value)", where=where, key=f"profiles.{name}", value=values)
        for key in ("profiles", "profile", "name"):
            if key in (values or {}):
                raise BadInput("cannot be set by a profile", where=where, key=f"profiles.{name}.{key}")
    return {name: values or {} for name, values in profiles.items()}


def _mentions(values: Any, key: str) -> bool:
    """Whether the nested `values` hold the key path `key` (or a plain value above it)."""
    while isinstance(values, Mapping):
        held = max((name for name in values if key == name or key.startswith(f"{name}.")), key=len, default=None)
        if held is None:
            return False
        if held == key:
            return True
        values, key = values[held], key[len(held) + 1 :]
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
