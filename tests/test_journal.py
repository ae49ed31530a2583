"""The journal holds what was written, whatever happens to its writer."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import journal_lines
import pytest
from journal_lines import event_of
from journals import Reported, SyntheticSweep, mixed_sweep

from buttress.errors import BadInput
from buttress.journal import JournalUnwritable, JournalWriter, find, fold, owner, read

ROOT = Path(__file__).parents[1]


def header(sweep: str = "toy-ab12cd") -> dict[str, Any]:
    return SyntheticSweep(sweep).lines[0]


def opened(path: Path, **more: Any) -> JournalWriter:
    """A journal with its header, ready for more."""
    writer = JournalWriter(path, **more)
    writer.write(event_of(header()))
    return writer


def write_trial(writer: JournalWriter, id: str = "0000") -> None:
    writer.write(event_of(journal_lines.trial(id, ask=int(id), params={}, config={}, seed=1, budget_epochs=3)))


# --- what is written is what is read ----------------------------------------------------------------------------------


def test_a_sweep_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    book = mixed_sweep()
    book.end()
    found = read(book.write(tmp_path))
    assert found.header.sweep == "toy-ab12cd"
    assert [objective.metric for objective in found.objectives] == ["ari"]
    assert found.counts() == {
        "completed": 2, "collapsed": 1, "diverged": 1, "pruned": 1, "failed": 1, "waiting": 1,
    }  # fmt: skip
    collapsed = found.trials["0002"]
    assert collapsed.outcome is not None
    assert (collapsed.outcome.kind, collapsed.outcome.margin) == ("posterior_collapse", 1.9)
    assert [report.metrics["latent/kl_total"] for report in collapsed.reports] == [3.0, 0.01, 0.002]
    assert found.trials == book.journal().trials
    assert found.ended is not None and found.ended.reason == "done"


def test_floats_come_back_bit_for_bit(tmp_path: Path) -> None:
    values = [0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308, 1e-5, -0.0, 1e16]
    with opened(tmp_path / "j") as writer:
        write_trial(writer)
        writer.write(event_of(journal_lines.start("0000", 1, slot=0)))
        metrics = {f"m{index}": value for index, value in enumerate(values)}
        writer.write(event_of(journal_lines.report("0000", 1, 0, Reported(1, 10, metrics))))
    got = list(read(tmp_path / "j").trials["0000"].reports[0].metrics.values())
    assert [value.hex() for value in got if value is not None] == [value.hex() for value in values]


def test_nan_and_infinity_become_null_and_are_named_in_nonfinite(tmp_path: Path) -> None:
    with opened(tmp_path / "j") as writer:
        write_trial(writer)
        writer.write(event_of(journal_lines.start("0000", 1, slot=0)))
        metrics = {"a": float("nan"), "b": float("inf"), "c": 1.0}
        reported = Reported(1, 10, metrics, vectors={"v": [1.0, float("nan")]}, nonfinite=("b",))
        writer.write(event_of(journal_lines.report("0000", 1, 0, reported)))
    text = (tmp_path / "j").read_text()
    assert "NaN" not in text and "Infinity" not in text
    report = read(tmp_path / "j").trials["0000"].reports[0]
    assert report.metrics == {"a": None, "b": None, "c": 1.0}
    assert sorted(report.nonfinite) == ["a", "b"]
    assert report.vectors == {"v": [1.0, None]}


def test_lines_of_an_unknown_kind_and_unknown_keys_are_passed_over() -> None:
    book = mixed_sweep()
    lines = [{**line, "later": 1} for line in book.lines]
    lines.insert(3, {"line": "weather", "time": 0.0, "trial": None})
    assert fold(lines).trials == book.journal().trials


# --- what counts ------------------------------------------------------------------------------------------------------


def test_the_newest_attempt_counts_and_what_its_checkpoint_covers() -> None:
    book = SyntheticSweep()
    book.trial("0000")
    for epoch in (1, 2, 3):
        book.epoch("0000", epoch, {"ari": 0.1 * epoch})
    book.add(journal_lines.lost("0000", 1, reason="node gone"))
    book.start("0000", 2, resumed_from=2, resumed_attempt=1, checkpoint="checkpoint-0002.pt")
    book.epoch("0000", 3, {"ari": 0.33}, attempt=2)
    record = book.journal().trials["0000"]
    assert [(report.attempt, report.epoch) for report in record.reports] == [(1, 1), (1, 2), (2, 3)]
    assert [loss.reason for loss in record.losses] == ["node gone"]


def test_an_attempt_lost_before_its_first_checkpoint_goes_back_to_the_one_before() -> None:
    """Both attempts have a report 2: the checkpoint's name says which one is meant where the attempt is not said."""
    book = SyntheticSweep()
    book.trial("0000")
    for epoch in (1, 2, 3):
        book.epoch("0000", epoch, {"ari": 0.1})
    book.start("0000", 2, resumed_from=2, checkpoint="checkpoint-0002.pt")
    book.epoch("0000", 3, {"ari": 0.2}, attempt=2, checkpoint=None)
    book.epoch("0000", 4, {"ari": 0.2}, attempt=2, checkpoint=None)
    book.start("0000", 3, resumed_from=2, checkpoint="checkpoint-0002.pt")
    record = book.journal().trials["0000"]
    assert [(report.attempt, report.epoch) for report in record.reports] == [(1, 1), (1, 2)]


