"""A cluster on simulated hosts, handled as from a laptop: `clusters/onprem.yaml` filled in, `ray up`, jobs.

One host is the laptop, on which every command is run; /mnt is the network storage. hosts.py says what hosts need.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hosts import HOME, Host, hosts

ROOT = Path(__file__).parents[1]
#: Processes of Ray, by what their command line holds.
OF_RAY = ("raylet", "gcs_server", "ray::", "ray/dashboard", "ray/_private", "ray/autoscaler", "ray/util")
JOB = "RAY_AUTH_MODE=token ray job"
DASHBOARD = "--address http://127.0.0.1:8265"
ASK = """
import json, logging, ray
ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
print(json.dumps([{"address": n["NodeManagerAddress"], **n["Resources"]} for n in ray.nodes() if n["Alive"]]))
"""
GET = """
import sys, urllib.error, urllib.request
asked = urllib.request.Request("http://127.0.0.1:8265/api/version", headers=eval(sys.argv[1]))
try:
    print(urllib.request.urlopen(asked, timeout=10).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


@dataclass
class Cluster:
    """Four hosts.

    Attributes:
        folder: The tests' folder of this cluster, on the machine that holds the hosts.
        at: The laptop's folder in which commands are run.
        job_at: The head's folder in which jobs are run.
        seconds: How long each step took.
    """

    laptop: Host
    head: Host
    workers: list[Host]
    folder: Path
    at: str = str(ROOT)
    job_at: str = "~/buttress"
    seconds: dict[str, float] = field(default_factory=dict)

    def timed(self, step: str, line: str, timeout: float = 120.0) -> str:
        """Runs `line` on the laptop and returns its standard output; fails where it fails."""
        began = time.monotonic()
        done = self.laptop.run(f"cd {self.at} && {line}", timeout=timeout)
        self.seconds[step] = time.monotonic() - began
        return done.stdout

    def nodes(self) -> list[dict[str, Any]]:
        """Address and resources of Ray's live nodes, asked on the head."""
        asked = self.head.run("RAY_AUTH_MODE=token python ~/ask.py", timeout=60, check=False)
        return json.loads(asked.stdout) if asked.returncode == 0 else []

    def up(self) -> None:
        """`ray up`, until head and workers are one cluster."""
        self.timed("ray up", "ray up --yes --disable-usage-stats ~/onprem.yaml", timeout=180)
        began = time.monotonic()
        monitor = "tail -n 20 /tmp/ray/session_latest/logs/monitor.log"
        everybody = 1 + len(self.workers)
        until(
            lambda: len(self.nodes()) == everybody, "the workers joined", 150,
            lambda: self.head.run(monitor, check=False).stdout,
        )  # fmt: skip
        self.seconds["workers join"] = time.monotonic() - began

    @contextlib.contextmanager
    def tunnel(self) -> Iterator[None]:
        """The laptop's port 8265, brought to the head's loopback by `ray dashboard`."""
        process = self.laptop.start(f"cd {self.at} && exec ray dashboard ~/onprem.yaml", self.folder / "tunnel.log")
        answer = "python ~/get.py '{}' 2>/dev/null"
        until(lambda: self.laptop.run(answer, check=False).stdout.strip(), "the dashboard's tunnel", 30)
        yield
        process.terminate()
        process.wait()

    def submit(self, name: str, line: str, environment: dict[str, str] | None = None) -> None:
        """Submits `line` as a job, which runs in `job_at`; does not wait for it."""
        runtime = f"--runtime-env-json '{json.dumps({'env_vars': environment})}'" if environment else ""
        options = f"{DASHBOARD} --no-wait --submission-id {name} {runtime}"
        self.laptop.run(f"{JOB} submit {options} -- bash -c 'cd {self.job_at} && {line}'")

    def followed(self, name: str, timeout: float = 120.0) -> str:
        """Returns all output of a job, when it has ended."""
        done = self.laptop.run(f"{JOB} logs {DASHBOARD} --follow {name}", check=False, timeout=timeout)
        return done.stdout + done.stderr

    def quick(self, trials: int, epochs: int) -> str:
        """Settings of a quick lithology sweep of healthy trials each of which spans both workers."""
        return f"{self.spanning(trials)} --set config.train.epochs={epochs} --set config.loss.beta=0.3"

    def spanning(self, trials: int) -> str:
        """Settings of a sweep whose trials have two workers, each as large as a worker host."""
        cpus = int(min(node["CPU"] for node in self.nodes() if node["address"] != self.head.address))
        settings = [
            f"budget.trials={trials}", "resources.workers=2", f"resources.cpus_per_worker={cpus}",
            "scheduler.kind=fifo", "wandb.mode=disabled",
        ]  # fmt: skip
        return " ".join(f"--set {setting}" for setting in settings)

    def left(self) -> list[str]:
        """Host and title of every process of Ray that is still there."""
        everywhere = [self.laptop, self.head, *self.workers]
        return [f"{host.name}: {title[:160]}" for host in everywhere for title in host.processes()
                if any(word in title for word in OF_RAY)]  # fmt: skip


def until(true: Callable[[], Any], what: str, seconds: float, instead: Callable[[], Any] = str) -> Any:
    """Waits until `true()` is true and returns its value; fails after `seconds`, with the value of `instead()`."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what} {instead()}"
        time.sleep(0.5)
    return found


@contextlib.contextmanager
def on_hosts(folder: Path, wheel: Path | None = None, own: dict[str, str] | None = None) -> Iterator[Cluster]:
    """Four hosts with the cluster's file and the token on the laptop; Ray is not started.

    Args:
        folder: Where the hosts keep their files.
        wheel: The cluster installs this wheel of Buttress; None: the mounted checkout, as the shipped file does.
        own: File name -> text of a user's folder, ~/own, which is mounted on every node; with a wheel only.
    """
    (folder / "storage").mkdir()
    began = time.monotonic()
    with hosts(["laptop", "head", "worker1", "worker2"], folder / "made", folder / "storage") as made:
        laptop, head, *workers = made.values()
        found = Cluster(laptop, head, workers, folder)
        found.seconds["hosts"] = time.monotonic() - began
        text = (ROOT / "clusters" / "onprem.yaml").read_text()
        for old, new in (
            ("192.0.2.10", head.address), ("192.0.2.11", workers[0].address), ("192.0.2.12", workers[1].address),
            ("ssh_user: ubuntu", "ssh_user: root"),
            ("# ssh_private_key: ~/.ssh/buttress", "ssh_private_key: ~/.ssh/id_ed25519"),
        ):  # fmt: skip
            assert old in text
            text = text.replace(old, new)
        if wheel is None:
            script = f'#!/bin/sh\nPYTHONPATH={ROOT} exec {HOME}/venv/bin/python -m buttress.cli.main "$@"'
            laptop.write(f"{HOME}/venv/bin/buttress", script, 0o755)
        else:
            text = _with_wheel(text, wheel.name)
            found.at = found.job_at = "~/own"
            (folder / "storage" / wheel.name).write_bytes(wheel.read_bytes())
            laptop.run(f"cp /mnt/{wheel.name} ~ && ~/venv/bin/pip install --quiet --no-deps ~/{wheel.name}")
            for name, content in (own or {}).items():
                laptop.write(f"{HOME}/own/{name}", content)
        laptop.write(f"{HOME}/onprem.yaml", text)
        laptop.write(f"{HOME}/get.py", GET)
        head.write(f"{HOME}/ask.py", ASK)
        laptop.run("buttress cluster token")
        yield found


def _with_wheel(text: str, wheel: str) -> str:
    """The shipped cluster file, changed to install a wheel in the laptop's home in place of the mounted checkout."""
    cluster = yaml.safe_load(text)
    mounts = {remote: local for remote, local in cluster["file_mounts"].items() if "/buttress/" not in remote}
    cluster["file_mounts"] = {**mounts, f"~/{wheel}": f"~/{wheel}", "~/own": "~/own"}
    commands = cluster["setup_commands"]
    (number,) = [number for number, command in enumerate(commands) if "pip install" in command]
    commands[number] = f"~/venv/bin/pip install --quiet --no-deps ~/{wheel}"
    return yaml.safe_dump(cluster, sort_keys=False)
