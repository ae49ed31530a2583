"""What leaves a sweep: the config of its best healthy trial, exact, with its provenance, and its weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from journals import SyntheticSweep, mixed_sweep
from typer.testing import CliRunner

from buttress.analysis.explanation import explain
from buttress.analysis.export import (
    MARK,
    NothingHealthy,
    checkpoint_of,
    export,
    export_files,
    export_weights,
    write_export,
)
from buttress.cli.listing import diff
from buttress.cli.main import app
from buttress.errors import BadInput
from buttress.journal import Journal, read
from buttress.rules import RuleSet


@pytest.fixture
def mixed() -> Journal:
    return mixed_sweep().journal()


def comments(text: str) -> str:
    """The comment lines as one flowing text."""
    return " ".join(line[1:].strip() for line in text.splitlines() if line.startswith("#"))


# --- the config -------------------------------------------------------------------------------------------------------


def test_the_best_trials_whole_config_comes_back(mixed: Journal) -> None:
    text = export(mixed)
    config = yaml.safe_load(text)
    assert config["loss"] == {"beta": 0.02}
    assert config["train"] == {"epochs": 10, "lr": 0.001}
    rules = config["buttress"].pop("rules")
    assert RuleSet.from_dict(rules) == RuleSet.from_dict(mixed.header.rules)
    assert config["buttress"] == {"seed": 101, "threads": 1, "workers": 1, "trainable": "toy", "objective": "ari"}


@pytest.mark.parametrize(
    "value",
    [0.1 + 0.2, 1e-05, 3.0e-4, 1e16, 1e22, 5e-324, -0.0, 2.0, 7, True, None, "on", "1e-3", "0007", "null", "2026-01-01",
     "a: b # c", "line\nbreak", "", "é", [1, 2.5], [[1, 2], [3]], [], {"deep": {"er": [1.0]}}, {}],
)  # fmt: skip
def test_every_value_is_exact(value: Any) -> None:
    """`export`, then `train`, repeats a trial bit for bit: types and last digits must survive."""
    book = SyntheticSweep(search=["loss.x"])
    book.completed("0000", {"loss.x": value}, ari=[0.5])
    got = yaml.safe_load(export(book.journal()))["loss"]["x"]
    assert got == value and type(got) is type(value)
    if isinstance(value, float):
        assert got.hex() == value.hex()


def test_comments_say_where_the_config_comes_from(mixed: Journal) -> None:
    told = comments(export(mixed))
    for part in (
        "the best trial of sweep toy-ab12cd: trial 0001, which completed",
        "best valid epoch 3 (step 150): ari = 0.52 (max)",
        "margin to collapse -1.400",
        "warnings: weak_code",
        "searched: loss.beta=0.02, train.lr=0.001",
        "git commit 0123456789abcdef",
        "fingerprint sha256:feedbeef",
        "torch 2.13.0",
    ):
        assert part in told
    assert re.search(r"exported 20\d\d-\d\d-\d\dT", told)


def test_comments_cannot_leak_into_the_config() -> None:
    book = SyntheticSweep()
    book.failed("0000", error="ValueError: first\nloss: {beta: 66}\n\ntrain: 3")
    text = export(book.journal(), "0", force=True)
    assert yaml.safe_load(text)["loss"] == {"beta": 0.1}
    assert max(map(len, text.splitlines())) <= 120


# --- which trial ------------------------------------------------------------------------------------------------------


def test_a_collapsed_trial_is_not_exported_unless_forced(mixed: Journal) -> None:
    with pytest.raises(BadInput, match=r"trial 0002 collapsed \(posterior_collapse\), so its config is no") as caught:
        export(mixed, "0002")
    assert "otal KL was 0.01, 0.002 nats" in str(caught.value)
    assert "such as 0001, the best one, or --force" in str(caught.value)
    forced = export(mixed, "0002", force=True)
    assert yaml.safe_load(forced)["loss"]["beta"] == 9.0
    assert "NOT A RESULT" in comments(forced)


@pytest.mark.parametrize("trial", ["0003", "0004", "0005", "0006"])
def test_only_a_completed_trial_is_exported(mixed: Journal, trial: str) -> None:
    with pytest.raises(BadInput, match=f"trial {trial} "):
        export(mixed, trial)
    assert yaml.safe_load(export(mixed, trial, force=True))["buttress"]["seed"] == 100 + int(trial)


def test_a_completed_trial_that_is_not_best_may_be_named(mixed: Journal) -> None:
    text = export(mixed, "0")
    assert yaml.safe_load(text)["loss"]["beta"] == 0.001
    assert "trial of sweep toy-ab12cd: trial 0000" in comments(text)


def test_a_sweep_without_a_healthy_trial_exports_nothing_and_force_alone_does_not_help() -> None:
    book = SyntheticSweep()
    book.collapsed("0000", ari=[0.9, 0.9])
    book.pruned("0001", ari=[0.2])
    for force in (False, True):
        with pytest.raises(NothingHealthy, match=r"no healthy trial \(1 collapsed and 1 pruned\)") as caught:
            export(book.journal(), force=force)
        assert caught.value.exit_code == 1
    assert not issubclass(NothingHealthy, BadInput)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_an_earlier_export_is_written_over_and_any_other_file_is_not(mixed: Journal, tmp_path: Path) -> None:
    target = tmp_path / "new" / "best.yaml"
    write_export(export(mixed), target)
    write_export(export(mixed, "0"), target)
    assert yaml.safe_load(target.read_text())["loss"]["beta"] == 0.001
    target.write_text("precious: 1\n")
    with pytest.raises(BadInput, match=r"exists, and is not, or no longer, as Buttress wrote it.*--force"):
        write_export(export(mixed), target)
    assert target.read_text() == "precious: 1\n"
    write_export(export(mixed), target, force=True)
    assert target.read_text().startswith(MARK)


@pytest.mark.parametrize(
    ("edit", "refused"),
    [
        (lambda text: text, False),
        (lambda text: text.replace("beta: 0.02", "beta: 0.03"), True),
        (lambda text: f"{text}\n", True),
        (lambda text: text.replace("which completed", "which I like"), True),
        (lambda text: text.partition("\n")[0] + "\n" + text.partition("\n")[2].partition("\n")[2], True),
        (lambda text: f"{MARK}\nloss: {{}}\n", True),
    ],
)
def test_an_export_that_was_edited_by_hand_is_not_written_over(
    mixed: Journal, tmp_path: Path, edit: Callable[[str], str], refused: bool
) -> None:
    target = write_export(export(mixed), tmp_path / "best.yaml")
    edited = edit(target.read_text())
    target.write_text(edited)
    if not refused:
        write_export(export(mixed, "0"), target)
        assert target.read_text() != edited
        return
    with pytest.raises(BadInput, match="--force"):
        write_export(export(mixed, "0"), target)
    assert target.read_text() == edited


def test_a_dash_is_standard_output_for_export_and_no_file_for_any_verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mixed_sweep().write(tmp_path / "runs")
    shown = CliRunner().invoke(app, ["export", "toy", "-o", "-"])
    assert shown.exit_code == 0 and yaml.safe_load(shown.stdout)["loss"]["beta"] == 0.02
    for line in (
        "export toy -o - --weights", "report toy -o -", "plot toy history -o -", "calibrate x -f lithology -o -",
        "train x -o -", "run lithology -o -",
    ):  # fmt: skip
        with pytest.raises(BadInput, match=r"^-o: "):
            CliRunner().invoke(app, line.split(), catch_exceptions=False)
    assert not (tmp_path / "-").exists()


@pytest.mark.parametrize("trial", ["", "-1", "+1", "1.0", " "])
def test_a_trial_without_a_name_is_neither_the_first_nor_the_best(
    mixed: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trial: str
) -> None:
    mixed_sweep().write(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    for ask in (mixed.trial, lambda name: export(mixed, name), lambda name: explain(mixed, name)):
        with pytest.raises(BadInput, match="no such trial in this sweep"):
            ask(trial)
    with pytest.raises(BadInput, match="no such trial in this sweep"):
        diff("toy-ab12cd:1", f":{trial}")


def test_an_unwritable_target_is_bad_input(mixed: Journal, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written"):
        write_export(export(mixed), tmp_path / "file" / "best.yaml")
    with pytest.raises(BadInput, match="this is a folder"):
        write_export(export(mixed), tmp_path)


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path: Path) -> Journal:
    """A sweep on disk whose best trial has kept the checkpoint of its best epoch."""
    journal = read(mixed_sweep().write(tmp_path / "runs"))
    folder = journal.trial_folder("0001")
    folder.mkdir(parents=True)
    (folder / "checkpoint-0003.pt").write_bytes(b"weights of epoch 3")
    (folder / "checkpoint-0004.pt").write_bytes(b"weights of epoch 4")
    return journal


def test_the_weights_are_those_of_the_best_valid_epoch(stored: Journal, tmp_path: Path) -> None:
    target = tmp_path / "out" / "best.pt"
    export_weights(checkpoint_of(stored, stored.trials["0001"]), target)
    assert target.read_bytes() == b"weights of epoch 3"


def test_the_caller_says_what_is_taken_out_of_a_checkpoint(stored: Journal, tmp_path: Path) -> None:
    source = checkpoint_of(stored, stored.trials["0001"])
    target = tmp_path / "model.pt"
    export_weights(source, target, load=Path.read_bytes, save=lambda got, path: path.write_bytes(got[:7]))
    assert target.read_bytes() == b"weights"


@pytest.mark.parametrize("trial", ["0000", "0004"])
def test_weights_that_are_not_there_are_bad_input(stored: Journal, trial: str) -> None:
    """Trial 0000's checkpoint was deleted at its outcome, 0004 never had a valid epoch."""
    with pytest.raises(BadInput, match=f"(trial {trial} left no|of trial {trial} is gone).*such as 0001"):
        checkpoint_of(stored, stored.trials[trial])


