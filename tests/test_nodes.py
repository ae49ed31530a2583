"""Nodes come and go in mid-sweep: every trial ends, once, at most a checkpoint interval is lost, slots follow."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from own_cluster import environment

from buttress.journal import Journal, lines, read

pytestmark = pytest.mark.cluster

HERE = Path(__file__).parent
SPEC: dict[str, Any] = {
    "name": "moving",
    "trainable": "resumable:Resumable",
    "search": {"beta": {"loguniform": [0.05, 5.0]}},
    "fixed": {"pause": 0.4},  # an epoch, and so a checkpoint interval, is 0.8 s
    "objectives": ["val/score"],
    "scheduler": {"kind": "fifo"},
    "budget": {"trials": 8},
    "wandb": {"mode": "disabled"},
    "seed": 2,
}


class MovingNodes:
    def __init__(self, *cpus: int) -> None:
        self.environment = environment()
        command = [sys.executable, str(HERE / "moving_nodes.py"), *map(str, cpus)]
        self._process = subprocess.Popen(
            command, env=self.environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.address = self._answer()["address"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise AssertionError("the cluster's process has ended")

    def say(self, verb: str, argument: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{verb} {argument}\n")
        self._process.stdin.flush()
        return self._answer()

    def stop(self) -> None:
        everyone = [*psutil.Process(self._process.pid).children(recursive=True), psutil.Process(self._process.pid)]
        for process in everyone:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(everyone, timeout=10)
        self._process.wait()


class Autoscaling(MovingNodes):
    """A head without CPUs whose autoscaler (v1, Ray's fake provider) makes nodes of one CPU, at most two."""

    def __init__(self) -> None:
        self.environment = environment(RAY_FAKE_CLUSTER="1", AUTOSCALER_UPDATE_INTERVAL_S="1")
        self.folder = Path(tempfile.mkdtemp(prefix="bt-"))  # short: sockets of at most 107 characters lie below it
        port = _free_port()
        kind = {"node_config": {}, "min_workers": 0, "max_workers": 2}
        none: dict[str, Any] = {"auth": {}, "docker": {}, "file_mounts": {}}
        empty = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
                 "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files")  # fmt: skip
        config = {
            "cluster_name": "fake", "max_workers": 2, "upscaling_speed": 1.0, "idle_timeout_minutes": 0.05,
            "provider": {
                "type": "fake_multinode", "gcs_address": f"{_own_ip()}:{port}",
                "disable_node_updaters": True, "disable_launch_config_check": True,
                "use_node_id_as_ip": True,  # all nodes have one address: by it none would ever be idle
            },
            "available_node_types": {
                "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                "worker": {"resources": {"CPU": 1, "object_store_memory": 100_000_000}, **kind},
            },
            "head_node_type": "ray.head.default", "file_mounts_sync_continuously": False,
            **none, **{name: [] for name in empty},
        }  # fmt: skip
        path = self.folder / "fake.json"
        path.write_text(json.dumps(config))
        command = [
            str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--port", str(port),
            "--num-cpus", "0", "--num-gpus", "0", "--object-store-memory", "100000000",
            "--include-dashboard", "false", "--temp-dir", str(self.folder), "--autoscaling-config", str(path),
        ]  # fmt: skip
        log = self.folder / "head.log"
        with log.open("w") as out:
            self._process = subprocess.Popen(command, env=self.environment, stdout=out, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 60
        while "--address=" not in log.read_text():
            assert self._process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.1)
        self.address = f"{_own_ip()}:{port}"

    def nodes(self) -> int:
        """Worker nodes: raylets on this machine that belong to the cluster, but the head's."""
        raylets = 0
        for process in psutil.process_iter(["name"]):
            with contextlib.suppress(psutil.Error):
                raylets += process.info["name"] == "raylet" and self.address in " ".join(process.cmdline())
        return raylets - 1

    def said(self) -> str:
        """The end of the autoscaler's log."""
        return (self.folder / "session_latest" / "logs" / "monitor.log").read_text()[-6000:]

    def stop(self) -> None:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if self.address in line or str(self.folder) in line:
                    process.kill()
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _own_ip() -> str:
    from ray.util import get_node_ip_address

    return str(get_node_ip_address())


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[MovingNodes]:
    made = MovingNodes(*request.param)
    try:
        yield made
    finally:
        made.stop()


