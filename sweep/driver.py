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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import trainables
from analysis import journal
from analysis.journal import DURABLE, JournalWriter
from analysis.storage import Storage, is_url, origin
from collapse.rules import RuleSet
from search_spaces.errors import BadInput
from search_spaces.spec import SweepSpec
from sweep.cluster import NAMESPACE, connected, settled_resources
from sweep.keeping import Checkpoints, Files, LocalFiles
from sweep.nodes import Nodes, free
from sweep.opening import check, header, new_id, resolve_rules, versions
from sweep.state import Line, LiveTrial, SweepState
from sweep.warm_start import gathered, resolved, sentence
from trainables.base import Reported

log = logging.getLogger("buttress")
notes = logging.getLogger("buttress.notes")  # what watchers are told, for those who have none

#: Why a sweep ended whose first trials collapsed.
TRIPPED = "circuit breaker"
#: Trials that Tune may hold at once: more than there can be slots.
MOST_AT_ONCE = 10_000
#: Seconds for each slot that the mailbox may gather what happens before the driver comes for it again, and the most of
#: them: an exchange costs the driver a millisecond, whatever it brings, and a verdict waits for it.
GATHER_S, GATHER_AT_MOST_S = 0.001, 0.1


@dataclass(frozen=True)
class Finish:
    """How a sweep ended. `interrupted` sweeps, and those with trials left, can be resumed.

    `folder` is here, `where` is what a person calls it by: the same, or the URL of a sweep on remote storage.
    """

    sweep: str
    folder: Path
    where: str
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
        store: Storage | None = None,
        take_over: bool = False,
    ) -> None:
        self.spec, self.folder, self.sweep, self.address = spec, folder, sweep, address
        self.store, self._take_over = store, take_over
        self.where = store.url if store is not None else str(folder)
        self.trainable = trainables.load(spec.trainable)
        check(spec, self.trainable)
        self.rules = rules or resolve_rules(spec)
        self.watchers = watchers
        self._resumed = earlier is not None
        self.earlier: list[Line] = earlier or []
        self._upload: Any = None
        self._failure: BaseException | None = None
        self._over = threading.Event()  # Tune is done
        self._left = threading.Event()  # the workers are, too: nothing more will happen
        self._heard: dict[str, float] = {}  # running trial -> when it was last heard of
        self._since: dict[str, float] = {}  # running trial -> when its first attempt began
        self._slot_of: dict[str, str] = {}
        self._reports = 0
        self._released: set[str] = set()  # trials whose last result Tune has been given
        self._with_tune: set[str] = set()  # trials that Tune holds
        self._leaving: set[str] = set()  # trials that were set aside and whose workers have not left them yet
        self._aside: set[str] = set()  # trials that were set aside and have no outcome yet
        self._answers: list[tuple[Any, ...]] = []  # for the mailbox, at the drain thread's next exchange

    # --- the whole of it -----------------------------------------------------------------------------------------

    def run(self) -> Finish:
        began = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        reason, interrupted = "error", False
        with JournalWriter(self.folder / journal.FILE) as self._writer, self._uploading():
            self.state = self._state()
            self.files: Files = LocalFiles(self.folder / "trials")
            if self.store is not None:
                from sweep.remote import RemoteFiles

                self.files = RemoteFiles(self.store)
            self.checkpoints = Checkpoints(self.files, self.state.directions[0])
            self._open_journal()
            try:
                if self.state.tripped:  # the last line of an earlier driver was the one too many
                    reason = TRIPPED
                else:
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
                    self._write(journal.end(reason=reason, counts=counts, seconds=seconds))
                shutil.rmtree(self.folder / ".ray", ignore_errors=True)
        self._verify()
        return Finish(self.sweep, self.folder, self.where, counts, seconds, reason, interrupted)

    def _state(self) -> SweepState:
        """What decides in this sweep, before its first line."""
        return SweepState(self.spec, self.trainable, self.rules, self._write, self._line)

    @contextlib.contextmanager
    def _uploading(self) -> Iterator[None]:
        """Holds the lease of a sweep on remote storage, and keeps its journal there up to date."""
        if self.store is None:
            yield
            return
        from sweep.remote import Upload

        path = self.folder / journal.FILE
        self._upload = Upload(self.store, path, note=self._note, fail=self._fail, take_over=self._take_over)
        try:
            yield
        finally:
            self._upload.close()

    def _write(self, line: Line) -> None:
        self._writer.write(line)
        if self._upload is not None and line["line"] in DURABLE:
            self._upload.wake()

    def _open_journal(self) -> None:
        if not self._resumed:
            self._write(header(self.spec, self.trainable, self.rules, self.sweep))
            self._warm_start()
            return
        self._write(journal.resume(versions=versions()))
        self.state.replay(self.earlier)
        self._aside |= {trial for trial, live in self.state.live.items() if live.suspended is not None}
        if not any(line["line"] == "warm" for line in self.earlier):
            self._warm_start()
        for trial, outcome in self.state.outcomes.items():
            self._keep(trial, outcome)

    def _warm_start(self) -> None:
        if self.spec.warm_start:
            line = gathered(self.spec, self.trainable)
            self.state.warm_start(line)
            self._note(f"warm start: {sentence(line)}")

    def _execute(self, ray: Any) -> str:
        from sweep import mailbox, slots

        settled_resources(ray)
        self.nodes = Nodes()
        count = slots.concurrency(self.spec.resources, free())
        self._name = f"mailbox-{self.sweep}-{secrets.token_hex(3)}"
        self.mailbox = mailbox.start(self._name, NAMESPACE)
        self.pool = slots.SlotPool(self.mailbox, count, self.spec.resources, self.folder / ".ray", self._fail)
        drain = threading.Thread(target=self._drain, name="drain", daemon=True)
        try:
            self.pool.start()
            drain.start()
            self._tune()
        except Exception as error:  # may be what another thread's failure led to: the first reason counts
            self._fail(error)
        finally:
            self._over.set()
            late = self.pool.close()
            self._left.set()
            if drain.is_alive():
                drain.join(5.0)
            with contextlib.suppress(Exception):
                ray.kill(self.mailbox)
            if late:
                log.warning("slots that did not close in time: %s", ", ".join(late))
        if self._failure is not None:
            raise self._failure
        if self.state.tripped:
            return TRIPPED
        if self.state.live:
            return "time budget spent"
        if self.state.spent:
            self._note("space exhausted: every configuration that the spec allows has been run")
            return "space exhausted"
        healthy = self.spec.budget.healthy
        return "enough healthy trials" if healthy and self.state.counts["completed"] >= healthy else "budget spent"

    def _tune(self) -> None:
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
                max_concurrent_trials=MOST_AT_ONCE,  # `_draw` has the say: slots come and go
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str((self.folder / ".ray").absolute()),
                stop=SweepStopper(lambda: self._failure is not None or self.state.tripped is not None),
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
            if self._upload is not None:  # what has been decided is safe before anything else is begun
                self._upload.barrier(lambda: self._failure is not None)
            if self._failure is not None or (hours and time.monotonic() - self._began > hours * 3600):
                return Searcher.FINISHED
            if len(self._with_tune) >= self.pool.working():
                return None
            live = self.state.next_trial(leaving=self._with_tune | self._leaving)
            self._close_files()
        except BaseException as error:
            self._fail(error)
            return Searcher.FINISHED
        if live is None:  # on probation a trial that still runs may be set aside and come back
            waits = self.spec.probation.epochs and (self._with_tune or self._leaving)
            return None if waits else Searcher.FINISHED
        self._with_tune.add(live.id)
        self._aside.discard(live.id)
        # as one string: of every number in a trial's config and results Tune keeps statistics for good
        return {"trial": live.id, "work": json.dumps(self._work(live)), "mailbox": self._name, "namespace": NAMESPACE}

    def _work(self, live: LiveTrial, problem: str = "") -> dict[str, Any]:
        """What the workers of a slot need for the trial's next attempt; `problem`: of the last one's checkpoint."""
        folder = self.folder.absolute() / "trials" / live.id
        folder.mkdir(parents=True, exist_ok=True)
        while (source := live.resume_point) and not self.files.exists(live.id, source["checkpoint"]):
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
            "store": self.store.folder(f"trials/{live.id}").url if self.store is not None else None,
        }

    def _let_go(self, trial: str, error: bool) -> None:
        """Tune has let go of a trial. An error means that its actor died again and again: the trial is lost.

        Not so when the whole sweep has failed: then its trials wait for the sweep to be resumed.
        """
        self._with_tune.discard(trial)
        if error and self._failure is None and trial in self.state.live:
            outcome = self.state.raised(trial, self.state.live[trial].attempt, "its Tune actor died", "infrastructure")
            self.mailbox.stop.remote(trial, str(outcome))
        live = self.state.live.get(trial)
        aside = live is not None and live.suspended is not None
        self.mailbox.drop.remote(trial, live.attempt if live is not None and aside else None)

    # --- the mailbox tells ---------------------------------------------------------------------------------------

    def _drain(self) -> None:
        import ray

        try:
            while not (self._over.is_set() and self._failure):
                answers, self._answers = self._answers, []
                events = ray.get(self.mailbox.exchange.remote(answers, 0.0 if self._over.is_set() else 1.0))
                for event in events:
                    getattr(self, f"_on_{event['event']}")(event)
                if self._left.is_set() and not events:
                    return
                if self._over.is_set() or self.state.tripped:  # the mailbox is closed and does not wait
                    time.sleep(0.02)
                else:
                    self._look_around()
                    time.sleep(min(GATHER_S * self.pool.working(), GATHER_AT_MOST_S))
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
        decided = self.state.reported(trial, attempt, reported)
        live = self.state.live.get(trial)
        if decided is not None and decided["line"] == "suspended":
            self._set_aside(trial)
        elif decided is not None:
            self._conclude(trial, decided, running=True)
        elif live is not None and live.runs(attempt):
            if reported.checkpoint:
                self.checkpoints.reported(trial, live.judged.reports, live.judged.best)
            if self.state.objectives[0] in reported.metrics:
                told = {name: reported.metrics[name] for name in self.state.objectives if name in reported.metrics}
                result = {**told, "full_beta_epochs": reported.full_beta_epochs, "decision": "continue"}
                self._answers.append(("release", trial, result))

    def _on_end(self, event: dict[str, Any]) -> None:
        trial, attempt, detail = event["trial"], event["attempt"], event["detail"]
        self._heard.pop(trial, None)
        live = self.state.live.get(trial)
        if live is not None and live.suspended is not None:
            self._has_left(trial)
            if event["drained"]:
                self.pool.kill(event["slot"])
            return
        if event["how"] == "unresumable":
            if live is not None and (source := live.resume_point):
                damaged = source["checkpoint"]
                self.state.forget_checkpoint(trial, damaged)
                how = "missing" if detail.get("missing") else "damaged"
                self._answers.append(("again", self._work(live, f"checkpoint {damaged} is {how}")))
            return
        outcome = self.state.outcomes.get(trial)
        if event["drained"]:
            self.pool.kill(event["slot"])
            if outcome is None and event["how"] == "stopped":
                self.state.lost(trial, attempt, "its node was drained", moved=True)
                self._note(f"trial {trial}: its node is drained; it goes on from the checkpoint that it left")
                self._answers.append(("again", self._work(self.state.live[trial])))
                return
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
        live = self.state.live.get(trial)
        if live is not None and live.suspended is not None:
            self._has_left(trial)
            return
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

    def _set_aside(self, trial: str) -> None:
        """A condemned trial leaves its slot, and may come back. Its workers stop as for a verdict; it goes on from its
        last checkpoint, so that what follows does not depend on when they heard of it."""
        self._leaving.add(trial)
        self._aside.add(trial)
        self._answers.append(("stop", trial, "set aside"))
        self._answers.append(("release", trial, {"outcome": "suspended", "done": True}))

    def _has_left(self, trial: str) -> None:
        """The workers of a trial that was set aside are out of it; if it comes back its time begins anew."""
        self._since.pop(trial, None)
        self._leaving.discard(trial)

    def _close_files(self) -> None:
        """Of trials that were set aside and have been condemned for good."""
        for trial in self._aside & self.state.outcomes.keys():
            self._aside.discard(trial)
            self._keep(trial, self.state.outcomes[trial])

    def _keep(self, trial: str, outcome: Line) -> None:
        best = outcome.get("best")
        value = best["metrics"][self.state.objectives[0]] if best else None
        self.checkpoints.ended(trial, outcome, value)

    def _on_idle(self, event: dict[str, Any]) -> None:
        """A slot without a trial, on a node that is drained."""
        self.pool.kill(event["slot"])

    def _look_at_nodes(self) -> None:
        """Slots follow the nodes: those on lost nodes are given up at once, those on drained ones in good order."""
        from sweep.slots import fitting

        for slot in self.pool.patience_over():
            needs = self.spec.resources
            each = " and ".join(
                f"{need:g} {kind}"
                for kind, need in (("CPU", needs.cpus_per_worker), ("GPU", needs.gpus_per_worker))
                if need
            )
            self._note(f"{slot} waits for {needs.workers} times {each}: the cluster has no room for it now")
        if not (change := self.nodes.look()):
            return
        for slot in self.pool.on(change.lost):
            self.pool.gone(slot)
            self._answers.append(("lose", slot, "its node was lost"))
        for slot in self.pool.on(change.draining):
            self._answers.append(("drain", slot))
        for names, what in ((change.joined, "joined"), (change.lost, "lost"), (change.draining, "being drained")):
            if names:
                self._note(f"{len(names)} node{'s' if len(names) > 1 else ''} {what}")
        if change.joined and self.spec.resources.concurrency == "auto":
            more = fitting(self.spec.resources, free()) - self.pool.waiting()
            if more > 0:
                self.pool.add(more)
                self._note(f"room for {more} more trial{'s' if more > 1 else ''} at once")

    def _look_around(self) -> None:
        """Trials that are silent or over their time."""
        self._look_at_nodes()
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
        if line["line"] == "breaker":
            self._halt()
        live = self.state.live.get(line.get("trial") or "")
        self._tell_watchers(lambda watcher: watcher.line(line, live))

    def _note(self, text: str) -> None:
        notes.warning(text)
        self._tell_watchers(lambda watcher: watcher.note(text))

    def _tell_watchers(self, call: Callable[[Watcher], None]) -> None:
        """Whoever looks on cannot disturb: a watcher that raises is told of once and not called again."""
        for watcher in self.watchers:
            try:
                call(watcher)
            except Exception:
                log.exception("%s failed and is left out from here on", type(watcher).__name__)
                self.watchers = tuple(other for other in self.watchers if other is not watcher)

    def _halt(self) -> None:
        """The circuit breaker: nothing is drawn any more, and running trials leave their slots to be resumed later."""
        with contextlib.suppress(Exception):
            self.mailbox.close.remote()

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
            if entry.number in self.state.warm:
                continue
            if entry.state == TrialState.COMPLETE and self.state.outcomes[str(trial)]["outcome"] != "completed":
                raise RuntimeError(f"trial {trial} is COMPLETE in the study, but it did not complete")


