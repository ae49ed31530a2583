"""A sweep without training: sampler, rungs and rules played over recorded curves, with a clock of simulated seconds.

`Simulator` stands where `execution.driver.Driver` does: a spec goes in, `run()` returns a `SweepResult`, callbacks see
every journal line, and with a folder it leaves a journal that `table` and `why` read. Nothing is written twice: the
state of the sweep is `SweepState`, and so study, rungs and rules are the real ones; only the workers are replaced, by a
`Surrogate` that gives each configuration a recorded curve. No Ray is imported.

`play` is the clock alone: slots, each with a trial whose reports come when its curve's core-seconds say so, and a
`Policy` that draws trials and stops them. A stock tuner is compared by giving it to the same clock.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from benchmarks.surrogate import Surrogate
from buttress import journal
from buttress.analysis.curves import Curve
from buttress.callbacks.base import Callback
from buttress.execution.setup import header, load, new_id, resolve_rules
from buttress.journal.events import Ended
from buttress.rules import RuleSet
from buttress.search.warm_start import collect
from buttress.spec.spec import SweepSpec
from buttress.sweep.result import CIRCUIT_BREAKER, SweepResult
from buttress.sweep.state import SweepState
from buttress.training.trainable import Reported

#: From the end of a trial to the start of the next in a warm slot, in seconds (benchmarks/slots.py measures it).
TURNAROUND_S = 0.05


class Drawn(NamedTuple):
    """A trial to run: its name, its parameters, and how many reports its checkpoint has behind it."""

    trial: str
    params: Mapping[str, Any]
    begin: int = 0


class Policy(Protocol):
    """What decides in a sweep."""

    def draw(self) -> Drawn | None:
        """The next trial; None where there are no more."""

    def begun(self, trial: str, slot: str) -> None: ...

    def reported(self, trial: str, reported: Reported) -> bool:
        """Takes a report; True: the trial is to leave its slot."""

    def finished(self, trial: str) -> None:
        """The trial has run to its end."""


class Event(NamedTuple):
    """What an onlooker of `play` sees: at `clock` seconds the trial made report `number` (from 0) of its curve."""

    clock: float
    trial: str
    curve: Curve
    number: int
    stopped: bool


@dataclass(frozen=True)
class Played:
    """`seconds` on the simulated clock; `unfinished` trials were running when time was up."""

    seconds: float
    unfinished: tuple[str, ...]


def report_of(curve: Curve, index: int, begin: int = 0) -> Reported:
    """A recorded report as a trainer's, of an attempt whose first report was number `begin`; each epoch ends with a
    checkpoint."""
    line = curve.reports[index]
    assert curve.seconds is not None
    ends = line.epoch > (curve.reports[index - 1].epoch if index else 0)
    metrics = {name: math.nan if value is None else value for name, value in line.metrics.items()}
    return Reported(
        epoch=line.epoch, step=line.step, full_beta_epochs=line.full_beta_epochs,
        full_beta_steps=line.full_beta_steps, phase=line.phase, metrics=metrics,
        nonfinite=tuple(line.nonfinite), closing=line.closing,
        checkpoint=f"checkpoints/{line.epoch:06d}.pt" if ends else None,
        seconds=curve.seconds[index] - (curve.seconds[begin - 1] if begin else 0.0),
    )  # fmt: skip


def play(
    policy: Policy,
    surrogate: Surrogate,
    *,
    slots: int,
    seconds: float = math.inf,
    see: Callable[[Event], object] = lambda event: None,
    over: Callable[[], object] = lambda: False,
) -> Played:
    """Runs a policy's trials over a surrogate's curves until it draws no more, the clock reaches `seconds` or it is
    `over` at a trial's end.

    Reports of different slots come in the order of their times (slots in order at equal ones), so a run is a function
    of policy and surrogate alone. A slot that got no trial asks again whenever another trial has ended.
    """
    running: dict[int, tuple[Drawn, Curve]] = {}
    due: list[tuple[float, int, int]] = []  # (clock, slot, index of the report)

    def begin(clock: float) -> None:
        for slot in range(slots):
            if slot in running or (drawn := policy.draw()) is None:
                continue
            curve = surrogate.curve(drawn.params)
            assert curve.seconds is not None and curve.reports
            policy.begun(drawn.trial, f"slot-{slot}")
            running[slot] = drawn, curve
            done = curve.seconds[drawn.begin - 1] if drawn.begin else 0.0
            heapq.heappush(due, (clock + curve.seconds[drawn.begin] - done, slot, drawn.begin))

    clock = 0.0
    begin(clock)
    while due:
        when, slot, index = heapq.heappop(due)
        if when > seconds:
            clock = seconds
            break
        clock = when
        drawn, curve = running[slot]
        stop = policy.reported(drawn.trial, report_of(curve, index, drawn.begin))
        see(Event(clock, drawn.trial, curve, index, stop))
        if not stop and index + 1 < len(curve.reports):
            assert curve.seconds is not None
            heapq.heappush(due, (clock + curve.seconds[index + 1] - curve.seconds[index], slot, index + 1))
            continue
        if not stop:
            policy.finished(drawn.trial)
        del running[slot]
        if over():
            break
        begin(clock + TURNAROUND_S)
    return Played(clock, tuple(drawn.trial for drawn, _ in running.values()))


class StatePolicy:
    """A real sweep's state as a policy."""

    def __init__(self, state: SweepState) -> None:
        self.state = state

    def draw(self) -> Drawn | None:
        live = self.state.next_trial()
        if live is None:
            return None
        source = live.resume_point
        return Drawn(live.id, live.params, source.seq + 1 if source else 0)

    def begun(self, trial: str, slot: str) -> None:
        self.state.started(trial, slot)

    def reported(self, trial: str, reported: Reported) -> bool:
        live = self.state.active[trial]
        return self.state.reported(trial, live.attempt, reported) is not None

    def finished(self, trial: str) -> None:
        self.state.finished(trial, self.state.active[trial].attempt)