def test_an_attempt_from_the_beginning_voids_all_before() -> None:
    book = SyntheticSweep()
    book.trial("0000")
    book.epoch("0000", 1, {"ari": 0.9})
    book.start("0000", 2)
    assert book.journal().trials["0000"].reports == ()


def test_reports_of_a_given_up_attempt_are_stragglers_and_do_not_count() -> None:
    book = SyntheticSweep()
    book.trial("0000")
    book.epoch("0000", 1, {"ari": 0.1})
    book.start("0000", 2, resumed_from=1)
    book.epoch("0000", 2, {"ari": 0.9}, attempt=1)
    assert [report.epoch for report in book.journal().trials["0000"].reports] == [1]


def test_nothing_counts_after_the_outcome() -> None:
    book = mixed_sweep()
    before = book.journal().trials["0002"]
    book.epoch("0002", 4, {"ari": 0.99})
    book.outcome("0002", "completed", epochs=4)
    book.start("0002", 2)
    assert book.journal().trials["0002"] == before


def test_an_unfinished_trial_runs_while_its_driver_lives_and_waits_after(tmp_path: Path) -> None:
    path = tmp_path / "sweep" / "journal.jsonl"
    with opened(path) as writer:
        write_trial(writer)
        assert read(path).trials["0000"].state == "waiting"  # it waits for a slot
        writer.write(event_of(journal_lines.start("0000", 1, slot=0)))
        assert read(path).trials["0000"].state == "running"
        writer.write(event_of(journal_lines.lost("0000", 1, reason="killed")))
        assert read(path).trials["0000"].state == "waiting"
        writer.write(event_of(journal_lines.start("0000", 2, slot=0)))
        assert read(path).trials["0000"].state == "running"
    assert read(path).trials["0000"].state == "waiting"


def test_after_a_resume_a_trial_waits_until_it_starts_again() -> None:
    book = SyntheticSweep()
    book.trial("0000")
    book.add(journal_lines.resume(versions={}))
    assert book.journal(alive=True).trials["0000"].state == "waiting"
    book.start("0000", 2)
    assert book.journal(alive=True).trials["0000"].state == "running"


# --- torn lines, kills and full disks ---------------------------------------------------------------------------------


