"""What people ask of a sweep from outside its driver: files in `commands/`, beside the journal or on its storage.

A request is a file `commands/<id>.json`. The driver takes it up, acts, writes a `command` line into the journal and
answers in `commands/<id>.answer.json`. Without a driver the request lies there until the next one begins, unless it is
one to the sweep as a whole.
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
    id: str = field(default_factory=lambda: _new_id())

    @property
    def of_a_running_sweep(self) -> bool:
        """Whether it means nothing where nobody runs the sweep: a later driver must not take it up."""
        return self.trial is None and self.verb != "add"

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
        place: The sweep's folder on this machine, or its storage.
    """

    def __init__(self, place: Path | Storage) -> None:
        self._store = place if isinstance(place, Storage) else Storage(place.absolute().as_uri())

    def pending(self) -> list[str]:
        """Ids of requests that nobody has answered, oldest first.

        Raises:
            OSError: The storage is away.
        """
        return [stem for name in self._store.names(FOLDER) if _NAME.fullmatch(stem := name.removesuffix(".json"))]

    def read(self, id: str) -> Request:
        """One of them.

        Raises:
            BadInput: It is no request.
            OSError: It is gone, or the storage is away.
        """
        return Request.from_json(self._store.read(f"{FOLDER}/{id}.json"), id)

    def answer(self, id: str, message: str, *, refused: bool = False) -> None:
        """Answers a request and takes it away."""
        self._write(f"{id}.answer", {"message": message, "refused": refused})
        self._store.delete(f"{FOLDER}/{id}.json")

    def ask(self, request: Request) -> None:
        """Leaves a request."""
        self._write(request.id, {key: value for key, value in asdict(request).items() if key != "id"})

    def wait(self, id: str, timeout_s: float, interval_s: float = 0.2) -> dict[str, Any] | None:
        """The answer to a request, taken away; None after `timeout_s` seconds without one."""
        name, deadline = f"{FOLDER}/{id}.answer.json", time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError, ValueError):
                answer: dict[str, Any] = json.loads(self._store.read(name))
                self._store.delete(name)
                return answer
            time.sleep(interval_s)
        return None

    def _write(self, stem: str, content: dict[str, Any]) -> None:
        self._store.write(f"{FOLDER}/{stem}.json", json.dumps(content).encode())


def _new_id() -> str:
    """Sorts by time."""
    return f"{time.time_ns():016x}{secrets.token_hex(4)}"


def asker() -> str:
    """This process's user and host."""
    with contextlib.suppress(Exception):
        return f"{getpass.getuser()} on {socket.gethostname()}"
    return f"user {os.getuid()} on {socket.gethostname()}"
