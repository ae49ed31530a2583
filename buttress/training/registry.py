"""Finds trainables and their rules files by name: a family of this package, or a class of the user.

A family is imported when it is loaded, and not before; rules are found as files, without importing anything.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from buttress.errors import BadInput
from buttress.training.trainable import METRIC_KEY, METRIC_KEY_WORDS
from buttress.training.user_code import OWN_MODULES, fault_at, fault_of, without_our_arguments

if TYPE_CHECKING:
    from buttress.training.trainable import Trainable

FAMILIES = {
    "occupancy": "buttress.trainables.occupancy.train:Occupancy",
    "lithology": "buttress.trainables.lithology.train:Lithology",
    "rainfall": "buttress.trainables.rainfall.train:Rainfall",
    "radio": "buttress.trainables.radio.train:Radio",
}

_FAMILY_FOLDERS = Path(__file__).parents[1] / "trainables"


#: Modules that came with a trainer of the user's own -> size and time of change of their files when they were imported.
_imported: dict[str, tuple[int, int]] = {}
#: The folders at the end of Python's path that the trainer last imported was looked for in.
_appended: list[str] = []
#: Name and folders of that trainer's module.
_in_use: tuple[str, tuple[str, ...]] | None = None


def load(name: str, folders: Sequence[str] = (), *, reload_changed: bool = False) -> Trainable[Any]:
    """An instance of the trainable called `name`.

    A trainer of one's own is imported again when another file of its name is meant than before, such as that of another
    folder: a notebook stays one process.

    Args:
        name: A family of this package, or `my_package.module:MyTrainable`. Modules of the working directory come first,
            as for a script.
        folders: Where a module is looked for next, before the rest of Python's path.
        reload_changed: Import a trainer of one's own again when one of its files has changed. Never within a sweep: all
            trials run the code with which its worker started.

    Raises:
        BadInput: There is no such family, module or class, the class lacks a part of the `Trainable` contract, another
            module of that name is in use, or the user's code raised: then with file and line of his own frame.
    """
    target = FAMILIES.get(name, name)
    module_name, _, class_name = target.partition(":")
    if not class_name:
        accepted = f"{', '.join(FAMILIES)} or my_package.module:MyTrainable"
        raise BadInput("no such trainable", key="trainable", value=name, accepted=accepted)
    if module_name.endswith(".py") or not all(part.isidentifier() for part in module_name.split(".")):
        meant = module_name.removesuffix(".py").removeprefix("./").strip("/").replace("/", ".")
        problem = f"{module_name} is not the name of a module; did you mean {meant}:{class_name}?"
        raise BadInput(problem, key="trainable", value=name, accepted="my_package.module:MyTrainable")
    if name not in FAMILIES and not module_name.startswith("buttress."):
        OWN_MODULES.add(module_name.partition(".")[0])
    try:
        if name in FAMILIES:
            module = importlib.import_module(module_name)
        else:
            module = _import_own(module_name, folders, reload_changed=reload_changed)
        cls = getattr(module, class_name, None)
        if cls is None:
            others = sorted(n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == module_name)
            problem, accepted = f"module {module_name} has no {class_name}", ", ".join(others)
            raise BadInput(problem, key="trainable", value=name, accepted=accepted or None)
        _check_contract(cls, name)
        return cls()
    except ModuleNotFoundError as error:
        problem, accepted = f"module {module_name} needs {error.name}, which is not installed", "pip install it"
        if name in FAMILIES:
            problem = f"this family needs {error.name}, which is not installed"
            accepted = f"pip install 'buttress[{name}]'"
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            problem = f"there is no module {module_name}"
            searched = ["the folder that this was called in", *dict.fromkeys(folders)]
            accepted = f"a module in {', '.join(searched)}, or one that Python finds (PYTHONPATH)"
        raise BadInput(problem, key="trainable", value=name, accepted=accepted) from None
    except (Exception, SystemExit) as error:
        fault = None if isinstance(error, BadInput) and (error.where or error.key) else fault_of(error)
        raise (fault or error) from (error if fault else error.__cause__)


def _check_contract(cls: Any, name: str) -> None:
    """Raises `BadInput`, with file and line of the class, where it lacks a part of the `Trainable` contract."""
    title = getattr(cls, "__name__", type(cls).__name__)
    missing = [part for part in ("name", "Config", "metrics", "schedule", "train") if not hasattr(cls, part)]
    if missing:
        problem = f"{title} lacks {', '.join(missing)} of the Trainable contract"
        raise BadInput(problem, key="trainable", value=name)
    if not isinstance(cls, type):
        raise BadInput(f"{title} is not a class", key="trainable", value=name, accepted="a class")
    contract: Any = cls
    for method, given in (("__init__", 1), ("schedule", 2), ("train", 5)):
        function = inspect.getattr_static(cls, method)
        function = getattr(cls, method) if isinstance(function, classmethod | staticmethod) else function
        bound = 1 if isinstance(inspect.getattr_static(cls, method), classmethod | staticmethod) else 0
        try:
            inspect.signature(function).bind(*[None] * (given - bound))
        except TypeError as error:
            wanted = {"__init__": "no arguments", "schedule": "(config)", "train": "(config, world, report, resume)"}
            problem = f"{title}.{method} cannot be called with {wanted[method]}: {error}"
            raise fault_at(function, problem) from None
        except ValueError:  # a function without a signature
            pass
    if not (isinstance(contract.Config, type) and issubclass(contract.Config, BaseModel)):
        raise fault_at(cls, "Config is not a pydantic model", value=contract.Config, accepted="a subclass of Section")
    if not isinstance(contract.metrics, Mapping):
        accepted = '{"val/loss": Metric("min")}'
        raise fault_at(cls, "metrics is not a mapping of names to Metric", value=contract.metrics, accepted=accepted)
    for key, metric in contract.metrics.items():
        if not isinstance(key, str) or not METRIC_KEY.fullmatch(key):
            raise fault_at(cls, "metrics: is not a valid key", value=key, accepted=METRIC_KEY_WORDS)
        if not hasattr(metric, "direction"):
            problem = f"metrics: {key} is not a Metric"
            raise fault_at(cls, problem, value=metric, accepted='Metric("min") or Metric("max")')


def _import_own(name: str, folders: Sequence[str], *, reload_changed: bool) -> ModuleType:
    """Imports a module of the user's and notes what came with it; see `load`."""
    global _in_use
    importlib.invalidate_caches()
    with _first_on_path(folders) as places:
        others = any(_is_other(each) for each in {name, *_imported})
        if others or (reload_changed and any(_stamp(sys.modules.get(each)) != _imported[each] for each in _imported)):
            for each in _imported:
                sys.modules.pop(each, None)
            _imported.clear()
        before = set(sys.modules)
        with without_our_arguments(), redirect_stdout(sys.stderr):  # `--json` has standard output for itself
            module = importlib.import_module(name)
        for each in set(sys.modules) - before:
            if (file := getattr(sys.modules[each], "__file__", None)) and _is_inside(file, places):
                _imported[each] = _stamp(sys.modules[each])
        loaded, found = _loaded_from(name), _found_at(name)
    if found and loaded != found and _is_inside(found, places):
        raise BadInput(
            f"module {name} is in use already, from {loaded or 'Python itself'}, and is not the {found} that is meant",
            key="trainable", value=name, accepted="another name for the file, or a new process (a notebook's kernel)",
        )
    _in_use = name, tuple(map(str, places))
    return module


