"""Shows the progress of a sweep: a live view on a terminal or in a notebook, plain lines anywhere else.

Calls only note what happened and return: drawing is done by Rich's own thread, a few times a second, whatever the rate
of reports.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from buttress.analysis.explanation import decisive_evidence, evidence_sentence
from buttress.callbacks.base import Callback
from buttress.callbacks.notebook import NotebookView
from buttress.journal.events import (
    AttemptStarted,
    Audited,
    CircuitBroken,
    Event,
    Outcome,
    Paused,
    Report,
    WorkersLost,
)
from buttress.rules import Evidence
from buttress.rules.transforms import WITHOUT_THRESHOLD
from buttress.sweep.trial import ActiveTrial
from buttress.wording import clock, number, plural

REFRESH_HZ = 2.0
#: Seconds between status lines where there is no terminal.
STATUS_EVERY_S = 20.0
#: Trials that were stopped or failed, as far as the live view shows them.
MAX_ENDINGS = 4
#: Trials that have ended before the time that is left is told.
MIN_ENDED = 3
#: Distance to the nearest kill rule, in decades, that counts as perfect health, and the width of its bar.
HEALTHY_DECADES, HEALTH_CELLS = 1.0, 8

COLOURS = {
    "completed": "green",
    "collapsed": "red",
    "diverged": "magenta",
    "pruned": "yellow",
    "stopped": "yellow",
    "failed": "bold red",
    "running": "cyan",
}


@dataclass(frozen=True)
class ProgressHeader:
    """What is known of a sweep before its first trial. `trials` is the budget, None where it is not in trials."""

    sweep: str
    objective: str
    direction: str  # "min" | "max"
    trials: int | None = None


@dataclass
class RunningTrial:
    """A trial that has no outcome yet, as it is shown."""

    slot: str
    epoch: int = 0
    epochs: int | None = None
    objective: float | None = None
    signs: str = ""
    state: str = "starting"
    margin: float | None = None  # decades to the nearest kill rule: negative while it is healthy
    seconds: float = 0.0  # from its first report to its newest one, in this attempt
    first: tuple[float, int] | None = None  # when its first report came, and of which epoch

    @property
    def seconds_left(self) -> float | None:
        """At the pace so far, from its newest report on; None before the second one."""
        done = self.epoch - self.first[1] if self.first else 0
        return self.seconds / done * (self.epochs - self.epoch) if done > 0 and self.epochs else None


@dataclass
class ProgressState:
    """Everything the view is drawn from."""

    running: dict[str, RunningTrial] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    causes: Counter[tuple[str, str]] = field(default_factory=Counter)  # (outcome, kind) of trials that died
    best: tuple[str, float] | None = None
    ended: int = 0  # trials that ended since `start`
    endings: deque[tuple[str, str, str]] = field(default_factory=lambda: deque(maxlen=MAX_ENDINGS))


class Progress(Callback):
    """The progress of one sweep; every method may be called from any thread.

    Give it to the driver as a callback, or call the `trial_...` methods. What happens before `start`
    is counted and not shown: that is how a resumed sweep tells what its earlier driver did.

        >>> progress = Progress(ProgressHeader("toy-k3j9x2", "ari", "max", trials=24), Console())
        >>> progress.start()
        >>> progress.trial_started("0000", {"loss.beta": 0.1}, slot=0)
        >>> progress.trial_reported("0000", 1, 25, {"ari": 0.2, "latent/kl_total": 3.1}, "healthy", ())
        >>> progress.trial_ended("0000", {"outcome": "completed", "epochs": 25, "best": {"metrics": {"ari": 0.4}}})
        >>> progress.stop()
    """

    def __init__(
        self, heading: ProgressHeader, console: Console, *, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.heading, self.console = heading, console
        self._now = clock_s
        self._seen = ProgressState()
        self._lock = threading.RLock()
        self._began: float | None = None
        self._stopped = threading.Event()
        self._live: Live | NotebookView | None = None
        self._ticker: threading.Thread | None = None

    # --- beginning and end ------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._began = self._now()
        if self.console.is_jupyter and not self.console.quiet:
            self._live = NotebookView(self.render)
            self._live.start()
        elif self.console.is_terminal and not self.console.is_dumb_terminal:
            self._live = Live(
                get_renderable=self.render, console=self.console, refresh_per_second=REFRESH_HZ, transient=False
            )
            self._live.start()
        else:
            self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)
            self._ticker.start()

    def stop(self) -> None:
        """Leave the last state of the view standing, or print a last status line. May be called twice."""
        if self._began is None or self._stopped.is_set():
            return
        self._stopped.set()
        if self._live is not None:
            self._live.stop()
            self._live = None
        else:
            self._say(self._status())

    def __enter__(self) -> Progress:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- events -----------------------------------------------------------------------------------------------------

    def trial_started(self, trial: str, params: Mapping[str, Any], slot: int | str) -> None:
        """An attempt of the trial has begun; `params` are the drawn values."""
        slot = str(slot).removeprefix("slot-")
        with self._lock:
            before = self._seen.running.get(trial)
            self._seen.running[trial] = RunningTrial(slot, epochs=before.epochs if before else None)
        drawn = " ".join(f"{path}={number(value)}" for path, value in params.items())
        self._say(f"{trial} {'started again' if before else 'started'} in slot {slot}: {drawn}")

    def trial_reported(
        self,
        trial: str,
        epoch: int,
        epochs: int | None,
        metrics: Mapping[str, float | None],
        state: str,
        suspects: Sequence[str],
        margin: float | None = None,
    ) -> None:
        """The trial has completed `epoch` of `epochs`; a report without the objective keeps the last value shown."""
        with self._lock:
            row = self._seen.running.setdefault(trial, RunningTrial("-"))
            row.epoch, row.epochs, row.margin = epoch, epochs, margin
            row.first = row.first or (self._now(), epoch)
            row.seconds = self._now() - row.first[0]
            value = metrics.get(self.heading.objective)
            row.objective = row.objective if value is None else value
            row.signs = signs(metrics) or row.signs
            row.state = f"{state}: {', '.join(suspects)}" if suspects else state

    def trial_ended(self, trial: str, outcome: Mapping[str, Any]) -> None:
        """The trial has its outcome, told by the keys of the journal's `outcome` line."""
        told = str(outcome["outcome"])
        text = ending(outcome, self.heading.objective)
        short = ending(outcome, self.heading.objective, short=True)
        with self._lock:
            self._seen.running.pop(trial, None)
            self._seen.counts[told] += 1
            value = ((outcome.get("best") or {}).get("metrics") or {}).get(self.heading.objective)
            if told == "completed" and value is not None:
                sign = 1 if self.heading.direction == "max" else -1
                if self._seen.best is None or sign * value > sign * self._seen.best[1]:
                    self._seen.best = (trial, value)
            if told != "completed":
                self._seen.endings.append((trial, told, short))
            if told not in ("completed", "pruned", "stopped"):
                self._seen.causes[told, outcome.get("kind") or ""] += 1
            self._seen.ended += self._began is not None
        self._say(f"{trial} {told} {text}")

    def trial_paused(self, trial: str, reason: str = "") -> None:
        """The trial has left its slot and waits."""
        with self._lock:
            self._seen.running.pop(trial, None)
        self._say(f"{trial} paused{f': {reason}' if reason else ''}")

    def on_message(self, text: str) -> None:
        """Something a person should know; it stays above the live view."""
        if self._live is not None:
            self.console.print(Text(f"{self._elapsed()}  {text}", style="yellow"))
        else:
            self._say(text)

    def on_event(self, event: Event, trial: ActiveTrial | None = None) -> None:
        """An event of the kinds that are shown; `trial` is its trial, if it goes on."""
        match event:
            case AttemptStarted():
                self.trial_started(event.trial, trial.params if trial else {}, event.slot)
            case Report():
                epochs, margin = (trial.epochs, trial.evaluation.margin) if trial else (None, None)
                self.trial_reported(
                    event.trial, event.epoch, epochs, event.metrics, event.state, event.suspects, margin
                )
            case WorkersLost():
                with self._lock:
                    if row := self._seen.running.get(event.trial):
                        row.state = "lost"
            case Audited():
                self.on_message(f"{event.trial} is condemned by {event.rule} and runs on to its end, to check it")
            case Paused():
                self.trial_paused(event.trial, event.reason)
            case CircuitBroken():
                told = f"{event.collapsed} of the first {event.first} trials collapsed"
                self.on_message(f"{told}: the circuit breaker stops the sweep")
            case Outcome():
                self.trial_ended(event.trial, event.to_line())

    # --- the live view ----------------------------------------------------------------------------------------------

    def render(self) -> RenderableType:
        """The view as it stands, cut to the height of the console."""
        with self._lock:
            room = max(1, self.console.height - 7 - MAX_ENDINGS)
            causes = [self._causes()] if self._seen.causes else []
            parts = [self._header(), self._counts(), *causes, self._table(room)]
            if self._seen.endings:
                parts.append(self._endings())
        return Group(*parts)

    def _header(self) -> RenderableType:
        left = f", about {clock(seconds)} left" if (seconds := self._seconds_left()) is not None else ""
        line = Text.assemble((self.heading.sweep, "bold"), f"   {self._elapsed()}   {self._done()}{left}")
        if self._seen.best:
            trial, value = self._seen.best
            line.append(f"   best {self.heading.objective} ")
            line.append(number(value, 4), style="bold green").append(f" ({trial})")
        line.no_wrap, line.overflow = True, "ellipsis"
        return line

    def _counts(self) -> RenderableType:
        counts = {**self._seen.counts, "running": len(self._seen.running)}
        text = Text(no_wrap=True, overflow="ellipsis")
        for name, colour in COLOURS.items():
            if counts.get(name):
                text.append(f"{name} {counts[name]}   ", style=colour)
        return text

    def _causes(self) -> RenderableType:
        """What trials died of, the most frequent cause first."""
        text = Text(no_wrap=True, overflow="ellipsis").append("causes of death   ", style="dim")
        for (told, kind), count in self._seen.causes.most_common():
            text.append(f"{kind or told} {count}   ", style=COLOURS.get(told, ""))
        return text

    def _seconds_left(self) -> float | None:
        """Of the sweep, at the pace so far; None as long as that is anybody's guess."""
        if self._began is None or not self.heading.trials or self._seen.ended < MIN_ENDED:
            return None
        left = self.heading.trials - sum(self._seen.counts.values())
        return (self._now() - self._began) / self._seen.ended * max(0, left)

    def _table(self, room: int) -> RenderableType:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", expand=False)
        bars, wide = self.console.width >= 100, self.console.width >= 80
        table.add_column("trial", no_wrap=True, min_width=5)
        table.add_column("slot", no_wrap=True, min_width=4, justify="right")
        if bars:
            table.add_column("", width=12)
        table.add_column("epoch", no_wrap=True, min_width=7, justify="right")
        if wide:
            table.add_column("left", no_wrap=True, min_width=5, justify="right")
        table.add_column(self.heading.objective, no_wrap=True, min_width=8, justify="right")
        if wide:
            table.add_column("health", no_wrap=True, width=HEALTH_CELLS)
        table.add_column("latent code", no_wrap=True)  # this one and the next give way on a narrow console
        table.add_column("state", no_wrap=True)
        rows = sorted(self._seen.running.items())
        for trial, row in rows[:room]:
            bar = [ProgressBar(total=row.epochs or 1, completed=row.epoch, width=12)] if bars else []
            epoch = f"{row.epoch}/{row.epochs}" if row.epochs else str(row.epoch)
            style = {"healthy": "green", "starting": "dim"}.get(row.state, "yellow")
            state = Text(row.state, style, overflow="ellipsis")
            left = [clock(row.seconds_left) if row.seconds_left is not None else ""] if wide else []
            health = [health_bar(row.margin)] if wide else []
            value = number(row.objective, 4) if row.objective is not None else ""
            table.add_row(trial, row.slot, *bar, epoch, *left, value, *health, row.signs, state)
        return Group(table, Text(f"and {len(rows) - room} more", style="dim")) if len(rows) > room else table

    def _endings(self) -> RenderableType:
        lines = []
        for trial, told, text in self._seen.endings:
            line = Text.assemble((f"{trial} ", "bold"), (told, COLOURS.get(told, "")), f" {text}")
            line.no_wrap, line.overflow = True, "ellipsis"
            lines.append(line)
        return Group(Text("stopped last", style="dim"), *lines)

    # --- plain lines ------------------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        """One line, where no live view stands; never wrapped, so that a log can be searched by line."""
        if self._began is None or self._live is not None:
            return
        with self._lock:
            self.console.print(f"{self._elapsed()}  {text}", soft_wrap=True, highlight=False, markup=False, emoji=False)

    def _tick(self) -> None:
        while not self._stopped.wait(STATUS_EVERY_S):
            self._say(self._status())

    def _status(self) -> str:
        with self._lock:
            counts = ", ".join(f"{self._seen.counts[name]} {name}" for name in COLOURS if self._seen.counts[name])
            text = f"{self._done()}{f' ({counts})' if counts else ''}, {len(self._seen.running)} running"
            if self._seen.best:
                text += f"; best {self.heading.objective} {number(self._seen.best[1], 4)} ({self._seen.best[0]})"
        return text

    def _done(self) -> str:
        done = sum(self._seen.counts.values())
        return f"{done} of {plural(self.heading.trials, 'trial')}" if self.heading.trials else plural(done, "trial")

    def _elapsed(self) -> str:
        seconds = 0.0 if self._began is None else self._now() - self._began
        return clock(seconds) if seconds >= 60 else f"0:{seconds:02.0f}"


