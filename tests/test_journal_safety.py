"""What a journal may do to a sweep and to a disk: nothing, where it is damaged, foreign, or read a moment too early."""

from __future__ import annotations

import json
import shutil
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from journals import mixed_sweep
from test_cli import call
from typer.testing import CliRunner

from buttress import journal as journals
from buttress.callbacks.checkpoint_retention import CheckpointRetention, LocalTrialFiles
from buttress.cli.main import app
from buttress.errors import BadInput
from buttress.execution import launch
from buttress.journal import Best, JournalUnwritable, JournalWriter, Outcome
from buttress.journal.events import Resumed


@pytest.fixture
def finished(recorded_sweeps: Path, tmp_path: Path) -> Path:
    """The journal of a real sweep that has ended."""
    shutil.copytree(recorded_sweeps / "finished", tmp_path / "finished")
    return tmp_path / "finished" / "journal.jsonl"


# --- read under the lock ----------------------------------------------------------------------------------------------


def test_a_sweep_that_ends_while_resume_begins_is_not_run_twice(finished: Path) -> None:
    """The former driver writes its last trials between resume's first look at the journal and its lock."""
    whole = finished.read_bytes()
    lines = whole.splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if b'"line":"outcome"' in line or b'"line": "outcome"' in line)
    finished.write_bytes(b"".join(lines[:first]))
    resumed = launch.resume(finished.parent)
    finished.write_bytes(whole)
    resumed.run()
    after = [json.loads(line) for line in finished.read_bytes().splitlines()]
    assert len(after) == len(lines)  # nothing was left to do
    outcomes = Counter(line["trial"] for line in after if line["line"] == "outcome")
    assert set(outcomes.values()) == {1}


def test_a_journal_that_cannot_be_gone_on_with_is_refused_before_a_line_is_written(finished: Path) -> None:
    lines = [json.loads(line) for line in finished.read_bytes().splitlines()]
    made = next(line for line in lines if line["line"] == "trial")
    made["params"]["loss.beta"] = {"no": "number"}
    text = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    finished.write_bytes(text)
    with pytest.raises(BadInput, match=r"journal\.jsonl"):
        launch.resume(finished.parent).run()
    assert finished.read_bytes() == text


# --- checksums --------------------------------------------------------------------------------------------------------


def test_every_line_carries_the_checksum_of_all_before_it_and_reads_as_it_was(tmp_path: Path) -> None:
    book, seal = mixed_sweep(), 0
    path = book.write(tmp_path)
    for text in path.read_bytes().splitlines():
        line = json.loads(text)
        crc = line.pop("crc")
        assert list(json.loads(text))[-1] == "crc"
        seal = zlib.crc32(json.dumps(line, separators=(",", ":")).encode(), seal)
        assert int(crc, 16) == seal
    assert [line["line"] for line in journals.lines(path)] == [line["line"] for line in book.lines]
    assert not any("crc" in line for line in journals.lines(path))


def test_a_line_that_is_missing_doubled_or_moved_is_seen(tmp_path: Path) -> None:
    path = mixed_sweep().write(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    for at in range(1, len(lines) - 1):
        for changed in (
            [*lines[:at], *lines[at + 1 :]],
            [*lines[:at], lines[at], *lines[at:]],
            [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]],
        ):
            path.write_bytes(b"".join(changed))
            with pytest.raises(BadInput, match="its checksum does not fit"):
                journals.read(path)


def test_a_writer_goes_on_with_the_seal_it_finds(tmp_path: Path) -> None:
    path = mixed_sweep().write(tmp_path)
    for _ in range(2):
        with JournalWriter(path) as writer:
            writer.write(Resumed())
    assert len(journals.read(path).resumes) == 2
    text = path.read_bytes()
    with JournalWriter(path) as writer:
        writer.restore(text[: text.rindex(b"\n", 0, -1) + 1])
        assert len(journals.read(path).resumes) == 1
        writer.write(Resumed())
    assert len(journals.read(path).resumes) == 2 and not list(tmp_path.rglob("*.part"))