class ForProcess:
    """A value for a new process, of classes of the trainer last loaded: it arrives there as itself.

    Pickle alone would import their modules in the order of Python's path, where an installed module may come first.

    Example:
        >>> pickle.loads(pickle.dumps(ForProcess({"lr": 0.1})))
        {'lr': 0.1}
    """

    def __init__(self, value: Any) -> None:
        self._value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (_in_use, pickle.dumps(self._value))


def _restored(module: tuple[str, tuple[str, ...]] | None, data: bytes) -> Any:
    if module is not None:
        _import_own(*module, reload_changed=False)
    return pickle.loads(data)


def _is_other(name: str) -> bool:
    """Whether a module is loaded and an import of its name would now find another file."""
    return name in sys.modules and _loaded_from(name) != _found_at(name)


def _is_inside(file: str, places: Sequence[Path]) -> bool:
    return any(Path(file).resolve().is_relative_to(place) for place in places)


def _stamp(module: ModuleType | None) -> tuple[int, int]:
    """Size and time of change of a module's file; (-1, -1) without one."""
    try:
        status = Path(getattr(module, "__file__", None) or "").stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _loaded_from(name: str) -> str | None:
    """Where the top-level module of `name` was imported from; None when it was not, or from no file."""
    module = sys.modules.get(name.partition(".")[0])
    return _place(getattr(module, "__spec__", None))


def _found_at(name: str) -> str | None:
    """Where an import of the top-level module of `name` would find it now; None: nowhere."""
    return _place(importlib.machinery.PathFinder.find_spec(name.partition(".")[0]))


def _place(spec: ModuleSpec | None) -> str | None:
    if spec is None:
        return None
    if spec.has_location and spec.origin:
        return str(Path(spec.origin).resolve())
    return next((str(Path(place).resolve()) for place in spec.submodule_search_locations or ()), None)


@contextmanager
def _first_on_path(folders: Sequence[str]) -> Iterator[list[Path]]:
    """Puts working directory and folders first on the import path, and afterwards last, for what a trainer imports
    later; yields them, resolved."""
    places = list(dict.fromkeys([str(Path.cwd()), *folders]))
    for place in _appended:
        with suppress(ValueError):  # somebody else took it away
            sys.path.remove(place)
    _appended.clear()
    sys.path[:0] = places
    try:
        yield [Path(place).resolve() for place in places]
    finally:
        for place in places:
            sys.path.remove(place)
        _appended.extend(place for place in places if place not in sys.path)
        sys.path.extend(_appended)


def rules_file(name: str, folders: Sequence[str] = ()) -> Path | None:
    """The rules file of a trainable, found without importing it.

    Args:
        name: A family (its `rules.yaml`), `FAMILY/VARIANT` (its `rules-VARIANT.yaml`), or
            `my_package.module:MyTrainable` (the files beside the module).
        folders: As in `load`.

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
    path = _rules_folder(family, folders) / "rules.yaml"
    return path if path.is_file() else None


def rules_names() -> list[str]:
    """Names of all rules in this package: families, and `FAMILY/VARIANT`."""
    families = sorted(path.parent.name for path in _FAMILY_FOLDERS.glob("*/rules.yaml"))
    return [name for family in families for name in (family, *rules_variants(family))]


def rules_variants(family: str) -> dict[str, Path]:
    """`FAMILY/VARIANT` -> file, for the rules that a family has beside its `rules.yaml`."""
    files = sorted(_rules_folder(family).glob("rules-*.yaml"))
    return {f"{family}/{path.stem.removeprefix('rules-')}": path for path in files}


def _rules_folder(family: str, folders: Sequence[str] = ()) -> Path:
    folder = _FAMILY_FOLDERS / (family if family.isidentifier() else "of_nobody")
    if ":" in family:  # a trainable of one's own
        try:
            with _first_on_path(folders):
                module = importlib.util.find_spec(family.partition(":")[0])
        except (ImportError, ValueError):
            module = None
        folder = Path(module.origin).parent if module and module.origin else folder
    return folder