class Sweep:
    """`buttress run` on the cluster, in a folder of its own."""

    def __init__(self, cluster: MovingNodes, folder: Path, **changes: Any) -> None:
        for name in ("resumable.py", "toy.py", "slow_toy.py"):
            shutil.copy(HERE / name, folder)
        (folder / "sweep.yaml").write_text(json.dumps({**SPEC, **changes}))
        self.folder = folder
        path = os.pathsep.join([str(HERE.parent), *filter(None, [cluster.environment.get("PYTHONPATH")])])
        command = [sys.executable, "-m", "buttress", "run", "sweep.yaml", "--address", cluster.address]
        with (folder / "driver.log").open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env={**cluster.environment, "PYTHONPATH": path}, stdout=log, stderr=log
            )

    def lines(self) -> list[dict[str, Any]]:
        journals = list(self.folder.glob("runs/*/journal.jsonl"))
        with contextlib.suppress(Exception):
            return list(lines(journals[0]))
        return []

    def until(self, what: Any) -> None:
        """Waits until `what(lines)` holds."""
        deadline = time.monotonic() + 180
        while not what(self.lines()):
            assert self.process.poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def end(self, code: int = 0) -> Journal:
        try:
            assert self.process.wait(300) == code, self.log()
        finally:
            self.process.kill()
        return read(next(self.folder.glob("runs/*")))

    def log(self) -> str:
        return (self.folder / "driver.log").read_text()[-4000:]


def reports(count: int) -> Any:
    return lambda found: sum(line["line"] == "report" for line in found) >= count


def under_way(count: int, epoch: int) -> Any:
    """At least that many trials have come so far and have not ended."""

    def holds(found: list[dict[str, Any]]) -> bool:
        ended = {line["trial"] for line in found if line["line"] == "outcome"}
        far = {line["trial"] for line in found if line["line"] == "report" and line["epoch"] >= epoch}
        return len(far - ended) >= count

    return holds


def assert_once(journal: Journal, found: list[dict[str, Any]], trials: int) -> None:
    ends = [line["trial"] for line in found if line["line"] == "outcome"]
    assert len(ends) == len(set(ends)) == len(journal.trials) == trials
    assert {trial.state for trial in journal.trials.values()} == {"completed"}


def slots_of(found: list[dict[str, Any]], since: float = 0.0) -> set[str]:
    return {line["slot"] for line in found if line["line"] == "start" and line["time"] > since}


@pytest.mark.parametrize("cluster", [(1, 1)], indirect=True)
def test_a_killed_node_costs_one_checkpoint_interval(cluster: MovingNodes, tmp_path: Path) -> None:
    sweep = Sweep(cluster, tmp_path)
    sweep.until(under_way(2, epoch=2))
    killed = cluster.say("kill", "node-1")["time"]
    journal = sweep.end()
    found = sweep.lines()
    assert_once(journal, found, 8)
    moved = [trial for trial in journal.trials.values() if len(trial.attempts) > 1]
    assert len(moved) == 1 and len(moved[0].losses) == 1
    (trial,) = moved
    again = trial.attempts[-1]
    made = [line for line in found if line["line"] == "report" and line["trial"] == trial.id and line["attempt"] == 1]
    kept = max((line["epoch"] for line in made if line["seq"] == again.resumed_from), default=0)
    assert max(line["epoch"] for line in made) - kept <= 1 and again.resumed_from is not None
    later = slots_of(found, since=trial.losses[0].time)
    assert len(slots_of(found)) == 2 and len(later) == 1  # one node is left
    print(
        f"the loss was noticed {trial.losses[0].time - killed:.1f} s after kill -9, the trial went on after "
        f"{again.time - killed:.1f} s from epoch {kept} of {max(line['epoch'] for line in made)} reported"
    )


@pytest.mark.parametrize("cluster", [(1,)], indirect=True)
def test_a_node_that_joins_is_used(cluster: MovingNodes, tmp_path: Path) -> None:
    sweep = Sweep(cluster, tmp_path)
    sweep.until(reports(6))
    joined = time.time()
    cluster.say("add", 1)
    journal = sweep.end()
    found = sweep.lines()
    assert_once(journal, found, 8)
    assert all(len(trial.attempts) == 1 for trial in journal.trials.values())
    assert slots_of([line for line in found if line["time"] < joined]) == {"slot-0"}
    assert slots_of(found) == {"slot-0", "slot-1"} and "room for 1 more trial at once" in sweep.log()
    first = min(line["time"] for line in found if line["line"] == "start" and line["slot"] == "slot-1")
    print(f"the new node's first trial began {first - joined:.1f} s after the node was started")


