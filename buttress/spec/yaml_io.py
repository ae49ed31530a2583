"""YAML files and command-line values, read into plain JSON-able Python: the door that every YAML file comes in by.

`read_yaml(path)` and `parse_yaml(text)` are `yaml.safe_load` with four differences that keep people out of trouble:
`3e-4` is a number, `off`, `no` and `12:30` are texts (YAML 1.2's rules; only true and false are booleans), a key given
twice is an error, and so is whatever JSON cannot say. Every fault is a `BadInput` with file, line and column.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from buttress.errors import BadInput


class _Loader(yaml.SafeLoader):
    """`SafeLoader` with YAML 1.2's idea of plain scalars, and no key twice."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

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


def _whole(loader: Any, node: Any) -> int:
    text = node.value.replace("_", "")
    return int(text, 0) if re.match(r"[-+]?0[xo]", text) else int(text)


def _number(loader: Any, node: Any) -> float:
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
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _whole)
_Loader.add_constructor("tag:yaml.org,2002:float", _number)


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping a YAML file holds. Raises `BadInput` if it cannot be read, is empty, or holds something else."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise BadInput("no such file", where=path) from None
    except UnicodeDecodeError as error:
        raise BadInput(f"is not a text file (byte {error.start} is not UTF-8)", where=path) from None
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror}", where=path) from None
    tree = parse_yaml(text, where=path)
    if tree is None:
        raise BadInput("the file is empty", where=path, accepted="a mapping (key: value)")
    if not isinstance(tree, dict):
        raise BadInput("the file does not hold a mapping", where=path, value=tree, accepted="a mapping (key: value)")
    return tree


def parse_yaml(text: str, *, where: str | os.PathLike[str] | None = None) -> Any:
    """The value that a YAML text stands for: dicts with text keys, lists, texts, finite numbers, booleans, None."""
    try:
        return plain(yaml.load(text, Loader=_Loader), where=where)
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
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"is not YAML: {' '.join(str(error).split())}", where=where) from None


def plain(value: Any, *, where: str | os.PathLike[str] | None = None, key: str = "") -> Any:
    """`value` as JSON would give it back (keys as texts); `BadInput` naming the key of what JSON cannot say."""
    if isinstance(value, dict):
        result: dict[str, Any] = {}
        for name, inner in value.items():
            if not isinstance(name, str | int) or isinstance(name, bool):
                raise BadInput("a key has to be a text", where=where, key=key or None, value=name)
            result[str(name)] = plain(inner, where=where, key=f"{key}.{name}" if key else str(name))
        return result
    if isinstance(value, list | tuple):
        above = f"{key}." if key else ""
        return [plain(inner, where=where, key=f"{above}{index}") for index, inner in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise BadInput("has to be a finite number", where=where, key=key or None, value=value)
    if value is None or isinstance(value, str | int | float):
        return value
    raise BadInput(
        "is no plain value",
        where=where, key=key or None, value=value, accepted="texts, numbers, true, false, null, lists and mappings",
    )
