"""The state of a sweep: a function of its journal.

`SweepState` changes only by applying events. While the sweep runs, something that happens (a draw, a report, an end)
becomes an event that is applied and written; a resumed sweep applies the events of its journal and goes on. Applying a
report runs the rules and the rungs at once and in order, so a verdict follows from the reports before it and from
nothing else: not from timing, not from what Tune was doing. Events that must follow (a rung's decision, an outcome) are
*due* until they are written: a journal cut between a report and its outcome gets the outcome when it is resumed. The
driver, the simulator and the tests share this class.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from buttress.errors import BadInput
from buttress.journal.events import (
    AttemptStarted,
    Audited,
    CircuitBroken,
    Condemned,
    Continued,
    Event,
    Outcome,
    Paused,
    Refused,
    Report,
    Resumed,
    RungDecision,
    SetAside,
    TrialCreated,
    TrialEvent,
    WarmStarted,
    WorkersLost,
)
from buttress.journal.fields import plain
from buttress.rules import RuleSet
from buttress.search.circuit_breaker import check_circuit
from buttress.search.halving import Rungs
from buttress.search.optuna_study import SamplerResult, Study, sampler_result
from buttress.search.proposals import MAX_REFUSALS, Proposal, Proposals
from buttress.spec.spec import SweepSpec
from buttress.sweep import outcomes
from buttress.sweep.evaluation import TrialEvaluator
from buttress.sweep.trial import ActiveTrial, TrialState
from buttress.training.trainable import Reported

#: Losses to the infrastructure after which a trial is given up.
MAX_WORKER_RESTARTS = 3
#: Seconds between two draws in a row, in which others are given the state's lock.
YIELD_S = 1e-4


class SweepState:
    """One sweep's trials, study and rungs. All methods are thread-safe.

    Attributes:
        active: Trials without an outcome, by id.
        outcomes: The outcomes of the others.
        asks: Ask index -> trial, of every trial there ever was.
        queue: Unfinished trials that wait for a slot, oldest first: of an earlier driver, or continued after a pause.
        warm: Ask indices that earlier sweeps' trials take.
        tripped: The circuit breaker's event, until the sweep is resumed.
    """

    def __init__(
        self,
        spec: SweepSpec,
        trainable: Any,
        rules: RuleSet,
        write: Callable[[Event], object],
        listen: Callable[[Event], None] = lambda event: None,
    ) -> None:
        """
        Args:
            spec: The sweep's spec, checked.
            trainable: The trainable that the spec names.
            rules: The rules in force.
            write: Appends an event to the journal.
            listen: Called with every event that happens while the sweep runs, after it has been applied.
        """
        self.spec, self.trainable, self.rules = spec, trainable, rules
        self.objectives = [objective.metric for objective in spec.objectives]
        self.directions = [
            objective.direction or trainable.metrics[objective.metric].direction for objective in spec.objectives
        ]
        self.study = Study(spec, self.directions, trainable.Config)
        asha = spec.scheduler.kind == "asha"
        self.rungs = Rungs(spec.scheduler.first, spec.scheduler.factor, self.directions[0]) if asha else None
        self.proposals = Proposals(spec, trainable, self.study)
        self.active: dict[str, ActiveTrial] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.asks: dict[int, str] = {}
        self.queue: list[str] = []
        self.warm: set[int] = set()
        self.tripped: CircuitBroken | None = None
        self._tripped_once = False
        self._write, self._listen = write, listen
        self._due: list[Event] = []
        self._lock = threading.RLock()
        self._draw_lock = threading.Lock()  # one draw after the other

    # --- what happens while the sweep runs -----------------------------------------------------------------------

    def next_trial(self, leaving: Collection[str] = ()) -> ActiveTrial | None:
        """The next trial to run: one that waits for a slot, else a new draw; None: there is none.

        Args:
            leaving: Trials whose workers have not left their slot yet: they cannot begin again.
        """
        with self._draw_lock:
            with self._lock:
                if self.tripped:
                    return None
                waiting = next((trial for trial in self.queue if trial not in leaving), None)
                if waiting is not None:
                    self.queue.remove(waiting)
                    return self.active[waiting]
            return self._draw()

    def _draw(self) -> ActiveTrial | None:
        """A new draw that is not refused, as a trial; None where the budget or the space allows no further one.

        Verdicts do not wait for all of it: they need the lock that is held from one draw to the next and no longer.
        """
        reason = ""
        for _ in range(MAX_REFUSALS):
            self.proposals.prepare()
            with self._lock:
                if self.tripped or self.exhausted:
                    return None
                seed = self.spec.seed_of(len(self.active) + len(self.outcomes))
                proposal = self.proposals.next(seed)
                if proposal is None:
                    return None
                if proposal.refusal is None:
                    return self._create(proposal, seed)
                reason = proposal.refusal
                refused = Refused(
                    ask=proposal.ask, params=plain(proposal.params), reason=reason, repeats=proposal.repeats
                )
                self._record(refused)
            time.sleep(YIELD_S)  # a lock that is taken again at once is given to nobody who waits for it
        raise BadInput(f"{MAX_REFUSALS} draws in a row were refused, the last one because of {reason!r}", key="require")

    def _create(self, proposal: Proposal, seed: int) -> ActiveTrial:
        """The trial of a draw that is not refused."""
        trial = f"{len(self.active) + len(self.outcomes):04d}"
        self._record(
            TrialCreated(
                trial=trial,
                ask=proposal.ask,
                params=plain(proposal.params),
                config=plain(proposal.config.model_dump(mode="json")),
                seed=seed,
                budget_epochs=self.trainable.schedule(proposal.config).epochs,
                sampler=plain(self.study.notes(proposal.ask)),
            )
        )
        return self.active[trial]

    def warm_start(self, event: WarmStarted) -> None:
        """Takes in what earlier sweeps teach (search/warm_start.py); to be called before the first draw."""
        with self._lock:
            self._record(event)

    @property
    def has_paused(self) -> bool:
        """Whether a trial is paused."""
        with self._lock:
            return any(trial.state is TrialState.PAUSED for trial in self.active.values())

    @property
    def satisfied(self) -> bool:
        """There are as many healthy trials as the budget asks for."""
        return self.spec.budget.healthy is not None and self.counts["completed"] >= self.spec.budget.healthy

    @property
    def exhausted(self) -> bool:
        """The budget allows no further draw (unfinished trials may still be running)."""
        budget = self.spec.budget.trials
        with self._lock:
            drawn = len(self.active) + len(self.outcomes)
        return self.satisfied or self.proposals.exhausted or (budget is not None and drawn >= budget)

    @property
    def counts(self) -> Counter[str]:
        """Outcome -> number of trials."""
        with self._lock:
            return Counter(outcome.outcome for outcome in self.outcomes.values())

    def started(self, trial: str, slot: str, host: str | None = None, pid: int | None = None) -> ActiveTrial | None:
        """The workers of a slot have begun the next attempt; None where the trial has its outcome already."""
        with self._lock:
            active = self.active.get(trial)
            if active is None:
                return None
            source = active.resume_point
            self._record(
                AttemptStarted(
                    trial=trial,
                    attempt=active.attempt + 1,
                    slot=slot,
                    host=host,
                    pid=pid,
                    resumed_from=source.seq if source else None,
                    resumed_attempt=source.attempt if source else None,
                    checkpoint=source.checkpoint if source else None,
                )
            )
            return active

    def forget_checkpoint(self, trial: str, checkpoint: str) -> None:
        """A checkpoint that turned out missing or unreadable is not resumed from again."""
        with self._lock:
            if active := self.active.get(trial):
                active.evaluation.forget_checkpoint(checkpoint)

    def reported(self, trial: str, attempt: int, reported: Reported) -> Outcome | None:
        """A running trial reported; returns its outcome if the report led to one."""
        with self._lock:
            if (active := self._accepting(trial, attempt)) is None:
                return None
            last = active.evaluation.last
            self._record(Report.of(trial, attempt, last.seq + 1 if last else 0, reported))
            return self.outcomes.get(trial)

    def finished(self, trial: str, attempt: int) -> Outcome | None:
        """The trainer returned by itself."""
        with self._lock:
            if (active := self._accepting(trial, attempt)) is not None:
                self._record(outcomes.finished(active))
            return self.outcomes.get(trial)

    def raised(self, trial: str, attempt: int, error: str, kind: str = "exception") -> Outcome | None:
        """The trainer raised: the trial failed, and is not retried."""
        with self._lock:
            if (active := self._accepting(trial, attempt)) is not None:
                message = error.strip().splitlines()[-1] if error.strip() else kind
                self._record(outcomes.outcome(active, "failed", kind=kind, error=error, message=message))
            return self.outcomes.get(trial)

    def lost(self, trial: str, attempt: int, reason: str, *, moved: bool = False) -> Outcome | None:
        """The infrastructure took the trial's workers.

        Args:
            trial: The trial.
            attempt: The attempt that was lost.
            reason: What happened, for people.
            moved: The trial was given up in good order; it has lost nothing.

        Returns:
            None: the trial goes on as a new attempt; else its outcome.
        """
        with self._lock:
            if (active := self._accepting(trial, attempt)) is not None:
                self._record(WorkersLost(trial=trial, attempt=attempt, reason=reason, moved=moved))
                if active.losses >= MAX_WORKER_RESTARTS:
                    message = f"lost {active.losses} times, last: {reason}"
                    self._record(outcomes.outcome(active, "failed", kind="infrastructure", message=message))
            return self.outcomes.get(trial)

    def out_of_time(self, trial: str, minutes: float) -> Outcome | None:
        """The trial's time limit has passed; None for one that is paused."""
        with self._lock:
            active = self.active.get(trial)
            if active is not None and active.state is not TrialState.PAUSED:
                self._record(outcomes.out_of_time(active, minutes))
            return self.outcomes.get(trial)

    def pause(self, trial: str, reason: str = "") -> bool:
        """A running trial is to leave its slot; True if it is paused now."""
        with self._lock:
            active = self.active.get(trial)
            if active is None or active.state is not TrialState.RUNNING:
                return False
            self._record(Paused(trial=trial, attempt=active.attempt, reason=reason))
            return True

    def continue_trial(self, trial: str) -> bool:
        """A paused trial waits for a slot again; True if it was paused."""
        with self._lock:
            active = self.active.get(trial)
            if active is None or active.state is not TrialState.PAUSED:
                return False
            self._record(Continued(trial=trial, attempt=active.attempt))
            return True

    def _accepting(self, trial: str, attempt: int) -> ActiveTrial | None:
        """The trial, if this is its present attempt and nothing has been decided of it."""
        active = self.active.get(trial)
        return active if active is not None and active.accepts(attempt) else None

    # --- events --------------------------------------------------------------------------------------------------

    def replay(self, events: Sequence[Event]) -> None:
        """Applies an earlier driver's events; unfinished trials are queued again, what is due is written."""
        with self._lock:
            for event in events:
                self._apply(event)
                self._due = [due for due in self._due if not _same(due, event)]
            self.tripped = None  # who resumes the sweep has read why it stopped
            self._settle()
            for trial in list(self.active.values()):
                if isinstance(trial.condemned, SetAside) and trial.state is TrialState.PAUSED:
                    self._record(outcomes.condemned_for_good(trial, trial.condemned))
            self._requeue()

    def _requeue(self) -> None:
        """No trial has a slot: all wait for one."""
        for trial in self.active.values():
            trial.slot = None
            if trial.state is not TrialState.QUEUED:
                trial.move_to(TrialState.QUEUED)
        self.queue = sorted(self.active)

    def _record(self, event: Event) -> None:
        """Applies and writes an event, and those that follow from it."""
        event = self._apply(event)
        self._write(event)
        self._listen(event)
        self._settle()

    def _settle(self) -> None:
        """Writes the events that must follow from those applied so far."""
        while self._due:
            event = self._due.pop(0)
            if not isinstance(event, TrialEvent) or event.trial in self.active:
                self._record(replace(event, time=time.time()))

    def _apply(self, event: Event) -> Event:
        """Changes the state; returns the event as it is to be written (a report with its verdict)."""
        match event:
            case Refused():
                self._apply_refused(event)
            case WarmStarted():
                self._apply_warm(event)
            case CircuitBroken():
                self.tripped, self._tripped_once = event, True
            case TrialCreated():
                self._apply_created(event)
            case TrialEvent() if event.trial in self.active:
                return self._apply_to(self.active[event.trial], event)
            case Resumed():
                self._requeue()
        return event

    def _apply_to(self, trial: ActiveTrial, event: TrialEvent) -> Event:
        match event:
            case AttemptStarted():
                if isinstance(trial.condemned, SetAside) and trial.state is TrialState.PAUSED:
                    trial.evaluation.keep_alive(trial.condemned.until or 0)
                trial.begin(event)
            case Report():
                return self._apply_report(trial, event)
            case Audited():
                trial.evaluation.keep_alive()
                self._report_condemned(trial, event)
            case SetAside():
                trial.move_to(TrialState.PAUSED)
                self._report_condemned(trial, event)
            case Paused():
                trial.move_to(TrialState.PAUSED)
            case Continued():
                trial.move_to(TrialState.QUEUED)
                self.queue.append(trial.id)
            case WorkersLost():
                trial.move_to(TrialState.LOST)
                trial.losses += not event.moved
            case Outcome():
                self._apply_outcome(trial, event)
        return event

    def _apply_refused(self, event: Refused) -> None:
        if event.ask == self.study.asked:
            self.study.add(event.ask, event.params)
        self.study.refuse(event.ask, event.reason)
        self.proposals.explored.add_refusal(event.repeats)

    def _apply_warm(self, event: WarmStarted) -> None:
        for entry in event.told:
            ask, _ = self.study.enqueue(entry["params"])
            values = [entry["best"]["metrics"][name] for name in self.objectives] if entry.get("best") else None
            by_age = {int(age): value for age, value in entry["by_age"].items()}
            result = self._result(entry["outcome"], entry["kind"], entry["margin"], values, by_age)
            self.study.tell(ask, result)
            self.warm.add(ask)

    def _apply_created(self, event: TrialCreated) -> None:
        if event.ask == self.study.asked:
            self.study.add(event.ask, event.params, event.sampler)
        self.asks[event.ask] = event.trial
        self.proposals.explored.add(event.trial, event.params)
        # an older driver went on without one
        self._due = [due for due in self._due if not isinstance(due, CircuitBroken)]
        self.active[event.trial] = ActiveTrial(
            id=event.trial,
            ask=event.ask,
            params=event.params,
            config=event.config,
            seed=event.seed or 0,
            evaluation=TrialEvaluator(self.rules, self.objectives, self.directions[0], event.budget_epochs or 0),
        )

    def _apply_report(self, trial: ActiveTrial, event: Report) -> Report:
        if event.attempt != trial.attempt:
            return event
        evaluation = trial.evaluation
        report = evaluation.add(event)
        verdict = evaluation.verdict
        assert verdict is not None
        if verdict.state == "diverged" or (verdict.state == "collapsed" and not evaluation.kept_alive):
            self._due.append(outcomes.condemned(self.spec, trial, verdict, report))
        elif (decision := self._compare(trial, report)) is not None:
            self._due.append(decision)
            if decision.decision == "stop":
                self._due.append(outcomes.pruned(trial, decision))
        return report

    def _report_condemned(self, trial: ActiveTrial, event: Condemned) -> None:
        """The sampler hears of the collapse at once, and not at the trial's real end: what it is not told of it draws
        again. The end, should it be another one, is told when it is there."""
        trial.condemned = event
        self._due = [due for due in self._due if not (isinstance(due, Outcome) and due.trial == trial.id)]
        self._forget(trial.id)
        self.study.tell(trial.ask, self._result("collapsed", event.kind, event.margin))

    def _apply_outcome(self, trial: ActiveTrial, event: Outcome) -> None:
        trial.move_to(TrialState.ENDED)
        del self.active[trial.id]
        self.outcomes[trial.id] = event
        self._check_breaker(trial.id)
        if event.dead:
            self._forget(trial.id)
        values = [event.best.metrics[name] for name in self.objectives] if event.best else None
        result = self._result(event.outcome, event.kind, event.margin, values, trial.evaluation.by_age)
        if not trial.reported_to_sampler:
            self.study.tell(trial.ask, result)
        elif not event.dead:
            self.asks[self.study.tell_again(trial.params, result)] = trial.id

    def _result(
        self,
        outcome: str,
        kind: str | None,
        margin: float | None,
        values: Sequence[float | None] | None = None,
        by_age: dict[int, float] | None = None,
    ) -> SamplerResult:
        known = [value for value in values or () if value is not None]
        ages = by_age if len(self.objectives) == 1 else None
        return sampler_result(outcome, kind=kind, margin=margin, values=known, by_age=ages)

    def _forget(self, trial: str) -> None:
        """Nothing that a collapsed trial reached counts in a comparison."""
        if self.rungs:
            self.rungs.forget(trial)

    def _check_breaker(self, trial: str) -> None:
        """A trial has ended: among the first ones that may be one collapse too many."""
        breaker = self.spec.breaker
        if breaker is None or self._tripped_once or int(trial) >= breaker.first:
            return
        if self.exhausted and not self.active:
            return
        alive = {
            id: trial.evaluation.margin
            for id, trial in self.active.items()
            if trial.evaluation.best is not None and not trial.evaluation.kept_alive
        }
        tripped = check_circuit(self.spec, self.proposals.explored.params, self.outcomes, alive)
        if tripped is not None:
            self._due.append(tripped)

    def _compare(self, trial: ActiveTrial, report: Report) -> RungDecision | None:
        """The rung's decision about an epoch's report, as an event that is due; None where there is none to make.

        Only reports with all objectives are compared: one that comes less often than the first is no fault of a trial.
        The last epoch's value enters its rung, for others to be compared with, but stops nobody: the trial is over.
        A condemned trial that runs on is neither compared nor compared with: a rung would cut off what is to be seen.
        """
        if self.rungs is None or not all(name in report.metrics for name in self.objectives):
            return None
        age, phase, evaluation = report.full_beta_epochs, report.phase, trial.evaluation
        # where it looks collapsed, whether it is so is for the rules to say
        looks_collapsed = evaluation.value is None and evaluation.engine.holding
        if trial.audited or evaluation.kept_alive or looks_collapsed:
            self.rungs.skip(trial.id, age, phase)
            return None
        decision = self.rungs.report(trial.id, age, evaluation.value, phase)
        if decision is None:
            return None
        return RungDecision(
            trial=trial.id,
            attempt=trial.attempt,
            age=decision.age,
            phase=decision.phase,
            value=plain(decision.value),
            cutoff=plain(decision.cutoff),
            peers=decision.peers,
            decision="stop" if decision.stop and report.epoch < trial.epochs else "continue",
        )


def _same(due: Event, event: Event) -> bool:
    """Whether `event` of a journal is the one that was due."""
    return due.line == event.line and getattr(due, "trial", None) == getattr(event, "trial", None)