def _reported(fields_: dict[str, Any]) -> Reported:
    known = {item.name for item in fields(Reported)}
    values = {key: value for key, value in fields_.items() if key in known}
    return Reported(**{**values, "nonfinite": tuple(values.get("nonfinite", ()))})


def start(spec: SweepSpec, out: Path | str, *, sweep: str | None = None, **options: Any) -> Driver:
    """A new sweep in its own folder under `out`, a folder or a URL; raises BadInput where that cannot be written."""
    spec = resolved(spec)
    sweep = sweep or new_id(spec.name)
    if is_url(out):
        from sweep.remote import spool

        store = Storage(str(out)).folder(sweep)
        return Driver(spec, spool(store), sweep=sweep, store=store, **options)
    folder = Path(out) / sweep
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
    if (store := origin(path.parent)) is not None:
        from sweep.remote import fetch

        path = fetch(store) / journal.FILE
        options = {**options, "store": store}
    lines = list(journal.lines(path))
    first = lines[0]
    spec = SweepSpec.from_dict(first["spec"], where=path)
    budget = {**({"trials": trials} if trials else {}), **({"hours": hours} if hours else {})}
    if budget:
        spec = spec.model_copy(update={"budget": spec.budget.model_copy(update=budget)})
    rules = RuleSet.from_dict(first["rules"], where=path)
    return Driver(spec, path.parent, sweep=first["sweep"], earlier=lines[1:], rules=rules, **options)