@pytest.mark.parametrize("cluster", [(2, 1)], indirect=True)
def test_a_drained_node_loses_no_step(cluster: MovingNodes, tmp_path: Path) -> None:
    """Three slots at first; the trial on the drained node leaves a checkpoint inside its epoch, goes on elsewhere."""
    changes = {
        "trainable": "slow_toy:SlowToy", "objectives": ["val/recon"],
        "search": {"train.lr": {"uniform": [0.005, 0.02]}},
        "fixed": {"train.epochs": 12, "buttress.report_every": 1, "buttress.checkpoint_every": 99},
        "budget": {"trials": 5}, "rules": {"posterior_collapse": {"action": "off"}},
    }  # fmt: skip
    sweep = Sweep(cluster, tmp_path, **changes)
    sweep.until(under_way(3, epoch=1))
    drained = cluster.say("drain", "node-1")
    assert drained["accepted"], drained
    journal = sweep.end()
    found = sweep.lines()
    assert_once(journal, found, 5)
    moved = [trial for trial in journal.trials.values() if len(trial.attempts) > 1]
    assert len(moved) == 1
    (trial,) = moved
    of_trial = [line for line in found if line["line"] == "report" and line["trial"] == trial.id]
    before, after = ([line["step"] for line in of_trial if line["attempt"] == attempt] for attempt in (1, 2))
    assert max(before) < min(after) and sorted({*before, *after}) == list(range(1, 49))  # every step, none twice
    assert [line["moved"] for line in found if line["line"] == "lost"] == [True]
    print(f"the trial went on {trial.attempts[-1].time - drained['time']:.1f} s after the notice, no step repeated")


@pytest.mark.parametrize("cluster", [(2, 1, 1)], indirect=True)
def test_workers_share_a_node_where_they_fit_and_span_two_where_they_must(cluster: MovingNodes, tmp_path: Path) -> None:
    sweep = Sweep(cluster, tmp_path, resources={"workers": 2}, budget={"trials": 4})
    sweep.until(lambda found: len(slots_of(found)) == 2)
    groups = [group for group in cluster.say("where", "groups")["groups"] if len(group) == 2]
    assert groups == [["node-0", "node-0"], ["node-1", "node-2"]]
    assert sweep.end().counts() == {"completed": 4}


def test_an_autoscaler_brings_the_nodes_that_slots_wait_for_and_takes_them_back(tmp_path: Path) -> None:
    """A trial of two workers needs both nodes of one CPU; there is none when the sweep starts."""
    cluster = Autoscaling()
    try:
        assert cluster.nodes() == 0
        resources = {"workers": 2, "concurrency": 1, "autoscale": True}
        began = time.monotonic()
        sweep = Sweep(cluster, tmp_path, resources=resources, budget={"trials": 2})
        sweep.until(reports(1))
        assert cluster.nodes() == 2
        print(f"the first report came {time.monotonic() - began:.1f} s after the start on no node")
        assert sweep.end().counts() == {"completed": 2}
        ended = time.monotonic()
        while cluster.nodes():
            assert time.monotonic() - ended < 60, f"the nodes are not given back: {cluster.said()}"
            time.sleep(0.5)
        print(f"both nodes were gone {time.monotonic() - ended:.1f} s after the end")
    finally:
        cluster.stop()


@pytest.mark.parametrize("cluster", [(1,)], indirect=True)
def test_a_slot_that_waits_for_room_says_so_and_takes_it_when_it_comes(cluster: MovingNodes, tmp_path: Path) -> None:
    sweep = Sweep(cluster, tmp_path, resources={"concurrency": 2, "autoscale": True}, budget={"trials": 40})
    deadline = time.monotonic() + 150
    while "slot-1 waits for" not in sweep.log() and "slot-0 waits for" not in sweep.log():
        assert sweep.process.poll() is None and time.monotonic() < deadline, sweep.log()
        time.sleep(0.5)
    cluster.say("add", 1)
    sweep.until(lambda found: len(slots_of(found)) == 2)
    sweep.process.send_signal(signal.SIGINT)
    sweep.end(130)