def test_a_trainer_without_checkpoints_is_said_to_have_none_and_nothing_is_written(tmp_path: Path) -> None:
    """Not that the best trial is none of the best ones."""
    book = SyntheticSweep()
    book.completed("0000", ari=[0.1, 0.5])
    for line in book.lines:
        line.pop("checkpoint", None)
        (line.get("best") or {}).pop("checkpoint", None)
    journal = read(book.write(tmp_path / "runs"))
    with pytest.raises(BadInput) as raised:
        export_files(journal, tmp_path / "best.yaml", weights=True)
    said = str(raised.value)
    assert "the trainer of this sweep reports no checkpoints" in said and "best completed trials" not in said
    assert "report(..., checkpoint=...)" in said
    assert not (tmp_path / "best.yaml").exists()


def test_weights_that_could_not_be_written_whole_leave_nothing_behind(stored: Journal, tmp_path: Path) -> None:
    source = checkpoint_of(stored, stored.trials["0001"])
    target = tmp_path / "out" / "model.pt"

    def full(got: bytes, path: Path) -> None:
        path.write_bytes(got[:5])
        raise OSError(28, "No space left on device")

    with pytest.raises(BadInput, match="No space left on device"):
        export_weights(source, target, load=Path.read_bytes, save=full)
    assert list(target.parent.iterdir()) == []


