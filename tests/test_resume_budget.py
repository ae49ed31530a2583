"""What `resume` is asked for: lasting budgets, finished sweeps, files that were edited, clusters that are not there."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_cli import call

import buttress
from buttress.errors import BadInput
from buttress.execution import launch
from buttress.execution.setup import file_sha256
from buttress.journal import Header, JournalWriter, events
from buttress.journal.events import Resumed


@pytest.fixture
def finished(recorded_sweeps: Path, tmp_path: Path) -> Path:
    """A sweep that has ended with its budget spent."""
    shutil.copytree(recorded_sweeps / "finished", tmp_path / "finished")
    return tmp_path / "finished"


def budget_of(sweep: Path, **options: Any) -> Any:
    return launch.resume(str(sweep), **options).spec.budget


def test_a_budget_that_was_raised_stays_raised(finished: Path) -> None:
    was = budget_of(finished)
    with JournalWriter(finished / "journal.jsonl") as writer:
        writer.write(Resumed(budget={"trials": 48}))
        writer.write(Resumed(budget={"hours": 2.5}))
        writer.write(Resumed())
    assert budget_of(finished).model_dump() == {**was.model_dump(), "trials": 48, "hours": 2.5}
    assert budget_of(finished, trials=50).trials == 50


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"trials": 0}, "--trials"),
        ({"trials": -5}, "--trials"),
        ({"hours": -1.0}, "--hours"),
        ({"hours": 0.0}, "--hours"),
        ({"hours": float("nan")}, "--hours"),
        ({"hours": float("inf")}, "--hours"),
    ],
)
def test_a_budget_that_is_none_is_refused(
    finished: Path, options: dict[str, Any], key: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "journal.jsonl").read_bytes()
    with pytest.raises(BadInput) as caught:
        buttress.resume(finished, quiet=True, **options)
    assert key in str(caught.value)
    ((name, value),) = options.items()
    assert call(capfd, "resume", str(finished), f"--{name}={value}")[0] == 2
    assert (finished / "journal.jsonl").read_bytes() == before


def test_a_finished_sweep_says_so_and_starts_nothing(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("buttress.execution.driver.connected", lambda address: pytest.fail("Ray was started"))
    before = (finished / "journal.jsonl").read_bytes()
    code, _, err = call(capfd, "resume", str(finished))
    assert code == 0 and (finished / "journal.jsonl").read_bytes() == before
    said = " ".join(err.split())
    assert "nothing is left to do (budget spent)" in said and "--trials N` raises the budget" in said
    again = buttress.resume(finished, quiet=True)
    assert again.best is not None and (finished / "journal.jsonl").read_bytes() == before


def test_a_spec_that_was_edited_since_is_told(finished: Path, tmp_path: Path) -> None:
    path = finished / "journal.jsonl"
    spec = tmp_path / "mine.yaml"
    spec.write_text("a: 1\n")
    first, *rest = events(path)
    assert isinstance(first, Header)
    path.unlink()
    with JournalWriter(path) as writer:
        for event in (replace(first, spec_file=str(spec), spec_sha256=file_sha256(spec)), *rest):
            writer.write(event)
    assert launch.resume(str(finished)).notes == []
    spec.write_text("a: 2\n")
    (note,) = launch.resume(str(finished)).notes
    assert str(spec) in note and "goes on with the spec in its journal" in note
    spec.unlink()
    assert launch.resume(str(finished)).notes == []


# --- clusters that are not there -------------------------------------------------------------------------------------


@pytest.fixture
def web_server() -> Iterator[int]:
    """Answers whatever it is sent as no cluster would; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


def test_a_cluster_that_is_not_there_is_told_in_a_sentence(
    web_server: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # by the session's own cluster
    monkeypatch.setattr("buttress.execution.ray_session.CONNECT_TIMEOUT_S", 2.0)

    def said(address: str) -> str:
        monkeypatch.setenv("RAY_ADDRESS", address)
        code, _, err = call(capfd, "plan", str(spec), "--no-timing")
        assert code == 2
        return " ".join(err.split())

    spec = Path(__file__).parents[1] / "search_spaces" / "lithology.yaml"
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert "nothing answers there" in said(f"127.0.0.1:{port}")
    assert "what answers there is not a Ray cluster" in said(f"127.0.0.1:{web_server}")
    assert "Ray Client addresses are not supported" in said("ray://127.0.0.1:10001")
    assert "not an address" in said("nowhere")
    assert "RAY_ADDRESS" in said("nowhere")
