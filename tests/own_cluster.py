"""A Ray cluster of the tests' own, made by `ray start`, that outlives its drivers; a driver that counts what is left.

The counter is a second driver on the cluster, in a process of its own: `own_cluster.py ADDRESS RAYLET_PID` answers
every line on its standard input with one line of JSON. It asks Ray's own tables, which need no dashboard, and looks at
the processes below the raylet.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

#: The one detached actor that Ray Train leaves, one per cluster and not one per driver.
SINGLETON = "_AutoscalingCoordinatorActor"
#: Titles of processes that belong to Ray itself, below the raylet. A worker that is idle belongs to no driver.
OF_RAY = ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::IDLE", f"ray::{SINGLETON}")


def environment(**more: str) -> dict[str, str]:
    """Of the head and of every driver: no token, which Ray asks for since 2.59 and makes for local instances only."""
    return {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", **more}


def without_extras(folder: Path) -> dict[str, str]:
    """Environment that hides what `pip install ray` lacks and `ray[default]` brings, from every Python below it."""
    hidden = ("aiohttp_cors", "colorful", "opencensus", "py_spy", "smart_open", "virtualenv", "memray")
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {hidden}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
    )
    return {"PYTHONPATH": str(folder)}


class Cluster:
    """A head node with `cpus` CPUs and no dashboard, unless asked for."""

    def __init__(self, cpus: int = 2, dashboard: bool = False, env: dict[str, str] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bt-"))  # short: sockets of at most 107 characters lie below it
        self.environment = environment(**env or {})
        ports = {"--ray-client-server-port": _free_port(), "--dashboard-port": _free_port()}
        command = [
            str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--port", "0",
            "--num-cpus", str(cpus), "--num-gpus", "0", "--object-store-memory", "200000000",
            "--include-dashboard", str(dashboard).lower(), "--temp-dir", str(self.folder),
            *(str(part) for option in ports.items() for part in option),
        ]  # fmt: skip
        log = self.folder / "head.log"
        with log.open("w") as out:
            self.head = subprocess.Popen(command, env=self.environment, stdout=out, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 60
        while (found := re.search(r"--address='([^']+)'", log.read_text())) is None:
            if self.head.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"no cluster: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        self.address = found[1]
        self._counter: subprocess.Popen[str] | None = None

    def watch(self) -> None:
        """Starts the counter, which takes seconds."""
        children = psutil.Process(self.head.pid).children()
        raylet = next(child.pid for child in children if child.name() == "raylet")
        command = [sys.executable, __file__, self.address, str(raylet)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._counter = subprocess.Popen(command, env=self.environment, **pipes)  # type: ignore[call-overload]

    def left(self) -> dict[str, list[str]]:
        """What is on the cluster now, by kind; kinds of which nothing is there are left out."""
        counter = self._counter
        assert counter is not None and counter.stdin is not None and counter.stdout is not None
        counter.stdin.write("count\n")
        counter.stdin.flush()
        found: dict[str, list[str]] = json.loads(counter.stdout.readline())
        return found

    def kill(self, title: str) -> None:
        """kill -9 of the processes of this cluster whose title begins so."""
        for process in psutil.Process(self.head.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if " ".join(process.cmdline()).startswith(title):
                    process.kill()

    def stop(self) -> None:
        """Kills the processes that were started here, by their ids: `ray stop` would end every Ray on the machine."""
        counter = getattr(self, "_counter", None)
        roots = [process for process in (self.head, counter) if process is not None]
        everyone = []
        for root in roots:
            with contextlib.suppress(psutil.NoSuchProcess):
                everyone += [*psutil.Process(root.pid).children(recursive=True), psutil.Process(root.pid)]
        for process in everyone:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(everyone, timeout=10)
        for root in roots:
            root.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def count(raylet: int) -> dict[str, list[str]]:
    """Placement groups that are not removed, actors that are not dead, worker processes at work, CPUs taken."""
    import ray
    from ray._private import state
    from ray.util import placement_group_table

    groups = [f"{name} {group['state']}" for name, group in placement_group_table().items()]
    actors = [f"{actor['ActorClassName']} {actor['State']}" for actor in state.actors().values()]
    processes = []
    for process in psutil.Process(raylet).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            processes.append(" ".join(process.cmdline()).strip())
    free, total = (each.get("CPU", 0.0) for each in (ray.available_resources(), ray.cluster_resources()))
    found: dict[str, list[Any]] = {
        "placement groups": [group for group in groups if not group.endswith(" REMOVED")],
        "actors": [actor for actor in actors if SINGLETON not in actor and not actor.endswith(" DEAD")],
        "processes": [title for title in processes if title.startswith("ray::") and not title.startswith(OF_RAY)],
        "CPUs": [f"{total - free:g} taken"] if total - free > 1e-6 else [],
    }
    return {kind: entries for kind, entries in found.items() if entries}


if __name__ == "__main__":
    import ray

    ray.init(address=sys.argv[1], namespace="counter", log_to_driver=False, logging_level=logging.ERROR)
    for _ in sys.stdin:
        print(json.dumps(count(int(sys.argv[2]))), flush=True)
