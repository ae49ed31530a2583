"""Whatever ends a driver, ten seconds later nothing of it is on the cluster, which goes on; no slot is lost before."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from own_cluster import Cluster, without_extras

from buttress.execution import driver, launch
from buttress.journal import lines, read
from buttress.spec.spec import SweepSpec

pytestmark = pytest.mark.ray

HERE = Path(__file__).parent
SPEC = {
    "name": "leaving",
    "trainable": "resumable:Resumable",
    "search": {"beta": {"loguniform": [0.05, 50.0]}},
    "objectives": ["val/score"],
    "scheduler": {"kind": "fifo"},
    "resources": {"concurrency": 2},
    "budget": {"trials": 6},
    "wandb": {"mode": "disabled"},
    "seed": 2,
}
KILLS: dict[str, Any] = {  # every draw collapses, and is killed by the rules at its second epoch
    "search": {"beta": {"loguniform": [20.0, 50.0]}},
    "fixed": {"pause": 0.02},
    "rules": {"posterior_collapse": {"grace": {"epochs": 1, "steps": 100}, "patience": 2}},
    "budget": {"trials": 54},
    "breaker": False,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two CPUs and no dashboard, with a second driver that counts."""
    made = Cluster()
    try:
        made.watch()
        yield made
    finally:
        made.stop()


class Run:
    """`buttress run` (in a folder that holds a sweep: `buttress resume`) in a process group, as a shell starts it;
    or in the `background`, deaf to Ctrl-C, as a shell's script does."""

    def __init__(
        self, cluster: Cluster, folder: Path, error: str = "none", *, background: bool = False, **changes: Any
    ) -> None:
        self.cluster, self.folder = cluster, folder
        shutil.copy(HERE / "resumable.py", folder)
        (folder / "sweep.yaml").write_text(json.dumps({**SPEC, **changes}))
        sweeps = [str(path) for path in folder.glob("runs/*")]
        verb = ["resume", *sweeps] if sweeps else ["run", "sweep.yaml"]
        command = [sys.executable, str(HERE / "leaving_driver.py"), error, *verb, "--address", cluster.address, "-q"]
        path = os.pathsep.join([str(HERE.parent), *filter(None, [cluster.environment.get("PYTHONPATH")])])
        with (folder / "driver.log").open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={**cluster.environment, "PYTHONPATH": path},
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=(lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if background else None,
            )

    def count(self, kind: str) -> int:
        """Lines of this kind in the journal so far."""
        journals = list(self.folder.glob("runs/*/journal.jsonl"))
        return journals[0].read_text().count(f'"line":"{kind}"') if journals else 0

    def until(self, kind: str, count: int) -> Run:
        """Waits for that many lines of a kind; the driver must not end before."""
        deadline = time.monotonic() + 180
        while self.count(kind) < count:
            assert self.process.poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(0.05)
        return self

    def signal(self, number: int, *, group: bool = False) -> Run:
        os.killpg(self.process.pid, number) if group else os.kill(self.process.pid, number)
        return self

    def end(self) -> int:
        try:
            return self.process.wait(180)
        finally:
            self.process.kill()

    def log(self) -> str:
        return (self.folder / "driver.log").read_text()[-3000:]

    def workers(self) -> set[int]:
        """The pids of all processes in which rank 0 of a slot trained."""
        path = next(self.folder.glob("runs/*/journal.jsonl"))
        return {line["pid"] for line in lines(path) if line["line"] == "start"}


def assert_nothing_left(run: Run) -> None:
    """The count 10 s after the driver is gone; says when it was nought for the first time."""
    gone, empty = time.monotonic(), None
    while (passed := time.monotonic() - gone) < 10:
        found = run.cluster.left()
        empty = empty if empty is not None or found else passed
        time.sleep(min(0.25, 10 - passed))
    assert run.cluster.left() == {}, run.log()
    assert not [pid for pid in run.workers() if psutil.pid_exists(pid)]
    print(f"nothing was left after {empty:.1f} s")


# --- every way to end ------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_nothing_is_left_after_a_normal_end(cluster: Cluster, tmp_path: Path) -> None:
    run = Run(cluster, tmp_path).until("report", 1)
    assert {"placement groups", "actors", "processes", "CPUs"} == set(cluster.left())  # the counter sees a sweep
    assert run.end() == 0, run.log()
    assert run.count("outcome") == 6
    assert_nothing_left(run)


