"""What people ask of a sweep from outside its driver: files in `commands/`, beside the journal or on its storage.

A request is a file `commands/<id>.json`. The driver takes it up, acts, writes a `command` line into the journal and
answers in `commands/<id>.answer.json`. Without a driver the request lies there until the next one begins.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import secrets
import socket
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from buttress.errors import BadInput
from buttress.storage import Storage

FOLDER = "commands"
Verb = Literal["stop", "pause", "go", "add"]
#: What `stop` makes of a trial.
Ending = Literal["stopped", "completed", "failed"]
_NAME = re.compile(r"[0-9a-f]{8,32}")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request.

    Attributes:
        verb: What is asked for.
        trial: Of which trial; None: of the whole sweep.
        ending: Of `stop`: what the trial's outcome is to be.
        values: Of `add`: values of searched parameters by path.
        by: Who asked: user and host.
        id: Name of its file.
    """

    verb: Verb
    trial: str | None = None
    ending: Ending = "stopped"
    values: dict[str, Any] = field(default_factory=dict)
    by: str = ""
    id: str = field(default_factory=lambda: secrets.token_hex(6))

    @classmethod
    def from_json(cls, text: bytes, id: str) -> Request:
        """The request in a file.

        Raises:
            BadInput: The text is none.
        """
        try:
            given = json.loads(text)
            made = cls(**{**given, "id": id})
        except (ValueError, TypeError, RecursionError):
            raise _no_request(id) from None
        checks = (
            made.verb in get_args(Verb), made.ending in get_args(Ending), isinstance(made.by, str),
            made.trial is None or isinstance(made.trial, str), isinstance(made.values, dict),
        )  # fmt: skip
        if not all(checks):
            raise _no_request(id)
        return made


def _no_request(id: str) -> BadInput:
    return BadInput("not a request", where=f"{FOLDER}/{id}.json", accepted="what `buttress stop` and the like write")


class Requests:
    """The requests of one sweep, for whoever asks and for the driver that answers.

    Args:
        place: The sweep's folder, or its storage.
    """

    def __init__(self, place: Path | Storage) -> None:
        self._place = place

    def pending(self) -> list[str]:
        """Ids of requests that nobody has answered, oldest first.

        Raises:
            OSError: The storage is away.
        """
        if isinstance(self._place, Storage):
            names = self._place.names(FOLDER)
        else:
            folder = self._place / FOLDER
            files = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime) if folder.is_dir() else []
            names = [path.name for path in files]
        return [stem for name in names if _NAME.fullmatch(stem := name.removesuffix(".json"))]

    def read(self, id: str) -> Request:
        """One of them.

        Raises:
            BadInput: It is no request.
            OSError: It is gone, or the storage is away.
        """
        name = f"{FOLDER}/{id}.json"
        text = self._place.read(name) if isinstance(self._place, Storage) else (self._place / name).read_bytes()
        return Request.from_json(text, id)

    def answer(self, id: str, message: str, *, refused: bool = False) -> None:
        """Answers a request and takes it away."""
        self._write(f"{FOLDER}/{id}.answer.json", {"message": message, "refused": refused})
        self._delete(f"{FOLDER}/{id}.json")

    def ask(self, request: Request) -> None:
        """Leaves a request."""
        content = {key: value for key, value in asdict(request).items() if key != "id"}
        self._write(f"{FOLDER}/{request.id}.json", content)

    def wait(self, id: str, timeout_s: float) -> dict[str, Any] | None:
        """The answer to a request, taken away; None after `timeout_s` seconds without one."""
        name, deadline = f"{FOLDER}/{id}.answer.json", time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError, ValueError):
                text = self._place.read(name) if isinstance(self._place, Storage) else (self._place / name).read_bytes()
                answer: dict[str, Any] = json.loads(text)
                self._delete(name)
                return answer
            time.sleep(0.1 if isinstance(self._place, Path) else 1.0)
        return None

    def _write(self, name: str, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        if isinstance(self._place, Storage):
            self._place.write(name, text)
            return
        path = self._place / name
        path.parent.mkdir(exist_ok=True)
        draft = path.with_suffix(".part")
        draft.write_bytes(text)
        draft.replace(path)

    def _delete(self, name: str) -> None:
        if isinstance(self._place, Storage):
            self._place.delete(name)
        else:
            (self._place / name).unlink(missing_ok=True)


def asker() -> str:
    """This process's user and host."""
    with contextlib.suppress(Exception):
        return f"{getpass.getuser()} on {socket.gethostname()}"
    return f"user {os.getuid()} on {socket.gethostname()}"
