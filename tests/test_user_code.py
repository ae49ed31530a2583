"""Faults in a user's own trainer are said as his: one sentence, file and line of his own frame, exit code 2."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import buttress
from buttress.cli.main import app
from buttress.errors import BadInput
from buttress.execution.local_training import main as train_main
from buttress.execution.trial_output import captured_output
from buttress.training import registry

TRAINER = """\
from buttress import Buttress, Metric, Schedule, Section

class Config(Section):
    lr: float = 0.1
    epochs: int = 3
    buttress: Buttress = Buttress()

class Mine:
    name, Config, epochs_path = "mine", Config, "epochs"
    metrics = {"val/score": Metric("max")}

    def schedule(self, config):
        return Schedule(config.epochs)

    def train(self, config, world, report, resume):
        for epoch in range(1, config.epochs + 1):
            report({"epoch": epoch, "step": 10 * epoch, "val/score": 1.0 - 1 / epoch})
"""
SPEC = {
    "trainable": "faulty:Mine", "search": {"lr": {"uniform": [0.1, 0.2]}}, "objectives": ["val/score"],
    "scheduler": {"kind": "fifo"}, "budget": {"trials": 1}, "resources": {"concurrency": 1},
    "wandb": {"mode": "disabled"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("faulty", None)
    registry._imported.pop("faulty", None)


def write(before: str = "", after: str = "", trainer: str = TRAINER) -> None:
    assert before in trainer
    Path("faulty.py").write_text(trainer.replace(before, after) if before else trainer)
    Path("spec.yaml").write_text(yaml.safe_dump(SPEC))
    Path("config.yaml").write_text("epochs: 2\nbuttress: {trainable: 'faulty:Mine'}\n")


def said(*arguments: str) -> str:
    """What a verb says on bad input, on one line."""
    done = CliRunner().invoke(app, arguments)
    error = done.exception if isinstance(done.exception, BadInput) else None  # `main` prints it and exits with 2
    assert error is not None, (done.output, done.exception)
    assert "\n" not in str(error)
    return str(error)


FAULTS = {
    "import of its own": (
        "class Mine:", "import json, no_such\nclass Mine:",
        "faulty needs no_such, which is not inst",
    ),
    "import that raises": (
        "class Mine:", "1 / 0\nclass Mine:",
        "faulty.py: line 8: ZeroDivisionError: division by zero",
    ),
    "name missing": (
        "Schedule, Section", "Shedule, Section",
        "faulty.py: line 1: ImportError: cannot import name 'Shed",
    ),
    "syntax": ("class Mine:", "class Mine(:", "faulty.py: line 8: SyntaxError: "),
    "exit": ("class Mine:", "raise SystemExit(0)\nclass Mine:", "faulty.py: line 8: SystemExit: 0"),
    "init with arguments": (
        "    metrics =", "    def __init__(self, size): ...\n    metrics =",
        "faulty.py: line 10: Mine.__init__ cannot be called with no arguments: missing a required "
        "argument: 'size'",
    ),
    "init that raises": (
        "    metrics =", "    def __init__(self): self.x = {}['a']\n    metrics =",
        "faulty.py: line 10: __init__ raised KeyError: 'a'",
    ),
    "schedule without config": (
        "schedule(self, config)", "schedule(self)",
        "faulty.py: line 12: Mine.schedule cannot be called with (config): too many positional "
        "arguments",
    ),
    "train without resume": (
        ", report, resume)", ", report)",
        "faulty.py: line 15: Mine.train cannot be called with (config, world, report, resume)",
    ),
    "schedule that raises": (
        "return Schedule", "return config.nothing",
        "faulty.py: line 13: schedule raised AttributeError: 'Config' object has no attribute "
        "'nothing'",
    ),
    "schedule that is none": ("return Schedule", "return int", "trainable: Mine.schedule returned no Schedule"),
    "metrics of texts": (
        'Metric("max")', '"max"',
        'faulty.py: line 8: metrics: val/score is not a Metric (got \'max\'); accepted: Metric("min")',
    ),
    "metrics as text": (
        '{"val/score": Metric("max")}', '"val/score"',
        "faulty.py: line 8: metrics is not a mapping of names to Metric (got 'val/score')",
    ),
    "metric key": (
        '"val/score": Metric', '"val:score": Metric',
        "faulty.py: line 8: metrics: is not a valid key (got 'val:score'); accepted: letters",
    ),
    "direction": (
        'Metric("max")', 'Metric("maximize")',
        "faulty.py: line 10: the direction of a Metric is not one of the choices (got 'maximize'); "
        "accepted: min, max",
    ),
    "config": ("class Config(Section)", "class Config", "faulty.py: line 8: Config is not a pydantic model"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_is_seen_without_training_names_the_users_line(fault: str) -> None:
    before, after, sentence = FAULTS[fault]
    write(before, after)
    for arguments in (("plan", "spec.yaml", "--no-timing"), ("run", "spec.yaml"), ("train", "config.yaml")):
        assert sentence in said(*arguments), arguments
    assert train_main(["config.yaml"]) == 2


@pytest.mark.parametrize(
    ("name", "meant"),
    [("./faulty:Mine", "faulty:Mine"), ("faulty.py:Mine", "faulty:Mine"), ("a/b.py:Mine", "a.b:Mine")],
)
def test_a_path_for_a_module_is_refused_with_the_name_that_was_meant(name: str, meant: str) -> None:
    with pytest.raises(BadInput, match=rf"is not the name of a module; did you mean {meant}\?"):
        registry.load(name)


TRAINING_FAULTS = {
    "exception": (
        '"val/score": 1.0', '"val/score": 1 / 0 + 1.0',
        "faulty.py: line 17: train raised ZeroDivisionError: division by zero",
    ),
    "no step": (
        '"step": 10 * epoch,', "",
        "faulty.py: line 17: train raised ValueError: a report needs step (completed, as int)",
    ),
    "key": (
        '"val/score": 1', '"val:score": 1',
        "faulty.py: line 17: train raised ValueError: report: 'val:score' is not a valid key",
    ),
    "text": (
        "1.0 - 1 / epoch", '"good"',
        "faulty.py: line 17: train raised TypeError: report: val/score is of type str; accepted: "
        "number",
    ),
    "texts": (
        "1.0 - 1 / epoch", '[1.0, "good"]',
        "faulty.py: line 17: train raised TypeError: report: val/score is of type list",
    ),
    "exit": (
        "        for epoch", "        raise SystemExit(0)\n        for epoch",
        "faulty.py: line 16: train raised SystemExit: 0",
    ),
    "lines": (
        "        for epoch", "        raise RuntimeError('first\\nsecond')\n        for epoch",
        "line 16: train raised RuntimeError: first",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", TRAINING_FAULTS)
def test_a_fault_in_training_names_the_users_line_in_plan_and_train(fault: str) -> None:
    before, after, sentence = TRAINING_FAULTS[fault]
    write(before, after)
    assert sentence in said("train", "config.yaml")
    assert sentence in said("plan", "spec.yaml")


def test_an_installed_trainer_is_the_users_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip puts it where libraries are."""
    monkeypatch.setattr("buttress.training.user_code._LIBRARIES", (f"{tmp_path}/",))
    write('"val/score": 1.0', '"val/score": 1 / 0 + 1.0')
    assert "faulty.py: line 17: train raised ZeroDivisionError" in said("train", "config.yaml")


