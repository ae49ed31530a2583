"""Runs a sweep: starts Ray, the mailbox and the warm slots, lets Tune execute, and decides everything in one place.

A drain thread takes what happened from the mailbox in order and hands it to the sweep's state, which writes the journal
and reaches verdicts; a verdict's stop flag is back in the mailbox before Tune has heard of it. The main thread is
Tune's: it asks for trials, places them, and is told their ends. Whatever happens (end, Ctrl-C, an error), the slots are
closed and nothing is left on the cluster.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import trainables
from analysis import journal
from analysis.journal import JournalWriter
from collapse.rules import RuleSet
from search_spaces.errors import BadInput
from search_spaces.spec import SweepSpec
from sweep.cluster import NAMESPACE, connected, settled_resources
from sweep.keeping import Checkpoints
from sweep.opening import check, header, new_id, resolve_rules, versions
from sweep.state import Line, LiveTrial, SweepState
from trainables.base import Reported

log = logging.getLogger("buttress")

@dataclass(frozen=True)
class Finish:
    """How a sweep ended. `interrupted` sweeps, and those with trials left, can be resumed."""

    sweep: str
    folder: Path
    counts: dict[str, int]
    seconds: float
    reason: str
    interrupted: bool = False


class Watcher(Protocol):
    """What looks on at a sweep: called with every journal line, in order, from the thread that wrote it."""

    def line(self, line: Line, live: LiveTrial | None = None) -> None:
        """A line has been written; `live` is its trial, unless the line ended it."""

    def note(self, text: str) -> None:
        """Something a person should know that is no line: a slot restarted, a checkpoint missing."""


class Driver:
    """One sweep from its first line to its last; `run` may be called once."""

    def __init__(
        self,
        spec: SweepSpec,
        folder: Path,
        *,
        sweep: str,
        earlier: list[Line] | None = None,
        rules: RuleSet | None = None,
        address: str | None = None,
        watchers: tuple[Watcher, ...] = (),
    ) -> None:
        self.spec, self.folder, self.sweep, self.address = spec, folder, sweep, address
        self.trainable = trainables.load(spec.trainable)
        check(spec, self.trainable)
        self.rules = rules or resolve_rules(spec)
        self.watchers = watchers
        self._resumed = earlier is not None
        self.earlier: list[Line] = earlier or []
        self._failure: BaseException | None = None
        self._over = threading.Event()
        self._heard: dict[str, float] = {}  # running trial -> when it was last heard of
        self._since: dict[str, float] = {}  # running trial -> when its first attempt began
        self._slot_of: dict[str, str] = {}
        self._reports = 0
        self._released: set[str] = set()  # trials whose last result Tune has been given
        self._answers: list[tuple[Any, ...]] = []  # for the mailbox, at the drain thread's next exchange

    # --- the whole of it -----------------------------------------------------------------------------------------

    def run(self) -> Finish:
        began = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        reason, interrupted = "error", False
        with JournalWriter(self.folder / journal.FILE) as self._writer:
            self.state = SweepState(self.spec, self.trainable, self.rules, self._writer.write, self._line)
            self.checkpoints = Checkpoints(self.folder / "trials", self.state.directions[0])
            self._open_journal()
            try:
                with connected(self.address) as ray:
                    self._began = time.monotonic()
                    reason = self._execute(ray)
            except KeyboardInterrupt:
                reason, interrupted = "interrupted", True
            finally:
                seconds = time.monotonic() - began
                counts = {**self.state.counts}
                if self.state.live:
                    counts["suspended"] = len(self.state.live)
                with contextlib.suppress(OSError):
                    self._writer.write(journal.end(reason=reason, counts=counts, seconds=seconds))
                shutil.rmtree(self.folder / ".ray", ignore_errors=True)
        self._verify()
        return Finish(self.sweep, self.folder, counts, seconds, reason, interrupted)

    def _open_journal(self) -> None:
        if not self._resumed:
            self._writer.write(header(self.spec, self.trainable, self.rules, self.sweep))
            return
        self._writer.write(journal.resume(versions=versions()))
        self.state.replay(self.earlier)
        for trial, outcome in self.state.outcomes.items():
            self._keep(trial, outcome)

    def _execute(self, ray: Any) -> str:
        from sweep import mailbox, slots

        count = slots.concurrency(self.spec.resources, settled_resources(ray))
        self._name = f"mailbox-{self.sweep}-{secrets.token_hex(3)}"
        self.mailbox = mailbox.start(self._name, NAMESPACE)
        self.pool = slots.SlotPool(self.mailbox, count, self.spec.resources, self.folder / ".ray", self._fail)
        drain = threading.Thread(target=self._drain, name="drain", daemon=True)
        try:
            self.pool.start()
            drain.start()
            self._tune(count)
        except Exception as error:  # may be what another thread's failure led to: the first reason counts
            self._fail(error)
        finally:
            self._over.set()
            late = self.pool.close()
            if drain.is_alive():
                drain.join(5.0)
            with contextlib.suppress(Exception):
                ray.kill(self.mailbox)
            if late:
                log.warning("slots that did not close in time: %s", ", ".join(late))
        if self._failure is not None:
            raise self._failure
        if self.state.live:
            return "time budget spent"
        healthy = self.spec.budget.healthy
        return "enough healthy trials" if healthy and self.state.counts["completed"] >= healthy else "budget spent"

    def _tune(self, count: int) -> None:
        from ray import tune

        from sweep.scheduler import FullBetaHalving
        from sweep.searcher import StateSearcher
        from sweep.stopper import SweepStopper
        from sweep.trial import SlotTrial

        first = self.spec.objectives[0].metric
        scheduler = FullBetaHalving(first, self.state.directions[0])
        tuner = tune.Tuner(
            tune.with_resources(SlotTrial, {"cpu": 0.001}),
            tune_config=tune.TuneConfig(
                search_alg=StateSearcher(self._draw, self._let_go),
                scheduler=scheduler,
                num_samples=-1,
                max_concurrent_trials=count,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str((self.folder / ".ray").absolute()),
                stop=SweepStopper(lambda: self._failure is not None),
                verbose=0,
                callbacks=[],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False, checkpoint_frequency=0),
                failure_config=tune.FailureConfig(max_failures=3),
            ),
        )
        tuner.fit()

    # --- Tune asks -----------------------------------------------------------------------------------------------

    def _draw(self) -> dict[str, Any] | str | None:
        from ray.tune.search import Searcher

        try:
            hours = self.spec.budget.hours
            if self._failure is not None or (hours and time.monotonic() - self._began > hours * 3600):
                return Searcher.FINISHED
            live = self.state.next_trial()
        except BaseException as error:
            self._fail(error)
            return Searcher.FINISHED
        if live is None:
            return Searcher.FINISHED
        # as one string: of every number in a trial's config and results Tune keeps statistics for good
        return {"trial": live.id, "work": json.dumps(self._work(live)), "mailbox": self._name, "namespace": NAMESPACE}

    def _work(self, live: LiveTrial, problem: str = "") -> dict[str, Any]:
        """What the workers of a slot need for the trial's next attempt; `problem`: of the last one's checkpoint."""
        folder = self.folder.absolute() / "trials" / live.id
        folder.mkdir(parents=True, exist_ok=True)
        while (source := live.resume_point) and not (folder / source["checkpoint"]).is_file():
            problem = problem or f"checkpoint {source['checkpoint']} is missing"
            self.state.forget_checkpoint(live.id, source["checkpoint"])
        if problem:
            now = f"goes on from {source['checkpoint']}" if source else "starts afresh"
            self._note(f"trial {live.id}: {problem}, so the trial {now}")
        return {
            "trial": live.id,
            "attempt": live.attempt + 1,
            "trainable": self.spec.trainable,
            "config": live.config,
            "seed": live.seed,
            "folder": str(folder),
            "resume": str(folder / source["checkpoint"]) if source else None,
        }

    def _let_go(self, trial: str, error: bool) -> None:
        """Tune has let go of a trial. An error means that its actor died again and again: the trial is lost.

        Not so when the whole sweep has failed: then its trials wait for the sweep to be resumed.
        """
        if error and self._failure is None and trial in self.state.live:
            outcome = self.state.raised(trial, self.state.live[trial].attempt, "its Tune actor died", "infrastructure")
            self.mailbox.stop.remote(trial, str(outcome))
        self.mailbox.drop.remote(trial)

    # --- the mailbox tells ---------------------------------------------------------------------------------------

    def _drain(self) -> None:
        import ray

        try:
            while not (self._over.is_set() and self._failure):
                answers, self._answers = self._answers, []
                events = ray.get(self.mailbox.exchange.remote(answers, 0.0 if self._over.is_set() else 1.0))
                for event in events:
                    getattr(self, f"_on_{event['event']}")(event)
                if self._over.is_set() and not events:
                    return
                self._look_around()
        except ray.exceptions.RayError as error:
            if not self._over.is_set():
                self._fail(error)
        except BaseException as error:
            self._fail(error)

    def _on_slot(self, event: dict[str, Any]) -> None:
        self.pool.said_hello(event["slot"], event["ranks"])

    def _on_started(self, event: dict[str, Any]) -> None:
        trial, now = event["trial"], time.monotonic()
        self._heard[trial], self._slot_of[trial] = now, event["slot"]
        self._since.setdefault(trial, now)
        self.state.started(trial, event["slot"], event["info"]["host"], event["info"]["pid"])

    def _on_report(self, event: dict[str, Any]) -> None:
        trial, attempt = event["trial"], event["attempt"]
        self._reports += 1
        if trial in self._heard:
            self._heard[trial] = time.monotonic()
        reported = _reported(event["reported"])
        if reported.note:
            self._note(f"trial {trial}: {reported.note}")
        outcome = self.state.reported(trial, attempt, reported)
        live = self.state.live.get(trial)
        if outcome is not None:
            self._conclude(trial, outcome, running=True)
        elif live is not None and live.attempt == attempt:
            if reported.checkpoint:
                self.checkpoints.reported(trial, live.judged.reports, live.judged.best)
            if self.state.objectives[0] in reported.metrics:
                told = {name: reported.metrics[name] for name in self.state.objectives if name in reported.metrics}
                result = {**told, "full_beta_epochs": reported.full_beta_epochs, "decision": "continue"}
                self._answers.append(("release", trial, result))

    def _on_end(self, event: dict[str, Any]) -> None:
        trial, attempt, detail = event["trial"], event["attempt"], event["detail"]
        self._heard.pop(trial, None)
        if event["how"] == "unresumable":
            live = self.state.live.get(trial)
            if live is not None and (source := live.resume_point):
                damaged = source["checkpoint"]
                self.state.forget_checkpoint(trial, damaged)
                self._answers.append(("again", self._work(live, f"checkpoint {damaged} is damaged")))
            return
        outcome = self.state.outcomes.get(trial)
        if outcome is None and event["how"] == "finished":
            outcome = self.state.finished(trial, attempt)
        elif outcome is None and event["how"] == "raised":
            outcome = self.state.raised(trial, attempt, detail["error"], detail["kind"])
            if detail["kind"] == "bad input" and not self._reports:  # no trial can do better: the data is at fault
                self._fail(BadInput(re.sub(r"^rank \d+: ", "", detail["error"])))
        if outcome is not None:
            self._conclude(trial, outcome)
            self._keep(trial, outcome)

    def _on_lost(self, event: dict[str, Any]) -> None:
        trial, attempt = event["trial"], event["attempt"]
        self._heard.pop(trial, None)
        known = trial in self.state.outcomes
        outcome = self.state.lost(trial, attempt, event["reason"])
        if outcome is None:
            self._note(f"trial {trial}: {event['reason']}; it goes on from its last checkpoint")
            self._answers.append(("again", self._work(self.state.live[trial])))
        else:
            if not known:
                self._conclude(trial, outcome)
            self._keep(trial, outcome)

    def _conclude(self, trial: str, outcome: Line, running: bool = False) -> None:
        """Tells workers and Tune of an outcome, once each."""
        if trial in self._released:
            return
        self._released.add(trial)
        self._heard.pop(trial, None)
        result: dict[str, Any] = {"outcome": outcome["outcome"], "kind": outcome["kind"], "margin": outcome["margin"]}
        if outcome["outcome"] == "pruned":
            result["decision"] = "stop"
        elif outcome["outcome"] not in ("collapsed", "diverged"):
            result["done"] = True
        if running:
            self._answers.append(("stop", trial, f"{outcome['outcome']} {outcome['kind'] or ''}".strip()))
        self._answers.append(("release", trial, result))

    def _keep(self, trial: str, outcome: Line) -> None:
        best = outcome.get("best")
        value = best["metrics"][self.state.objectives[0]] if best else None
        self.checkpoints.ended(trial, outcome, value)

    def _look_around(self) -> None:
        """Trials that are silent or over their time."""
        budget, now = self.spec.budget, time.monotonic()
        for trial, heard in list(self._heard.items()):
            if budget.trial_minutes and now - self._since[trial] > budget.trial_minutes * 60:
                outcome = self.state.out_of_time(trial, budget.trial_minutes)
                if outcome is not None:
                    self._conclude(trial, outcome, running=True)
            elif budget.stall_minutes and now - heard > budget.stall_minutes * 60:
                slot = self._slot_of[trial]
                self._heard.pop(trial)
                self.pool.kill(slot)
                self._answers.append(("lose", slot, f"no report for {budget.stall_minutes:g} minutes"))

    # --- around it -----------------------------------------------------------------------------------------------

    def _line(self, line: Line) -> None:
        live = self.state.live.get(line.get("trial") or "")
        self._tell_watchers(lambda watcher: watcher.line(line, live))

    def _note(self, text: str) -> None:
        log.warning(text)
        self._tell_watchers(lambda watcher: watcher.note(text))

    def _tell_watchers(self, call: Callable[[Watcher], None]) -> None:
        """Whoever looks on cannot disturb: a watcher that raises is told of once and not called again."""
        for watcher in self.watchers:
            try:
                call(watcher)
            except Exception:
                log.exception("%s failed and is left out from here on", type(watcher).__name__)
                self.watchers = tuple(other for other in self.watchers if other is not watcher)

    def _fail(self, error: BaseException) -> None:
        """The sweep cannot go on; the first reason counts. Waiting trials are let go so that Tune returns."""
        if self._failure is None:
            self._failure = error
            log.error("the sweep stops: %s", error)
        with contextlib.suppress(Exception):
            self.mailbox.close.remote()

    def _verify(self) -> None:
        """Promise 1, read back from the study itself: whatever is COMPLETE there completed here."""
        from optuna.trial import TrialState

        for entry in self.state.study.trials():
            trial = self.state.asks.get(entry.number)
            if entry.state == TrialState.COMPLETE and self.state.outcomes[str(trial)]["outcome"] != "completed":
                raise RuntimeError(f"trial {trial} is COMPLETE in the study, but it did not complete")


def _reported(fields_: dict[str, Any]) -> Reported:
    known = {item.name for item in fields(Reported)}
    values = {key: value for key, value in fields_.items() if key in known}
    return Reported(**{**values, "nonfinite": tuple(values.get("nonfinite", ()))})


def start(spec: SweepSpec, out: Path, *, sweep: str | None = None, **options: Any) -> Driver:
    """A new sweep in its own folder under `out`; raises BadInput where that cannot be written."""
    sweep = sweep or new_id(spec.name)
    folder = out / sweep
    try:
        folder.mkdir(parents=True, exist_ok=False)
    except OSError as error:
        raise BadInput(f"the sweep's folder cannot be made ({error.strerror})", where=folder, key="--out") from None
    return Driver(spec, folder, sweep=sweep, **options)


def resume(
    where: str | os.PathLike[str], *, trials: int | None = None, hours: float | None = None, **options: Any
) -> Driver:
    """The sweep at `where`, to go on from its journal; `trials` and `hours` raise its budget."""
    path = journal.find(where).path
    lines = list(journal.lines(path))
    first = lines[0]
    spec = SweepSpec.from_dict(first["spec"], where=path)
    budget = {**({"trials": trials} if trials else {}), **({"hours": hours} if hours else {})}
    if budget:
        spec = spec.model_copy(update={"budget": spec.budget.model_copy(update=budget)})
    rules = RuleSet.from_dict(first["rules"], where=path)
    return Driver(spec, path.parent, sweep=first["sweep"], earlier=lines[1:], rules=rules, **options)
