"""Mutated journals through all that reads one, and through resume: a sentence or a result, never another error."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from journals import mixed_sweep
from rich.console import Console

import buttress
from buttress import journal as journals
from buttress.analysis.curves import read_curves
from buttress.analysis.export import export
from buttress.analysis.figures.course import compute_health, compute_rungs, compute_timeline
from buttress.analysis.figures.search import compute_collapse_map, compute_history
from buttress.analysis.listing import list_sweeps
from buttress.analysis.render import render_status, render_sweep
from buttress.analysis.replay import replay_result
from buttress.analysis.selection import best_json
from buttress.errors import BadInput
from buttress.execution import launch
from buttress.execution.setup import family_rules
from buttress.journal import JournalWriter

WRONG: list[Any] = [
    None, True, -1, 0, 1e308, 2**70, "", "x", "../../x", "\x00", "[/b]", [], [1], {}, {"a": 1}, "NaN", "a" * 5000,
]  # fmt: skip


@pytest.fixture(scope="module")
def lines(recorded_sweeps: Path) -> list[bytes]:
    whole = (recorded_sweeps / "killed" / "journal.jsonl").read_bytes()
    return whole[: whole.rindex(b"\n") + 1].splitlines(keepends=True)


def mutated(lines: list[bytes], dice: random.Random) -> bytes:
    """One fault: a value of another type, a key less, lines lost, doubled or in another order, a flipped bit, a cut."""
    lines = list(lines)
    at = dice.randrange(len(lines))
    match dice.randrange(6):
        case 0 | 1:
            line = json.loads(lines[at])
            holder, key = dice.choice(places(line))
            holder[key] = dice.choice(WRONG)
            lines[at] = json.dumps(line).encode() + b"\n"
        case 2:
            line = json.loads(lines[at])
            holder, key = dice.choice(places(line))
            del holder[key]
            lines[at] = json.dumps(line).encode() + b"\n"
        case 3:
            other = dice.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        case 4:
            text = bytearray(b"".join(lines))
            text[dice.randrange(len(text))] ^= 1 << dice.randrange(8)
            return bytes(text)
        case 5:
            lines[at : at + dice.randrange(4)] = [lines[dice.randrange(len(lines))]] * dice.randrange(3)
    return b"".join(lines)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (holder, key) inside a line."""
    found = []
    pending = [value]
    while pending:
        holder = pending.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], dict | list):
                pending.append(holder[key])
    return found


def look(folder: Path) -> None:
    """What the verbs that read do."""
    read = journals.read(folder)
    console = Console(file=io.StringIO(), width=120)
    console.print(render_sweep(read))
    console.print(render_status(read))
    best_json(read)
    for compute in (compute_history, compute_health, compute_rungs, compute_timeline, compute_collapse_map):
        compute(read)
    sweep = buttress.load(folder)
    sweep.table()
    for trial in read.trials:
        str(sweep.explain(trial))
    if read.trials:
        export(read, next(iter(read.trials)), force=True)


def replay(folder: Path) -> None:
    replay_result(read_curves(folder), family_rules("lithology"), family="lithology")


def resume(folder: Path) -> None:
    """All that `resume` does before it connects to Ray."""
    made = launch.resume(folder)
    with JournalWriter(folder / "journal.jsonl", fsync=False) as made._writer:
        made._open()
        made._open_journal()


def attempt(lines: list[bytes], seed: int, folder: Path) -> None:
    folder.mkdir()
    path = folder / "journal.jsonl"
    text = mutated(lines, random.Random(seed))
    path.write_bytes(text)
    for act in (look, replay, resume):
        try:
            act(folder)
        except BadInput as error:
            said = str(error)
            assert len(said) < 1000, (seed, act.__name__, said)
            if act is resume:
                assert path.read_bytes().startswith(text[: journals.reader.whole_length(text)][:1000]), seed
        except Exception as error:
            what = f"{act.__name__} of the journal with seed {seed}"
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    list_sweeps(str(folder.parent))


def test_no_mutated_journal_ends_in_an_internal_error(lines: list[bytes], tmp_path: Path) -> None:
    for seed in range(16):
        attempt(lines, seed, tmp_path / f"s-{seed}")


@pytest.mark.long
def test_no_mutated_journal_of_thousands_does(lines: list[bytes], tmp_path: Path) -> None:
    for seed in range(1000, 6000):
        attempt(lines, seed, tmp_path / f"s-{seed}")
        (tmp_path / f"s-{seed}" / "journal.jsonl").unlink()


def test_no_mutation_of_a_sealed_journal_gives_another_best_without_a_word(tmp_path: Path) -> None:
    """A fault is an error; only what is cut off at the end is believed, and then the sweep's end is missing."""
    book = mixed_sweep()
    book.end()
    path = book.write(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    best = best_json(journals.read(path))
    for seed in range(400):
        path.write_bytes(mutated(lines, random.Random(seed)))
        try:
            read = journals.read(path)
        except BadInput:
            continue
        assert best_json(read) == best or read.ended is None or read.torn, seed
