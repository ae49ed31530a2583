"""What a Ray on this machine needs is seen to before anything is started: its folder, its token."""

from __future__ import annotations

import inspect
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from buttress.compat.ray import socket_below
from buttress.errors import BadInput
from buttress.execution import auth_token
from buttress.execution.ray_session import MAX_SOCKET_PATH, check_machine


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a token, in which a sweep is about to be started here."""
    for name in ("RAY_TMPDIR", "TMPDIR", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a path that is short enough for Ray."""
    with tempfile.TemporaryDirectory(prefix="bt-", dir="/tmp") as folder:
        yield Path(folder)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_made_once_and_for_its_owner_alone(home: Path) -> None:
    check_machine()
    token = home / ".ray" / "auth_token"
    made = token.read_text()
    assert (mode(token), mode(token.parent), len(made)) == (0o600, 0o700, 64)
    check_machine()
    assert token.read_text() == made


def test_a_token_that_others_can_read_is_closed_to_them_and_stays(home: Path) -> None:
    token = home / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("0123")
    token.chmod(0o644)
    check_machine()
    assert (token.read_text(), mode(token)) == ("0123", 0o600)


@pytest.mark.parametrize(
    ("name", "value"), [("RAY_AUTH_TOKEN", "0123"), ("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_MODE", "DISABLED")]
)
def test_no_token_is_made_where_the_user_has_decided(
    name: str, value: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    check_machine()
    assert not (home / ".ray").exists()


def test_two_sweeps_that_start_at_once_use_one_token(home: Path) -> None:
    seen: list[str] = []
    token, barrier = home / ".ray" / "auth_token", threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        auth_token.ensure()
        seen.append(token.read_text())

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8 and set(seen) == {token.read_text()}
    assert [path.name for path in token.parent.iterdir()] == ["auth_token"]


def test_a_home_that_cannot_be_written_is_one_sentence(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").write_text("")
    monkeypatch.setenv("HOME", str(home / "file"))
    with pytest.raises(BadInput, match=r"auth_token: Ray's token cannot be written \(Not a directory\).*a HOME"):
        check_machine()


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
@pytest.mark.parametrize(
    ("folder", "sentence"),
    [
        ("x" * 80, "is too long a path for Ray, whose sockets lie below it and may have 107 characters"),
        ("file/below", r"Ray cannot write there \(Not a directory\)"),
        ("relative", "has to be an absolute path"),
    ],
)
def test_a_folder_in_which_ray_cannot_work_is_named(
    name: str, folder: str, sentence: str, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (short / "file").write_text("")
    monkeypatch.setenv(name, folder if folder == "relative" else str(short / folder))
    with pytest.raises(BadInput, match=f"^{name}: {sentence}.*accepted: RAY_TMPDIR=/a/short/folder"):
        check_machine()
    check_machine("auto")  # nothing is started here


def test_a_folder_that_is_not_there_yet_is_made(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", f"{short}/a/b")
    check_machine()
    assert (short / "a" / "b").is_dir()


def test_the_socket_that_decides_is_the_one_that_ray_makes() -> None:
    from ray._private import node

    source = inspect.getsource(node)
    assert 'f"session_{date_str}_{os.getpid()}"' in source and '"%Y-%m-%d_%H-%M-%S_%f"' in source
    assert 'default_prefix="plasma_store"' in source and '"sockets"' in source
    assert len(socket_below("/tmp")) < MAX_SOCKET_PATH
