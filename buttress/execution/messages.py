"""The messages between a sweep's driver, its mailbox, the workers of its slots and Tune's trial actors.

Events go from the mailbox to the driver, commands from the driver to the mailbox. The module imports the standard
library alone: the processes of mailbox and trial actors stay small.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

# --- what the workers of a slot are given, and give back ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Assignment:
    """One attempt of a trial, as the workers that run it need it.

    Attributes:
        trial: Name of the trial.
        attempt: Number of the attempt, from 1.
        trainable: Name of the trainable.
        config: The trial's config, as plain values.
        seed: The trial's seed.
        folder: The trial's folder on the worker's node.
        resume: Checkpoint to go on from, a path below `folder`; None: from the beginning.
        store: URL of the trial's folder on remote storage; None where the sweep is on a disk that all nodes see.
        module_folders: Where the trainable is looked for, if it is the user's own.
    """

    trial: str
    attempt: int
    trainable: str
    config: Mapping[str, Any]
    seed: int
    folder: str
    resume: str | None = None
    store: str | None = None
    module_folders: tuple[str, ...] = ()

    def to_json(self) -> str:
        """As a string, which Tune passes on unread (of every number in a trial's config it keeps statistics)."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Assignment:
        """The assignment that `to_json` wrote."""
        values = json.loads(text)
        return cls(**values | {"module_folders": tuple(values["module_folders"])})


class NoAssignment(Enum):
    """Why the workers of a slot are given nothing."""

    CLOSED = "closed"  # the sweep is over, or the workers are no longer those of the slot: they leave


class Signal(Enum):
    """What the workers of a running attempt are told."""

    STOP = "stop"  # at the next report
    DRAIN = "drain"  # the node is about to go: write a checkpoint, then stop
    ATTEMPT_OVER = "attempt over"  # nothing more to wait for


class Ending(Enum):
    """How the workers left an attempt."""

    FINISHED = "finished"  # the trainer returned
    STOPPED = "stopped"  # by a signal
    RAISED = "raised"
    UNRESUMABLE = "unresumable"  # the checkpoint to go on from is missing or damaged


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """How an attempt ended on all ranks.

    Attributes:
        ending: How the workers left it.
        error: Traceback or sentence of what was raised.
        error_kind: `exception`, `out of memory` or `bad input`.
        checkpoint_missing: The checkpoint to go on from is not on the remote storage.
    """

    ending: Ending
    error: str | None = None
    error_kind: str | None = None
    checkpoint_missing: bool = False


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One rank of a slot: where its process is, the handle of its Ray actor, and the trainer's thread (native id)."""

    pid: int
    host: str
    node: str
    actor: Any = None
    thread: int = 0


# --- events: mailbox to driver -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SlotReady:
    """All workers of a slot are up; `workers` maps ranks to them."""

    slot: str
    workers: Mapping[int, WorkerInfo]


@dataclass(frozen=True, slots=True)
class SlotIdle:
    """A slot that is being drained has no trial."""

    slot: str


@dataclass(frozen=True, slots=True)
class AssignmentStarted:
    """The workers of a slot were given an attempt; `worker` is their rank 0."""

    trial: str
    attempt: int
    slot: str
    worker: WorkerInfo


@dataclass(frozen=True, slots=True)
class ReportReceived:
    """Rank 0 has reported; `report` is a pickled `training.trainable.Reported`, which the mailbox passes on unread."""

    trial: str
    attempt: int
    report: bytes


@dataclass(frozen=True, slots=True)
class AssignmentEnded:
    """The workers have left an attempt; `drained`: their slot takes no more."""

    trial: str
    attempt: int
    slot: str
    result: AttemptResult
    drained: bool = False


@dataclass(frozen=True, slots=True)
class AssignmentLost:
    """The workers of an attempt are gone, or were given up; `reason` is empty where they died by themselves."""

    trial: str
    attempt: int
    slot: str
    reason: str = ""


MailboxEvent = SlotReady | SlotIdle | AssignmentStarted | ReportReceived | AssignmentEnded | AssignmentLost

# --- commands: driver to mailbox -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReleaseResult:
    """Hand a result to the trial's Tune actor."""

    trial: str
    result: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StopTrial:
    """The workers of the trial stop at their next report."""

    trial: str
    reason: str


@dataclass(frozen=True, slots=True)
class RequeueTrial:
    """The trial goes on as a new attempt, ahead of all that wait."""

    assignment: Assignment


@dataclass(frozen=True, slots=True)
class DropTrial:
    """Tune is done with the trial, or (with `attempt`) with its attempts up to that one."""

    trial: str
    attempt: int | None = None


@dataclass(frozen=True, slots=True)
class LoseSlot:
    """The workers of the slot are gone or hang: its attempt is lost."""

    slot: str
    reason: str


@dataclass(frozen=True, slots=True)
class DrainSlot:
    """The node of the slot is about to go: it takes no more attempts, and the present one is to leave a checkpoint."""

    slot: str


Command = ReleaseResult | StopTrial | RequeueTrial | DropTrial | LoseSlot | DrainSlot
