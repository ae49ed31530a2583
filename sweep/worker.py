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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist

import trainables
from search_spaces.errors import BadInput
from trainables.base import Reported, TrialStopped
from trainables.reporting import Reporter
from trainables.world import World, prepare

#: A CUDA fault poisons its process: the trial is innocent, the process must go.
CUDA_FAULTS = ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS", "device-side assert", "illegal memory access")


class SlotFault(RuntimeError):
    """The slot's processes cannot go on; Ray Train restarts them and the trial resumes from its checkpoint."""


class MailboxSink:
    """Rank 0's way out: reports go to the mailbox, `stop` comes back by a call that waits there.

    `send` runs on the reporter's thread and waits for the message to arrive (Ray does not keep the order of calls to an
    asyncio actor); a daemon thread waits for the stop.
    """

    def __init__(self, mailbox: Any, trial: str, attempt: int) -> None:
        self.stop = False
        self._mailbox, self._trial, self._attempt = mailbox, trial, attempt
        self._over = False
        self._listener = threading.Thread(target=self._listen, name=f"stop-of-{trial}", daemon=True)
        self._listener.start()

    def send(self, reported: Reported) -> None:
        ray.get(self._mailbox.post.remote(self._trial, self._attempt, asdict(reported)))

    def _listen(self) -> None:
        while not self._over:
            try:
                why = ray.get(self._mailbox.stopped.remote(self._trial, self._attempt))
            except ray.exceptions.RayError:
                why = "closed"
            if why is not None:
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
    sink = MailboxSink(mailbox, got["trial"], got["attempt"]) if rank == 0 else None
    error: str | None = None
    kind: str | None = None
    how = "finished"
    began = time.monotonic()
    try:
        how = _train(got, rank, size, device, groups, sink)
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
    trainable = trainables.load(got["trainable"])
    config = trainable.Config.model_validate(got["config"])
    buttress = getattr(config, "buttress", None)
    seed, threads = got["seed"], getattr(buttress, "threads", 1)
    prepare(seed, threads)
    group, reports = groups.take()
    world = World(
        rank=rank, size=size, device=device, threads=threads, seed=seed, folder=Path(got["folder"]),
        group=group, reports=reports,
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
    causes = [(rank, entry) for rank, entry in errors if not _collateral(entry[1])] or errors
    rank, (_, error, kind) = causes[0]
    return "raised", f"rank {rank}: {error}", kind


def _collateral(error: str) -> bool:
    """True for what a healthy rank sees when a peer has raised: its connection breaks."""
    last = error.strip().splitlines()[-1] if error.strip() else ""
    return any(sign in last for sign in ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL"))


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
