"""Checks a spec, resolves its rules and builds the journal's header; needs no cluster."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import platform
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from buttress.errors import BadInput
from buttress.journal.events import Header, Objective
from buttress.journal.fields import plain
from buttress.rules import RuleSet
from buttress.spec import validation
from buttress.spec.fingerprint import data_fingerprint
from buttress.spec.spec import SweepSpec
from buttress.training import registry
from buttress.training.trainable import Trainable


@contextlib.contextmanager
def located_in(spec: SweepSpec) -> Iterator[None]:
    """Adds to an error about a key of the spec the file and line in which that key was given."""
    try:
        yield
    except BadInput as error:
        raise spec.locate(error) from None


def load(spec: SweepSpec) -> tuple[SweepSpec, Trainable[Any]]:
    """The spec, checked against its trainable, and the trainable; raises BadInput where they do not fit."""
    if "mlflow" in spec.callbacks and importlib.util.find_spec("mlflow") is None:
        problem, accepted = "needs mlflow-skinny, which is not installed", "pip install mlflow-skinny"
        raise spec.error(problem, key="callbacks", value="mlflow", accepted=accepted)
    with located_in(spec):
        trainable = registry.load(spec.trainable, spec.module_folders, reload_changed=True)
        return validation.check(spec, trainable), trainable


def resolve_rules(spec: SweepSpec) -> RuleSet:
    """The spec's rules over those it extends: a family, a file (beside the spec, or from the working folder), or (by
    default) the trainable's own."""
    overrides = dict(spec.rules)
    extends = str(overrides.pop("extends", spec.trainable))
    if extends.endswith((".yaml", ".yml")):
        beside = Path(spec.where or ".").parent / extends
        rules = RuleSet.load(beside if beside.is_file() else Path(extends))
    elif extends == spec.trainable or extends in registry.rules_names():
        rules = family_rules(extends, spec.module_folders)
    else:
        accepted = f"{', '.join(registry.rules_names())}, or a rules file (.yaml)"
        raise spec.error("no such rules", key="rules.extends", value=extends, accepted=accepted)
    with located_in(spec):
        return rules.override(overrides)


def family_rules(trainable: str, folders: Sequence[str] = ()) -> RuleSet:
    """The rules that come with a trainable (arguments as in `registry.load`), or the default ones."""
    path = registry.rules_file(trainable, folders)
    if path is None:
        path = Path(str(files("buttress.rules") / "default.yaml"))
    return RuleSet.load(path)


def rules_of(family: str, path: Path | None = None) -> RuleSet:
    """The rules in the file at `path`, else a family's, or `FAMILY/VARIANT`; raises BadInput where there are none."""
    if path is not None:
        return RuleSet.load(path)
    if ":" not in family and family not in registry.rules_names():
        accepted = ", ".join(registry.rules_names())
        raise BadInput("no such rules", key="--family", value=family, accepted=accepted)
    return family_rules(family)


def header(spec: SweepSpec, trainable: Any, rules: RuleSet, sweep: str) -> Header:
    """The first event of a sweep's journal."""
    return Header(
        sweep=sweep,
        name=spec.name,
        spec=spec.to_dict(),
        metrics={name: plain(asdict(metric)) for name, metric in trainable.metrics.items()},
        objectives=tuple(Objective(each.metric, each.direction or "min") for each in spec.objectives),
        rules=rules.to_dict(),
        versions=versions(),
        commit=commit(),
        data=data_fingerprint(spec),
        seed=spec.seed,
        trainable=spec.trainable,
        module_folders=module_folders(spec),
        spec_file=str(Path(spec.where).absolute()) if spec.where is not None else None,
        spec_sha256=file_sha256(Path(spec.where)) if spec.where is not None else None,
    )


def file_sha256(path: Path) -> str | None:
    """Of a file's bytes, in hex; None where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def spec_was_edited(event: Header) -> str | None:
    """A sentence where the file that a sweep was begun with has been changed since; None: not, or it is not here."""
    if event.spec_file is None or event.spec_sha256 is None:
        return None
    if file_sha256(Path(event.spec_file)) in (None, event.spec_sha256):
        return None
    return (
        f"{event.spec_file} was changed since this sweep began: the sweep goes on with the spec in its journal; "
        "`buttress run` begins a new one"
    )


def describe_folder(folder: Path, spec: SweepSpec, sweep: str) -> None:
    """Writes the sweep's spec as YAML (it can be run again), and a README that says what each file is.

    Both are for people; a folder that takes neither is no fault of the sweep.
    """
    tree = {key: value for key, value in spec.to_dict().items() if key != "profile"}
    applied = f" with the profile {spec.profile}" if spec.profile else ""
    head = f"# The spec of {sweep}{applied}, every default and change in it: `buttress run spec.yaml` runs it again.\n"
    head += "# A copy: changing it changes nothing of this sweep.\n"
    with contextlib.suppress(OSError):
        (folder / "spec.yaml").write_text(head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
        (folder / "README.md").write_text(_README.format(sweep=sweep, name=spec.trainable))


_README = """# {sweep}

A sweep of `{name}` by Buttress: `buttress table {sweep}`, `buttress why {sweep} TRIAL`, `buttress report {sweep}`.

| file | what it is |
| --- | --- |
| `journal.jsonl` | everything that happened, one JSON object a line; all the rest is read from it |
| `journal.jsonl.lock` | which driver writes it |
| `spec.yaml` | what was run, with every default and change |
| `trials/NNNN/` | one trial: what it printed (`output.txt`), pictures, `checkpoints/` (of the three best, in the end) |
| `report.html` | the page of `buttress report`, where one was made |
| `wandb/` | offline runs for `wandb sync`, unless W&B is off |
| `tensorboard/`, `mlflow.db`, `trials/NNNN/progress.csv` | for other tools, where `callbacks` names them |

`buttress resume {sweep}` goes on with a sweep that was interrupted, `buttress export {sweep}` writes its best config.
"""


def module_folders(spec: SweepSpec) -> tuple[str, ...]:
    """Where workers, and a later resume, look for the spec's trainable if it is the user's own: as its driver did."""
    return tuple(dict.fromkeys((str(Path.cwd()), *spec.module_folders))) if ":" in spec.trainable else ()


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("buttress", "ray", "torch", "optuna", "wandb", "numpy", "scikit-learn"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def commit() -> str | None:
    """The git commit of the working folder, with `+` when it has uncommitted changes; None outside a checkout."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def new_id(name: str) -> str:
    """`<name>-<6 random characters>`: lower-case letters and digits."""
    alphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
    return f"{name}-{''.join(secrets.choice(alphabet) for _ in range(6))}"
