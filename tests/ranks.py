"""Two ranks that stay up for a test session, so that a distributed test costs its own time and not two imports."""

from __future__ import annotations

import atexit
import multiprocessing
import tempfile
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest


class Failed(RuntimeError):
    """A rank raised; the text is `TypeName: message`."""


class Ranks:
    """`run(function, *args)` calls `function(world, *args)` on every rank and returns the results in rank order."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.folder = Path(tempfile.mkdtemp(prefix="ranks-"))
        self.members: list[tuple[Any, Any]] = []

    def run(self, function: Callable[..., Any], *args: Any, seed: int = 42, timeout: float = 60.0) -> list[Any]:
        """Raises `Failed` with the first rank's error if any rank raised."""
        answers = self.outcomes(function, *args, seed=seed, timeout=timeout)
        for answer in answers:
            if isinstance(answer, Failed):
                raise answer
        return answers

    def outcomes(self, function: Callable[..., Any], *args: Any, seed: int = 42, timeout: float = 60.0) -> list[Any]:
        """What every rank returned, or `Failed`."""
        if not self.members:
            self._start()
        meeting = f"file://{self.folder}/{uuid.uuid4().hex}"
        for _, pipe in self.members:
            pipe.send((function, args, meeting, seed))
        answers = []
        for _, pipe in self.members:
            if not pipe.poll(timeout):
                self.end()
                raise TimeoutError(f"{function.__name__} hangs on {self.size} ranks")
            worked, value = pipe.recv()
            answers.append(value if worked else Failed(value))
        return answers

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self.size, theirs, str(self.folder)), daemon=True)
            process.start()
            self.members.append((process, ours))
        for _, pipe in self.members:  # a function's timeout does not count what the imports take
            if not pipe.poll(300.0):
                self.end()
                raise TimeoutError("the ranks do not start")
            pipe.recv()

    def end(self) -> None:
        for process, _ in self.members:
            process.kill()
            process.join()
        self.members = []


def _serve(rank: int, size: int, pipe: Any, folder: str) -> None:
    from buttress.training.world import World

    pipe.send("ready")
    while True:
        function, args, meeting, seed = pipe.recv()
        world = World.join(
            meeting, rank, size, (rank, size), folder, seed=seed, device="cpu", timeout=timedelta(seconds=60)
        )
        try:
            pipe.send((True, function(world, *args)))
        except Exception as error:
            pipe.send((False, f"{type(error).__name__}: {error}"))
            del error
        finally:
            world.close()
            del world


_PAIR = Ranks(2)  # one for all test modules
atexit.register(_PAIR.end)


@pytest.fixture
def pair() -> Ranks:
    return _PAIR
