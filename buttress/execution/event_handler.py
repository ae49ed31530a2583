"""Handles the mailbox's events: the sweep's state decides, and what it decided goes back as commands.

All of it runs in one thread, the driver's drain thread. Between events the same thread checks the limits of the budget.
Of its attributes `leaving` alone is read by another thread, and is replaced instead of changed.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buttress.callbacks.checkpoint_retention import CheckpointRetention, TrialFiles
from buttress.errors import BadInput
from buttress.execution.activity import ActivityProbe
from buttress.execution.messages import (
    Assignment,
    AssignmentEnded,
    AssignmentLost,
    AssignmentStarted,
    AttemptResult,
    Command,
    DropTrial,
    Ending,
    LoseSlot,
    MailboxEvent,
    ReleaseResult,
    ReportReceived,
    RequeueTrial,
    SlotIdle,
    SlotReady,
    StopTrial,
)
from buttress.execution.worker_death import describe_death
from buttress.journal.events import Outcome
from buttress.storage import Storage
from buttress.sweep.limits import Limits
from buttress.sweep.state import SweepState
from buttress.sweep.trial import ActiveTrial
from buttress.training.trainable import NO_CHECKPOINTS, Reported

if TYPE_CHECKING:
    from buttress.execution.worker_pool import WorkerPool


#: Share of `stall_minutes` after which a silent trial's workers are looked at, and between two looks.
PROBE_SHARE = 0.25


class AssignmentFactory:
    """Builds the assignments of a sweep's trials.

    Args:
        state: The sweep's state.
        folder: The sweep's folder; each trial has one below `trials`.
        files: Where checkpoints are looked for.
        store: The sweep's folder on remote storage, if it is there.
        on_message: Called with a sentence about each checkpoint that is gone.
    """

    def __init__(
        self,
        state: SweepState,
        folder: Path,
        files: TrialFiles,
        store: Storage | None,
        on_message: Callable[[str], None],
    ) -> None:
        self._state, self._files, self._store, self._on_message = state, files, store, on_message
        self._folder = folder.absolute() / "trials"

    def folder_of(self, trial: str) -> Path:
        """The trial's folder on this machine."""
        return self._folder / trial

    def next_attempt(self, live: ActiveTrial, problem: str = "") -> Assignment:
        """The assignment of a trial's next attempt; makes the trial's folder and forgets checkpoints that are gone.

        Args:
            live: The trial.
            problem: What is wrong with the checkpoint that it would have gone on from.
        """
        folder = self.folder_of(live.id)
        folder.mkdir(parents=True, exist_ok=True)
        while (source := live.resume_point) and not self._files.exists(live.id, source.checkpoint):
            problem = problem or f"checkpoint {source.checkpoint} is missing"
            self._state.forget_checkpoint(live.id, source.checkpoint)
        if problem:
            now = f"goes on from {source.checkpoint}" if source else "starts afresh"
            self._on_message(f"trial {live.id}: {problem}, so the trial {now}")
        return Assignment(
            trial=live.id,
            attempt=live.attempt + 1,
            trainable=self._state.spec.trainable,
            config=live.config,
            seed=live.seed,
            folder=str(folder),
            resume=str(folder / source.checkpoint) if source else None,
            store=self._store.folder(f"trials/{live.id}").url if self._store is not None else None,
            module_folders=self._state.spec.module_folders,
        )


