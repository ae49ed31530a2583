"""Writes the Weights & Biases runs of a sweep: one run per trial, and one of the sweep, grouped under the sweep.

A trial's run is `<sweep id>-<trial>`, the sweep's own `<sweep id>`. They are kept in the sweep's folder, and uploaded
later by `wandb sync`, or on the server. The journal is the truth and W&B a view of it: calls return at once, one
background thread talks to wandb, and nothing that happens there reaches the sweep.
"""

from __future__ import annotations

import logging
import math
import netrc
import os
import queue
import secrets
import shlex
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from buttress.analysis.media import pictures
from buttress.callbacks.base import Callback
from buttress.callbacks.loggers import MAX_PICTURE_BYTES, MAX_PICTURES
from buttress.callbacks.wandb_sweep import SweepRun
from buttress.compat.wandb import EXPERIMENTAL_SETTINGS, disable_error_reporting, preserved_exit_hooks
from buttress.journal.events import AttemptStarted, Event, Outcome, Report
from buttress.storage import first_line
from buttress.wording import plural

if TYPE_CHECKING:
    from buttress.sweep.trial import ActiveTrial
    from buttress.training.trainable import Metric

log = logging.getLogger("buttress.wandb")
log.addHandler(logging.NullHandler())  # without a handler of the sweep's, nothing falls through to the terminal

Mode = Literal["offline", "online", "disabled"]

MAX_WAITING = 10_000  # reports that wait for wandb; beyond it reports (never starts or outcomes) are dropped
MAX_FAILURES = 3  # trials whose logging failed, before the sweep goes on without W&B
INIT_TIMEOUT_S = 30.0
FINISH_TIMEOUT_S = 30.0