def test_weights_never_replace_a_file_unasked(stored: Journal, tmp_path: Path) -> None:
    source = checkpoint_of(stored, stored.trials["0001"])
    target = tmp_path / "model.pt"
    target.write_bytes(b"precious")
    with pytest.raises(BadInput, match="exists"):
        export_weights(source, target)
    assert target.read_bytes() == b"precious"
    export_weights(source, target, force=True)
    assert target.read_bytes() == b"weights of epoch 3"


def test_what_validation_found_is_set_in_the_exported_config_and_nowhere_else() -> None:
    """A metric that is `exported_as` a path: the value of the best valid epoch, not of the last one."""
    book = SyntheticSweep(objectives={"ari": "max", "best_threshold": "max"})
    book.lines[0]["metrics"]["best_threshold"] = {"direction": "max", "exported_as": "buttress.occ_threshold"}
    book.completed("0000", {"loss.beta": 0.02}, ari=[0.1, 0.5, 0.4], best_threshold=[0.9, 0.62, 0.3])
    journal = book.journal()
    text = export(journal)
    assert yaml.safe_load(text)["buttress"]["occ_threshold"] == 0.62
    assert "set by validation: buttress.occ_threshold=0.62" in comments(text)
    assert "occ_threshold" not in journal.trial("0000").config["buttress"]
