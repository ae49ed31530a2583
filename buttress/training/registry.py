"""Finds trainables and their rules files by name: a family of this package, or a class of the user.

A family is imported when it is loaded, and not before; rules are found as files, without importing anything.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buttress.errors import BadInput

if TYPE_CHECKING:
    from buttress.training.trainable import Trainable

FAMILIES = {
    "occupancy": "buttress.trainables.occupancy.train:Occupancy",
    "lithology": "buttress.trainables.lithology.train:Lithology",
    "rainfall": "buttress.trainables.rainfall.train:Rainfall",
    "radio": "buttress.trainables.radio.train:Radio",
}

_FAMILY_FOLDERS = Path(__file__).parents[1] / "trainables"


def load(name: str) -> Trainable[Any]:
    """An instance of the trainable called `name`.

    Args:
        name: A family of this package, or `my_package.module:MyTrainable`. Modules of the working directory come first,
            as for a script.

    Raises:
        BadInput: There is no such family, module or class, or the class lacks a part of the `Trainable` contract.
    """
    target = FAMILIES.get(name, name)
    module_name, _, class_name = target.partition(":")
    if not class_name:
        accepted = f"{', '.join(FAMILIES)} or my_package.module:MyTrainable"
        raise BadInput("no such trainable", key="trainable", value=name, accepted=accepted)
    try:
        with _working_directory_first():
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        problem, accepted = f"module {module_name} needs {error.name}, which is not installed", "pip install it"
        if name in FAMILIES:
            problem = f"this family needs {error.name}, which is not installed"
            accepted = f"pip install 'buttress[{name}]'"
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            problem = f"there is no module {module_name}"
            accepted = "a module in the folder that this was called in, or one that Python finds (PYTHONPATH)"
        raise BadInput(problem, key="trainable", value=name, accepted=accepted) from None
    cls = getattr(module, class_name, None)
    if cls is None:
        own = sorted(n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == module_name)
        problem = f"module {module_name} has no {class_name}"
        accepted = ", ".join(own)
        file = Path(*module_name.split(".")).with_suffix(".py")
        if file.is_file() and file.resolve() != Path(getattr(module, "__file__", None) or "").resolve():
            problem = f"module {module_name} is Python's own, already imported, and not the {file} of this folder"
            accepted = "another name for the file"
        raise BadInput(problem, key="trainable", value=name, accepted=accepted or None)
    missing = [part for part in ("name", "Config", "metrics", "schedule", "train") if not hasattr(cls, part)]
    if missing:
        problem = f"{class_name} lacks {', '.join(missing)} of the Trainable contract"
        raise BadInput(problem, key="trainable", value=name)
    return cls()


@contextmanager
def _working_directory_first() -> Iterator[None]:
    """Puts the working directory first on the import path, and afterwards last, for what a trainer imports later."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
        if here not in sys.path:
            sys.path.append(here)


def rules_file(name: str) -> Path | None:
    """The rules file of a trainable, found without importing it.

    Args:
        name: A family (its `rules.yaml`), `FAMILY/VARIANT` (its `rules-VARIANT.yaml`), or
            `my_package.module:MyTrainable` (the files beside the module).

    Returns:
        The file; None for a trainable without rules.

    Raises:
        BadInput: There is no such variant.
    """
    family, _, variant = name.partition("/")
    if variant:
        others = rules_variants(family)
        if name not in others:
            raise BadInput("no such rules", value=name, accepted=", ".join([family, *others]))
        return others[name]
    path = _rules_folder(family) / "rules.yaml"
    return path if path.is_file() else None


def rules_names() -> list[str]:
    """Names of all rules in this package: families, and `FAMILY/VARIANT`."""
    families = sorted(path.parent.name for path in _FAMILY_FOLDERS.glob("*/rules.yaml"))
    return [name for family in families for name in (family, *rules_variants(family))]


def rules_variants(family: str) -> dict[str, Path]:
    """`FAMILY/VARIANT` -> file, for the rules that a family has beside its `rules.yaml`."""
    files = sorted(_rules_folder(family).glob("rules-*.yaml"))
    return {f"{family}/{path.stem.removeprefix('rules-')}": path for path in files}


def _rules_folder(family: str) -> Path:
    folder = _FAMILY_FOLDERS / family
    if ":" in family:  # a trainable of one's own
        try:
            with _working_directory_first():
                module = importlib.util.find_spec(family.partition(":")[0])
        except ModuleNotFoundError:
            module = None
        folder = Path(module.origin).parent if module and module.origin else folder
    return folder
