"""The workers of a slot: a loop in every rank that trains trial after trial without starting anything anew.

Ray Train starts `run_worker` on every rank of the slot and keeps it for the whole sweep. In each round every rank takes
the same assignment from the mailbox, prepares a clean process (seeds, threads, dtype), makes or reuses the trial's own
process groups and calls the trainable. What the trainer raises is the trial's outcome and never leaves the loop; only
when the control group itself fails has a process died: then the loop raises and Ray Train restarts the group.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import socket
import threading
import traceback
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist

from buttress.errors import BadInput
from buttress.execution.messages import Assignment, AttemptResult, Ending, NoAssignment, Signal, WorkerInfo
from buttress.execution.trial_output import captured_output, output_name
from buttress.storage import Storage, first_line, retry_while_away
from buttress.training import registry
from buttress.training.checkpoints import verify_checkpoint
from buttress.training.reporting import Reporter, caused_by_peer
from buttress.training.trainable import Reported, TrialStopped
from buttress.training.user_code import fault_of, without_our_arguments
from buttress.training.world import World, prepare

#: A CUDA fault poisons its process: the trial is innocent, the process must go.
CUDA_FAULTS = ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS", "device-side assert", "illegal memory access")


class SlotFault(RuntimeError):
    """The slot's processes cannot go on; Ray Train restarts them and the trial resumes from its checkpoint."""


class MailboxSink:
    """Sends rank 0's reports to the mailbox and learns from it when to stop.

    `send` runs on the reporter's thread and waits for the message to arrive (Ray does not keep the order of calls to an
    asyncio actor); a daemon thread waits for signals.
    """

    def __init__(self, mailbox: Any, assignment: Assignment, files: RemoteTrialFiles | None = None) -> None:
        self.stop = self.draining = False
        self._mailbox, self._trial, self._attempt, self._files = mailbox, assignment.trial, assignment.attempt, files
        self._closed = False
        self._listener = threading.Thread(target=self._listen, name=f"signals-of-{assignment.trial}", daemon=True)
        self._listener.start()

    def send(self, reported: Reported) -> None:
        """Hands a report on, its checkpoint and media first where the sweep is on remote storage."""
        if self._files is not None:
            reported = self._files.upload(reported, cancelled=lambda: self.stop)
        ray.get(self._mailbox.report.remote(self._trial, self._attempt, pickle.dumps(reported)))

    def _listen(self) -> None:
        while not self._closed:
            try:
                signal = ray.get(self._mailbox.wait_for_signal.remote(self._trial, self._attempt, self.draining))
            except ray.exceptions.RayError:
                signal = Signal.STOP
            match signal:
                case Signal.DRAIN:
                    self.draining = True
                case Signal.STOP:
                    self.stop = True
                    return
                case Signal.ATTEMPT_OVER:
                    return

    def close(self) -> None:
        """The attempt is over; the thread ends with its present call."""
        self._closed = True


def run_worker(settings: dict[str, Any]) -> None:
    """The loop of one rank.

    Args:
        settings: `slot` (its name), `mailbox` (actor handle), `gpus` (per worker), `folder` (the driver's working
            folder).
    """
    from ray import train
    from ray.train.torch import get_device

    context = train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    slot, mailbox = settings["slot"], settings["mailbox"]
    device = get_device() if settings["gpus"] else torch.device("cpu")
    incarnation = _rank_zeros(uuid.uuid4().hex, size)
    runtime = ray.get_runtime_context()
    actor, thread = runtime.current_actor, threading.get_native_id()
    info = WorkerInfo(os.getpid(), socket.gethostname(), runtime.get_node_id(), actor, thread)
    groups = ProcessGroups(size, device)
    seen = 0
    with contextlib.suppress(ray.exceptions.ActorDiedError):  # a mailbox that is gone is closed
        ray.get(mailbox.register.remote(slot, incarnation, rank, size, info))
        while True:
            assignment: Assignment | NoAssignment | None = ray.get(
                mailbox.next_assignment.remote(slot, incarnation, seen)
            )
            if assignment is None:
                continue
            if isinstance(assignment, NoAssignment):
                return
            seen += 1
            if Path(settings["folder"]).is_dir():  # relative paths, and a trainer's own module, are found from there
                os.chdir(settings["folder"])
            result = run_attempt(assignment, rank, size, device, groups, mailbox)
            if rank == 0:
                trial, attempt = assignment.trial, assignment.attempt
                ray.get(mailbox.end_attempt.remote(slot, incarnation, trial, attempt, result))


