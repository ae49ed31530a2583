"""Merges the reports of all ranks into one `Reported` on rank 0 without holding up the training thread.

A report's values are packed into one float64 row; the rows of all ranks and rank 0's stop flag travel in one all-reduce
on a gloo group of the reporter's own, which the next report waits for. Rank 0 merges, writes the checkpoint and calls
its `Sink`. Two threads do this: one packs and exchanges (every rank), one delivers (rank 0), so that neither a slow
disk nor a slow sink delays other ranks. Of the monitors' 1 ms on a CPU the training thread spends 0.1 ms.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Protocol

import torch
import torch.distributed as dist

from buttress.monitors.summaries import REPORTABLE, Layout, kind_of, merge_rows, pack_row
from buttress.training.checkpoints import clone_to_cpu, save_checkpoint
from buttress.training.trainable import METRIC_KEY, METRIC_KEY_WORDS, Reported, Schedule, TrialStopped
from buttress.training.world import World

__all__ = ["ReportError", "Reporter", "Sink", "caused_by_peer"]

#: What a report may hold beside its metrics; these become fields of `Reported`.
COUNTERS = ("epoch", "step", "full_beta_epochs", "full_beta_steps", "phase", "closing", "draining", "mem_mb")

#: Cells in front of every rank's row in the exchanged matrix. NEED is the row's width: if the matrix is narrower, all
#: ranks see it and exchange again in a wider one.
NEED, SIGNATURE, EPOCH, STEP, STOP, FAILED, DRAINING, MEMORY, HEADER = range(9)


class Sink(Protocol):
    """Receives rank 0's merged reports, in order, from the reporter's thread."""

    @property
    def stop(self) -> bool:
        """Read by rank 0 at every report, so it must be cheap; True ends the trial on all ranks."""
        ...

    def send(self, reported: Reported) -> None:
        """Takes a report; an exception here fails the trial at its next report."""
        ...


class ReportError(RuntimeError):
    """A report could not be exchanged or delivered; the cause is chained. Also raised where another rank has failed."""


def caused_by_peer(error: str) -> bool:
    """Whether an error only says that another rank has failed: its connection broke.

    Args:
        error: `TypeName: message`, or a whole traceback.
    """
    signs = ("ReportError: ", "Connection closed by peer", "Connection reset by peer")
    last = error.strip().rpartition("\n")[2]
    return any(sign in error for sign in signs) or "gloo" in last or "NCCL" in last


@dataclass
class _Job:
    """One report in progress."""

    counters: dict[str, float]
    values: dict[str, Any]
    stream: Any = None  # the training thread's CUDA stream
    checkpoint: dict[str, Any] | None = None
    media: dict[str, str] = field(default_factory=dict)
    layout: Layout = field(default_factory=lambda: Layout(()))
    rows: torch.Tensor | None = None  # [ranks, HEADER + width], once exchanged
    stop: bool = False
    failed: bool = False
    draining: bool = False
    exchanged: threading.Event = field(default_factory=threading.Event)
    saved: threading.Event = field(default_factory=threading.Event)


class Reporter:
    """The `Report` that a trainer calls, one per trial and rank.

    Leaving its `with` block delivers every report that was made; leaving it by an exception other than `TrialStopped`
    delivers what is complete and does not wait for other ranks. On several ranks `TrialStopped` is raised one report
    after the one that read the flag, on one rank at once.

    A `Summary` is packed later, so it must not be updated after it was reported: pass a monitor's `summary()`, or a
    monitor made for this report. Numbers, tensors and lists are copied.

    Errors in the background (a rank died, the sink failed, ranks reported different keys) are raised as `ReportError`
    by the next report or by `close`. A checkpoint that cannot be written (disk full) does not end training: its report
    is delivered without `checkpoint` and with the reason in `note`.

    Args:
        world: This rank's world.
        schedule: Fills in the counters that the trainer does not report.
        sink: Receives rank 0's merged reports; ignored on other ranks.

    Example:
        >>> with Reporter(world, trainable.schedule(config), sink) as report:              # doctest: +SKIP
        ...     trainable.train(config, world, report, resume)
    """

    def __init__(self, world: World, schedule: Schedule, sink: Sink | None = None) -> None:
        self.world, self.schedule, self.sink = world, schedule, sink if world.rank == 0 else None
        self.draining = False  # some rank's node was draining at the last report that all ranks agreed on
        self._began = time.monotonic()
        self._known: set[tuple[str, ...]] = set()  # key sets that have been checked
        self._last: _Job | None = None
        self._last_saved: _Job | None = None
        self._steps_per_epoch = schedule.steps_per_epoch or inf  # else the fewest in a report: exact at an epoch's end
        self._lost: BaseException | None = None  # the ranks could not exchange a report
        self._failed: BaseException | None = None  # rank 0 could not deliver one
        self._room = 256  # cells of a row in the exchanged matrix
        self._deliverer = _Worker("reporter: deliver", self._deliver) if world.rank == 0 else None
        self._exchanger = _Worker("reporter: exchange", self._exchange)

    def __call__(
        self,
        metrics: Mapping[str, Any],
        *,
        checkpoint: Callable[[], dict[str, Any]] | None = None,
        media: Mapping[str, Path] | None = None,
    ) -> None:
        self._finish_last()
        counters = self._counters(metrics)
        job = _Job(counters, {key: _snapshot(key, value) for key, value in metrics.items() if key not in COUNTERS})
        if checkpoint is not None:
            self._take(job, checkpoint())
        if self.world.device.type == "cuda":
            job.stream = torch.cuda.current_stream(self.world.device)
        if media and self.world.rank == 0:
            job.media = {name: _relative(path, self.world.folder) for name, path in media.items()}
        self._last = job
        self._exchanger.put(job)
        if self.world.size == 1 and self.sink is not None and self.sink.stop:
            raise TrialStopped

    def close(self) -> None:
        """Delivers all pending reports and ends the threads; raises `ReportError` for what failed. Collective."""
        for worker in (self._exchanger, self._deliverer):  # in this order: what is exchanged is then delivered
            if worker is not None:
                worker.end()
        self._raise()

    def abandon(self) -> None:
        """Ends the threads after a failure of this rank: delivers what is complete, waits for no rank, raises nothing.

        A thread that waits for another rank ends when that rank has gone or the group times out.
        """
        self._exchanger.end(timeout=0.5 if self.world.size > 1 else 30.0)
        if self._deliverer is not None:
            self._deliverer.end(timeout=30.0)

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, TrialStopped):
            self.close()
        else:
            self.abandon()

    # The training thread

    def _finish_last(self) -> None:
        """Waits for the previous report's exchange and its stop flag; the same on every rank."""
        last = self._last
        if last is None:
            return
        last.exchanged.wait()
        self.draining = last.draining
        if self._lost is not None or last.failed or (self.world.size == 1 and self._failed is not None):
            self._raise()
            raise ReportError("rank 0 could not deliver a report")
        if last.stop:
            raise TrialStopped

    def _raise(self) -> None:
        if self._lost is not None:
            what = f"{type(self._lost).__name__}: {self._lost}"
            raise ReportError(f"a report could not be packed or exchanged: {what}") from self._lost
        if self._failed is not None:
            what = f"{type(self._failed).__name__}: {self._failed}"
            raise ReportError(f"a report could not be delivered: {what}") from self._failed

    def _counters(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        keys = tuple(metrics)
        if keys not in self._known:
            if missing := [key for key in ("epoch", "step") if key not in metrics]:
                raise ValueError(f"a report needs {' and '.join(missing)} (completed, as int)")
            if bad := [key for key in keys if not METRIC_KEY.fullmatch(key)]:
                raise ValueError(f"report: {bad[0]!r} is not a valid key; accepted: {METRIC_KEY_WORDS}")
            self._known.add(keys)
        return {key: float(metrics[key]) for key in COUNTERS if key in metrics}

    def _take(self, job: _Job, state: dict[str, Any]) -> None:
        """Copies a checkpoint on rank 0; at most one waits to be written at a time."""
        if self.world.rank:
            return
        if self._last_saved is not None:
            while not self._last_saved.saved.wait(timeout=1.0):
                self._raise()
        job.checkpoint = clone_to_cpu(state)
        self._last_saved = job

    # The background

    def _exchange(self, job: _Job) -> None:
        try:
            if self._lost is None:
                row, job.layout = self._pack(job)
                job.rows = self._gather(job, row)
                job.stop, job.failed = bool(job.rows[0, STOP]), bool(job.rows[0, FAILED])
                job.draining = bool(job.rows[:, DRAINING].any())
        except Exception as error:
            self._lost = error
        job.values.clear()
        job.exchanged.set()
        if self._lost is not None:
            job.saved.set()
        elif self._deliverer is not None:
            self._deliverer.put(job)

    def _pack(self, job: _Job) -> tuple[torch.Tensor, Layout]:
        if job.stream is None:
            return pack_row(job.values)
        with torch.cuda.stream(job.stream):
            row, layout = pack_row(job.values)
            host = torch.empty(row.shape, dtype=row.dtype, pin_memory=True).copy_(row, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        copied.synchronize()  # also waits for the checkpoint's copies, which were asked for before
        return host, layout

    def _gather(self, job: _Job, row: torch.Tensor) -> torch.Tensor:
        """All ranks' rows by one all-reduce of a matrix that is zero but for the own row: [ranks, HEADER + width]."""
        world, width = self.world, row.numel()
        head = torch.zeros(HEADER, dtype=torch.float64)
        head[NEED], head[SIGNATURE] = width, job.layout.signature
        head[EPOCH], head[STEP] = job.counters["epoch"], job.counters["step"]
        head[STOP] = self.sink is not None and self.sink.stop
        head[FAILED], head[DRAINING] = self._failed is not None, world.draining()
        head[MEMORY] = job.counters.get("mem_mb") or memory_mb(world.device)
        if world.size == 1:
            return torch.cat([head, row])[None]
        while True:
            rows = torch.zeros(world.size, HEADER + self._room, dtype=torch.float64)
            rows[world.rank, :HEADER] = head
            if width <= self._room:
                rows[world.rank, HEADER : HEADER + width] = row
            dist.all_reduce(rows, group=world.reports)
            need = int(rows[:, NEED].max())
            if need <= self._room:
                break
            self._room = -(-need // 256) * 256
        if bool((rows[:, : STEP + 1] != rows[0, : STEP + 1]).any()):
            given = ", ".join(f"rank {rank} {int(head[EPOCH])}/{int(head[STEP])}" for rank, head in enumerate(rows))
            keys = ", ".join(one.key for one in job.layout.fields)
            raise ValueError(
                f"they differ in keys, kinds or widths, or in epoch/step ({given}); this rank reported {keys}"
            )
        return rows[:, : HEADER + width]

    def _deliver(self, job: _Job) -> None:
        try:
            if self._failed is None:
                self._merge_and_send(job)
        except Exception as error:
            self._failed = error
        job.saved.set()

    def _merge_and_send(self, job: _Job) -> None:
        assert job.rows is not None
        metrics, vectors, nonfinite = merge_rows(job.layout, job.rows[:, HEADER:])
        name, note = None, ""
        if job.checkpoint is not None:
            name = _checkpoint_name(job.counters)
            try:
                save_checkpoint(self.world.folder / name, job.checkpoint)
            except Exception as error:
                name, note = None, f"checkpoint not written: {error}"
            job.checkpoint = None
            job.saved.set()
        if self.sink is None:
            return
        self.sink.send(
            Reported(
                **self._counts(job.counters),
                metrics=metrics,
                vectors=vectors,
                nonfinite=nonfinite,
                closing=bool(job.counters.get("closing")),
                checkpoint=name,
                media=job.media,
                seconds=time.monotonic() - self._began,
                mem_mb=float(job.rows[:, MEMORY].max()),
                note=note,
            )
        )

    def _counts(self, counters: Mapping[str, float]) -> dict[str, int]:
        """The counts of a report: as the trainer gave them, else from the schedule."""
        epoch, step = int(counters["epoch"]), int(counters["step"])
        if epoch and step and not self.schedule.steps_per_epoch:
            self._steps_per_epoch = min(self._steps_per_epoch, step / epoch)
        full_epoch, full_step = self.schedule.settles_after(self._steps_per_epoch)
        return {
            "epoch": epoch,
            "step": step,
            "full_beta_epochs": int(counters.get("full_beta_epochs", max(0, epoch - full_epoch))),
            "full_beta_steps": int(counters.get("full_beta_steps", max(0, step - full_step))),
            "phase": int(counters.get("phase", self.schedule.phase(epoch))),
        }


class _Worker:
    """A thread that processes jobs in order."""

    def __init__(self, name: str, work: Callable[[_Job], None]) -> None:
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(work,), name=name, daemon=True)
        self._thread.start()

    def put(self, job: _Job) -> None:
        self._queue.put(job)

    def end(self, timeout: float | None = None) -> None:
        """Finishes the jobs it has been given."""
        self._queue.put(None)
        self._thread.join(timeout)

    @torch.no_grad()
    def _run(self, work: Callable[[_Job], None]) -> None:
        while (job := self._queue.get()) is not None:
            work(job)


def memory_mb(device: torch.device) -> float:
    """MB: the peak of what torch allocated on a CUDA device, or this process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        fd = os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:
        return 0.0
    try:
        return int(os.read(fd, 128).split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    finally:
        os.close(fd)


def _checkpoint_name(counters: Mapping[str, float]) -> str:
    """`checkpoints/000012.pt`; a checkpoint from inside an epoch (a draining node) does not take the epoch's name."""
    inside = f"-{int(counters['step']):09d}" if counters.get("draining") else ""
    return f"checkpoints/{int(counters['epoch']):06d}{inside}.pt"


def _snapshot(key: str, value: Any) -> Any:
    """A copy that later changes to a tensor or list do not affect; raises `TypeError` for what cannot be reported."""
    if isinstance(value, torch.Tensor) and value.dim() <= 1:
        return value.detach().clone()
    if isinstance(value, (list, tuple)) and all(isinstance(item, (int, float)) for item in value):
        return list(value)
    if isinstance(value, (str, bytes, dict, list, tuple, torch.Tensor)) or value is None:
        raise TypeError(f"report: {key} is {kind_of(value)}; accepted: {REPORTABLE}")
    return value


def _relative(path: Path, folder: Path) -> str:
    path = Path(path)
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
