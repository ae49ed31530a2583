"""The driver's side of the mailbox: what happened goes to the sweep's state, and what was decided goes back as answers.

In come the mailbox's events in order (a slot is there; a trial began, reported, ended, was lost) and, between them, the
time that passes. Out go answers for the mailbox's next exchange: `stop` and `release` for an outcome, `again` with the
work of a trial's next attempt, `lose` for a slot that is given up. All of it in one thread, the driver's drain thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from buttress.callbacks.checkpoint_retention import Checkpoints
from buttress.errors import BadInput
from buttress.execution.attempts import Attempts
from buttress.journal.events import Outcome
from buttress.sweep.limits import Limits
from buttress.sweep.state import SweepState
from buttress.sweep.trial import ActiveTrial
from buttress.training.trainable import Reported

if TYPE_CHECKING:
    from buttress.execution.worker_pool import SlotPool

Event = dict[str, Any]
#: One for the mailbox: a call's name and what it is given.
Answer = tuple[Any, ...]


class Events:
    """Of one sweep, from the moment at which its state is what an earlier driver left."""

    def __init__(
        self,
        state: SweepState,
        pool: SlotPool,
        attempts: Attempts,
        checkpoints: Checkpoints,
        *,
        note: Callable[[str], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._state, self._pool, self._attempts, self._checkpoints = state, pool, attempts, checkpoints
        self._note, self._fail = note, fail
        self._limits = Limits(state.spec.budget)
        self.reports = 0
        self.slot_of: dict[str, str] = {}  # trial -> the slot of its newest attempt
        self.leaving: set[str] = set()  # paused trials whose workers have not left them yet
        self._released: set[str] = set()  # trials whose last result Tune has been given

    def take(self, event: Event) -> list[Answer]:
        """Tells the state of one event."""
        answers: list[Answer] = getattr(self, f"_on_{event['event']}")(event)
        return answers

    def overdue(self) -> list[Answer]:
        """Ends trials over their time limit, and gives up the slots of silent ones."""
        answers: list[Answer] = []
        for trial, limit in self._limits.exceeded():
            if limit == "time":
                minutes = self._state.spec.budget.trial_minutes or 0.0
                if (outcome := self._state.out_of_time(trial, minutes)) is not None:
                    answers += self._conclude(trial, outcome, running=True)
            else:
                slot = self.slot_of[trial]
                self._limits.ended(trial)
                self._pool.kill(slot)
                answers.append(("lose", slot, f"no report for {self._state.spec.budget.stall_minutes:g} minutes"))
        return answers

    # --- slots -----------------------------------------------------------------------------------------------------

    def _on_slot(self, event: Event) -> list[Answer]:
        self._pool.said_hello(event["slot"], event["ranks"])
        return []

    def _on_idle(self, event: Event) -> list[Answer]:
        """A slot without a trial, on a node that is drained."""
        self._pool.kill(event["slot"])
        return []

    # --- trials ----------------------------------------------------------------------------------------------------

    def _on_started(self, event: Event) -> list[Answer]:
        trial = event["trial"]
        self._limits.began(trial)
        self.slot_of[trial] = event["slot"]
        self._state.started(trial, event["slot"], event["info"]["host"], event["info"]["pid"])
        return []

    def _on_report(self, event: Event) -> list[Answer]:
        trial, attempt, state = event["trial"], event["attempt"], self._state
        self.reports += 1
        self._limits.heard(trial)
        reported = _reported(event["reported"])
        if reported.note:
            self._note(f"trial {trial}: {reported.note}")
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
        told = {name: reported.metrics[name] for name in state.objectives if name in reported.metrics}
        result = {**told, "full_beta_epochs": reported.full_beta_epochs, "decision": "continue"}
        return [("release", trial, result)]

    def _on_end(self, event: Event) -> list[Answer]:
        trial, how = event["trial"], event["how"]
        self._limits.ended(trial)
        live = self._state.active.get(trial)
        if trial in self.leaving:
            self._has_left(trial)
            if event["drained"]:
                self._pool.kill(event["slot"])
            return []
        if how == "unresumable":
            return self._without_its_checkpoint(live, event["detail"]) if live is not None else []
        if event["drained"]:
            self._pool.kill(event["slot"])
        outcome = self._state.outcomes.get(trial)
        if event["drained"] and outcome is None and how == "stopped":
            self._state.lost(trial, event["attempt"], "its node was drained", moved=True)
            self._note(f"trial {trial}: its node is drained; it goes on from the checkpoint that it left")
            return [("again", self._attempts.work(self._state.active[trial]))]
        outcome = outcome or self._ended_by_itself(event)
        if outcome is None:
            return []
        answers = self._conclude(trial, outcome)
        self._checkpoints.ended(trial, outcome)
        return answers

    def _without_its_checkpoint(self, live: ActiveTrial, detail: dict[str, Any]) -> list[Answer]:
        """The workers could not read the checkpoint that the trial was to go on from: it goes on from an older one."""
        if not (source := live.resume_point):
            return []
        damaged = source.checkpoint
        self._state.forget_checkpoint(live.id, damaged)
        how = "missing" if detail.get("missing") else "damaged"
        return [("again", self._attempts.work(live, f"checkpoint {damaged} is {how}"))]

    def _ended_by_itself(self, event: Event) -> Outcome | None:
        """The outcome of a trial whose trainer returned or raised; None where it only did as it was told."""
        trial, attempt, detail = event["trial"], event["attempt"], event["detail"]
        if event["how"] == "finished":
            return self._state.finished(trial, attempt)
        if event["how"] != "raised":
            return None
        outcome = self._state.raised(trial, attempt, detail["error"], detail["kind"])
        if detail["kind"] == "bad input" and not self.reports:  # no trial can do better: the data is at fault
            self._fail(BadInput(re.sub(r"^rank \d+: ", "", detail["error"])))
        return outcome

    def _on_lost(self, event: Event) -> list[Answer]:
        trial, attempt = event["trial"], event["attempt"]
        self._limits.ended(trial)
        if trial in self.leaving:
            self._has_left(trial)
            return []
        known = trial in self._state.outcomes
        outcome = self._state.lost(trial, attempt, event["reason"])
        if outcome is None:
            self._note(f"trial {trial}: {event['reason']}; it goes on from its last checkpoint")
            return [("again", self._attempts.work(self._state.active[trial]))]
        answers = [] if known else self._conclude(trial, outcome)
        self._checkpoints.ended(trial, outcome)
        return answers

    # --- what was decided ------------------------------------------------------------------------------------------

    def _conclude(self, trial: str, outcome: Outcome, running: bool = False) -> list[Answer]:
        """What workers (if they are `running`) and Tune have to hear of an outcome; nothing the second time."""
        if trial in self._released:
            return []
        self._released.add(trial)
        self._limits.ended(trial)
        result: dict[str, Any] = {"outcome": outcome.outcome, "kind": outcome.kind, "margin": outcome.margin}
        if outcome.outcome == "pruned":
            result["decision"] = "stop"
        elif not outcome.dead:
            result["done"] = True
        stop = ("stop", trial, f"{outcome.outcome} {outcome.kind or ''}".strip())
        return [*([stop] if running else []), ("release", trial, result)]

    def pause(self, trial: str, reason: str = "") -> list[Answer]:
        """A trial leaves its slot and waits until it is continued.

        Its workers stop as for a verdict; it goes on from its last checkpoint, so that what follows does not depend on
        when they heard of it.
        """
        if not self._state.pause(trial, reason):
            return []
        self.leaving.add(trial)
        return [("stop", trial, "paused"), ("release", trial, {"outcome": "paused", "done": True})]

    def _has_left(self, trial: str) -> None:
        """The workers of a paused trial are out of it; if it comes back its time begins anew."""
        self._limits.restart(trial)
        self.leaving.discard(trial)


_KNOWN = frozenset(item.name for item in fields(Reported))


def _reported(fields_: dict[str, Any]) -> Reported:
    values = {key: value for key, value in fields_.items() if key in _KNOWN}
    return Reported(**{**values, "nonfinite": tuple(values.get("nonfinite", ()))})
