"""The state of a sweep: a function of its journal.

Everything that changes a sweep is one journal line, and `SweepState` changes only by applying lines. While the sweep
runs, an event (a draw, a report, an end) becomes a line that is applied and written; a resumed sweep applies the lines
that are there and goes on. Applying a report runs the rules and the rungs at once and in order, so a verdict follows
from the reports before it and from nothing else: not from timing, not from what Tune was doing. Lines that must follow
(a rung's decision, an outcome) are *due* until they are written: a journal cut between a report and its outcome gets
the outcome when it is resumed. No Ray in here: the driver, the simulator and the tests share this class.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

from buttress import journal
from buttress.errors import BadInput
from buttress.rules import RuleSet
from buttress.search.building import build
from buttress.search.circuit_breaker import overload
from buttress.search.halving import Rungs
from buttress.search.optuna_study import MOST_REFUSALS, Study, told
from buttress.search.proposals import Draws
from buttress.spec.spec import SweepSpec
from buttress.sweep import outcomes as ends
from buttress.sweep.evaluation import Judged, Line
from buttress.sweep.probation import Probation, waiting
from buttress.sweep.trial import LiveTrial
from buttress.training.trainable import Reported

#: Losses to the infrastructure after which a trial is given up.
MOST_LOSSES = 3


class SweepState:
    """One sweep's trials, study and rungs.

    `write` appends a line to the journal (and makes the important ones last); `listen` is called with every line that
    happens while the sweep runs, after it has been applied (progress display, W&B). All methods are thread-safe.
    """

    def __init__(
        self,
        spec: SweepSpec,
        trainable: Any,
        rules: RuleSet,
        write: Callable[[Line], object],
        listen: Callable[[Line], None] = lambda line: None,
    ) -> None:
        self.spec, self.trainable, self.rules = spec, trainable, rules
        self.objectives = [objective.metric for objective in spec.objectives]
        self.directions = [
            objective.direction or trainable.metrics[objective.metric].direction for objective in spec.objectives
        ]
        self.study = Study(spec, self.directions, trainable.Config)
        asha = spec.scheduler.kind == "asha"
        self.rungs = Rungs(spec.scheduler.first, spec.scheduler.factor, self.directions[0]) if asha else None
        self.probation = Probation(spec, self.directions[0])
        self.live: dict[str, LiveTrial] = {}
        self.outcomes: dict[str, Line] = {}
        self.asks: dict[int, str] = {}  # ask index -> trial, of every trial there ever was
        self.requeued: list[str] = []  # unfinished trials of an earlier driver, oldest first
        self.draws = Draws(spec, trainable.Config)
        self.spent = False  # every configuration of the space has been run
        self.warm: set[int] = set()  # ask indices that earlier sweeps' trials take
        self.tripped: Line | None = None  # the circuit breaker's line, until the sweep is resumed
        self._tripped_once = False
        self._write, self._listen = write, listen
        self._due: list[Line] = []
        self._lock = threading.RLock()

    # --- what happens while the sweep runs -----------------------------------------------------------------------

    def next_trial(self, leaving: Collection[str] = ()) -> LiveTrial | None:
        """The next trial to run: one that an earlier driver left unfinished, one that is back from probation, else a
        new draw; None: budget spent. Trials that are still `leaving` their slot cannot be back yet."""
        with self._lock:
            if self.tripped:
                return None
            if self.requeued:
                return self.live[self.requeued.pop(0)]
            if (back := self._back(leaving)) is not None:
                return back
            if self.exhausted:
                return None
            return self._new() or self._back(leaving)

    def _new(self) -> LiveTrial | None:
        """A new draw that is not refused, as a trial; None once every configuration of the space has been run."""
        for _ in range(MOST_REFUSALS):
            if (drawn := self._draw()) is None:
                return None
            ask, params = drawn
            number = len(self.live) + len(self.outcomes)
            seed = self.spec.seed_of(number)
            config, reason = build(self.spec, self.trainable, params, seed)
            twin = self.draws.twin(params) if reason is None else None
            if config is not None and reason is None and twin is None:
                break
            reason = reason or f"repeats trial {twin}"
            self._happen(journal.refused(ask=ask, params=params, reason=reason, repeats=twin))
        else:
            raise BadInput(
                f"{MOST_REFUSALS} draws in a row were refused, the last one because of {reason!r}", key="require"
            )
        trial = f"{number:04d}"
        epochs = self.trainable.schedule(config).epochs
        plain = config.model_dump(mode="json")
        line = journal.trial(trial, ask=ask, params=params, config=plain, seed=seed, budget_epochs=epochs)
        self._happen({**line, "sampler": self.study.notes(ask)})
        return self.live[trial]

    def _draw(self) -> tuple[int, dict[str, Any]] | None:
        """Ask index and parameters of the next draw; None once every configuration of the space has been run."""
        if not self.draws.run_dry:
            return self.study.ask(at_random=self.draws.stuck)
        if not self.draws.finite:
            return self.study.ask(at_random=True)
        left = self.draws.left(lambda params: build(self.spec, self.trainable, params, 0)[1] is None, self.study.asked)
        self.spent = left is None
        return self.study.give(left) if left is not None else None

    def warm_start(self, line: Line) -> None:
        """Takes in what earlier sweeps teach (`buttress.search.warm_start`); before the first draw."""
        with self._lock:
            self._happen(line)

    def _back(self, leaving: Collection[str]) -> LiveTrial | None:
        """The oldest suspended trial that ranks. Without further draws those that do not are condemned for good.

        It comes back after another trial's beginning at the earliest: so what is next does not depend on how soon its
        workers have left.
        """
        for live in waiting(self.live.values()):
            if live.id in leaving:
                continue
            if not self.satisfied and (live.rested or self.exhausted) and self.probation.ranks(live):
                return live
            if self.exhausted:
                verdict = live.judged.engine.verdict_ignoring_patience() or live.judged.verdict
                self._conclude(live, "collapsed", verdict=verdict)
        return None

    @property
    def satisfied(self) -> bool:
        """There are as many healthy trials as the budget asks for."""
        return self.spec.budget.healthy is not None and self.counts["completed"] >= self.spec.budget.healthy

    @property
    def exhausted(self) -> bool:
        """The budget allows no further draw (unfinished trials may still be running)."""
        drawn = len(self.live) + len(self.outcomes)
        budget = self.spec.budget.trials
        return self.satisfied or self.spent or (budget is not None and drawn >= budget)

    @property
    def counts(self) -> Counter[str]:
        return Counter(line["outcome"] for line in self.outcomes.values())

    def started(self, trial: str, slot: str, host: str | None = None, pid: int | None = None) -> LiveTrial | None:
        """The workers of a slot have begun the next attempt; None where the trial has its outcome already."""
        with self._lock:
            live = self.live.get(trial)
            if live is None:
                return None
            source = live.resume_point
            self._happen(
                journal.start(
                    trial,
                    live.attempt + 1,
                    slot=slot,
                    host=host,
                    pid=pid,
                    resumed_from=source["seq"] if source else None,
                    resumed_attempt=source["attempt"] if source else None,
                    checkpoint=source["checkpoint"] if source else None,
                )
            )
            return live

    def forget_checkpoint(self, trial: str, checkpoint: str) -> None:
        """A checkpoint that turned out missing or unreadable is not resumed from again."""
        with self._lock:
            if live := self.live.get(trial):
                live.forget_checkpoint(checkpoint)

    def reported(self, trial: str, attempt: int, reported: Reported) -> Line | None:
        """A report of a running trial; returns the line that takes the trial off its slot, if the report led to one:
        its outcome, or that it is suspended."""
        with self._lock:
            if (live := self._running(trial, attempt)) is None:
                return None
            last = live.judged.last
            seq = last["seq"] + 1 if last else 0
            self._happen(journal.report(trial, attempt, seq, reported))
            return self.outcomes.get(trial) or live.suspended

    def finished(self, trial: str, attempt: int) -> Line | None:
        """The trainer returned by itself (`ends.finished`)."""
        with self._lock:
            if (live := self._running(trial, attempt)) is not None:
                self._happen(ends.finished(live))
            return self.outcomes.get(trial)

    def raised(self, trial: str, attempt: int, error: str, kind: str = "exception") -> Line | None:
        """The trainer raised: the trial failed, and is not retried."""
        with self._lock:
            if (live := self._running(trial, attempt)) is not None:
                message = error.strip().splitlines()[-1] if error.strip() else kind
                self._conclude(live, "failed", kind=kind, error=error, message=message)
            return self.outcomes.get(trial)

    def lost(self, trial: str, attempt: int, reason: str, *, moved: bool = False) -> Line | None:
        """The infrastructure took the trial's workers. None: it goes on as a new attempt; else its outcome.

        A trial that was `moved` in good order has lost nothing.
        """
        with self._lock:
            if (live := self._running(trial, attempt)) is not None:
                self._happen(journal.lost(trial, attempt, reason=reason, moved=moved))
                if live.losses >= MOST_LOSSES:
                    message = f"lost {live.losses} times, last: {reason}"
                    self._conclude(live, "failed", kind="infrastructure", message=message)
            return self.outcomes.get(trial)

    def out_of_time(self, trial: str, minutes: float) -> Line | None:
        """The trial's time limit has passed (`ends.out_of_time`); None for one that is set aside."""
        with self._lock:
            live = self.live.get(trial)
            if live is not None and live.suspended is None:
                self._happen(ends.out_of_time(live, minutes))
            return self.outcomes.get(trial)

    def _running(self, trial: str, attempt: int) -> LiveTrial | None:
        """The trial, if this is its present attempt and nothing has been decided of it: what others tell is void."""
        live = self.live.get(trial)
        return live if live is not None and live.runs(attempt) else None

    # --- lines ---------------------------------------------------------------------------------------------------

    def replay(self, lines: Sequence[Line]) -> None:
        """Applies an earlier driver's lines; unfinished trials are queued again, what is due is written."""
        with self._lock:
            for line in lines:
                self._apply(line)
                self._due = [due for due in self._due if not _same_event(due, line)]
            self.tripped = None  # who resumes the sweep has read why it stopped
            self._settle()
            self.requeued = sorted(trial for trial, live in self.live.items() if live.suspended is None)
            for trial in self.live.values():
                trial.slot = None

    def _conclude(self, live: LiveTrial, outcome: str, **details: Any) -> None:
        self._happen(ends.outcome(live, outcome, **details))

    def _happen(self, line: Line) -> None:
        self._apply(line)
        self._write(line)
        self._listen(line)
        self._settle()

    def _settle(self) -> None:
        """Writes the lines that must follow from those applied so far."""
        while self._due:
            line = self._due.pop(0)
            if line["trial"] is None or line["trial"] in self.live:
                self._happen({**line, "time": time.time()})

    def _apply(self, line: Line) -> None:
        apply = getattr(self, f"_apply_{line['line']}", None)
        if apply is not None and (line.get("trial") is None or line["line"] == "trial" or line["trial"] in self.live):
            apply(line)

    def _apply_refused(self, line: Line) -> None:
        if line["ask"] == self.study.asked:
            self.study.add(line["ask"], line["params"])
        self.study.refuse(line["ask"], line["reason"])
        self.draws.refused(line.get("repeats"))

    def _apply_warm(self, line: Line) -> None:
        for entry in line["told"]:
            ask, _ = self.study.give(entry["params"])
            by_age = {int(age): value for age, value in entry["by_age"].items()}
            self.study.tell(ask, told(entry, self.objectives, by_age))
            self.warm.add(ask)

    def _apply_breaker(self, line: Line) -> None:
        self.tripped, self._tripped_once = line, True

    def _apply_trial(self, line: Line) -> None:
        if line["ask"] == self.study.asked:
            self.study.add(line["ask"], line["params"], line.get("sampler"))
        self.asks[line["ask"]] = line["trial"]
        self.draws.add(line["trial"], line["params"])
        self._due = [due for due in self._due if due["line"] != "breaker"]  # an older driver went on without one
        self.live[line["trial"]] = LiveTrial(
            id=line["trial"],
            ask=line["ask"],
            params=line["params"],
            config=line["config"],
            seed=line["seed"],
            judged=Judged(self.rules, self.objectives, self.directions[0], int(line["budget_epochs"])),
        )

    def _apply_start(self, line: Line) -> None:
        live = self.live[line["trial"]]
        for other in self.live.values():
            other.rested = other is not live and other.suspended is not None
        live.begin(line)

    def _apply_report(self, line: Line) -> None:
        live = self.live[line["trial"]]
        if line["attempt"] != live.attempt:
            return
        verdict = live.judged.take_in(line)
        self.probation.reported(live, line)
        if verdict.state == "diverged" or (verdict.state == "collapsed" and not live.judged.runs_on):
            self._due.append(ends.condemned(self.spec, live, verdict, line))
        elif (aside := ends.suspected(self.spec, live, line)) is not None:
            self._due.append(aside)
        elif (decision := self._compare(live, line)) is not None:
            self._due.append(decision)
            if decision["decision"] == "stop":
                self._due.append(ends.pruned(live, decision))

    def _apply_audit(self, line: Line) -> None:
        live = self.live[line["trial"]]
        live.audited = True
        live.judged.run_on()
        self._tell_condemned(live, line)

    def _apply_suspended(self, line: Line) -> None:
        live = self.live[line["trial"]]
        live.suspended = line
        self._tell_condemned(live, line)
        self._check_breaker(line["trial"])

    def _tell_condemned(self, live: LiveTrial, line: Line) -> None:
        """At once, and not at its real end: what a sampler is not told of it draws again. The end, should it be another
        one, is told when it is there."""
        live.told = True
        self._forget(live.id)
        self.study.tell(live.ask, told({**line, "outcome": "collapsed"}, self.objectives))

    def _apply_lost(self, line: Line) -> None:
        live = self.live[line["trial"]]
        live.lost = True
        live.losses += not line.get("moved", False)

    def _apply_outcome(self, line: Line) -> None:
        live = self.live.pop(line["trial"])
        self.outcomes[line["trial"]] = line
        self._check_breaker(line["trial"])
        collapsed = line["outcome"] in ("collapsed", "diverged")
        if collapsed:
            self._forget(line["trial"])
        if not live.told:
            self.study.tell(live.ask, told(line, self.objectives, live.judged.by_age))
        elif not collapsed:
            ask = self.study.tell_more(live.params, told(line, self.objectives, live.judged.by_age))
            self.asks[ask] = live.id

    def _forget(self, trial: str) -> None:
        """Nothing that a collapsed trial reached counts in a comparison."""
        if self.rungs:
            self.rungs.forget(trial)
        self.probation.forget(trial)

    def _check_breaker(self, trial: str) -> None:
        """`trial` has ended or was set aside: among the first ones that may be one collapse too many."""
        breaker = self.spec.breaker
        if breaker is None or self._tripped_once or int(trial) >= breaker.first or (self.exhausted and not self.live):
            return
        if (tripped := overload(self.spec, self.draws.params, self.live, self.outcomes)) is not None:
            self._due.append(tripped)

    def _compare(self, live: LiveTrial, report: Line) -> Line | None:
        """The rung's decision about an epoch's report, as a line that is due; None where there is none to make.

        The last epoch's value enters its rung, for others to be compared with, but stops nobody: the trial is over.
        A condemned trial that runs on is neither compared nor compared with: a rung would cut off what is to be seen.
        """
        if self.rungs is None or self.objectives[0] not in report["metrics"]:
            return None
        age, phase, judged = report["full_beta_epochs"], report["phase"], live.judged
        # where it looks collapsed, whether it is so is for the rules to say
        if live.audited or judged.runs_on or (judged.value is None and judged.engine.holding):
            self.rungs.skip(live.id, age, phase)
            return None
        decision = self.rungs.report(live.id, age, judged.value, phase)
        if decision is None:
            return None
        return journal.rung(
            live.id,
            live.attempt,
            age=decision.age,
            phase=decision.phase,
            value=decision.value,
            cutoff=decision.cutoff,
            peers=decision.peers,
            decision="stop" if decision.stop and report["epoch"] < live.epochs else "continue",
        )


def _same_event(due: Line, line: Line) -> bool:
    """True if `line` of a journal is the one that was due."""
    return all(due.get(key) == line.get(key) for key in ("line", "trial"))
