"""A config trained outside a sweep: the command, its files, two workers with and without torchrun, unusable input."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from toy import Collected, Toy

from buttress.errors import BadInput
from buttress.execution.local_training import JudgingSink, main, read_config, train_config
from buttress.execution.setup import family_rules
from buttress.training.local_run import train
from buttress.training.trainable import Buttress, Metric, Reported, Schedule, Section

CONFIG = """
train: {epochs: 3, dropout: 0.2, batchnorm: true}
buttress: {trainable: "toy:Toy", objective: val/recon, report_every: 2, seed: 9}
"""


@pytest.fixture
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text(CONFIG)
    return path


def history(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "history.json").read_text(), parse_constant=pytest.fail)
    return content


def metrics(folder: Path) -> list[Any]:
    return [(one["epoch"], one["step"], one["metrics"], one["vectors"]) for one in history(folder)["reports"]]


def test_command_trains_prints_an_epoch_a_line_and_leaves_a_history(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (config_file.parent / "runs/mine/checkpoints").mkdir(parents=True)
    (config_file.parent / "runs/mine/checkpoints/000099.pt").touch()  # of a run that is replaced
    assert main([str(config_file), "--set", "train.epochs=4"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in out[:4]] == [f"epoch {epoch}/4" for epoch in (1, 2, 3, 4)]
    assert out[3].endswith("best so far") and out[4].startswith("best valid epoch 4: val/recon ") and len(out) == 6
    folder = config_file.parent / "runs/mine"
    content = history(folder)
    assert content["config"]["train"]["epochs"] == 4 and content["trainable"] == "toy"
    assert (content["best"]["epoch"], content["best"]["checkpoint"]) == (4, "checkpoints/000004.pt")
    assert len(content["reports"]) == 8 and content["reports"][-1]["closing"] is True
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["000004.pt"]
    assert "encoder.0.weight" in torch.load(folder / "model.pt")


def test_run_stopped_and_resumed_by_command_ends_as_one_never_stopped(config_file: Path) -> None:
    class Once(Collected):
        @property
        def stop(self) -> bool:  # type: ignore[override]
            return len(self.reports) > 2

    _, config = read_config(config_file)
    stopped = Once()
    train(config, Toy(), "parted", sink=stopped)
    assert not stopped.reports[-1].closing
    saved = sorted(Path("parted/checkpoints").iterdir())[-1]
    assert main([str(config_file), "--out", "parted", "--resume", str(saved)]) == 0
    assert main([str(config_file), "--out", "whole"]) == 0
    rest = metrics(Path("parted"))
    assert rest == metrics(Path("whole"))[-len(rest) :]


def test_overrides_may_be_written_as_in_a_sweep_and_are_named_when_wrong(config_file: Path) -> None:
    _, config = read_config(config_file, ["config.buttress.seed=7"])
    assert config.buttress.seed == 7
    with pytest.raises(BadInput, match=r"^--set: buttress.seed: .*'x'"):
        read_config(config_file, ["buttress.seed=x"])


def test_two_workers_give_the_same_bits_with_and_without_torchrun(config_file: Path) -> None:
    before = multiprocessing.active_children()
    train_config(config_file, Path("own"), ["buttress.workers=2"])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    again = subprocess.run(
        [*torchrun, "-m", "buttress.training", str(config_file), "--out", "torchrun"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert again.returncode == 0, again.stderr[-2000:]
    assert metrics(Path("own")) == metrics(Path("torchrun"))
    assert again.stdout.count("epoch 3/3") == 1  # rank 0 alone speaks
    assert multiprocessing.active_children() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.yaml"], "none.yaml: no such file"),
        (["mine.yaml", "--set", "train.epoch=1"], "--set: train.epoch: unknown key"),
        (["mine.yaml", "--set", "train.epochs=many"], "--set: train.epochs: "),
        (["mine.yaml", "--set", "train.epochs"], "--set: is not of the form key.path=value (got 'train.epochs')"),
        (["mine.yaml", "--set", "train.epochs.x=1"], "--set: train.epochs: holds a value, so nothing can be set"),
        (["mine.yaml", "--set", "buttress.trainable=rivers"], "mine.yaml: "),
        (["mine.yaml", "--set", "buttress.trainable=null"], "mine.yaml: buttress.trainable: is missing"),
        (["mine.yaml", "--resume", "none.pt"], "none.pt: there is no such checkpoint"),
        (["mine.yaml", "--out", "mine.yaml/folder"], "--out: cannot be written"),
        (["list.yaml"], "list.yaml: the file does not hold a mapping (got [1]); accepted: a mapping of groups"),
        (["broken.yaml"], "broken.yaml: line 2, column 1: expected ',' or ']'"),
    ],
)
def test_input_that_cannot_be_used_is_one_sentence_and_exit_code_2(
    config_file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    Path("list.yaml").write_text("- 1\n")
    Path("broken.yaml").write_text("a: [1\n")
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {says}") and err.count("\n") == 1


def test_config_without_a_trainable_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("train: {epochs: 1}\n")
    with pytest.raises(BadInput, match=r"c\.yaml: buttress\.trainable: is missing"):
        read_config(path)


class Rows:
    """A trainable of which only metrics and schedule are asked."""

    def __init__(self, direction: Any) -> None:
        self.name, self.metrics = "rows", {"val": Metric(direction)}

    def schedule(self, config: Any) -> Schedule:
        return Schedule(epochs=9)


class RowsConfig(Section):
    buttress: Buttress = Buttress(trainable="toy:Toy")  # which has no rules of its own: the default ones


def reported(epoch: int, value: float, folder: Path, **other: Any) -> Reported:
    name = f"checkpoints/{epoch:06d}.pt"
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / name).touch()
    fields = {"full_beta_epochs": epoch, "full_beta_steps": 0, "phase": 0, "metrics": {"val": value}, **other}
    return Reported(epoch=epoch, step=10 * epoch, checkpoint=name, **fields)


@pytest.mark.parametrize(("direction", "best"), [("min", 4), ("max", 3)])
def test_best_epoch_is_a_valid_one_and_its_checkpoint_stays(tmp_path: Path, direction: Any, best: int) -> None:
    sink = JudgingSink(tmp_path, Rows(direction), RowsConfig(), "val", family_rules("toy:Toy"))  # type: ignore[arg-type]
    extreme = -9.0 if direction == "min" else 9.0
    sink.send(reported(1, extreme, tmp_path, full_beta_epochs=0))  # inside the warm-up
    sink.send(reported(2, extreme, tmp_path, metrics={"val": extreme, "free": math.inf}))
    sink.send(reported(3, 2.0, tmp_path))
    sink.send(reported(4, 1.0, tmp_path))
    sink.send(reported(5, 1.5, tmp_path))
    sink.write_history()
    assert history(tmp_path)["best"] == {
        "epoch": best, "checkpoint": f"checkpoints/{best:06d}.pt", "metrics": {"val": {4: 1.0, 3: 2.0}[best]},
    }  # fmt: skip
    assert [each["valid"] for each in history(tmp_path)["reports"]] == [False, False, True, True, True]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {f"{best:06d}.pt", "000005.pt"}
    assert history(tmp_path)["reports"][1]["metrics"] == {"val": extreme, "free": None}


def test_run_that_diverges_is_stopped_with_exit_code_1(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(config_file), "--set", "nan_at=9", "--set", "train.epochs=9"]) == 1
    assert capsys.readouterr().err.startswith("error: the run diverged and was stopped: ")
    content = history(Path("runs/mine"))
    assert content["reports"][-1]["epoch"] < 9 and content["reports"][-1]["state"] == "diverged"
    assert content["best"]["epoch"] == 2 and Path("runs/mine/model.pt").is_file()


def test_unknown_objective_is_refused(config_file: Path) -> None:
    with pytest.raises(BadInput, match=r"buttress\.objective: no such metric .*val/recon, val/sampled"):
        train_config(config_file, Path("out"), ["buttress.objective=loss"])


KILLS_ALL = {"kind": "mine", "action": "kill", "signs": [{"metric": "val/recon", "above": 1e-6}]}


def test_a_config_is_judged_by_the_rules_that_it_holds(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of its sweep, which `export` writes into it: not the trainable's own ones."""
    assert main([str(config_file)]) == 0
    held = yaml.safe_load(CONFIG)
    held["buttress"]["rules"] = {"rules": {"mine": KILLS_ALL}}
    config_file.write_text(yaml.safe_dump(held))
    assert main([str(config_file)]) == 1
    assert "the run collapsed and was stopped: val/recon was" in capsys.readouterr().err
    held["buttress"]["rules"]["rules"]["mine"]["action"] = "murder"
    config_file.write_text(yaml.safe_dump(held))
    assert main([str(config_file)]) == 2
    assert "mine.yaml: buttress.rules.rules.mine.action: is not one of the choices" in capsys.readouterr().err


