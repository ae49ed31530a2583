"""What runs inside a slot's worker processes: one loop that trains trial after trial without starting anything anew.

Ray Train starts `work` on every rank of the slot and keeps it for the whole sweep. Each round every rank takes the same
work from the mailbox, prepares a clean process (seeds, threads, dtype), builds or reuses the trial's own process groups
and calls the trainable. What the trainer raises is the trial's outcome and never leaves the loop; only when the
control group itself fails has a process died, and then the loop raises and Ray Train restarts the group.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist

from buttress.errors import BadInput
from buttress.storage import Storage, first_line, patiently
from buttress.training import registry
from buttress.training.reporting import Reporter, caused_by_peer
from buttress.training.trainable import Reported, TrialStopped
from buttress.training.world import World, prepare

#: A CUDA fault poisons its process: the trial is innocent, the process must go.
CUDA_FAULTS = ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS", "device-side assert", "illegal memory access")


class SlotFault(RuntimeError):
    """The slot's processes cannot go on; Ray Train restarts them and the trial resumes from its checkpoint."""


class MailboxSink:
    """Rank 0's way out: reports go to the mailbox, `stop` comes back by a call that waits there.

    `send` runs on the reporter's thread and waits for the message to arrive (Ray does not keep the order of calls to an
    asyncio actor); a daemon thread waits for the stop.
    """

    def __init__(self, mailbox: Any, trial: str, attempt: int, kept: Kept | None = None) -> None:
        self.stop = self.draining = False
        self._mailbox, self._trial, self._attempt, self._kept = mailbox, trial, attempt, kept
        self._over = False
        self._listener = threading.Thread(target=self._listen, name=f"stop-of-{trial}", daemon=True)
        self._listener.start()

    def send(self, reported: Reported) -> None:
        if self._kept is not None:
            reported = self._kept.bring(reported, over=lambda: self.stop)
        ray.get(self._mailbox.post.remote(self._trial, self._attempt, asdict(reported)))

    def _listen(self) -> None:
        while not self._over:
            try:
                why = ray.get(self._mailbox.stopped.remote(self._trial, self._attempt, self.draining))
            except ray.exceptions.RayError:
                why = "closed"
            if why == "draining":
                self.draining = True
            elif why is not None:
                self.stop = why != "ended"
                return

    def close(self) -> None:
        self._over = True


def work(settings: dict[str, Any]) -> None:
    """The loop of one rank. `settings`: slot, mailbox (actor handle), gpus (per worker), folder (the driver's)."""
    from ray import train
    from ray.train.torch import get_device

    context = train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    slot, mailbox = settings["slot"], settings["mailbox"]
    device = get_device() if settings["gpus"] else torch.device("cpu")
    life = _agree(uuid.uuid4().hex, size)
    info = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "node": ray.get_runtime_context().get_node_id(),
        "actor": ray.get_runtime_context().current_actor,
    }
    groups = Groups(size, device)
    seen = 0
    with contextlib.suppress(ray.exceptions.ActorDiedError):  # a mailbox that is gone is closed
        ray.get(mailbox.hello.remote(slot, life, rank, size, info))
        while True:
            got = ray.get(mailbox.take.remote(slot, life, seen))
            if got is None:
                continue
            if got.get("closed"):
                return
            seen += 1
            if Path(settings["folder"]).is_dir():  # relative paths, and a trainer's own module, are found from there
                os.chdir(settings["folder"])
            how, detail = run_trial(got, rank, size, device, groups, mailbox)
            if rank == 0:
                ray.get(mailbox.end.remote(slot, life, got["trial"], got["attempt"], how, detail))


def run_trial(
    got: dict[str, Any], rank: int, size: int, device: torch.device, groups: Groups, mailbox: Any
) -> tuple[str, dict[str, Any]]:
    """Trains one attempt on this rank; every rank returns the same way it ended, and details.

    `finished`; `stopped` by a verdict; `raised`; `unresumable`: the checkpoint to go on from is missing or damaged.
    """
    kept = Kept(got["store"], Path(got["folder"])) if got.get("store") else None
    sink = MailboxSink(mailbox, got["trial"], got["attempt"], kept) if rank == 0 else None
    error: str | None = None
    kind: str | None = None
    how = "finished"
    began = time.monotonic()
    try:
        if kept is None or not got.get("resume") or kept.fetch(Path(got["resume"])):
            how = _train(got, rank, size, device, groups, sink)
        else:
            how = "unresumable"
        if kept is not None and rank == 0 and how == "finished":
            kept.bring_rest()
    except Exception as raised:
        error = "".join(traceback.format_exception(raised))
        if device.type == "cuda" and any(fault in str(raised) for fault in CUDA_FAULTS) and not _out_of_memory(raised):
            raise SlotFault(f"rank {rank}: {raised}") from raised
        traceback.clear_frames(raised.__traceback__)
        raised.__traceback__ = None
        kind = "out of memory" if _out_of_memory(raised) else "exception"
        if isinstance(raised, BadInput):
            kind, error = "bad input", str(raised)
        del raised
        how = "raised"
    finally:
        if sink is not None:
            sink.close()
    if how in ("raised", "unresumable"):
        groups.abandon()  # closes the sockets: a peer inside a collective hears of it at once
    detail: dict[str, Any] = {"train_seconds": time.monotonic() - began}
    if kept is not None and kept.missing:
        detail["missing"] = True
    if size > 1:
        try:
            everyone: list[Any] = [None] * size
            dist.all_gather_object(everyone, (how, error, kind))
        except Exception as fault:
            raise SlotFault(f"rank {rank}: a peer is gone ({fault})") from fault
        how, error, kind = _verdict(everyone)
    if how in ("raised", "unresumable"):
        groups.abandon()
    if error is not None:
        detail |= {"error": error, "kind": kind}
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return how, detail


