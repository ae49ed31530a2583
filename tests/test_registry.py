"""Where the module of a trainer of one's own is found, and when it is imported again."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import buttress
from buttress.errors import BadInput
from buttress.training import registry

TRAINER = """
from buttress import Section
from own_helper import WHOSE

class Mine:
    name, Config, metrics = WHOSE, Section, {}
    def schedule(self, config): ...
    def train(self, config, world, report, resume): ...
"""


@pytest.fixture(autouse=True)
def own_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An import path and modules of the test's own."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("own_trainer", "own_helper"):
        sys.modules.pop(name, None)
        registry._imported.pop(name, None)


def write(folder: Path, whose: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "own_trainer.py").write_text(TRAINER)
    (folder / "own_helper.py").write_text(f"WHOSE = {whose!r}\n")
    return str(folder)


def test_the_working_folder_comes_before_the_others_and_they_before_the_path(tmp_path: Path) -> None:
    beside, on_path = write(tmp_path / "beside", "beside"), write(tmp_path / "on_path", "on the path")
    sys.path.insert(0, on_path)
    assert registry.load("own_trainer:Mine").name == "on the path"
    assert registry.load("own_trainer:Mine", [beside]).name == "beside"
    write(tmp_path, "here")
    assert registry.load("own_trainer:Mine", [beside]).name == "here"


def test_a_trainer_of_the_same_name_in_another_folder_is_another_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook that changes its folder; what the trainer imports changes with it."""
    for whose in ("first", "second", "first"):
        monkeypatch.chdir(write(tmp_path / whose, whose))
        assert registry.load("own_trainer:Mine").name == whose


def test_a_changed_trainer_is_imported_again_only_where_that_is_wanted(tmp_path: Path) -> None:
    write(tmp_path, "before")
    first = registry.load("own_trainer:Mine")
    helper = tmp_path / "own_helper.py"
    helper.write_text("WHOSE = 'after'\n")
    os.utime(helper, ns=(1, 1))  # the clock of a file system may be coarse
    assert registry.load("own_trainer:Mine").name == "before"
    assert type(registry.load("own_trainer:Mine")) is type(first)
    assert registry.load("own_trainer:Mine", reload_changed=True).name == "after"
    again = registry.load("own_trainer:Mine", reload_changed=True)
    assert type(again) is type(registry.load("own_trainer:Mine"))


def test_a_module_that_somebody_else_imported_is_not_taken_for_the_one_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sys.path.insert(0, write(tmp_path / "elsewhere", "elsewhere"))
    import own_trainer  # type: ignore[import-not-found]  # noqa: F401

    meant = write(tmp_path / "meant", "meant")
    with pytest.raises(BadInput) as raised:
        registry.load("own_trainer:Mine", [meant])
    said = str(raised.value)
    assert "elsewhere/own_trainer.py" in said and f"{meant}/own_trainer.py that is meant" in said


def test_a_missing_module_names_the_folders_that_were_searched(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no module own_trainer .*this was called in, /specs, or one that Python"):
        registry.load("own_trainer:Mine", ["/specs"])


def test_worker_processes_import_the_users_module_not_an_installed_one_of_its_name(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "this", raising=False)  # Python's own, and hardly ever imported
    template = root / "buttress" / "cli" / "templates" / "my_vae.py"
    (tmp_path / "this.py").write_text(template.read_text())
    config = {"epochs": 1, "buttress": {"trainable": "this:MyVAE", "workers": 2}}
    assert buttress.train(config, tmp_path / "run")["epoch"] == 1
    monkeypatch.delitem(sys.modules, "this")


@pytest.fixture
def experiment(tmp_path: Path, root: Path) -> Path:
    """A folder below the working one with the spec and the trainer that `buttress init own` writes."""
    folder = tmp_path / "experiment"
    folder.mkdir()
    for name in ("my_vae.py", "my_vae.yaml"):
        (folder / name).write_text((root / "buttress" / "cli" / "templates" / name).read_text())
    return folder


@pytest.mark.long
def test_a_trainer_beside_its_spec_is_found_from_any_folder(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: Any
) -> None:
    """By `plan`, by the workers of a sweep, by `resume` and `export` from yet another folder, and by `train`."""
    spec = experiment / "my_vae.yaml"
    small: dict[str, Any] = {"budget.trials": 1, "fixed.epochs": 2, "scheduler.kind": "fifo"}
    assert buttress.plan(spec, set=small, timing=False).trials == 1
    sweep = buttress.run(spec, set=small, quiet=True)
    assert sweep.counts == {"completed": 1}
    header = json.loads((sweep.folder / "journal.jsonl").read_text().splitlines()[0])
    assert header["module_folders"] == [str(tmp_path), str(experiment)]

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert buttress.resume(sweep.folder, trials=2, quiet=True).counts == {"completed": 2}
    buttress.load(sweep.folder).export(experiment / "best.yaml", weights=True)
    assert buttress.train(experiment / "best.yaml", "again")["epoch"] <= 2