class Simulator:
    """One simulated sweep; `run` may be called once.

    `budget.hours` counts simulated time. Without a folder nothing is written. `see` is called with every report.
    """

    def __init__(
        self,
        spec: SweepSpec,
        surrogate: Surrogate,
        folder: Path | None = None,
        *,
        slots: int = 2,
        sweep: str | None = None,
        rules: RuleSet | None = None,
        callbacks: tuple[Callback, ...] = (),
        see: Callable[[Event], object] = lambda event: None,
    ) -> None:
        self.surrogate, self.folder, self.slots = surrogate, folder, slots
        self.sweep = sweep or new_id(spec.name)
        self.spec, self.trainable = load(spec)
        self.rules = rules or resolve_rules(self.spec)
        self.callbacks, self._see = callbacks, see
        self._writer: journal.JournalWriter | None = None
        self.state = SweepState(self.spec, self.trainable, self.rules, self._write, self._line)

    def run(self) -> SweepResult:
        if self.folder is None:
            return self._run(Path())
        with journal.JournalWriter(self.folder / journal.FILE, fsync=False) as self._writer:
            self._write(header(self.spec, self.trainable, self.rules, self.sweep))
            finish = self._run(self.folder)
            self._write(Ended(reason=finish.reason, counts=finish.counts, seconds=finish.seconds))
        return finish

    def _run(self, folder: Path) -> SweepResult:
        limit = self.spec.budget.hours * 3600 if self.spec.budget.hours else math.inf
        policy = StatePolicy(self.state)
        if self.spec.warm_start:
            self.state.warm_start(collect(self.spec, self.trainable))
        tripped = lambda: self.state.tripped  # noqa: E731
        played = play(policy, self.surrogate, slots=self.slots, seconds=limit, see=self._see, over=tripped)
        counts = {**self.state.counts}
        if self.state.active:
            counts["unfinished"] = len(self.state.active)
        reason = "space exhausted" if self.state.proposals.exhausted else "budget spent"
        reason = "time budget spent" if played.unfinished else reason
        reason = CIRCUIT_BREAKER if self.state.tripped else reason
        return SweepResult(self.sweep, folder, str(folder), counts, played.seconds, reason)

    def _write(self, event: journal.Event) -> None:
        if self._writer is not None:
            self._writer.write(event)

    def _line(self, event: journal.Event) -> None:
        active = self.state.active.get(getattr(event, "trial", ""))
        for callback in self.callbacks:
            callback.on_event(event, active)