def test_a_fault_of_another_rank_names_the_users_line() -> None:
    write("        for epoch", "        if world.rank == 1: raise ValueError('only here')\n        for epoch")
    sentence = "faulty.py: line 16: train raised ValueError: only here"
    assert sentence in said("train", "config.yaml", "--set", "buttress.workers=2")


def test_a_script_that_calls_us_is_not_to_blame(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of our own stays what it is, whatever frames lie above."""
    write()
    monkeypatch.setattr("buttress.execution.plan.resolve_rules", int)
    with pytest.raises(TypeError, match="SweepSpec"):
        buttress.plan(SPEC, timing=False)


def test_a_trainers_own_arguments_and_prints_leave_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """argparse at import reads no option of ours; what is printed at import and in a timing is not in the JSON."""
    parses = "import argparse\nprint('imported')\nARGS = argparse.ArgumentParser().parse_args()\nclass Mine:"
    begins = "        argparse.ArgumentParser().parse_args(); print('trains')\n        for epoch"
    write("class Mine:", parses, TRAINER.replace("        for epoch", begins))
    monkeypatch.setattr(sys, "argv", ["buttress", "plan", "spec.yaml", "--json"])
    done = CliRunner().invoke(app, sys.argv[1:])
    assert done.exit_code == 0, done.output
    assert "imported" in done.stderr and "trains" in done.stderr
    table, _, found = done.stdout.partition("{")
    assert json.loads("{" + found)["trials"] == 1 and "imported" not in table
    assert buttress.train("config.yaml", "out")["epoch"] == 2
    assert sys.argv[1] == "plan"


def test_what_is_printed_is_in_the_trials_file_and_nowhere_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for rank, name in ((0, "output.txt"), (3, "output-3.txt")):
        for attempt in ("first", "second"):
            with pytest.raises(ValueError, match="it fails"), captured_output(tmp_path / "trial", rank):
                print(attempt)
                os.write(2, b"from C\n")
                raise ValueError("it fails")
        assert (tmp_path / "trial" / name).read_text() == "first\nfrom C\nsecond\nfrom C\n"
    with captured_output(tmp_path / "silent", 0):
        pass
    assert list((tmp_path / "silent").iterdir()) == []
    (tmp_path / "file").touch()
    with captured_output(tmp_path / "file", 0):
        print("no folder")
    print("after")
    assert capfd.readouterr() == ("no folder\nafter\n", "")


@pytest.mark.long
def test_a_trials_prints_and_its_fault_reach_the_person(ray_cluster: Any) -> None:
    """In a sweep they would go to Ray's logs, which end with it; argparse would read the worker's own arguments."""
    imports = "import argparse, os\nprint('imported')\nARGS = argparse.ArgumentParser().parse_args()\nclass Mine:"
    begins = """\
        argparse.ArgumentParser().parse_args()
        print("lr is", config.lr, "\\x1b[31m")
        os.system("echo from a child")
        os.write(2, b"from C\\n")
        if config.lr > 0.1:
            raise RuntimeError("too fast")
        for epoch"""
    write("class Mine:", imports, TRAINER.replace("        for epoch", begins))
    spec = {**SPEC, "search": {"lr": {"choice": [0.1, 0.2]}}, "budget": {"trials": 2}, "seed": 1, "name": "faulty"}
    sweep = buttress.run(spec, quiet=True)
    assert sweep.counts == {"completed": 1, "failed": 1}
    for trial in sweep.trials:
        lines = (sweep.folder / "trials" / trial.id / "output.txt").read_text().splitlines()
        assert lines[-3:] == [f"lr is {trial.params['lr']} \x1b[31m", "from a child", "from C"]
        told = str(sweep.explain(trial.id))
        assert "from a child" in told and f"trials/{trial.id}/output.txt" in told and "\x1b" not in told
    assert "imported" in (sweep.folder / "trials" / "0000" / "output.txt").read_text()
    (failed,) = (trial for trial in sweep.trials if trial.outcome == "failed")
    assert failed.record.outcome is not None
    line = Path("faulty.py").read_text().splitlines().index('            raise RuntimeError("too fast")') + 1
    assert failed.record.outcome.message == f"faulty.py: line {line}: train raised RuntimeError: too fast"
    assert "Traceback" in str(failed.record.outcome.error)