def run_attempt(
    assignment: Assignment, rank: int, size: int, device: torch.device, groups: ProcessGroups, mailbox: Any
) -> AttemptResult:
    """Trains one attempt on this rank.

    Args:
        assignment: What to train.
        rank: This process's rank.
        size: Workers of the slot.
        device: Where this rank trains.
        groups: The slot's process groups for trials.
        mailbox: Handle of the sweep's mailbox.

    Returns:
        How the attempt ended, the same on every rank.

    Raises:
        SlotFault: The processes of the slot cannot go on.
    """
    files = RemoteTrialFiles(assignment.store, Path(assignment.folder)) if assignment.store else None
    sink = MailboxSink(mailbox, assignment, files) if rank == 0 else None
    error: str | None = None
    kind: str | None = None
    ending = Ending.FINISHED
    try:
        if files is None or not assignment.resume or files.download(Path(assignment.resume)):
            with captured_output(Path(assignment.folder), rank):
                ending = _train(assignment, rank, size, device, groups, sink)
        else:
            ending = Ending.UNRESUMABLE
        if files is not None and rank == 0 and ending is Ending.FINISHED:
            files.upload_others()
    except BaseException as raised:  # a trainer's sys.exit or KeyboardInterrupt is its own, too
        error = "".join(traceback.format_exception(raised))
        if not caused_by_peer(error) and (fault := fault_of(raised)) is not None:
            error += str(fault)  # the last line is what is said of the trial
        if device.type == "cuda" and any(fault in str(raised) for fault in CUDA_FAULTS) and not _out_of_memory(raised):
            raise SlotFault(f"rank {rank}: {raised}") from raised
        traceback.clear_frames(raised.__traceback__)
        raised.__traceback__ = None
        kind = "out of memory" if _out_of_memory(raised) else "exception"
        if isinstance(raised, BadInput):
            kind, error = "bad input", str(raised)
        del raised
        ending = Ending.RAISED
    finally:
        if sink is not None:
            sink.close()
        if files is not None and rank == 0:
            files.upload_output()
    if ending in (Ending.RAISED, Ending.UNRESUMABLE):
        groups.destroy()  # closes the sockets: a peer inside a collective hears of it at once
    if size > 1:
        try:
            everyone: list[Any] = [None] * size
            dist.all_gather_object(everyone, (ending, error, kind))
        except Exception as fault:
            raise SlotFault(f"rank {rank}: a peer is gone ({fault})") from fault
        ending, error, kind = _common_ending(everyone)
    if ending in (Ending.RAISED, Ending.UNRESUMABLE):
        groups.destroy()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return AttemptResult(ending, error, kind, checkpoint_missing=files is not None and files.checkpoint_missing)


def _train(
    assignment: Assignment, rank: int, size: int, device: torch.device, groups: ProcessGroups, sink: MailboxSink | None
) -> Ending:
    trainable = registry.load(assignment.trainable, assignment.module_folders)
    config = trainable.Config.model_validate(assignment.config)
    buttress = getattr(config, "buttress", None)
    seed, threads = assignment.seed, getattr(buttress, "threads", 1)
    prepare(seed, threads)
    group, reports = groups.get()
    world = World(
        rank=rank, size=size, device=device, threads=threads, seed=seed, folder=Path(assignment.folder),
        group=group, reports=reports, draining=(lambda: sink is not None and sink.draining),
    )
    resume = Path(assignment.resume) if assignment.resume else None
    try:
        if resume is not None:
            verify_checkpoint(resume)  # a trainer of one's own may read it with `torch.load`, which does not
        with Reporter(world, trainable.schedule(config), sink) as report, without_our_arguments():
            trainable.train(config, world, report, resume)
    except TrialStopped:
        return Ending.STOPPED
    except BadInput as error:
        if resume is not None and str(error.where) == str(resume):
            return Ending.UNRESUMABLE
        raise
    return Ending.FINISHED


