"""The types of what journal lines hold, strict as they are read, and what JSON can hold as it is written."""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Strict, TypeAdapter


def _is_name(text: str) -> str:
    """A trial's id: the name of a folder, and of nothing outside of the sweep's."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}", text):
        raise ValueError("is not a trial's id: letters, digits, '_' and '-'")
    return text


def _is_inside(text: str) -> str:
    """A path relative to a trial's folder that stays inside it."""
    parts = text.split("/")
    if not text or len(text) > 512 or "\0" in text or "\\" in text or any(part in ("", ".", "..") for part in parts):
        raise ValueError("is not a path inside the trial's folder")
    return text


Int = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Text = Annotated[str, Strict()]
Flag = Annotated[bool, Strict()]


@dataclass(frozen=True, kw_only=True)
class _Evidence:
    """What `rules.Evidence.to_dict` writes."""

    metric: Text
    transform: Text | None = None
    values: list[Number | None] | None = None
    threshold: Number | None = None
    comparison: Literal["below", "above"] | None = None
    reports: list[tuple[Int, Int]] | None = None
    window: Int | None = None
    against: Text | None = None
    clears_at: Number | None = None


@functools.cache
def _evidence() -> TypeAdapter[_Evidence]:
    return TypeAdapter(_Evidence)


def _is_evidence(entry: dict[str, Any]) -> dict[str, Any]:
    _evidence().validate_python(entry)
    return entry


TrialId = Annotated[str, Strict(), AfterValidator(_is_name)]
InsidePath = Annotated[str, Strict(), AfterValidator(_is_inside)]
Mapped = dict[str, Any]
Entries = tuple[Annotated[Mapped, AfterValidator(_is_evidence)], ...]
Metrics = dict[str, Number | None]


# --- what JSON can hold

#: Types whose values JSON holds as they are: most of a line's leaves, so they are looked for first.
_PLAIN_TYPES = frozenset({str, int, bool, type(None)})


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: NaN and infinities are None, tuples are lists, numpy scalars are numbers.

    Raises:
        TypeError: JSON cannot hold the value; the message ends with the keys that lead to it.
    """
    kind = type(value)
    if kind in _PLAIN_TYPES:
        return value
    if kind is float or isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        made = {}
        for key, item in value.items():
            try:
                made[str(key)] = plain(item)
            except TypeError as error:
                raise _with_key(error, str(key)) from None
        return made
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if is_dataclass(kind):
        return plain(asdict(value))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (str, int)):  # of a class of its own
        return value
    if hasattr(value, "tolist"):  # a numpy scalar or array, a tensor
        return plain(value.tolist())
    raise TypeError(f"a journal line cannot hold {kind.__name__}")


def _with_key(error: TypeError, key: str) -> TypeError:
    """The same error, one key further out."""
    what, _, path = str(error).partition(" at ")
    return TypeError(f"{what} at {key}.{path}" if path else f"{what} at {key}")