def health_bar(margin: float | None) -> Text:
    """How far a trial is from the nearest kill rule: empty at its threshold, full from `HEALTHY_DECADES` on."""
    if margin is None:
        return Text("")
    share = min(1.0, max(0.0, -margin / HEALTHY_DECADES))
    full = round(share * HEALTH_CELLS)
    style = "green" if share > 0.5 else "yellow" if share > 0.2 else "red"
    return Text("\u2588" * full + "\u2591" * (HEALTH_CELLS - full), style)


def signs(metrics: Mapping[str, float | None]) -> str:
    """The latent code in a few words: `KL 3.2 nats, 5/10 active`; empty for a report that has neither."""
    kl, active, dims = (metrics.get(f"latent/{name}") for name in ("kl_total", "active_kl", "dims"))
    parts = []
    if kl is not None:
        parts.append(f"KL {number(kl)} nats")
    if active is not None:
        parts.append(f"{number(active)}{f'/{number(dims)}' if dims is not None else ''} active")
    return ", ".join(parts)


def ending(outcome: Mapping[str, Any], objective: str, *, short: bool = False) -> str:
    """How far a trial came and why it ended there, on one line, after the word of its outcome.

    The reason of a kill is the evidence that tells most in words, or (`short`) the last value of each observation.
    """
    text = f"at epoch {number(outcome.get('epochs'))} of {number(outcome.get('epochs_budget'))}"
    told = outcome["outcome"]
    if told == "completed":
        best = outcome.get("best") or {}
        value = (best.get("metrics") or {}).get(objective)
        return f"{text}: {objective} {number(value, 4)} at epoch {number(best.get('epoch'))}"
    if told in ("collapsed", "diverged"):
        rule = outcome.get("rule") or outcome.get("kind") or told
        margin = outcome.get("margin")
        evidence = outcome.get("evidence") or ()
        parts = [*([rule] if rule != told else []), *([f"margin {margin:+.2f}"] if margin is not None else [])]
        if short:
            parts += [observation(entry) for entry in evidence if Evidence.from_dict(entry).holds]
        elif evidence:
            parts.append(evidence_sentence(decisive_evidence(evidence)))
        return f"{text}: {', '.join(parts or ['its rule held'])}"
    lines = [line.strip() for line in (outcome.get("error") or "").splitlines() if line.strip()]
    reason = lines[-1] if lines else outcome.get("message") or outcome.get("kind")
    return f"{text}: {reason}" if reason else text


def observation(evidence: Mapping[str, Any]) -> str:
    """One observation as a comparison: `latent/kl_total 0.01 < 0.3`, `slope of latent/kl_total -0.2 < 0`."""
    transform = evidence.get("transform") or "value"
    if transform in WITHOUT_THRESHOLD:
        return f"{evidence['metric']} {'not finite' if transform == 'nonfinite' else transform}"
    what = evidence["metric"] if transform == "value" else f"{transform} of {evidence['metric']}"
    value = number((evidence.get("values") or [None])[-1])
    sign = {"below": "<", "above": ">"}.get(evidence.get("comparison") or "", "against")
    return f"{what} {value} {sign} {number(evidence.get('threshold'))}"