class WandbRuns(Callback):
    """The W&B runs of one sweep.

        >>> runs = WandbRuns("toy-k3j9x2", Path("runs/toy-k3j9x2"), mode="disabled")
        >>> runs.start("0007", config={"loss": {"beta": 0.1}}, params={"loss.beta": 0.1})
        >>> runs.report("0007", {"epoch": 1, "step": 40, "metrics": {"latent/kl_total": 3.2}})
        >>> runs.outcome("0007", {"outcome": "completed", "best": {"epoch": 1, "metrics": {"elbo_1": 2.0}}})
        >>> runs.close()

    Give it to the driver as a callback, or call `start`, `report` and `outcome`.

    No method raises on W&B's account or waits for it; `close` waits up to its timeout. A trial whose logging fails goes
    on unlogged (said once), and after `MAX_FAILURES` of them the whole sweep does. In mode `online` without a key, or
    when the server does not answer, runs are kept offline. Either is said to `on_message` and to the logger
    `buttress.wandb`, and again by `closing_line`. In mode `disabled` wandb is not even imported.
    """

    def __init__(
        self,
        sweep: str,
        folder: Path,
        *,
        project: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        mode: Mode = "offline",
        tags: Sequence[str] = (),
        metrics: Mapping[str, Metric] | None = None,
        original_names: Mapping[str, str] | None = None,
        on_message: Callable[[str], None] = lambda _: None,
        objective: tuple[str, str] | None = None,
        earlier: Sequence[Event] = (),
        client: Any = None,
    ) -> None:
        """`project` is `buttress` unless given, `group` the sweep's id.

        `metrics` is the trainable's table: a metric with an `original_name` is logged under that name too, and so is
        each key of `original_names`.
        `on_message` is called with a sentence when runs are kept offline or not at all. With `objective`, a metric and
        its direction, the sweep has a run of its own; `earlier` are its events before this process. `client` stands in
        for the module wandb, in tests.
        """
        self.sweep, self.folder, self.mode = sweep, folder, mode
        self._project, self._entity = project or "buttress", entity
        self._group: str | None = group or sweep
        self._tags = tuple(tags)
        self._aliases = [(name, metric.original_name) for name, metric in (metrics or {}).items()]
        self._aliases += (original_names or {}).items()
        self._client = client
        self._jobs: queue.SimpleQueue[tuple[Callable[..., None], str, tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._given_up = self._closed = False
        self._dropped = 0
        self._send, self._said = on_message, ""
        # Only the background thread touches what follows.
        self._runs: dict[str, Any] = {}
        self._last_step: dict[str, int] = {}
        self._pictures: Counter[str] = Counter()
        self._failures = 0
        self._objective = objective
        self._earlier = [event.to_line() for event in earlier if isinstance(event, Outcome)]
        self._sweep_run: SweepRun | None = None

    # --- called by the driver --------------------------------------------------------------------------------------

    def start(self, trial: str, config: Mapping[str, Any], params: Mapping[str, Any]) -> None:
        """Open the trial's run, or go on with it: an open one is kept, and one of an earlier process is resumed."""
        self._post(self._start, trial, dict(config), dict(params))

    def report(self, trial: str, reported: Mapping[str, Any]) -> None:
        """Log one report, given by the keys of the journal's `report` line; its `step` is W&B's."""
        if self._jobs.qsize() < MAX_WAITING:
            self._post(self._report, trial, dict(reported))
        else:
            self._dropped += 1

    def outcome(self, trial: str, outcome: Mapping[str, Any]) -> None:
        """Write the trial's summary and tags from the journal's `outcome` line, and finish its run."""
        self._post(self._outcome, trial, dict(outcome))

    def on_event(self, event: Event, trial: ActiveTrial | None = None) -> None:
        """An event of the kinds that are logged; `trial` is its trial, if it goes on."""
        match event:
            case AttemptStarted() if trial is not None:
                self.start(event.trial, trial.config, trial.params)
            case Report():
                self.report(event.trial, vars(event))
            case Outcome():
                self.outcome(event.trial, event.to_line())

    def close(self, timeout: float = FINISH_TIMEOUT_S) -> None:
        """Log what is waiting, finish every open run as `interrupted`, and return after at most `timeout` seconds."""
        if self._closed or self._thread is None:
            self._closed = True
            return
        self._closed = True
        self._jobs.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._given_up = True
            self._say(f"W&B was not done after {timeout:g} s; {self._jobs.qsize()} events were not logged")
        if self._dropped:
            self._say(f"{plural(self._dropped, 'report')} not logged to W&B, which could not keep up")

    def closing_line(self) -> str:
        """What a person should know of the runs at the end of a sweep: what went wrong, and how they are uploaded.

        Returns:
            One line; empty where all runs are on the server, or there are none.
        """
        parts = [self._said] if self._said else []
        runs = sorted((self.folder / "wandb").glob("offline-run-*"))
        if runs and self.mode != "disabled":
            runs_text = plural(len(runs), "W&B run")
            parts.append(f"{runs_text} offline: wandb sync {shlex.quote(str(self.folder / 'wandb'))}/offline-run-*")
        return "; ".join(parts)

    def _say(self, text: str, error: BaseException | None = None) -> None:
        """Something a person should know; the last such sentence is repeated at the end."""
        self._said = text
        log.warning(text, exc_info=error)
        self._send(text)

    # --- the background thread -------------------------------------------------------------------------------------

    def _post(self, call: Callable[..., None], trial: str, *args: Any) -> None:
        if self.mode == "disabled" or self._given_up or self._closed:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
            self._thread.start()
        self._jobs.put((call, trial, args))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not self._given_up:
                call, trial, args = job
                self._attempt(call, trial, *args)
        for trial in list(self._runs):
            if not self._given_up:
                self._attempt(self._outcome, trial, {"outcome": "interrupted"})
        if self._sweep_run is not None and not self._given_up:
            sweep_run = self._sweep_run
            self._attempt(lambda _: sweep_run.close(), "of the sweep itself")

    def _attempt(self, call: Callable[..., None], trial: str, *args: Any) -> None:
        try:
            call(trial, *args)
        except Exception as error:
            self._runs.pop(trial, None)
            self._failures += 1
            if self._failures == 1:
                self._say(f"logging trial {trial} to W&B failed ({first_line(error)}): it goes on unlogged", error)
            if self._failures == MAX_FAILURES:
                self._given_up = True
                self._say(f"logging to W&B failed for {MAX_FAILURES} trials; the sweep goes on without it")

    def _start(self, trial: str, config: dict[str, Any], params: dict[str, Any]) -> None:
        if trial in self._runs:
            return
        if self._objective is not None and self._sweep_run is None:
            run = self._open(self.sweep, self.sweep, {"objective": self._objective[0]}, "sweep")
            self._sweep_run = SweepRun(self._wandb(), run, self.folder, self._objective, self._earlier)
        run = self._open(*self._name(trial), {**config, "params": params} if params else config, "trial")
        self._last_step[trial] = max(self._last_step.get(trial, 0), int(getattr(run, "step", 0) or 0))
        self._runs[trial] = run

    def _name(self, trial: str) -> tuple[str, str]:
        """Id and name of a trial's run."""
        return f"{self.sweep}-{trial}", trial

    def _trial_folder(self, trial: str) -> Path:
        return self.folder / "trials" / trial

    def _open(self, run_id: str, name: str, config: dict[str, Any], job_type: str) -> Any:
        """A run of this mode, or an offline one where there is no key or no server."""
        if self.mode == "online" and not has_key():
            self.mode = "offline"
            self._say("no W&B key was found, so runs are kept offline: `wandb login` before they are uploaded")
        try:
            run = self._init(run_id, name, config, job_type)
        except Exception as error:
            if self.mode != "online":
                raise
            self.mode = "offline"
            self._say(f"W&B cannot be reached ({first_line(error)}), so runs are kept offline")
            run = self._init(run_id, name, config, job_type)
        # W&B's own summary is the last value logged, and a collapsed trial's last value is the lowest loss: the summary
        # holds what `outcome` writes, nothing else.
        run.define_metric("*", summary="none")
        return run

    def _init(self, run_id: str, name: str, config: dict[str, Any], job_type: str) -> Any:
        wandb = self._wandb()
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            silent=True,
            console="off",
            show_errors=False,
            show_info=False,
            show_warnings=False,
            disable_git=True,
            disable_code=True,
            **EXPERIMENTAL_SETTINGS,
            init_timeout=INIT_TIMEOUT_S,
            finish_timeout=FINISH_TIMEOUT_S,
        )
        with preserved_exit_hooks():
            return wandb.init(
                project=self._project,
                entity=self._entity,
                group=self._group,
                id=run_id,
                name=name,
                job_type=job_type,
                dir=str(self.folder),
                mode=self.mode,
                tags=list(self._tags),
                config=config,
                resume="allow",
                reinit="create_new",
                settings=settings,
            )

    def _report(self, trial: str, reported: dict[str, Any]) -> None:
        run = self._runs.get(trial)
        if run is None or reported["step"] < self._last_step[trial]:
            return  # a trial that goes on from its checkpoint runs again what was logged before
        row: dict[str, Any] = {name: value for name, value in reported.get("metrics", {}).items() if value is not None}
        row |= {alias: row[name] for name, alias in self._aliases if alias and name in row and alias not in row}
        for name in ("epoch", "full_beta_epochs", "phase", "mem_mb"):
            if reported.get(name) is not None:
                row[name] = reported[name]
        if "state" in reported:
            row["suspect"] = int(reported["state"] == "suspect")
        for name, values in reported.get("vectors", {}).items():
            finite = [value for value in values if value is not None and math.isfinite(value)]
            if finite:
                row[name] = self._wandb().Histogram(finite, num_bins=min(64, max(8, len(finite))))
        most, media = MAX_PICTURES - self._pictures[trial], reported.get("media") or {}
        for key, path in pictures(self._trial_folder(trial), media, most, MAX_PICTURE_BYTES):
            row[key] = self._wandb().Image(str(path))
            self._pictures[trial] += 1
        run.log(row, step=reported["step"])
        self._last_step[trial] = reported["step"]

    def _outcome(self, trial: str, outcome: dict[str, Any]) -> None:
        if self._sweep_run is not None and outcome["outcome"] != "interrupted":
            self._sweep_run.outcome(outcome)
        run = self._runs.pop(trial, None)
        if run is None:
            return
        run.summary.update(summary(outcome))
        audited = "audited" if outcome.get("audited") else None
        run.tags = (*run.tags, *(tag for tag in (outcome["outcome"], outcome.get("kind"), audited) if tag))
        run.finish(exit_code=int(outcome["outcome"] == "failed"))

    def _wandb(self) -> Any:
        if self._client is None:
            disable_error_reporting()
            import wandb

            self._client = wandb
        return self._client


class WandbTraining(WandbRuns):
    """The W&B run of one config that is trained outside a sweep; its one trial has the name "".

    Args:
        folder: The training's folder.
        run_id: Of the run; a run of this id is gone on with. Default: the folder's name and six random characters.
        name: Of the run. Default: the folder's name.
        options: As those of `WandbRuns`.
    """

    def __init__(self, folder: Path, *, run_id: str | None = None, name: str | None = None, **options: Any) -> None:
        super().__init__(name or folder.name, folder, **options)
        self._group = None
        self._id = run_id or f"{folder.name}-{secrets.token_hex(3)}"

    def _name(self, trial: str) -> tuple[str, str]:
        return self._id, self.sweep

    def _trial_folder(self, trial: str) -> Path:
        return self.folder


def summary(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's summary says of the trial, from the journal's `outcome` line.

    `best/<metric>` only for a completed trial: whatever column of the W&B table is sorted by `best/...`, a collapsed
    trial cannot come first. The last values of any trial stand under `last/<metric>`.
    """
    names = ("outcome", "kind", "margin", "rule", "message", "epochs", "seconds", "error")
    found = {name: outcome[name] for name in names if outcome.get(name) is not None}
    if outcome.get("epochs") is not None and outcome.get("epochs_budget") is not None:
        failed = outcome["outcome"] == "failed"  # it has saved nothing
        found["epochs_saved"] = 0 if failed else outcome["epochs_budget"] - outcome["epochs"]
    if outcome.get("warnings"):
        found["warnings"] = list(outcome["warnings"])
    best = outcome.get("best")
    if outcome["outcome"] == "completed" and best:
        found |= {f"best/{name}": best[name] for name in ("epoch", "step") if best.get(name) is not None}
        found |= {f"best/{name}": value for name, value in best.get("metrics", {}).items() if value is not None}
    found |= {f"last/{name}": value for name, value in (outcome.get("last") or {}).items() if value is not None}
    return found


def has_key() -> bool:
    """Whether wandb would find credentials without asking for them: the environment, or an entry in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").partition("://")[2].split("/")[0].split(":")[0]
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
