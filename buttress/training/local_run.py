"""One training run outside a sweep: `python -m buttress.training CONFIG`, also under `torchrun`, and `train`.

A config says how many workers it was made with, and that number changes bits: without `torchrun` this module starts
them itself, so that the run is the one that the config describes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from buttress.errors import BadInput, from_pydantic
from buttress.spec.config_paths import layered
from buttress.spec.overrides import override_config, set_value
from buttress.spec.yaml_io import read_yaml
from buttress.training.history import History, progress
from buttress.training.registry import load
from buttress.training.reporting import Reporter, Sink
from buttress.training.trainable import Buttress, Reported, Trainable, TrialStopped
from buttress.training.world import World

READY = "ready"  # what a started worker says first


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
) -> Sink:
    """Train `config` in `folder` to its end and return the sink that rank 0's reports went to (default: a `History`).

    This process is rank 0, so `sink` may be any object; ranks 1 to `workers` - 1 (default: the config's
    `buttress.workers`) are started here and gone when this returns. Under `torchrun` the ranks are torchrun's. A stop
    that the sink asks for ends the run quietly. Raises what the trainable raises, and `WorkerFailed` for an error that
    only another worker had.
    """
    folder = Path(folder)
    settings: Buttress = getattr(config, "buttress", Buttress())
    size = workers or settings.workers
    own: dict[str, Any] = {"seed": settings.seed, "threads": settings.threads, "device": device}
    if sink is None:
        sink = History(folder, trainable.metrics, settings.objective)
    if "WORLD_SIZE" in os.environ:
        world = World.from_env(folder, **own)
        _train_rank(config, trainable, world, sink, resume)
    elif size == 1:
        _train_rank(config, trainable, World.single(folder, **own), sink, resume)
    else:
        with tempfile.TemporaryDirectory() as meeting, _Peers(size) as peers:
            where = f"file://{meeting}/ranks"
            peers.start(_peer, where, folder, own, config, trainable, resume)
            peers.await_all()
            try:
                world = World.join(where, 0, size, (0, size), folder, **own)
                _train_rank(config, trainable, world, sink, resume)
            except Exception as error:
                if _collateral(f"{type(error).__name__}: {error}") and (cause := peers.cause()):
                    raise WorkerFailed(cause) from error
                raise
    return sink


def _train_rank(
    config: BaseModel, trainable: Trainable[Any], world: World, sink: Sink | None, resume: Path | None
) -> None:
    try:
        with Reporter(world, trainable.schedule(config), sink) as report:
            trainable.train(config, world, report, resume)
    except TrialStopped:
        pass
    finally:
        if isinstance(sink, History) and world.rank == 0:
            sink.write()
        world.close()


def _peer(
    rank: int,
    size: int,
    tell: Connection,
    where: str,
    folder: Path,
    own: dict[str, Any],
    config: BaseModel,
    trainable: Trainable[Any],
    resume: Path | None,
) -> None:
    """Rank 1, 2, ... in its own process; its error goes to rank 0's."""
    tell.send(READY)
    try:
        world = World.join(where, rank, size, (rank, size), folder, **own)
        _train_rank(config, trainable, world, None, resume)
    except KeyboardInterrupt:
        sys.exit(130)
    except BaseException as error:
        tell.send(f"worker {rank}: {type(error).__name__}: {error}\n{traceback.format_exc()}")
        tell.close()
        os._exit(1)  # threads that wait for other ranks would hold it back


def _collateral(error: str) -> bool:
    """An error that another rank's error has caused."""
    return any(sign in error for sign in ("ReportError: ", "Connection closed by peer", "Connection reset by peer"))


