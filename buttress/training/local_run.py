"""Starts the ranks of one training run outside a sweep: in this process, in worker processes, or under `torchrun`.

A config says how many workers it was made with, and that number changes bits: without `torchrun` the workers are
started here, so that the run is the one that the config describes.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from buttress.errors import BadInput
from buttress.training.checkpoints import verify_checkpoint
from buttress.training.registry import ForProcess
from buttress.training.reporting import Reporter, Sink, caused_by_peer
from buttress.training.trainable import Buttress, Trainable, TrialStopped
from buttress.training.user_code import fault_of, without_our_arguments
from buttress.training.world import World

READY = "ready"  # the first message of a worker


class WorkerFailed(RuntimeError):
    """A worker other than rank 0 ended with an error of its own."""


def train(
    config: BaseModel,
    trainable: Trainable[Any],
    folder: Path | str,
    *,
    sink: Sink | None = None,
    resume: Path | None = None,
    workers: int | None = None,
    device: str | None = None,
) -> None:
    """Trains a config to its end.

    This process is rank 0, so `sink` may be any object; ranks 1 to `workers` - 1 are started here and gone when this
    returns. Under `torchrun` the ranks are torchrun's. A stop that the sink asks for ends the run without an error.

    Args:
        config: An instance of `trainable.Config`; its `buttress` group gives seed, threads and workers.
        trainable: What to train.
        folder: The run's folder; checkpoints are written below it.
        sink: Receives rank 0's merged reports; None drops them.
        resume: A checkpoint of the same config to go on from.
        workers: Number of ranks; default: the config's `buttress.workers`.
        device: `cpu`, `cuda`, `cuda:1`; default: the first CUDA device, else the CPU.

    Raises:
        WorkerFailed: Another worker than rank 0 failed, and rank 0 only lost its connection.
        BadInput: So it was, and the fault is in the trainer of a user.
        Exception: What the trainable raises on rank 0, unchanged.
    """
    folder = Path(folder)
    own: Buttress = getattr(config, "buttress", Buttress())
    size = workers or own.workers
    settings: dict[str, Any] = {"seed": own.seed, "threads": own.threads, "device": device}
    if "WORLD_SIZE" in os.environ:
        _train_rank(config, trainable, World.from_env(folder, **settings), sink, resume)
    elif size == 1:
        _train_rank(config, trainable, World.single(folder, **settings), sink, resume)
    else:
        with tempfile.TemporaryDirectory() as meeting, _Workers(size) as others:
            where = f"file://{meeting}/ranks"
            others.start(_work, where, folder, settings, ForProcess(config), ForProcess(trainable), resume)
            others.wait_until_ready()
            try:
                world = World.join(where, 0, size, (0, size), folder, **settings)
                _train_rank(config, trainable, world, sink, resume)
            except Exception as error:
                if caused_by_peer(f"{type(error).__name__}: {error}") and (cause := others.cause()):
                    raise (cause if isinstance(cause, BadInput) else WorkerFailed(cause)) from error
                raise


def _train_rank(
    config: BaseModel, trainable: Trainable[Any], world: World, sink: Sink | None, resume: Path | None
) -> None:
    try:
        if resume is not None:
            verify_checkpoint(resume)  # a trainer of one's own may read it with `torch.load`, which does not
        with Reporter(world, trainable.schedule(config), sink) as report, without_our_arguments():
            trainable.train(config, world, report, resume)
    except TrialStopped:
        pass
    finally:
        world.close()


def _work(
    rank: int,
    size: int,
    connection: Connection,
    where: str,
    folder: Path,
    settings: dict[str, Any],
    config: BaseModel,
    trainable: Trainable[Any],
    resume: Path | None,
) -> None:
    """Rank 1, 2, ... in its own process; its error is sent to rank 0's."""
    connection.send(READY)
    try:
        world = World.join(where, rank, size, (rank, size), folder, **settings)
        _train_rank(config, trainable, world, None, resume)
    except KeyboardInterrupt:
        sys.exit(130)
    except BaseException as error:
        text = f"worker {rank}: {type(error).__name__}: {error}\n{traceback.format_exc()}"
        fault = None if caused_by_peer(text) else fault_of(error)
        if fault is not None:
            fault.problem += f" (on worker {rank})"
        connection.send(fault or text)  # a traceback does not leave a process
        connection.close()
        os._exit(1)  # threads that wait for other ranks would hold it back


class _Workers:
    """The processes of ranks 1, 2, ...; none outlives the `with` block."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.processes: list[Any] = []
        self.connections: list[Connection] = []

    def start(self, target: Any, *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        for rank in range(1, self.size):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=target, args=(rank, self.size, theirs, *args), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.connections.append(ours)

    def wait_until_ready(self) -> None:
        """Waits for every worker; rank 0 would wait half an hour in `join` for one that died while importing."""
        for rank, (process, connection) in enumerate(zip(self.processes, self.connections, strict=True), start=1):
            try:
                connection.recv()
            except EOFError:
                process.join()
                raise WorkerFailed(f"worker {rank} did not start (exit code {process.exitcode})") from None

    def cause(self) -> str | BadInput | None:
        """The first error that a worker had of its own; rank 0 has only seen that the worker is gone."""
        for rank, (process, connection) in enumerate(zip(self.processes, self.connections, strict=True), start=1):
            process.join(timeout=2.0)
            try:
                message = connection.recv() if connection.poll() else ""
            except EOFError:
                message = ""
            if isinstance(message, BadInput) or (message and not caused_by_peer(message)):
                return message
            if process.exitcode not in (None, 0, 1):
                return f"worker {rank} died (exit code {process.exitcode})"
        return None

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for process in self.processes:
            process.join(timeout=30.0 if kind is None else 1.0)
            if process.is_alive():
                process.terminate()
                process.join(timeout=5.0)
            if process.is_alive():
                process.kill()
                process.join()