def test_nothing_is_left_after_kill_9_of_the_driver(cluster: Cluster, tmp_path: Path) -> None:
    run = Run(cluster, tmp_path).until("report", 8).signal(signal.SIGKILL)
    assert run.end() == -signal.SIGKILL
    assert_nothing_left(run)


@pytest.mark.long
@pytest.mark.parametrize("reports", [0, 8], ids=["while slots start", "in mid-sweep"])
def test_nothing_is_left_after_ctrl_c(cluster: Cluster, tmp_path: Path, reports: int) -> None:
    run = Run(cluster, tmp_path).until("report" if reports else "header", max(reports, 1))
    if not reports:
        wait_for_actors(cluster, "TrainController")
    asked = time.monotonic()
    assert run.signal(signal.SIGINT, group=True).end() == 130, run.log()
    print(f"the driver ended {time.monotonic() - asked:.1f} s after Ctrl-C")
    assert_nothing_left(run)
    journal = read(next(tmp_path.glob("runs/*")))
    assert journal.ended is not None and journal.ended.reason == "interrupted"


@pytest.mark.long
def test_nothing_is_left_after_ctrl_c_in_a_long_step(cluster: Cluster, tmp_path: Path) -> None:
    """The workers hear of the end at their next report only; this one would come after a minute."""
    run = Run(cluster, tmp_path, fixed={"pause": 60.0}).until("start", 2)
    asked = time.monotonic()
    assert run.signal(signal.SIGINT, group=True).end() == 130, run.log()
    assert time.monotonic() - asked < 40
    assert_nothing_left(run)


@pytest.mark.long
def test_nothing_is_left_after_an_impatient_ctrl_c(cluster: Cluster, tmp_path: Path) -> None:
    run = Run(cluster, tmp_path, fixed={"pause": 60.0}).until("start", 2)
    run.signal(signal.SIGINT, group=True)
    time.sleep(2)
    asked = time.monotonic()
    assert run.signal(signal.SIGINT, group=True).end() == 130, run.log()
    assert time.monotonic() - asked < 10
    assert_nothing_left(run)


@pytest.mark.long
@pytest.mark.parametrize("background", [False, True], ids=["in front", "in the background"])
def test_nothing_is_left_after_sigterm(cluster: Cluster, tmp_path: Path, background: bool) -> None:
    run = Run(cluster, tmp_path, background=background).until("report", 8)
    asked = time.monotonic()
    assert run.signal(signal.SIGTERM).end() == 130, run.log()
    assert time.monotonic() - asked < 20
    assert_nothing_left(run)


@pytest.mark.long
def test_nothing_is_left_after_kill_9_while_slots_start(cluster: Cluster, tmp_path: Path) -> None:
    run = Run(cluster, tmp_path).until("header", 1)
    wait_for_actors(cluster, "TrainController")
    run.signal(signal.SIGKILL).end()
    assert_nothing_left(run)


@pytest.mark.long
@pytest.mark.parametrize("error", ["in ask", "in the drain thread", "in Tune's loop", "in a slot's start"])
def test_nothing_is_left_after_an_error_in_the_driver(cluster: Cluster, tmp_path: Path, error: str) -> None:
    run = Run(cluster, tmp_path, error)
    assert run.end() == 3 and "an error on purpose" in run.log()
    assert_nothing_left(run)
    journal = read(next(tmp_path.glob("runs/*")))
    assert journal.ended is not None and journal.ended.reason == "error"
    again = Run(cluster, tmp_path)
    assert again.end() == 0, again.log()
    assert len(read(journal.folder).trials) == again.count("outcome") == 6


