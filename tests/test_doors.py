"""The doors of the house: which room may import what.

Each room is imported in a fresh interpreter, whose `sys.modules` is then looked at; and the syntax tree of every file
is read, so that an import inside a function is seen too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("search_spaces", "trainables", "collapse", "sweep", "analysis")
FAMILIES = sorted(path.parent.name for path in ROOT.glob("trainables/*/__init__.py"))

ORCHESTRATION = ("ray", "optuna", "wandb")
HEAVY = ("torch", *ORCHESTRATION)


def modules(room: str) -> list[str]:
    """Dotted names of all modules of a room; `__main__` is run, not imported."""
    files = (path.relative_to(ROOT).with_suffix("") for path in sorted((ROOT / room).rglob("*.py")))
    return [".".join(file.parts).removesuffix(".__init__") for file in files if file.name != "__main__"]


# --- imported in a fresh interpreter -------------------------------------------------------------------------------

#: What is imported, and what must not have come with it.
FRESH: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "search_spaces": (modules("search_spaces"), (*HEAVY, "pandas", "sklearn", "matplotlib")),
    "analysis": (modules("analysis"), HEAVY),
    "collapse and its rules": (["collapse", "collapse.rules"], (*HEAVY, "pandas")),
    "trainables": (["trainables", "trainables.base"], (*HEAVY, "pandas")),
    **{f"family {name}": ([f"trainables.{name}"], HEAVY) for name in FAMILIES},
    "sweep": (["sweep"], (*HEAVY, "pandas", "pydantic", "typer", "rich")),
    "command line": (["sweep.cli"], (*HEAVY, "pandas", "pyarrow", "sklearn", "scipy", "matplotlib", "numpy")),
    "what the driver logs with": (["sweep.wandb", "sweep.progress"], (*HEAVY, "pandas")),
}


@pytest.mark.parametrize("room", FRESH)
def test_a_fresh_import_brings_nothing_heavy(room: str) -> None:
    names, forbidden = FRESH[room]
    code = f"import sys, {', '.join(names)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(set(forbidden) & set(done.stdout.split())) == []


def test_the_rooms_are_there() -> None:
    for room in ROOMS:
        assert (ROOT / room / "__init__.py").is_file()
    assert "lithology" in FAMILIES


# --- read from the syntax tree -------------------------------------------------------------------------------------


class Import(NamedTuple):
    """One import of a file: the module it names, its line, and whether only a type checker follows it."""

    module: str
    line: int
    typing_only: bool


def imports(source: str, package: str) -> Iterator[Import]:
    """Every import of `source`, a module inside `package`, wherever it stands.

    `from a import b` is told as `a.b`: b may be a module. `importlib.import_module("a.b")` and `__import__("a.b")` with
    a literal name count as imports.
    """

    def walk(node: ast.AST, typing_only: bool) -> Iterator[Import]:
        match node:
            case ast.Import(names=names):
                yield from (Import(alias.name, node.lineno, typing_only) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = package.split(".")[: len(package.split(".")) - level + 1] if level else []
                prefix = ".".join([*base, *([module] if module else [])])
                yield from (Import(f"{prefix}.{alias.name}", node.lineno, typing_only) for alias in names)
            case ast.Call(func=func, args=[ast.Constant(value=str(name)), *_]):
                called = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
                if called in ("import_module", "__import__"):
                    yield Import(name, node.lineno, typing_only)
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                for child in node.body:
                    yield from walk(child, True)
                for child in node.orelse:
                    yield from walk(child, typing_only)
                return
        for child in ast.iter_child_nodes(node):
            yield from walk(child, typing_only)

    yield from walk(ast.parse(source), False)


#: What a room may import of the other rooms: a module and all below it.
OPEN_DOORS: dict[str, tuple[str, ...]] = {
    "search_spaces": (),
    "collapse": ("search_spaces.errors",),
    "trainables": ("collapse.monitors", "search_spaces.cache_folder", "search_spaces.errors"),
    "analysis": ("search_spaces", "collapse.rules"),
    "sweep": ROOMS,
}
#: What no module of a room may import when it runs.
CLOSED: dict[str, tuple[str, ...]] = {
    "search_spaces": HEAVY,
    "collapse": ORCHESTRATION,
    "trainables": ORCHESTRATION,
    "analysis": HEAVY,
    "sweep": (),
}


def is_below(module: str, parent: str) -> bool:
    return module == parent or module.startswith(parent + ".")


def trespasses(room: str, source: str, package: str) -> list[str]:
    """Every import of `source` that goes through a door that is shut for `room`."""
    found = []
    for module, line, typing_only in imports(source, package):
        elsewhere = module.partition(".")[0] in {*ROOMS} - {room}
        uninvited = elsewhere and not any(is_below(module, door) for door in OPEN_DOORS[room])
        shut = not typing_only and any(is_below(module, door) for door in CLOSED[room])
        if uninvited or shut:
            found.append(f"line {line}: {room} imports {module}")
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_no_import_goes_through_a_shut_door(room: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}, {trespass}"
        for path in sorted((ROOT / room).rglob("*.py"))
        for trespass in trespasses(room, path.read_text(), ".".join(path.relative_to(ROOT).parent.parts))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("analysis", "import ray"),
        ("analysis", "def f():\n    import torch.nn as nn"),
        ("analysis", "from sweep.study import Study"),
        ("analysis", "from collapse import monitors"),
        ("analysis", "import importlib\ndef f():\n    importlib.import_module('optuna')"),
        ("search_spaces", "import collapse.rules"),
        ("search_spaces", "def f():\n    from torch import Tensor"),
        ("collapse", "from search_spaces.spec import SweepSpec"),
        ("collapse", "import trainables.base"),
        ("trainables", "def f():\n    from wandb import init"),
        ("trainables", "from collapse.rules import RuleSet"),
        ("trainables", "from collapse import rules"),
        ("trainables", "from search_spaces.spec import SweepSpec"),
        ("trainables", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import sweep.mailbox"),
        ("trainables", "__import__('ray')"),
    ],
)
def test_a_trespass_is_noticed(room: str, source: str) -> None:
    assert len(trespasses(room, source, room)) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("analysis", "from collapse.rules import RuleSet\nfrom search_spaces import SweepSpec\nimport pandas"),
        ("trainables", "import torch, collapse.monitors\nfrom search_spaces.errors import BadInput"),
        ("collapse", "def f():\n    import torch\n    from . import monitors"),
        ("search_spaces", "import typing\nif typing.TYPE_CHECKING:\n    import torch"),
        ("sweep", "import ray, optuna, torch\nimport wandb\nfrom analysis import journal"),
    ],
)
def test_an_open_door_is_open(room: str, source: str) -> None:
    assert trespasses(room, source, room) == []
