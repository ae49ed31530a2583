"""Runs a sweep: starts Ray, the mailbox and the warm slots, lets Tune execute, and decides everything in one place.

A drain thread takes what happened from the mailbox in order and hands it to the sweep's state, which writes the journal
and reaches verdicts; a verdict's stop flag is back in the mailbox before Tune has heard of it. The main thread is
Tune's: it asks for trials, places them, and is told their ends. Whatever happens (end, Ctrl-C, an error), the slots are
closed and nothing is left on the cluster.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buttress import journal
from buttress.callbacks.base import Callback, CallbackList
from buttress.callbacks.checkpoint_retention import CheckpointRetention, LocalTrialFiles, TrialFiles
from buttress.errors import BadInput
from buttress.execution.elasticity import ClusterMembership, PoolReconciler, free_resources_of_staying_nodes
from buttress.execution.event_handler import AssignmentFactory, EventHandler
from buttress.execution.inbox import LOCAL_INTERVAL_S, REMOTE_INTERVAL_S, Inbox
from buttress.execution.messages import Command, DropTrial
from buttress.execution.ray_session import NAMESPACE, connected, wait_for_released_resources
from buttress.execution.request_handler import RequestHandler
from buttress.execution.setup import (
    describe_folder,
    header,
    load,
    located_in,
    resolve_rules,
    versions,
)
from buttress.journal import JournalWriter
from buttress.journal.events import CircuitBroken, Ended, Event, Resumed, WarmStarted
from buttress.journal.requests import Request, Requests
from buttress.rules import RuleSet
from buttress.search.warm_start import collect, describe
from buttress.spec.spec import SweepSpec
from buttress.storage import Storage
from buttress.sweep.result import CIRCUIT_BREAKER, SweepResult
from buttress.sweep.state import SweepState
from buttress.sweep.trial import TrialState
from buttress.wording import plural

if TYPE_CHECKING:
    from buttress.execution.worker_pool import WorkerPool

log = logging.getLogger("buttress")

#: An exchange with the mailbox costs the driver a millisecond, whatever it brings, and a verdict waits for it. So with
#: up to `PROMPT_SLOTS` slots events are fetched at once; each further slot lets them gather for `GATHER_S` more.
PROMPT_SLOTS, GATHER_S, MAX_GATHER_S = 8, 0.002, 0.2


#: Reason of a sweep's end: no budget helps.
SPACE_EXHAUSTED = "space exhausted"


class Driver:
    """One sweep from its first line to its last; `run` may be called once."""

    def __init__(
        self,
        spec: SweepSpec,
        folder: Path,
        *,
        sweep: str,
        earlier: list[Event] | None = None,
        rules: RuleSet | None = None,
        address: str | None = None,
        callbacks: Sequence[Callback] = (),
        store: Storage | None = None,
        take_over: bool = False,
        changed_budget: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.sweep, self.address = folder, sweep, address
        self.store, self._take_over = store, take_over
        self.where = store.url if store is not None else str(folder)
        self.spec, self.trainable = load(spec)
        self.rules = rules or resolve_rules(self.spec)
        self.callbacks = CallbackList(callbacks)
        self._resumed = earlier is not None
        self._warm = collect(self.spec, self.trainable) if self.spec.warm_start and not self._resumed else None
        self.earlier: list[Event] = earlier or []
        self._changed_budget = dict(changed_budget or {})
        self.notes: list[str] = []  # sentences for whoever runs it, said at the beginning
        self._upload: Any = None
        self._failure: BaseException | None = None
        self._stopped = False  # somebody has asked for it
        self._tune_done = threading.Event()
        self._pool_closed = threading.Event()  # nothing more will happen
        self._with_tune: set[str] = set()  # trials that Tune holds
        self._commands: list[Command] = []  # for the mailbox, at the drain thread's next exchange
        self._calls: queue.SimpleQueue[Callable[[], list[Command]]] = queue.SimpleQueue()  # for the drain thread

    # --- the whole of it -----------------------------------------------------------------------------------------

    def run(self) -> SweepResult:
        try:
            return self._run()
        except BadInput:
            state = getattr(self, "state", None)
            if not self._resumed and (state is None or not state.asks):  # refused before its first trial
                self._remove()
            raise

    def _remove(self) -> None:
        """Takes back the folder of a sweep that was refused after it was made."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if (store := self.store) is None:
            return
        with contextlib.suppress(OSError):
            below = (f"{under}/{name}" for under in store.folders() for name in store.names(under))
            for name in (*store.names(), *below):
                store.delete(name)

    def _run(self) -> SweepResult:
        began = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        reason, interrupted = "error", False
        with JournalWriter(self.folder / journal.FILE) as self._writer, self._uploading():
            self._open()
            for note in self.notes:
                self.callbacks.on_message(note)
            if (finished := self._open_journal()) is not None:
                return finished
            try:
                if self.state.tripped:  # the last line of an earlier driver was the one too many
                    reason = CIRCUIT_BREAKER
                else:
                    where = f"at {self.address}" if self.address else "on this machine"
                    self.callbacks.on_message(f"connecting to Ray {where}: the first trial begins in about 20 s")
                    with connected(self.address) as ray:
                        self._began = time.monotonic()
                        reason = self._execute(ray)
                        if self._stopped:
                            reason, interrupted = "interrupted", True
            except KeyboardInterrupt:
                reason, interrupted = "interrupted", True
            finally:
                seconds = time.monotonic() - began
                counts = {**self.state.counts}
                if self.state.active:
                    counts["unfinished"] = len(self.state.active)
                with contextlib.suppress(OSError):
                    self._write(Ended(reason=reason, counts=counts, seconds=seconds))
                shutil.rmtree(self.folder / ".ray", ignore_errors=True)
        self._verify()
        return SweepResult(self.sweep, self.folder, self.where, counts, seconds, reason, interrupted)

    def _open(self) -> None:
        """What the sweep is run with, before its first line."""
        self.state = self._state()
        files: TrialFiles = LocalTrialFiles(self.folder / "trials")
        if self.store is not None:
            from buttress.journal.remote import RemoteTrialFolders

            files = RemoteTrialFolders(self.store)
        self.checkpoints = CheckpointRetention(files, self.state.objectives[0], self.state.directions[0])
        self.assignments = AssignmentFactory(
            self.state, self.folder, files, self.store, self.callbacks.on_message
        )

    def _state(self) -> SweepState:
        """What decides in this sweep, before its first line."""
        return SweepState(self.spec, self.trainable, self.rules, self._write, self._on_event)

    @contextlib.contextmanager
    def _uploading(self) -> Iterator[None]:
        """Holds the lease of a sweep on remote storage, and keeps its journal there up to date."""
        if self.store is None:
            yield
            return
        from buttress.journal.remote import Upload

        path = self.folder / journal.FILE
        note = self.callbacks.on_message
        self._upload = Upload(self.store, path, note=note, fail=self._fail, take_over=self._take_over)
        try:
            yield
        finally:
            self._upload.close()

    def _write(self, event: Event) -> None:
        self._writer.write(event)
        if self._upload is not None and event.durable:
            self._upload.wake()

    def _open_journal(self) -> SweepResult | None:
        """Writes or replays what comes before the first trial; the result of a sweep in which nothing is left to do."""
        if not self._resumed:
            self._write(header(self.spec, self.trainable, self.rules, self.sweep))
            describe_folder(self.folder, self.spec, self.sweep)
            self._warm_start()
            self.state.add_first()
            return None
        if (finished := self._read_again()) is not None:
            counts = finished.counts
            self.callbacks.on_message(
                f"nothing is left to do ({finished.reason}): {plural(sum(counts.values()), 'trial')} ended; "
                f"`buttress resume {self.sweep} --trials N` raises the budget"
            )
            return SweepResult(self.sweep, self.folder, self.where, counts, 0.0, finished.reason, False)
        self._write(Resumed(versions=versions(), budget=self._changed_budget))
        self.state.replay(self.earlier)
        if not any(isinstance(event, WarmStarted) for event in self.earlier):
            self._warm_start()
        for trial, outcome in self.state.outcomes.items():
            self.checkpoints.ended(trial, outcome)
        return None

    def _read_again(self) -> Ended | None:
        """The journal as it is now that nobody else writes it, tried out before a line is added.

        Returns:
            Its last line, where that is the end of a sweep whose budget allows nothing more.

        Raises:
            BadInput: A sweep cannot go on from what it holds; nothing was written.
        """
        path = self.folder / journal.FILE
        if self._writer.cut:
            kept = f"{path.name}.cut-{path.stat().st_size}"
            self.callbacks.on_message(f"the last {self._writer.cut} bytes of the journal were torn; they are in {kept}")
        if self.store is not None:
            from buttress.journal.mirror import segments

            text = segments(self.store)
            if not path.read_bytes().startswith(text):
                self._writer.restore(text)
        self.earlier = list(journal.events(path))[1:]
        trial_run = SweepState(self.spec, self.trainable, self.rules, lambda _: None, lambda *_: None)
        try:
            trial_run.replay(self.earlier)
        except BadInput as error:
            raise error.at(path) from None
        except Exception as error:
            problem = f"a sweep cannot go on from what this journal holds ({type(error).__name__}: {error})"
            raise BadInput(problem, where=path, accepted="a journal that nobody has edited") from error
        last = self.earlier[-1] if self.earlier else None
        over = trial_run.exhausted or (isinstance(last, Ended) and last.reason == SPACE_EXHAUSTED)
        left = trial_run.active or trial_run.wanted or Requests(self.store or self.folder).pending()
        return last if isinstance(last, Ended) and over and not left else None

    def _warm_start(self) -> None:
        if self.spec.warm_start:
            event = self._warm or collect(self.spec, self.trainable)
            self.state.warm_start(event)
            self.callbacks.on_message(f"warm start: {describe(event)}")

    def _execute(self, ray: Any) -> str:
        from buttress.execution import mailbox, worker_pool

        wait_for_released_resources(ray)
        membership, resources = ClusterMembership(), self.spec.resources
        with located_in(self.spec):
            count = worker_pool.resolve_concurrency(resources, free_resources_of_staying_nodes())
        self._mailbox_name = f"mailbox-{self.sweep}-{secrets.token_hex(3)}"
        self.mailbox = mailbox.start(self._mailbox_name, NAMESPACE)
        self._attach(worker_pool.WorkerPool(self.mailbox, count, resources, self.folder / ".ray", self._fail))
        self.reconciler = PoolReconciler(membership, self.pool, resources, self.callbacks.on_message)
        drain = threading.Thread(target=self._drain, name="drain", daemon=True)
        inbox = self._inbox()
        try:
            self.pool.start()
            drain.start()
            inbox.start()
            self._tune()
        except Exception as error:  # may be what another thread's failure led to: the first reason counts
            self._fail(error)
        finally:
            self._tune_done.set()
            inbox.close()
            late = self.pool.close()
            self._pool_closed.set()
            if drain.is_alive():
                drain.join(5.0)
            with contextlib.suppress(Exception):
                ray.kill(self.mailbox)
            if late:
                log.warning("slots that did not close in time: %s", ", ".join(late))
        if self._failure is not None:
            raise self._failure
        return self._reason()

    def _inbox(self) -> Inbox:
        """What people ask of the sweep while it runs."""
        interval_s = LOCAL_INTERVAL_S if self.store is None else REMOTE_INTERVAL_S

        obey = RequestHandler(self.state, self.events, self._stop, self.callbacks.on_message)

        def take(request: Request, answer: Callable[[str, bool], None]) -> None:
            self._calls.put(lambda: obey.handle(request, answer))

        return Inbox(Requests(self.store or self.folder), take, interval_s)

    def _attach(self, pool: WorkerPool) -> None:
        """The sweep's slots, now that its state is what an earlier driver left: their events can be handled."""
        self.pool = pool
        self.events = EventHandler(
            self.state,
            pool,
            self.assignments,
            self.checkpoints,
            on_message=self.callbacks.on_message,
            fail=self._fail,
        )

    def _reason(self) -> str:
        """Why the sweep ended that nothing kept from its end."""
        if self.state.tripped:
            return CIRCUIT_BREAKER
        if active := list(self.state.active.values()):
            paused = all(trial.state is TrialState.PAUSED for trial in active)
            return "trials are paused" if paused else "time budget spent"
        if self.state.proposals.exhausted:
            self.callbacks.on_message("space exhausted: every configuration that the spec allows has been run")
            return SPACE_EXHAUSTED
        healthy = self.spec.budget.healthy
        return "enough healthy trials" if healthy and self.state.counts["completed"] >= healthy else "budget spent"

    def _tune(self) -> None:
        from buttress.execution.tune_adapter import run_tune

        run_tune(
            self.state.objectives[0],
            self.state.directions[0],
            self.folder / ".ray",
            next_trial=self._next_trial,
            release=self._release,
            is_over=self._is_over,
        )

    def _is_over(self) -> bool:
        return self._failure is not None or self.state.tripped is not None or self._stopped

    # --- called from any thread -----------------------------------------------------------------------------------

    def pause_trial(self, trial: str, reason: str = "") -> None:
        """A running trial leaves its slot and waits, with its last checkpoint; nothing for one that does not run."""
        self._calls.put(lambda: self.events.pause(trial, reason))

    def continue_trial(self, trial: str) -> None:
        """A paused trial waits for a slot, to go on from its checkpoint; nothing for one that is not paused."""
        self._calls.put(lambda: self.events.continue_trial(trial))

    # --- called by Tune -----------------------------------------------------------------------------------------------

    def _next_trial(self) -> dict[str, Any] | str | None:
        from ray.tune.search import Searcher

        try:
            hours = self.spec.budget.hours
            if self._upload is not None:  # what has been decided is safe before anything else is begun
                self._upload.barrier(lambda: self._failure is not None)
            if self._failure is not None or self._stopped or (hours and time.monotonic() - self._began > hours * 3600):
                return Searcher.FINISHED
            if self.state.held or len(self._with_tune) >= self.pool.count_usable():
                return None
            trial = self.state.next_trial(leaving=self._with_tune | self.events.leaving)
        except BaseException as error:
            self._fail(error)
            return Searcher.FINISHED
        if trial is None:  # one that is paused may be continued as long as others run
            waits = (self._with_tune and self.state.has_paused) or self.state.queue
            return None if waits else Searcher.FINISHED
        self._with_tune.add(trial.id)
        assignment = self.assignments.next_attempt(trial).to_json()
        return {
            "trial": trial.id,
            "assignment": assignment,
            "mailbox": self._mailbox_name,
            "namespace": NAMESPACE,
        }

    def _release(self, trial: str, error: bool) -> None:
        """Tune has let go of a trial. An error means that its actor died again and again: the trial is lost.

        Not so when the whole sweep has failed: then its trials wait for the sweep to be resumed.
        """
        self._with_tune.discard(trial)
        if error and self._failure is None:
            self._calls.put(lambda: self.events.tune_actor_died(trial))
            return
        active = self.state.active.get(trial)  # a paused trial comes back with another attempt
        self.mailbox.send.remote(DropTrial(trial, active.attempt if active is not None else None))

    # --- the drain thread ---------------------------------------------------------------------------------------

    def _drain(self) -> None:
        import ray

        try:
            while not (self._tune_done.is_set() and self._failure):
                commands, self._commands = self._commands, []
                wait_s = 0.0 if self._tune_done.is_set() else 1.0
                events = ray.get(self.mailbox.exchange.remote(commands, wait_s))
                for event in events:
                    self._commands += self.events.handle(event)
                with contextlib.suppress(queue.Empty):
                    while True:
                        self._commands += self._calls.get_nowait()()
                if self._pool_closed.is_set() and not events:
                    return
                if self._tune_done.is_set() or self._is_over():  # the mailbox is closed and does not wait
                    time.sleep(0.02)
                else:
                    self._commands += [*self.reconciler.reconcile(), *self.events.check_limits()]
                    further = max(0, self.pool.count_usable() - PROMPT_SLOTS)
                    time.sleep(min(GATHER_S * further, MAX_GATHER_S))
        except ray.exceptions.RayError as error:
            if not self._tune_done.is_set():
                self._fail(error)
        except BaseException as error:
            self._fail(error)

    # --- events and errors -------------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        if isinstance(event, CircuitBroken):
            self._halt()
        self.callbacks.on_event(event, self.state.active.get(getattr(event, "trial", "")))

    def _stop(self) -> None:
        """Somebody ends the sweep, as Ctrl-C does."""
        self._stopped = True
        self._halt()

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
        from optuna.trial import TrialState as OptunaState

        for entry in self.state.study.trials():
            trial = self.state.asks.get(entry.number)
            if entry.number in self.state.warm:
                continue
            if entry.state == OptunaState.COMPLETE and self.state.outcomes[str(trial)].outcome != "completed":
                raise RuntimeError(f"trial {trial} is COMPLETE in the study, but it did not complete")