class _Peers:
    """The other workers' processes: started together, and none left behind."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.processes: list[Any] = []
        self.ends: list[Connection] = []

    def start(self, target: Any, *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        for rank in range(1, self.size):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=target, args=(rank, self.size, theirs, *args), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.ends.append(ours)

    def await_all(self) -> None:
        """Until every worker is up: rank 0 would wait half an hour for one that died while it was importing."""
        for rank, (process, end) in enumerate(zip(self.processes, self.ends, strict=True), start=1):
            try:
                end.recv()
            except EOFError:
                process.join()
                raise WorkerFailed(f"worker {rank} did not start (exit code {process.exitcode})") from None

    def cause(self) -> str | None:
        """The first error that a worker had of its own, when rank 0 has only seen that it is gone."""
        for rank, (process, end) in enumerate(zip(self.processes, self.ends, strict=True), start=1):
            process.join(timeout=2.0)
            try:
                told = str(end.recv()) if end.poll() else ""
            except EOFError:
                told = ""
            if told and not _collateral(told):
                return told
            if process.exitcode not in (None, 0, 1):
                return f"worker {rank} died (exit code {process.exitcode})"
        return None

    def __enter__(self) -> _Peers:
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


def read_config(path: Path, overrides: Sequence[str] = (), *, workers: int | None = None) -> tuple[Trainable[Any], Any]:
    """The trainable that a config file names, and the file as that trainable's `Config`.

    `overrides` are `path=value` with the value in YAML; `workers` replaces `buttress.workers`. Raises `BadInput`.
    """
    content = read_yaml(path, accepted="a mapping of groups (data, model, ...)")
    sources = override_config(content, overrides, where=path)
    group = content.get("buttress")
    name = group.get("trainable") if isinstance(group, dict) else None
    if not isinstance(name, str) or not name:
        raise BadInput("is missing", where=path, key="buttress.trainable", accepted="the name of a trainable")
    if workers is not None:
        set_value(content, "buttress.workers", workers)
    try:
        trainable = load(name)
        return trainable, trainable.Config.model_validate(layered(trainable.Config, content))
    except ValidationError as error:
        raise sources.locate(from_pydantic(error, trainable.Config)) from None
    except BadInput as error:
        raise error.at(path) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 for a run that ended, 2 for input that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m buttress.training", description="Train one config.")
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML; `buttress.trainable` names the trainable")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="train.epochs=5")
    parser.add_argument("--out", type=Path, help="folder (default: runs/<name of CONFIG>); a run there is replaced")
    parser.add_argument("--resume", type=Path, metavar="CHECKPOINT", help="go on from this checkpoint")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: the first CUDA device, else the CPU)")
    given = parser.parse_args(arguments)
    try:
        return _run(given)
    except BadInput as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _run(given: argparse.Namespace) -> int:
    ranks = os.environ.get("WORLD_SIZE")
    trainable, config = read_config(given.config, given.set, workers=int(ranks) if ranks else None)
    folder = given.out or Path("runs") / given.config.stem
    if os.environ.get("RANK", "0") != "0":
        train(config, trainable, folder, sink=_Nowhere(), resume=given.resume, device=given.device)
        return 0
    objective = config.buttress.objective or next(iter(trainable.metrics), "")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if given.resume is None:
            for old in folder.glob("checkpoints/*.pt"):
                old.unlink()
        about = {"trainable": trainable.name, "config": config.model_dump(mode="json")}
        show = partial(_show, epochs=trainable.schedule(config).epochs, objective=objective)
        history = History(folder, trainable.metrics, objective, show, about)
    except OSError as error:
        raise BadInput(f"cannot be written ({error.strerror})", where="--out", value=str(folder)) from error
    train(config, trainable, folder, sink=history, resume=given.resume, device=given.device)
    summary = history.summary()
    which = f"best valid epoch {summary['epoch']}" if history.best else "no epoch at full beta was valid; last report"
    values = "  ".join(f"{name} {value:.6g}" for name, value in summary["metrics"].items() if value is not None)
    print(f"{which}: {values}\n{summary['seconds']:.1f} s, {folder / 'history.json'}")
    return 0


def _show(reported: Reported, better: bool, *, epochs: int, objective: str) -> None:
    line = progress(reported, better, epochs=epochs, objective=objective)
    if line is not None:
        print(line, flush=True)


class _Nowhere:
    """The sink of a rank that has nothing to say."""

    stop = False

    def send(self, reported: Reported) -> None: ...
