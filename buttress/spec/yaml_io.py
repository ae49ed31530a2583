"""Reads YAML files and command-line values into plain JSON-able Python; the only module that parses YAML input.

Specs, configs, rules files and `--set` values follow YAML 1.2: `3e-4` is a number, `off`, `no` and `12:30` are texts,
only true and false are booleans. Cluster files are read by YAML 1.1's rules, as Ray and Kubernetes read them. A key
given twice is an error, and so is whatever JSON cannot represent.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

from buttress.errors import BadInput

_MAPPING = "a mapping (key: value)"
#: Characters of a YAML text; values in it, each counted as often as an alias repeats it; and levels of nesting.
MAX_LENGTH, MAX_VALUES, MAX_DEPTH = 10_000_000, 200_000, 100
_TOO_MANY = f"holds more than {MAX_VALUES:,} values"


class _UniqueKeyLoader(yaml.SafeLoader):
    """`SafeLoader` that refuses a key given twice and keeps dates as texts."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[tuple[str, str], yaml.Mark] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                first = seen.setdefault((key.tag, key.value), key.start_mark)
                if first is not key.start_mark:
                    line = first.line + 1
                    raise yaml.MarkedYAMLError(
                        problem=f"`{key.value}` is given twice (first in line {line})", problem_mark=key.start_mark
                    )
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MAX_VALUES:  # `<<: [*a, *a]`, again and again
            raise yaml.MarkedYAMLError(problem=_TOO_MANY, problem_mark=node.start_mark)


class _Yaml12Loader(_UniqueKeyLoader):
    """Plain scalars by YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


def _construct_int(loader: Any, node: Any) -> int:
    text = node.value.replace("_", "")
    return int(text, 0) if re.match(r"[-+]?0[xo]", text) else int(text)


def _construct_float(loader: Any, node: Any) -> float:
    text = node.value.replace("_", "").lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    ("merge", r"<<", ["<"]),
):
    _Yaml12Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)
_Yaml12Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Yaml12Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file; raises `BadInput` where it cannot be read or is not UTF-8."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            text = file.read(MAX_LENGTH + 1)
    except FileNotFoundError:
        raise BadInput("no such file", where=path) from None
    except UnicodeDecodeError as error:
        raise BadInput(f"is not a text file (byte {error.start} is not UTF-8)", where=path) from None
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror}", where=path) from None
    except ValueError as error:  # a path with a NUL byte
        raise BadInput(f"cannot be read: {error}", where=path) from None
    if len(text) > MAX_LENGTH:
        raise BadInput(f"is longer than {MAX_LENGTH:,} characters", where=path)
    return text


def read_yaml(path: str | os.PathLike[str], *, accepted: str = _MAPPING) -> dict[str, Any]:
    """The mapping that a YAML 1.2 file holds.

    Args:
        path: a file with one YAML document.
        accepted: what the file should hold, for the error of a file that holds something else.

    Raises:
        BadInput: the file cannot be read, is empty, is not YAML (with line and column) or does not hold a mapping.
    """
    tree = parse_yaml(read_text(path), where=path)
    if tree is None:
        raise BadInput("the file is empty", where=path, accepted=accepted)
    if not isinstance(tree, dict):
        raise BadInput("the file does not hold a mapping", where=path, value=tree, accepted=accepted)
    return tree


def parse_yaml(text: str, *, where: str | os.PathLike[str] | None = None) -> Any:
    """The value of a YAML 1.2 text: dicts with text keys, lists, texts, finite numbers, booleans, None.

    Args:
        text: one YAML document.
        where: the file or command-line option that errors name.

    Raises:
        BadInput: with line and column for a syntax error, with the key for a value that JSON cannot represent.
    """
    return plain(_load(text, where, lambda: yaml.load(text, Loader=_Yaml12Loader)), where=where)


def read_documents(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The mappings of a cluster file: one for `ray up`, or the `---`-separated documents of a Kubernetes manifest.

    Scalars are read by YAML 1.1's rules (`yes` is true), which are those of Ray and Kubernetes. Empty documents are
    left out.

    Raises:
        BadInput: the file cannot be read, is not YAML, holds no document, or one that is not a mapping.
    """
    text = read_text(path)
    loaded = _load(text, path, lambda: list(yaml.load_all(text, Loader=_UniqueKeyLoader)))
    documents = [plain(document, where=path) for document in loaded if document is not None]
    if not documents:
        raise BadInput("the file is empty", where=path, accepted=_MAPPING)
    for document in documents:
        if not isinstance(document, dict):
            raise BadInput("the file does not hold a mapping", where=path, value=document, accepted=_MAPPING)
    return documents


def _load(text: str, where: str | os.PathLike[str] | None, parse: Callable[[], Any]) -> Any:
    """Runs `parse` and translates what PyYAML raises into one `BadInput` sentence."""
    try:
        return parse()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = " ".join(f"{error.problem or error.context}".split())
        raise BadInput(f"{place}{problem}", where=where) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise BadInput(f"line {line}: a character that YAML does not allow ({error.reason})", where=where) from None
    except RecursionError:
        raise BadInput("the YAML is nested too deeply", where=where) from None
    except (yaml.YAMLError, ValueError) as error:
        raise BadInput(f"is not YAML: {' '.join(str(error).split())}", where=where) from None


def plain(value: Any, *, where: str | os.PathLike[str] | None = None, key: str = "") -> Any:
    """`value` as JSON would give it back, with texts as keys.

    Args:
        value: anything that a YAML parser or a caller of the Python API hands over.
        where: the file that errors name.
        key: the key path of `value` inside it.

    Raises:
        BadInput: names the key of what JSON cannot represent (NaN, infinity, bytes, objects).
    """
    return _plain(value, where, key, 0, itertools.count())


def _plain(value: Any, where: str | os.PathLike[str] | None, key: str, depth: int, counter: Iterator[int]) -> Any:
    if next(counter) >= MAX_VALUES:
        raise BadInput(_TOO_MANY, where=where)
    if depth > MAX_DEPTH:  # or an alias inside its own anchor
        raise BadInput(f"is nested too deeply (more than {MAX_DEPTH} levels)", where=where)
    if isinstance(value, dict):
        result: dict[str, Any] = {}
        for name, inner in value.items():
            if not isinstance(name, str | int) or isinstance(name, bool):
                raise BadInput("a key has to be a text", where=where, key=key or None, value=name)
            result[str(name)] = _plain(inner, where, f"{key}.{name}" if key else str(name), depth + 1, counter)
        return result
    if isinstance(value, list | tuple):
        above = f"{key}." if key else ""
        return [_plain(inner, where, f"{above}{index}", depth + 1, counter) for index, inner in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise BadInput("has to be a finite number", where=where, key=key or None, value=value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise BadInput("is a whole number of more than 64 bits", where=where, key=key or None)
    if value is None or isinstance(value, str | int | float):
        return value
    raise BadInput(
        "is not a plain value",
        where=where, key=key or None, value=value, accepted="texts, numbers, true, false, null, lists and mappings",
    )