class RemoteTrialFiles:
    """A trial's folder on the sweep's remote storage: rank 0 uploads what it writes, all ranks download a checkpoint.

    Checkpoints do not stay on the worker's disk. Storage that is away is waited for, in the background of training.
    """

    RETRY_TIMEOUT_S = 300.0

    def __init__(self, url: str, folder: Path) -> None:
        self._store, self._folder = Storage(url), folder
        self._uploaded: set[str] = set()
        self.checkpoint_missing = False

    def upload(self, reported: Reported, cancelled: Callable[[], bool]) -> Reported:
        """Uploads a report's checkpoint and media, before anybody reads of them.

        Args:
            reported: A report of rank 0.
            cancelled: Whether to give up waiting for storage that is away.

        Returns:
            The report without the files that could not be uploaded; its `note` says so.
        """
        note, checkpoint, media = reported.note, reported.checkpoint, dict(reported.media)
        for key, name in [*media.items(), *([(None, checkpoint)] if checkpoint else [])]:
            try:
                self._upload(name, cancelled)
            except OSError as error:
                note = note or f"{name} not uploaded: {first_line(error)}"
                if key is None:
                    checkpoint = None
                else:
                    del media[key]
        if reported.checkpoint:
            (self._folder / reported.checkpoint).unlink(missing_ok=True)
        return replace(reported, checkpoint=checkpoint, media=media, note=note)

    def upload_others(self) -> None:
        """The other files that the trainer wrote (a scaler, say), at its end."""
        with contextlib.suppress(OSError):
            for path in sorted(self._folder.iterdir()):
                if path.is_file() and path.name not in self._uploaded:
                    self._upload(path.name, lambda: False)

    def upload_output(self) -> None:
        """What rank 0 has printed, unless it was uploaded or the storage is away."""
        with contextlib.suppress(OSError):
            if output_name(0) not in self._uploaded and (self._folder / output_name(0)).is_file():
                self._upload(output_name(0), lambda: True)

    def download(self, path: Path) -> bool:
        """The checkpoint `path`, brought to this node; False where the storage does not have it."""
        try:
            if not path.is_file():
                name = str(path.relative_to(self._folder))
                retry_while_away(lambda: self._store.download(name, path), for_s=self.RETRY_TIMEOUT_S)
        except FileNotFoundError:
            self.checkpoint_missing = True
        return not self.checkpoint_missing

    def _upload(self, name: str, cancelled: Callable[[], bool]) -> None:
        path = self._folder / name
        retry_while_away(lambda: self._store.upload(path, name), for_s=self.RETRY_TIMEOUT_S, over=cancelled)
        self._uploaded.add(name)


class ProcessGroups:
    """The process groups of the slot's current trial: one for DDP, one (gloo) for reports.

    The default group is left to control. Groups are kept from trial to trial as long as all goes well (making them
    costs 20 ms each) and destroyed after an error: gloo cannot be freed from a broken collective in any other way.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self._size = size
        self._backend = "nccl" if device.type == "cuda" else "gloo"
        self._pair: tuple[Any, Any] | None = None

    def get(self) -> tuple[Any, Any]:
        """The group for DDP and the one for reports; None for both with one worker."""
        if self._size == 1:
            return None, None
        if self._pair is None:
            self._pair = (dist.new_group(backend=self._backend), dist.new_group(backend="gloo"))
        return self._pair

    def destroy(self) -> None:
        """Destroys both groups; references to them in a model's DDP wrapper must be gone already."""
        pair, self._pair = self._pair, None
        if pair is None:
            return
        for group in pair:
            with contextlib.suppress(Exception):
                dist.destroy_process_group(group)
        del pair, group
        gc.collect()


def _rank_zeros(value: str, size: int) -> str:
    """Rank 0's value, on every rank."""
    values = [value]
    if size > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]


def _common_ending(everyone: list[Any]) -> tuple[Ending, str | None, str | None]:
    """One ending from those of all ranks: an error wins, and of several errors the one that is not collateral.

    A checkpoint that one rank could not read is a reason to start afresh, whatever the others came to.
    """
    if any(ending is Ending.UNRESUMABLE for ending, _, _ in everyone):
        return Ending.UNRESUMABLE, None, None
    errors = [(rank, entry) for rank, entry in enumerate(everyone) if entry[1] is not None]
    if not errors:
        return everyone[0][0], None, None
    causes = [(rank, entry) for rank, entry in errors if not caused_by_peer(entry[1])] or errors
    rank, (_, error, kind) = causes[0]
    return Ending.RAISED, f"rank {rank}: {error}", kind


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