def test_a_flipped_digit_is_seen_wherever_it_is(tmp_path: Path) -> None:
    path = mixed_sweep().write(tmp_path)
    text = path.read_bytes()
    places = [i for i, byte in enumerate(text) if chr(byte).isdigit()]
    for place in places[:: max(1, len(places) // 60)]:
        other = b"1" if text[place : place + 1] != b"1" else b"2"
        path.write_bytes(text[:place] + other + text[place + 1 :])
        with pytest.raises(BadInput, match=r"damaged|journal"):
            journals.read(path)


def test_a_journal_without_checksums_is_read_and_gone_on_with(finished: Path) -> None:
    assert b'"crc"' not in finished.read_bytes()
    before = len(list(journals.lines(finished)))
    with JournalWriter(finished) as writer:
        writer.write(Resumed())
    assert len(list(journals.lines(finished))) == before + 1
    assert finished.read_bytes().splitlines()[-1].endswith(b'"}') and b'"crc"' in finished.read_bytes().splitlines()[-1]


def test_a_torn_tail_is_cut_off_and_kept(tmp_path: Path) -> None:
    path = mixed_sweep().write(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"line":"rep')
    with JournalWriter(path) as writer:
        assert writer.cut == 12
    assert path.read_bytes() == whole
    assert path.with_name(f"journal.jsonl.cut-{len(whole)}").read_bytes() == b'{"line":"rep'


# --- foreign journals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trial", ["../../../x", "/etc", "a/b", "", ".", "..", "0000\x00", "x" * 65])
def test_a_trial_is_never_a_path(trial: str) -> None:
    book = mixed_sweep()
    for line in book.lines:
        if line["trial"] == "0000":
            line["trial"] = trial
    with pytest.raises(BadInput, match="trial"):
        book.journal()


@pytest.mark.parametrize("checkpoint", ["/abs.pt", "../../x.pt", "checkpoints/../../x.pt", "", "a\\b.pt", "a//b.pt"])
def test_a_checkpoint_stays_inside_its_trials_folder(checkpoint: str) -> None:
    book = mixed_sweep()
    report = next(line for line in book.lines if line["line"] == "report")
    report["checkpoint"] = checkpoint
    with pytest.raises(BadInput, match="path inside the trial's folder"):
        book.journal()


def outcome_keeping(checkpoint: str | None) -> Outcome:
    best = Best(1, 50, {"ari": 0.5}, 1, 1, checkpoint)
    return Outcome(trial="0000", attempt=1, outcome="completed", best=best)


def test_only_files_of_our_own_pattern_are_deleted(tmp_path: Path) -> None:
    checkpoints = tmp_path / "trials" / "0000" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for name in ("000001.pt", "000002.pt", "000003-000000150.pt", "000004.part", "mine.pt", "notes.txt"):
        (checkpoints / name).write_text("")
    retention = CheckpointRetention(LocalTrialFiles(tmp_path / "trials"), "ari", "max")
    retention.ended("0000", outcome_keeping("checkpoints/000002.pt"))
    assert {path.name for path in checkpoints.iterdir()} == {"000002.pt", "mine.pt", "notes.txt"}


@pytest.mark.parametrize("linked", ["trials/0000", "trials/0000/checkpoints"])
def test_nothing_is_deleted_through_a_link(linked: str, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "checkpoints").mkdir(parents=True)
    for folder in (elsewhere, elsewhere / "checkpoints"):
        (folder / "000001.pt").write_text("precious")
    link = tmp_path / linked
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(elsewhere)
    retention = CheckpointRetention(LocalTrialFiles(tmp_path / "trials"), "ari", "max")
    retention.ended("0000", outcome_keeping(None))
    assert len(list(elsewhere.rglob("*.pt"))) == 2


# --- every file that is read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [b"[" * 2000, b"\x00" * 100, b'{"line":"header","time":"now"}\n', b'{"line":"header"}\n' * 3, b"\xff\xfe{}\n",
     b'{"line":"header","schema":1e400}\n', b'{"line":"header","schema":true}\n'],
    ids=["nested", "nul", "wrong time", "twice", "no utf-8", "infinite", "bool"],
)  # fmt: skip
def test_a_damaged_sweep_is_one_sentence_and_hides_no_other(
    text: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mixed_sweep().write(tmp_path / "runs")
    damaged = tmp_path / "runs" / "toy-zz99zz"
    damaged.mkdir()
    (damaged / "journal.jsonl").write_bytes(text)
    with pytest.raises(BadInput):
        journals.read(damaged)
    assert journals.read(journals.find("toy-ab").path).header.sweep == "toy-ab12cd"
    assert journals.find("toy").path.parent.name in ("toy-ab12cd", "toy-zz99zz")


def test_an_export_from_a_journal_without_an_end_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    book = mixed_sweep()
    path = book.write(tmp_path / "runs")
    done = CliRunner().invoke(app, ["export", "toy"])
    assert done.exit_code == 0 and "does not end with the sweep's end: this is the best of what it holds" in done.stderr
    path.write_bytes(path.read_bytes() + b'{"li')
    assert "4 bytes at its end are torn" in CliRunner().invoke(app, ["export", "toy"]).stderr
    book.end()
    shutil.rmtree(path.parent)
    book.write(tmp_path / "runs")
    assert "note" not in CliRunner().invoke(app, ["export", "toy"]).stderr


def test_a_journal_that_is_deleted_while_it_is_written_ends_the_sweep(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with JournalWriter(finished) as writer:
        shutil.rmtree(finished.parent)
        with pytest.raises(JournalUnwritable, match="was deleted while it was written") as caught:
            writer.write(Resumed())
    assert caught.value.deleted

    def run(*_: Any, **__: Any) -> None:
        raise caught.value

    monkeypatch.setattr("buttress.api.run", run)
    code, _, err = call(capfd, "run", "lithology")
    assert code == 1 and "what it had found is gone" in err and "resume" not in err
