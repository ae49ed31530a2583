"""The error for bad input: where it stands, what came and what is accepted, in one sentence.

Every package raises `BadInput`; the command line prints its sentence and exits with 2. This module imports nothing but
the standard library, so that every package may use it (pydantic's errors are translated without importing pydantic).
"""

from __future__ import annotations

import difflib
import os
import re
import types
import typing
from typing import Any

#: What may hold a secret in a URL: all before the host (a secret may have slashes), and parameters with such a name.
#: Lengths are bounded, and a scheme begins a word: whole pages and pictures as text pass through here.
_URL_SECRETS = re.compile(
    r"(?P<scheme>(?<![\w+.-])[a-z][\w+.-]{0,30}://)(?:[^/\s'\"@]{0,2000}|[^/:\s'\"@]{0,500}:(?!\d+/)[^\s'\"@]{0,2000})@"
    r"|(?P<name>[?&][^=&\s'\"]{0,80}(?:key|secret|token|signature|credential|passw)[^=&\s'\"]{0,80}=)[^&\s'\"]+",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """`text` without the credentials that URLs in it hold.

        >>> redacted("no bucket at s3://AKIA123:c2VjcmV0@bucket/sweeps")
        'no bucket at s3://***@bucket/sweeps'
    """
    return _URL_SECRETS.sub(lambda found: f"{found['scheme']}***@" if found["scheme"] else f"{found['name']}***", text)


#: Control characters but newline and tab, marks that turn the direction of writing, and halves of characters.
_CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """A text as it may be shown: what a terminal would obey is written as an escape, `\\x1b`, and credentials as `***`.

    Every foreign text (names, paths, choices, messages of others) passes through here before a person sees it.
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), redacted(text))


class BadInput(ValueError):
    """Input that cannot be used.

    Args:
        problem: what is wrong with it.
        where: the file or command-line option that it came from.
        key: the key path inside it (`loss.beta.end`).
        value: what came; `...`: not shown.
        accepted: what would have been accepted.

        >>> print(BadInput("unknown key", where="rainfall.yaml", key="budjet", accepted="budget, data, fixed"))
        rainfall.yaml: budjet: unknown key; accepted: budget, data, fixed
    """

    def __init__(
        self,
        problem: str,
        *,
        where: str | os.PathLike[str] | None = None,
        key: str | None = None,
        value: Any = ...,
        accepted: str | None = None,
    ) -> None:
        self.problem, self.where, self.key, self.value, self.accepted = problem, where, key, value, accepted
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [str(part) for part in (self.where, self.key) if part]
        sentence = ": ".join([*parts, self.problem])
        if self.value is not ...:
            sentence += f" (got {_short(self.value)})"
        if self.accepted:
            sentence += f"; accepted: {self.accepted}"
        return printable(sentence).replace("\n", "\\n").replace("\t", "\\t")

    def at(self, where: str | os.PathLike[str]) -> BadInput:
        """The same error, naming the file `where` unless it already names one."""
        return self if self.where else BadInput(
            self.problem, where=where, key=self.key, value=self.value, accepted=self.accepted
        )


def from_pydantic(error: Any, model: Any, *, where: str | os.PathLike[str] | None = None, under: str = "") -> BadInput:
    """The most informative entry of a `pydantic.ValidationError` as a `BadInput`.

    Unknown keys come first, because a misspelt key is also a missing one. Further faults are counted, not listed.

    Args:
        error: the `ValidationError`.
        model: the pydantic class that was validated; its field names are offered for an unknown key.
        where: the file that the input came from.
        under: the key path of the input in that file.
    """
    found: dict[str, list[BadInput]] = {}
    entries = error.errors()
    for entry in sorted(entries, key=lambda entry: entry["type"] != "extra_forbidden"):
        found.setdefault(key_of(entry["loc"], model), []).append(_translate(entry, model))
    for key in list(found):  # for members of a union and items of a list, the deepest errors are the ones to show
        grouped = isinstance(found[key][0].value, (dict, list, tuple))
        if len(found) > 1 and grouped and any(k.startswith(f"{key}.") for k in found):
            del found[key]
    key, errors = next(iter(found.items()))
    problem = " or ".join(dict.fromkeys(one.problem for one in errors))
    if len(found) > 1:
        problem += f" (the first of {len(found)} faults)"
    accepted = ", ".join(dict.fromkeys(one.accepted for one in errors if one.accepted)) or None
    below = errors[0].key  # a BadInput raised inside a validator may name a key below
    full = ".".join(part for part in (under, key, below) if part)
    value = ... if isinstance(errors[0].value, dict) else errors[0].value
    return BadInput(problem, where=where, key=full or None, value=value, accepted=accepted)


def key_of(loc: tuple[Any, ...], model: Any) -> str:
    """The key path of a pydantic `loc`, without the labels that pydantic inserts for the members of a union."""
    path: list[str] = []
    here = [model]
    for part in loc:
        kinds = members(here)
        if len(kinds) > 1 and (chosen := [kind for kind in kinds if _has_label(kind, part)]):
            here = chosen
            continue
        path.append(str(part))
        here = [inner for kind in kinds for inner in _types_at(kind, part)]
    return ".".join(path)


def members(annotations: list[Any]) -> list[Any]:
    """The types that a value may have, without None: unions, `Annotated` and aliases resolved."""
    kinds: list[Any] = []
    for annotation in annotations:
        annotation = getattr(annotation, "__value__", annotation)
        if hasattr(annotation, "__metadata__"):
            kinds += members([annotation.__origin__])
        elif isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
            kinds += members([arg for arg in typing.get_args(annotation) if arg is not type(None)])
        else:
            kinds.append(annotation)
    return kinds


def _has_label(member: Any, label: Any) -> bool:
    """Whether pydantic calls this member of a union by `label`: a tag of its own, or the name of its type."""
    fields = getattr(member, "model_fields", {})
    literals = [field.annotation for field in fields.values() if typing.get_origin(field.annotation) is typing.Literal]
    tags = {tag for literal in literals for tag in typing.get_args(literal)}
    name = getattr(typing.get_origin(member) or member, "__name__", str(member))
    if fields:
        return label in tags or label == name or (str(label).startswith("function-") and name in str(label))
    generated = (f"{name}[", "constrained-", "function-", "literal[")
    return isinstance(label, str) and (label == name or label.startswith(generated))


def _types_at(member: Any, part: Any) -> list[Any]:
    """The types of what a value of type `member` may hold at the key or index `part`."""
    if part in getattr(member, "model_fields", {}):
        return [member.model_fields[part].annotation]
    arguments = [arg for arg in typing.get_args(member) if arg is not ...]
    return arguments[-1:] if typing.get_origin(member) in (dict, list, tuple, set, frozenset) else []


def _translate(entry: dict[str, Any], model: Any) -> BadInput:
    """One entry of pydantic's; `key` is set only where a validator named one below."""
    kind, context, value = entry["type"], entry.get("ctx", {}), entry.get("input", ...)
    if kind == "extra_forbidden":
        name, offered = str(entry["loc"][-1]), _fields_at(model, entry["loc"][:-1])
        close = difflib.get_close_matches(name, offered, 1)
        problem = f"unknown key; did you mean {close[0]}?" if close else "unknown key"
        return BadInput(problem, accepted=None if close else ", ".join(offered) or None)
    if kind == "missing":
        return BadInput("is missing")
    if isinstance(inner := context.get("error"), BadInput):
        return inner
    if kind in ("value_error", "assertion_error"):
        message = entry["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        return BadInput(message[:1].lower() + message[1:], value=value)
    if kind in ("literal_error", "enum"):
        return BadInput("is not one of the choices", value=value, accepted=context["expected"])
    if kind == "union_tag_invalid":
        problem = f"{_unquoted(context['discriminator'])} is not one of the choices"
        return BadInput(problem, value=context["tag"], accepted=context["expected_tags"])
    if kind == "union_tag_not_found":
        return BadInput(f"does not say its {_unquoted(context['discriminator'])}", value=value)
    for beginning, sentence in _SENTENCES.items():
        if kind.startswith(beginning):
            limits = {name: f"{limit:g}" if isinstance(limit, float) else limit for name, limit in context.items()}
            return BadInput(sentence.format(**limits), value=value)
    return BadInput(entry["msg"][:1].lower() + entry["msg"][1:], value=value)


def _unquoted(name: str) -> str:
    return name.strip("'")


_SENTENCES = {  # the beginning of pydantic's error type -> what is needed (longer beginnings before shorter ones)
    "int_": "has to be a whole number",
    "float_": "has to be a number",
    "finite_number": "has to be a finite number",
    "bool_": "has to be true or false",
    "string_type": "has to be a text",
    "string_too_short": "has to have at least {min_length} characters",
    "string_pattern_mismatch": "does not fit the pattern {pattern}",
    "model_": "has to be a mapping (key: value)",
    "dict_": "has to be a mapping (key: value)",
    "mapping_": "has to be a mapping (key: value)",
    "list_type": "has to be a list",
    "tuple_type": "has to be a list",
    "set_type": "has to be a list",
    "too_short": "has to have at least {min_length} entries",
    "too_long": "may have at most {max_length} entries",
    "greater_than_equal": "has to be at least {ge}",
    "greater_than": "has to be greater than {gt}",
    "less_than_equal": "may be at most {le}",
    "less_than": "has to be less than {lt}",
}


def _fields_at(model: Any, path: tuple[Any, ...]) -> list[str]:
    """Field names of the (nested) models at `path`; an empty list where the path leaves the models."""
    here = [model]
    for part in path:
        kinds = members(here)
        chosen = [kind for kind in kinds if _has_label(kind, part)] if len(kinds) > 1 else []
        here = chosen or [inner for kind in kinds for inner in _types_at(kind, part)]
    return [name for kind in members(here) for name in getattr(kind, "model_fields", {})]


def _short(value: Any, limit: int = 160) -> str:
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