class EventHandler:
    """Handles the events of one sweep, once its state is what an earlier driver left.

    Args:
        state: The sweep's state.
        pool: The sweep's slots.
        assignments: Builds the assignments of further attempts.
        checkpoints: Deletes checkpoints that are no longer needed.
        on_message: Called with a sentence that a person should read.
        fail: Called with the error when the sweep cannot go on.
    """

    def __init__(
        self,
        state: SweepState,
        pool: WorkerPool,
        assignments: AssignmentFactory,
        checkpoints: CheckpointRetention,
        *,
        on_message: Callable[[str], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._state, self._pool, self._assignments, self._checkpoints = state, pool, assignments, checkpoints
        self._on_message, self._fail = on_message, fail
        self._limits = Limits(state.spec.budget)
        self._probe = ActivityProbe(PROBE_SHARE * 60 * state.spec.budget.stall_minutes)
        self.reports = 0
        self._looked_for_checkpoints = False
        self.slot_of: dict[str, str] = {}  # trial -> the slot of its newest attempt
        self.leaving: frozenset[str] = frozenset()  # paused trials whose workers have not left them yet
        self._released: set[str] = set()  # trials whose last result Tune has been given

    def handle(self, event: MailboxEvent) -> list[Command]:
        """Handles one event; returns the commands for the mailbox."""
        match event:
            case ReportReceived():
                return self._on_report(event.trial, event.attempt, pickle.loads(event.report))
            case AssignmentStarted():
                self._on_started(event)
            case AssignmentEnded():
                return self._on_ended(event)
            case AssignmentLost():
                return self._on_lost(event)
            case SlotReady():
                self._pool.mark_ready(event.slot, event.workers)
            case SlotIdle():
                self._pool.kill(event.slot)
        return []

    def check_limits(self) -> list[Command]:
        """Ends trials over their time limit; gives up the slots of workers that hang, or do not leave when told to."""
        commands: list[Command] = []
        budget = self._state.spec.budget
        silent = {trial: self._pool.workers_of(self.slot_of[trial]) for trial in self._limits.silent(PROBE_SHARE)}
        for trial in self._probe.find_active(silent):
            self._limits.active(trial)
        for trial, limit in self._limits.exceeded():
            if limit == "time":
                if (outcome := self._state.out_of_time(trial, budget.trial_minutes or 0.0)) is not None:
                    commands += self._conclude(trial, outcome, running=True)
                continue
            slot, minutes = self.slot_of[trial], f"{budget.stall_minutes:g} minutes"
            self._limits.left(trial)
            if limit == "stall" and self._probe.found_dead(trial):
                commands.append(LoseSlot(slot, self._describe_death(trial, slot)))
            elif limit == "stall":
                commands.append(LoseSlot(slot, f"no report, processor time, input or output for {minutes}"))
            else:
                self._on_message(f"trial {trial}: its workers had not left {minutes} after they were told to stop, "
                                 f"so {slot} gets new ones")  # fmt: skip
                commands.append(LoseSlot(slot, f"its workers did not leave within {minutes}"))
            self._pool.kill(slot)
        return commands

    # --- events ----------------------------------------------------------------------------------------------------

    def _on_started(self, event: AssignmentStarted) -> None:
        self._limits.began(event.trial)
        self.slot_of[event.trial] = event.slot
        self._state.started(event.trial, event.slot, event.worker.host, event.worker.pid)

    def _on_report(self, trial: str, attempt: int, reported: Reported) -> list[Command]:
        state = self._state
        self.reports += 1
        self._limits.active(trial)
        if reported.note:
            self._on_message(f"trial {trial}: {reported.note}")
        decided = state.reported(trial, attempt, reported)
        if decided is not None:
            return self._conclude(trial, decided, running=True)
        live = state.active.get(trial)
        if live is None or not live.accepts(attempt):
            return []
        if reported.checkpoint:
            self._checkpoints.reported(trial, live.evaluation.reports, live.evaluation.best)
        if state.objectives[0] not in reported.metrics:
            return []
        values = {name: reported.metrics[name] for name in state.objectives if name in reported.metrics}
        result = {**values, "full_beta_epochs": reported.full_beta_epochs, "decision": "continue"}
        return [ReleaseResult(trial, result)]

    def _on_ended(self, event: AssignmentEnded) -> list[Command]:
        trial, ending = event.trial, event.result.ending
        self._limits.left(trial)
        live = self._state.active.get(trial)
        if trial in self.leaving:
            self._has_left(trial)
            if event.drained:
                self._pool.kill(event.slot)
            return []
        if ending is Ending.UNRESUMABLE:
            return self._without_its_checkpoint(live, event.result) if live is not None else []
        if event.drained:
            self._pool.kill(event.slot)
        outcome = self._state.outcomes.get(trial)
        if event.drained and outcome is None and ending is Ending.STOPPED:
            self._state.lost(trial, event.attempt, "its node was drained", moved=True)
            self._on_message(f"trial {trial}: its node is drained; it goes on from the checkpoint that it left")
            return [RequeueTrial(self._assignments.next_attempt(self._state.active[trial]))]
        if ending is Ending.FINISHED and live is not None:
            self._warn_of_no_checkpoint(live)
        outcome = outcome or self._outcome_of(event)
        if outcome is None:
            return []
        commands = self._conclude(trial, outcome)
        self._checkpoints.ended(trial, outcome)
        return commands

    def _warn_of_no_checkpoint(self, live: ActiveTrial) -> None:
        """Says so, once, where the first trial to reach its end has reported no checkpoint."""
        if not self._looked_for_checkpoints and not any(report.checkpoint for report in live.evaluation.reports):
            self._on_message(f"trial {live.id} has reported no checkpoint: {NO_CHECKPOINTS}")
        self._looked_for_checkpoints = True

    def _without_its_checkpoint(self, live: ActiveTrial, result: AttemptResult) -> list[Command]:
        """The workers could not read the checkpoint that the trial was to go on from: it goes on from an older one."""
        if not (source := live.resume_point):
            return []
        checkpoint = source.checkpoint
        self._state.forget_checkpoint(live.id, checkpoint)
        how = "missing" if result.checkpoint_missing else "damaged"
        return [RequeueTrial(self._assignments.next_attempt(live, f"checkpoint {checkpoint} is {how}"))]

    def _outcome_of(self, event: AssignmentEnded) -> Outcome | None:
        """The outcome of a trial whose trainer returned or raised; None where it only stopped when it was told to."""
        result = event.result
        if result.ending is Ending.FINISHED:
            return self._state.finished(event.trial, event.attempt)
        if result.ending is not Ending.RAISED:
            return None
        error, kind = result.error or "", result.error_kind or "exception"
        outcome = self._state.raised(event.trial, event.attempt, error, kind)
        if kind == "bad input" and not self.reports:  # no trial can do better: the data is at fault
            self._fail(BadInput(re.sub(r"^rank \d+: ", "", error)))
        return outcome

    def _on_lost(self, event: AssignmentLost) -> list[Command]:
        trial = event.trial
        self._limits.left(trial)
        if trial in self.leaving:
            self._has_left(trial)
            return []
        known = trial in self._state.outcomes
        reason = event.reason
        if not reason and not known:
            reason = self._describe_death(trial, event.slot)
        outcome = self._state.lost(trial, event.attempt, reason)
        if outcome is None:
            next_attempt = self._assignments.next_attempt(self._state.active[trial])
            where = "goes on from its last checkpoint" if next_attempt.resume else "starts afresh, without a checkpoint"
            self._on_message(f"trial {trial}: {reason}; it {where}")
            return [RequeueTrial(next_attempt)]
        commands = [] if known else self._conclude(trial, outcome)
        self._checkpoints.ended(trial, outcome)
        return commands

    def _describe_death(self, trial: str, slot: str) -> str:
        return describe_death(self._assignments.folder_of(trial), self._pool.workers_of(slot))

    # --- what was decided ------------------------------------------------------------------------------------------

    def _conclude(self, trial: str, outcome: Outcome, running: bool = False) -> list[Command]:
        """What workers (if they are `running`) and Tune have to hear of an outcome; nothing the second time."""
        if trial in self._released:
            return []
        self._released.add(trial)
        self._limits.stopping(trial)
        result: dict[str, Any] = {"outcome": outcome.outcome, "kind": outcome.kind, "margin": outcome.margin}
        if outcome.outcome == "pruned":
            result["decision"] = "stop"
        elif not outcome.dead:
            result["done"] = True
        stop = StopTrial(trial, f"{outcome.outcome} {outcome.kind or ''}".strip())
        return [*([stop] if running else []), ReleaseResult(trial, result)]

    def pause(self, trial: str, reason: str = "") -> list[Command]:
        """A running trial leaves its slot and waits until it is continued.

        Its workers stop as for a verdict; it goes on from its last checkpoint, so that what follows does not depend on
        when they heard of it.
        """
        if not self._state.pause(trial, reason):
            return []
        self.leaving |= {trial}
        self._limits.stopping(trial)
        return [StopTrial(trial, "paused"), ReleaseResult(trial, {"outcome": "paused", "done": True})]

    def stop(self, trial: str, ending: str, by: str) -> list[Command]:
        """Somebody ends a trial; its workers stop at their next report."""
        before = self._state.outcomes.get(trial)
        outcome = self._state.stop(trial, ending, by)
        if outcome is None or before is not None:
            return []
        if trial not in self._limits.running:
            self._checkpoints.ended(trial, outcome)
        return self._conclude(trial, outcome, running=True)

    def tune_actor_died(self, trial: str) -> list[Command]:
        """Tune has given up a trial whose actor died again and again; nothing for one that has its outcome."""
        if (live := self._state.active.get(trial)) is None:
            return [DropTrial(trial)]
        outcome = self._state.raised(trial, live.attempt, "its Tune actor died", "infrastructure")
        return [*(self._conclude(trial, outcome, running=True) if outcome is not None else []), DropTrial(trial)]

    def continue_trial(self, trial: str) -> list[Command]:
        """A paused trial waits for a slot again."""
        self._state.continue_trial(trial)
        return []

    def _has_left(self, trial: str) -> None:
        """The workers of a paused trial are out of it."""
        self.leaving -= {trial}