class Silent(Toy):
    """Reports no checkpoint, and its objective in a way of its own."""

    def train(self, config: Any, world: Any, report: Any, resume: Any) -> None:
        for epoch in range(1, config.train.epochs + 1):
            how = {1: {"val/recon": 1.0}, 2: {}, 3: {"val/recon": math.nan}, 4: {"val/recon": [1.0, 2.0]}}
            given = how[config.fail_rank]
            report({"epoch": epoch, "step": epoch, "train/loss": 1.0, **given})


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (2, "val/recon was never reported; reported were train/loss"),
        (3, "val/recon was NaN or infinite in every report"),
        (4, "val/recon was reported as a vector of 2 values, not as a number"),
    ],
)
def test_a_run_without_a_valid_epoch_says_why_and_ends_with_1(
    config_file: Path, capsys: pytest.CaptureFixture[str], how: int, why: str
) -> None:
    arguments = [str(config_file), "--set", "buttress.trainable=test_local_training:Silent"]
    assert main([*arguments, "--set", f"fail_rank={how}"]) == 1
    captured = capsys.readouterr()
    assert f"no epoch was valid: {why}" in captured.err + captured.out


def test_a_run_whose_beta_was_never_final_says_so(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(config_file), "--set", "train.epochs=1"]) == 1
    captured = capsys.readouterr()
    assert "no epoch was valid: beta was not at its final value throughout any epoch" in captured.err


def test_what_was_written_is_said_truthfully(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from buttress.cli.main import app

    written = CliRunner().invoke(app, ["train", str(config_file), "-o", "one"]).output
    assert re.search("wrote one/model.pt and history.json in .* s; best valid epoch 3", written)
    assert main([str(config_file), "--out", "one"]) == 0
    assert "one/model.pt" in capsys.readouterr().out
    arguments = ["train", str(config_file), "--set", "buttress.trainable=test_local_training:Silent"]
    silent = CliRunner().invoke(app, [*arguments, "--set", "fail_rank=1", "-o", "one"])
    assert silent.exit_code == 0 and "wrote one/history.json in " in silent.output
    why = "no model.pt: the trainer reported no checkpoint (report(..., checkpoint=...)); best valid epoch 2"
    assert why in silent.output.replace("\n", " ")
    assert not Path("one/model.pt").exists()
    none = CliRunner().invoke(app, [*arguments, "--set", "fail_rank=2", "-o", "one"])
    assert none.exit_code == 1
    assert "no epoch was valid: val/recon was never reported" in none.stderr.replace("\n", " ")