def _train(
    got: dict[str, Any], rank: int, size: int, device: torch.device, groups: Groups, sink: MailboxSink | None
) -> str:
    trainable = registry.load(got["trainable"])
    config = trainable.Config.model_validate(got["config"])
    buttress = getattr(config, "buttress", None)
    seed, threads = got["seed"], getattr(buttress, "threads", 1)
    prepare(seed, threads)
    group, reports = groups.take()
    world = World(
        rank=rank, size=size, device=device, threads=threads, seed=seed, folder=Path(got["folder"]),
        group=group, reports=reports, draining=(lambda: sink is not None and sink.draining),
    )
    resume = Path(got["resume"]) if got.get("resume") else None
    try:
        with Reporter(world, trainable.schedule(config), sink) as report:
            trainable.train(config, world, report, resume)
    except TrialStopped:
        return "stopped"
    except BadInput as error:
        if resume is not None and str(error.where) == str(resume):
            return "unresumable"
        raise
    return "finished"


class Kept:
    """A trial's folder on the sweep's remote storage: what rank 0 writes goes there, what is resumed comes from there.

    Checkpoints do not stay on the worker's disk. Storage that is away is waited for, in the background of training.
    """

    PATIENCE_S = 300.0

    def __init__(self, url: str, folder: Path) -> None:
        self._store, self._folder = Storage(url), folder
        self._brought: set[str] = set()
        self.missing = False

    def bring(self, reported: Reported, over: Callable[[], bool]) -> Reported:
        """Uploads a report's checkpoint and media, before anybody hears of them; without those that could not be."""
        note, checkpoint, media = reported.note, reported.checkpoint, dict(reported.media)
        for key, name in [*media.items(), *([(None, checkpoint)] if checkpoint else [])]:
            try:
                self._upload(name, over)
            except OSError as error:
                note = note or f"{name} not uploaded: {first_line(error)}"
                if key is None:
                    checkpoint = None
                else:
                    del media[key]
        if reported.checkpoint:
            (self._folder / reported.checkpoint).unlink(missing_ok=True)
        return replace(reported, checkpoint=checkpoint, media=media, note=note)

    def bring_rest(self) -> None:
        """The other files that the trainer wrote (a scaler, say), at its end."""
        with contextlib.suppress(OSError):
            for path in sorted(self._folder.iterdir()):
                if path.is_file() and path.name not in self._brought:
                    self._upload(path.name, lambda: False)

    def fetch(self, path: Path) -> bool:
        """The checkpoint `path`, brought to this node; False where the storage does not have it."""
        try:
            if not path.is_file():
                name = str(path.relative_to(self._folder))
                patiently(lambda: self._store.download(name, path), for_s=self.PATIENCE_S)
        except FileNotFoundError:
            self.missing = True
        return not self.missing

    def _upload(self, name: str, over: Callable[[], bool]) -> None:
        patiently(lambda: self._store.upload(self._folder / name, name), for_s=self.PATIENCE_S, over=over)
        self._brought.add(name)


class Groups:
    """The process groups of the slot's current trial: one for DDP, one (gloo) for reports.

    The default group is left to control. Groups are kept from trial to trial as long as all goes well (making them
    costs 20 ms each) and given up after an error: gloo cannot be freed from a broken collective in any other way.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self._size = size
        self._backend = "nccl" if device.type == "cuda" else "gloo"
        self._pair: tuple[Any, Any] | None = None

    def take(self) -> tuple[Any, Any]:
        if self._size == 1:
            return None, None
        if self._pair is None:
            self._pair = (dist.new_group(backend=self._backend), dist.new_group(backend="gloo"))
        return self._pair

    def abandon(self) -> None:
        """Destroys both groups; references to them in a model's DDP wrapper must be gone already."""
        pair, self._pair = self._pair, None
        if pair is None:
            return
        for group in pair:
            with contextlib.suppress(Exception):
                dist.destroy_process_group(group)
        del pair, group
        gc.collect()


def _agree(mine: str, size: int) -> str:
    """Rank 0's value, on every rank."""
    box = [mine]
    if size > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def _verdict(everyone: list[Any]) -> tuple[str, str | None, str | None]:
    """One outcome from those of all ranks: an error wins, and of several errors the one that is not collateral.

    A checkpoint that one rank could not read is a reason to start afresh, whatever the others came to.
    """
    if any(how == "unresumable" for how, _, _ in everyone):
        return "unresumable", None, None
    errors = [(rank, entry) for rank, entry in enumerate(everyone) if entry[1] is not None]
    if not errors:
        return everyone[0][0], None, None
    causes = [(rank, entry) for rank, entry in errors if not caused_by_peer(entry[1])] or errors
    rank, (_, error, kind) = causes[0]
    return "raised", f"rank {rank}: {error}", kind


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
