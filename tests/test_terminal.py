"""What reaches a terminal: foreign text as text, whatever it holds, on whatever standard output there is."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from journals import SyntheticSweep, mixed_sweep
from rich.console import Console
from rich.table import Table
from test_cli import SPEC, call, here  # noqa: F401  (a fixture)

from buttress.console import PlainConsole
from buttress.errors import BadInput, printable

#: Rich markup that does not close, an emoji code, a colour, a title of the window, a line that overwrites, and a bidi
#: override.
HOSTILE = "[/b][bold]:smile:\x1b[31m\x1b]0;owned\x07\x9b2J\u202e"


def is_plain(text: str) -> bool:
    return not any(sign in text for sign in "\x1b\x07\x9b\u202e")


def hostile_sweep() -> SyntheticSweep:
    book = SyntheticSweep("toy-ab12cd", objectives={f"ari{HOSTILE}": "max"}, search=("loss.kind",))
    book.completed("0000", {"loss.kind": HOSTILE}, warnings=[HOSTILE], **{f"ari{HOSTILE}": [0.1, 0.4]})
    book.trial("0001", {"loss.kind": "b"})
    book.outcome("0001", "failed", kind=HOSTILE, error=f"RuntimeError: {HOSTILE}", message=HOSTILE)
    book.collapsed("0002", {"loss.kind": f"c{HOSTILE}"}, kl=[0.02, 0.002])
    book.trial("0003", {"loss.kind": HOSTILE})
    book.lines[0]["trainable"] = f"toy{HOSTILE}"
    return book


@pytest.mark.parametrize(
    "arguments",
    [
        ("table", "toy"), ("table", "toy", "--all"), ("table", "toy", "-w", f"{HOSTILE}=1"), ("why", "toy", "0"),
        ("why", "toy", "1"), ("why", "toy", "2"), ("why", "toy", HOSTILE), ("status", "toy"), ("ls",),
        ("diff", "toy:0", "toy:1"), ("diff", f"toy:{HOSTILE}", "toy:1"), ("export", "toy", "-o", "x.yaml"),
        ("export", "toy", "-t", HOSTILE), ("table", HOSTILE), ("ls", HOSTILE), ("plan", HOSTILE),
        ("plan", f"{HOSTILE}.yaml"), ("--colour", HOSTILE), (HOSTILE,), ("table", "toy", HOSTILE),
        ("table", "toy", f"--{HOSTILE}"),
        ("run", "spec.yaml", "--set", f"{HOSTILE}=1"), ("resume", HOSTILE), ("train", HOSTILE), ("init", HOSTILE),
        ("plot", "toy", HOSTILE), ("replay", HOSTILE, "-f", "lithology"), ("cluster", "check", HOSTILE),
        pytest.param(("report", "toy"), marks=pytest.mark.long), ("plot", "toy", "slices", "-o", "x.svg"),
        ("data", "check", HOSTILE, HOSTILE),
    ],
    ids=lambda given: "-".join(map(printable, given)),
)  # fmt: skip
def test_no_verb_obeys_or_fails_on_what_foreign_text_holds(
    here: Path, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...]  # noqa: F811
) -> None:
    hostile_sweep().write(here / "runs")
    (here / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    code, out, err = call(capfd, *arguments)
    assert code in (0, 2), err
    assert is_plain(out) and is_plain(err)
    if code == 2 and not err.startswith("Usage"):
        assert len(err.strip().splitlines()) == 1
    if code == 0 and arguments[0] in ("table", "status", "why"):
        assert "[/b]" in out.replace("\n", "") or arguments[-1] == "2"
    for page in [*here.glob("runs/*/report.html"), *here.glob("*.svg")]:
        assert is_plain(page.read_text()), page


def test_a_plan_shows_choices_as_they_are_written(here: Path, capfd: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    (here / "spec.yaml").write_text(yaml.safe_dump({**SPEC, "search": {"loss.beta": {"choice": [1, HOSTILE]}}}))
    code, _, err = call(capfd, "plan", "spec.yaml", "--no-timing")
    assert code == 2 and is_plain(err) and "[/b]" in err  # the trainer's config refuses the choice
    (here / "spec.yaml").write_text(yaml.safe_dump({**SPEC, "rules": {f"{HOSTILE}": {"action": "warn"}}}))
    code, out, err = call(capfd, "plan", "spec.yaml", "--no-timing")
    assert code in (0, 2) and is_plain(out + err)


def test_a_console_shows_every_text_as_it_is_also_in_a_live_table() -> None:
    table = Table(title=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    written = io.StringIO()
    console = PlainConsole(file=written, width=200, force_terminal=True, color_system=None)
    console.print(HOSTILE, table)
    assert is_plain(written.getvalue().replace("\x1b[3m", "").replace("\x1b[0m", "").replace("\x1b[1m", ""))
    assert written.getvalue().count("[/b][bold]:smile:") == 4
    assert isinstance(console, Console)


def test_a_sentence_is_one_line_without_control_characters() -> None:
    error = BadInput(f"no {HOSTILE}\nsecond", where=f"a\n{HOSTILE}.yaml", key=HOSTILE, value=HOSTILE, accepted="\r\t")
    assert is_plain(str(error)) and str(error).isprintable()
    assert printable("é ▁ 中 \U0001f600\n") == "é ▁ 中 \U0001f600\n" and printable("\udc80\x1b") == "\\udc80\\x1b"


@pytest.mark.parametrize(
    ("name", "given"),
    [*[("COLUMNS", each) for each in ("", "0", "text", "-5", "²", "9" * 30)], ("LINES", "0"), ("TERMINAL_WIDTH", "x")],
)
def test_a_width_that_is_none_is_left_out(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, given: str  # noqa: F811
) -> None:
    monkeypatch.setenv(name, given)
    mixed_sweep().write(here / "runs")
    for arguments in (("table", "toy"), ("--help",)):
        code, out, err = call(capfd, *arguments)
        assert code == 0 and out and not err


def buttress(here: Path, line: str, **more: Any) -> subprocess.CompletedProcess[str]:  # noqa: F811
    command = f"'{sys.executable}' -m buttress {line}"
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], cwd=here, capture_output=True, text=True, timeout=60,
        env={**os.environ, **more}, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("table toy >&-", 0, ""),
        ("table nothing >&- 2>&-", 2, ""),
        ("table toy --json | true", 141, ""),
        ("table toy >/dev/full", 2, "buttress: the output cannot be written (No space left on device)"),
        ("export toy -o best.yaml >&- 2>&-", 0, ""),
    ],
)
def test_a_standard_output_that_is_gone_is_no_internal_error(here: Path, line: str, code: int, says: str) -> None:  # noqa: F811
    book = mixed_sweep()
    for number in range(7, 700):
        book.trial(f"{number:04d}")
    book.write(here / "runs")
    done = buttress(here, line, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr.strip()) == (code, says)
    assert not line.startswith("export") or (here / "best.yaml").read_text().startswith("# Exported by Buttress")