@pytest.mark.long
def test_nothing_is_left_and_nothing_lost_after_the_death_of_the_mailbox(cluster: Cluster, tmp_path: Path) -> None:
    run = Run(cluster, tmp_path).until("report", 8)
    cluster.kill("ray::Mailbox")
    killed = time.monotonic()
    assert run.end() == 3, run.log()
    assert time.monotonic() - killed < 40
    assert_nothing_left(run)
    again = Run(cluster, tmp_path)
    assert again.end() == 0, again.log()
    journal = read(next(tmp_path.glob("runs/*")))
    assert len(journal.trials) == 6 and not journal.counts().get("failed")


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("ending", ["normal end", "Ctrl-C", "kill -9"])
def test_nothing_is_left_after_fifty_kills(cluster: Cluster, tmp_path: Path, workers: int, ending: str) -> None:
    resources = {"workers": workers, "concurrency": 2 // workers}
    run = Run(cluster, tmp_path, **{**KILLS, "resources": resources}).until("report", 2)
    before = cluster.left()
    run.until("outcome", 50)
    after = cluster.left()
    for kind in ("placement groups", "actors"):  # 50 kills leave no more behind than one does
        assert len(after.get(kind, [])) <= len(before[kind]) + 2, (before, after)
    if ending != "normal end":
        run.signal(signal.SIGKILL if ending == "kill -9" else signal.SIGINT)
    assert run.end() == {"normal end": 1, "Ctrl-C": 130, "kill -9": -9}[ending], run.log()
    assert_nothing_left(run)
    journal = read(next(tmp_path.glob("runs/*")))
    assert journal.counts()["collapsed"] >= 50
    assert len(run.workers()) == resources["concurrency"]  # the slots stayed warm


def wait_for_actors(cluster: Cluster, title: str) -> None:
    deadline = time.monotonic() + 60
    while not any(title in actor for actor in cluster.left().get("actors", [])):
        assert time.monotonic() < deadline
        time.sleep(0.1)


# --- other clusters --------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("kind", ["a minimal Ray", "with its dashboard"])
def test_nothing_is_left_on_another_kind_of_cluster(tmp_path: Path, kind: str) -> None:
    hidden = without_extras(tmp_path / "hidden") if kind == "a minimal Ray" else {}
    other = Cluster(dashboard=not hidden, env=hidden)
    try:
        other.watch()
        for number, leave in enumerate([None, signal.SIGINT, signal.SIGKILL]):
            folder = tmp_path / str(number)
            folder.mkdir()
            run = Run(other, folder).until("report", 8)
            if leave is not None:
                run.signal(leave)
            assert run.end() == {None: 0, signal.SIGINT: 130, signal.SIGKILL: -9}[leave], run.log()
            assert_nothing_left(run)
    finally:
        other.stop()


# --- no slot is lost -------------------------------------------------------------------------------------------------


class Hesitant:
    """Has nothing to suggest after the first four trials, until all slots were idle for three seconds.

    It ends the sweep once two slots have taken a trial since, or 24 trials later.
    """

    def __init__(self, sweep: driver.Driver) -> None:
        self.sweep, self.next_trial = sweep, sweep._next_trial
        self.nothing = 0
        self.idle_since: float | None = None

    def __call__(self) -> Any:
        drawn = len(self.sweep.state.asks)
        if drawn == 4:
            if self.idle_since is None and not self.sweep.state.active:
                self.idle_since = time.monotonic()
            if self.idle_since is None or time.monotonic() - self.idle_since < 3:
                self.nothing += 1
                return None
        later = {slot for trial, slot in self.sweep.events.slot_of.items() if trial > "0003"}
        return "FINISHED" if len(later) == 2 or drawn == 28 else self.next_trial()


@pytest.mark.long
def test_two_slots_idle_at_once_take_trials_again(
    ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune keeps one idle actor, so a second slot waits for a new one (seconds); but the slots are there and warm.

    A trial here (six seconds) takes longer than an actor's start: the actor of a trial that ends sooner is handed to
    the trial that waits, and Tune gives up the one that was starting.
    """
    shutil.copy(HERE / "resumable.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    spec = {**SPEC, "search": {"beta": {"loguniform": [0.05, 5.0]}}, "fixed": {"pause": 1.0}, "budget": {"trials": 999}}
    sweep = launch.start(SweepSpec.from_dict(spec), tmp_path / "runs")
    hesitant = Hesitant(sweep)
    monkeypatch.setattr(sweep, "_next_trial", hesitant)
    trials = list(read(sweep.run().folder).trials.values())
    assert hesitant.nothing > 3 and {trial.state for trial in trials} == {"completed"} and len(trials) < 28
    first, later = ({(t.attempts[0].slot, t.attempts[0].pid) for t in some} for some in (trials[:4], trials[4:]))
    assert len(first) == 2 and later == first  # both slots, and the same processes
    ended = max(trial.outcome.time for trial in trials[:4] if trial.outcome)
    assert trials[4].attempts[0].time - ended > 3