def test_every_prefix_of_a_journal_can_be_read_and_gone_on_with(tmp_path: Path) -> None:
    book = mixed_sweep()
    text = book.write(tmp_path).read_bytes()
    ends = [index + 1 for index, byte in enumerate(text) if byte == ord("\n")]
    path = tmp_path / "cut" / "journal.jsonl"
    path.parent.mkdir()
    for whole, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
        for cut in (begin, begin + 1, (begin + end) // 2, end - 1):
            path.write_bytes(text[:cut])
            with JournalWriter(path, fsync=False) as writer:
                assert writer.cut == cut - begin
                assert writer.fresh == (whole == 0)
                if whole:
                    writer.write(event_of(journal_lines.refused(ask=99, params={}, reason="gone on")))
            if whole:
                expected = fold(book.lines[:whole])
                assert read(path).trials == expected.trials
                assert [entry.ask for entry in read(path).refused] == [99]


def test_a_torn_last_line_is_left_out_and_told(tmp_path: Path) -> None:
    path = mixed_sweep().write(tmp_path)
    whole = read(path)
    with path.open("ab") as handle:
        handle.write(b'{"line":"outcome","trial":"0006","outcome":"comp')
    torn = read(path)
    assert torn.torn == 48 and whole.torn == 0
    assert torn.trials == whole.trials


def test_zeros_that_a_power_cut_leaves_are_cut_off(tmp_path: Path) -> None:
    path = mixed_sweep().write(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 100 + b"\n" + b"\0" * 7)
    assert len(read(path).trials) == 7
    with JournalWriter(path) as writer:
        assert writer.cut == 108
    assert path.read_bytes() == whole


def test_a_killed_writer_leaves_a_journal_that_the_next_one_goes_on_with(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    script = f"""
import sys; sys.path[:0] = ["tests", "."]
from test_journal import *
writer = opened(Path({str(path)!r}))
write_trial(writer)
writer.write(event_of(journal_lines.start("0000", 1, slot=0)))
for seq in range(10**9):
    writer.write(event_of(journal_lines.report("0000", 1, seq, Reported(1, seq, {{"a": 0.1}}))))
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    deadline = time.monotonic() + 20
    while not (path.exists() and path.stat().st_size > 50_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    holder = owner(path)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert holder is not None and holder.pid == process.pid
    assert owner(path) is None
    seqs = [report.seq for report in read(path).trials["0000"].reports]
    assert len(seqs) > 50 and seqs == list(range(len(seqs)))
    with JournalWriter(path) as writer:
        writer.write(event_of(journal_lines.outcome("0000", 1, "failed")))
    assert read(path).trials["0000"].state == "failed"


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The disk is full once a file has `size` bytes: the write that crosses it is cut short, the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_takes_the_line_back_and_the_writer_goes_on_when_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with opened(path) as writer:
        whole = path.read_bytes()
        with largest_file(len(whole) + 40), pytest.raises(JournalUnwritable, match="cannot be written") as caught:
            write_trial(writer)
        assert str(path) in str(caught.value)
        assert path.read_bytes() == whole
        write_trial(writer)
    assert list(read(path).trials) == ["0000"]


def test_a_line_that_could_not_even_be_taken_back_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j"
    writer = opened(path)
    whole = path.read_bytes()

    def broken(handle: int, length: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "ftruncate", broken)
        with largest_file(len(whole) + 40), pytest.raises(JournalUnwritable):
            write_trial(writer)
    assert len(path.read_bytes()) == len(whole) + 40
    assert read(path).torn == 40
    write_trial(writer)
    writer.close()
    assert list(read(path).trials) == ["0000"]
    assert read(path).torn == 0


def test_lines_that_must_not_be_lost_are_on_the_disk_before_write_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    with JournalWriter(tmp_path / "j") as writer:
        monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
        kinds = []
        for line in mixed_sweep().lines:
            before = len(synced)
            writer.write(event_of(line))
            if len(synced) > before:
                assert synced[-1] == (tmp_path / "j").stat().st_size
                kinds.append(line["line"])
    assert set(kinds) == {"header", "trial", "outcome"}
    assert kinds.count("outcome") == 6


def test_lines_of_many_threads_stay_whole(tmp_path: Path) -> None:
    with opened(tmp_path / "j") as writer:
        for trial in range(6):
            write_trial(writer, f"{trial:04d}")
            writer.write(event_of(journal_lines.start(f"{trial:04d}", 1, slot=trial)))

        def work(trial: str) -> None:
            for seq in range(100):
                writer.write(event_of(journal_lines.report(trial, 1, seq, Reported(1, seq, {"a": 1.0}))))

        threads = [threading.Thread(target=work, args=(f"{trial:04d}",)) for trial in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    records = read(tmp_path / "j").trials.values()
    assert [[report.seq for report in record.reports] for record in records] == [list(range(100))] * 6


# --- one driver -------------------------------------------------------------------------------------------------------


def test_a_second_driver_is_refused_with_the_first_one_named(tmp_path: Path) -> None:
    with opened(tmp_path / "j"):
        with pytest.raises(BadInput, match=rf"another driver \(host .*, pid {os.getpid()}, since 20") as caught:
            JournalWriter(tmp_path / "j", wait_s=0.05)
        assert "\n" not in str(caught.value)
    with JournalWriter(tmp_path / "j", wait_s=0.05) as second:
        assert not second.fresh


def test_looking_at_a_journal_never_refuses_its_driver(tmp_path: Path) -> None:
    path = mixed_sweep().write(tmp_path)
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            read(path)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(30):
            JournalWriter(path).close()
    finally:
        stop.set()
        looking.join()


def test_a_journal_begins_with_one_header(tmp_path: Path) -> None:
    with JournalWriter(tmp_path / "j") as writer:
        with pytest.raises(ValueError, match="header"):
            write_trial(writer)
        writer.write(event_of(header()))
        with pytest.raises(ValueError, match="header"):
            writer.write(event_of(header()))


def test_a_line_that_json_cannot_hold_is_refused_and_not_written(tmp_path: Path) -> None:
    with opened(tmp_path / "j") as writer:
        size = (tmp_path / "j").stat().st_size
        with pytest.raises(TypeError, match=r"object at params\.x$"):
            writer.write(event_of(journal_lines.refused(ask=1, params={"x": object()}, reason="")))
        assert (tmp_path / "j").stat().st_size == size


# --- bad input --------------------------------------------------------------------------------------------------------


def no_file(path: Path) -> None: ...


def empty(path: Path) -> None:
    path.write_text("")


def torn_header(path: Path) -> None:
    path.write_text('{"line":"header","time":1.0')


def foreign(path: Path) -> None:
    path.write_text("epoch,loss\n1,0.3\n")


def foreign_json(path: Path) -> None:
    path.write_text('{"epoch": 1}\n')


def newer(path: Path) -> None:
    path.write_text(json.dumps({**header(), "schema": 2}) + "\n")


def damaged(path: Path) -> None:
    lines = [json.dumps(line) for line in mixed_sweep().lines]
    path.write_text("\n".join([*lines[:4], lines[4][:30], *lines[5:]]) + "\n")


def lacking(path: Path) -> None:
    lines = mixed_sweep().lines[:5]
    del lines[3]["epoch"]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (no_file, "No such file"),
        (empty, "is empty"),
        (torn_header, "is empty"),
        (foreign, "not a Buttress journal"),
        (foreign_json, "not a Buttress journal"),
        (newer, "schema: this journal was written by a newer Buttress (got 2); accepted: schema 1"),
        (damaged, "line 5 is damaged"),
        (lacking, "line 4 (report) lacks epoch"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_in_one_sentence(
    tmp_path: Path, spoil: Callable[[Path], None], sentence: str
) -> None:
    path = tmp_path / "journal.jsonl"
    spoil(path)
    with pytest.raises(BadInput) as caught:
        read(path)
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("spoil", [foreign, foreign_json, newer])
def test_a_file_that_is_no_journal_of_ours_is_not_touched(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = tmp_path / "journal.jsonl"
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(BadInput):
        JournalWriter(path)
    assert path.read_bytes() == before
    assert owner(path) is None


def test_a_journal_that_cannot_be_made_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written"):
        JournalWriter(tmp_path / "file" / "journal.jsonl")


# --- finding a sweep --------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for index, sweep in enumerate(["toy-zzzzzz", "toy-aaaaaa", "toy-full-bbbbbb", "other-cccccc"]):
        book = SyntheticSweep(sweep)
        book.lines[0]["time"] += index
        book.write(tmp_path / "runs")
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("name", "sweep", "noted"),
    [
        ("toy", "toy-aaaaaa", True),  # the newest sweep of that spec, not toy-full's, which is newer
        ("toy-zzzzzz", "toy-zzzzzz", False),
        ("toy-full", "toy-full-bbbbbb", False),
        ("oth", "other-cccccc", False),
        ("to", "toy-full-bbbbbb", True),
    ],
)
def test_a_sweep_is_found_by_its_id_its_spec_or_the_beginning_of_either(
    runs: Path, name: str, sweep: str, noted: bool
) -> None:
    found = find(name, runs)
    assert found.path == runs / sweep / "journal.jsonl"
    assert (found.note is not None) == noted
    assert not noted or sweep in str(found.note)


def test_a_sweep_is_found_by_its_folder_or_its_journal(runs: Path) -> None:
    folder = runs / "toy-zzzzzz"
    assert find(folder).path == find(folder / "journal.jsonl").path == folder / "journal.jsonl"
    assert read(folder).header.sweep == "toy-zzzzzz"


@pytest.mark.parametrize("name", ["nothing", ""])
def test_a_sweep_that_is_not_there_is_told_with_how_sweeps_are_named(runs: Path, name: str) -> None:
    accepted = r"a folder that holds journal\.jsonl, the URL of one, or the name of a sweep"
    with pytest.raises(BadInput, match=f"accepted: {accepted}"):
        find(name, runs)


def test_a_folder_of_sweeps_is_no_sweep_and_they_are_listed(runs: Path) -> None:
    with pytest.raises(BadInput, match=r"no journal\.jsonl in this folder.*there are other-cccccc, toy-full-bbbbbb"):
        find(runs)


def test_a_trial_is_called_by_its_number_its_id_or_its_full_name() -> None:
    found = mixed_sweep().journal()
    assert found.trial("2") is found.trial("0002") is found.trial("toy-ab12cd-0002") is found.trials["0002"]
    with pytest.raises(BadInput, match=r"no such trial.*accepted: 0000 to 0006"):
        found.trial("77")
