"""A cluster's whole life, as docs/clusters.md tells it: four hosts with sshd, `ray up`, a sweep, `ray down`.

The file is clusters/onprem.yaml with the addresses and the login filled in. One host is the laptop that everything is
typed on; /mnt stands for network storage. Trials have two workers, each as large as a host, so that every trial spans
both. Skipped where namespaces cannot be made; what that takes stands in hosts.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from hosts import Host, hosts, lacking

ROOT = Path(__file__).parents[1]
MOUNT = shutil.which("mount")
TRIALS = 2
#: Processes of Ray, by what their command line holds.
OF_RAY = ("raylet", "gcs_server", "ray::", "ray/dashboard", "ray/_private", "ray/autoscaler", "ray/util")
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
pytestmark = pytest.mark.cluster


@dataclass
class Cluster:
    """Four hosts; `seconds` keeps how long each step took."""

    laptop: Host
    head: Host
    workers: list[Host]
    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def timed(self, step: str, line: str, timeout: float = 120.0) -> str:
        began = time.monotonic()
        done = self.laptop.run(f"cd {ROOT} && {line}", timeout=timeout)
        self.seconds[step] = time.monotonic() - began
        return done.stdout

    def nodes(self) -> list[dict[str, Any]]:
        """What Ray says of its live nodes, asked on the head."""
        asked = self.head.run("RAY_AUTH_MODE=token python /root/ask.py", timeout=60, check=False)
        return json.loads(asked.stdout) if asked.returncode == 0 else []

    def left(self) -> list[str]:
        everywhere = [self.laptop, self.head, *self.workers]
        return [f"{host.name}: {title[:160]}" for host in everywhere for title in host.processes()
                if any(word in title for word in OF_RAY)]  # fmt: skip


def until(true: Callable[[], Any], what: str, seconds: float, instead: Callable[[], Any] = str) -> Any:
    """Waits until `true` is, and returns what it says; fails after `seconds`, and tells what is there `instead`."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what} {instead()}"
        time.sleep(0.5)
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Hosts with a cluster on them, brought up from the laptop as the documents say."""
    if reason := lacking():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("hosts")
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
        laptop.write("/root/onprem.yaml", text)
        script = f'#!/bin/sh\nPYTHONPATH={ROOT} exec /root/venv/bin/python -m sweep.cli "$@"'
        laptop.write("/root/venv/bin/buttress", script, 0o755)
        laptop.write("/root/get.py", GET)
        head.write("/root/ask.py", ASK)
        laptop.run("buttress cluster token")
        assert "token authentication" in found.timed("check", "buttress cluster check ~/onprem.yaml")
        found.timed("ray up", "ray up --yes --disable-usage-stats ~/onprem.yaml", timeout=180)
        began = time.monotonic()
        until(lambda: len(found.nodes()) == 3, "both workers joined", 120, lambda: _monitor(head))
        found.seconds["workers join"] = time.monotonic() - began
        assert "Active" in found.timed("ray exec", "ray exec ~/onprem.yaml 'ray status'")
        yield found


def _monitor(head: Host) -> str:
    return head.run("tail -n 20 /tmp/ray/session_latest/logs/monitor.log", check=False).stdout


@pytest.fixture(scope="module")
def tunnel(cluster: Cluster) -> Iterator[None]:
    """The laptop's port 8265, brought to the head's loopback by `ray dashboard`."""
    process = cluster.laptop.start(f"cd {ROOT} && exec ray dashboard ~/onprem.yaml", cluster.folder / "tunnel.log")
    answer = "python /root/get.py '{}' 2>/dev/null"
    until(lambda: cluster.laptop.run(answer, check=False).stdout.strip(), "the dashboard's tunnel", 30)
    yield
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def sweep(cluster: Cluster, tunnel: None) -> Path:
    """A quick sweep submitted as a job, seen through to its end; its folder on the shared storage."""
    cpus = int(min(node["CPU"] for node in cluster.nodes() if node["address"] != cluster.head.address))
    settings = [
        f"budget.trials={TRIALS}", "resources.workers=2", f"resources.cpus_per_worker={cpus}", "scheduler.kind=fifo",
        "config.train.epochs=8", "config.loss.beta=0.3", "wandb.mode=disabled",
    ]  # fmt: skip
    run = "buttress run search_spaces/lithology.yaml --profile quick --out /mnt/runs --quiet "
    run += " ".join(f"--set {setting}" for setting in settings)
    job = "ray job submit --address http://127.0.0.1:8265 --no-wait --submission-id quick"
    began = time.monotonic()
    cluster.laptop.run(f"RAY_AUTH_MODE=token {job} -- bash -c 'cd ~/buttress && {run}'")
    cluster.seconds["job submit"] = time.monotonic() - began

    storage = cluster.folder / "storage" / "runs"
    journal: Path = until(lambda: next(iter(storage.glob("*/journal.jsonl")), None), "a journal on the storage", 60)
    try:
        until(lambda: '"line":"start"' in journal.read_text(), "a trial began", 90)
    except AssertionError:
        logs = cluster.laptop.run("RAY_AUTH_MODE=token ray job logs --address http://127.0.0.1:8265 quick", check=False)
        raise AssertionError(logs.stdout + logs.stderr) from None
    cluster.seconds["first trial began"] = time.monotonic() - began
    trained = {host.name: len(host.processes("RayTrainWorker")) for host in [cluster.head, *cluster.workers]}
    assert trained == {"head": 0, "worker1": 1, "worker2": 1}, "a trial's workers do not span both hosts"
    seen = cluster.laptop.run(f"cd {ROOT} && buttress status /mnt/runs/{journal.parent.name} --json").stdout
    assert json.loads(seen.splitlines()[-1])["sweep"] == journal.parent.name

    follow = "RAY_AUTH_MODE=token ray job logs --address http://127.0.0.1:8265 --follow quick"  # until the job's end
    said = cluster.laptop.run(follow, timeout=120)
    cluster.seconds["sweep"] = time.monotonic() - began
    assert "succeeded" in (said.stdout + said.stderr).lower(), said.stdout + said.stderr
    return journal.parent


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        ("sys_admin", "unshare: unshare failed"), ("net_admin", "link add br0 type bridge"), ("setgid", "logged in to"),
        ("tmpfs", "mount -t tmpfs"), ("proc", "mount -t proc"), ("devpts", "mount -t devpts"),
    ],
)  # fmt: skip
def test_a_machine_that_refuses_what_hosts_are_made_of_is_told_what(refused: str, words: str, tmp_path: Path) -> None:
    """A capability, or a kind of mount, that the machine withholds: the other tests are skipped with this sentence."""
    if reason := lacking():
        pytest.skip(reason)
    environment, withhold = dict(os.environ), []
    if "_" in refused or refused == "setgid":
        withhold = ["setpriv", f"--bounding-set=-{refused}", f"--inh-caps=-{refused}"]
    else:
        (tmp_path / "mount").write_text(
            f'#!/bin/sh\ncase "$*" in *"-t {refused}"*) exit 32;; esac\nexec {MOUNT} "$@"\n'
        )
        (tmp_path / "mount").chmod(0o755)
        environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    asked = subprocess.run(
        [*withhold, sys.executable, "-c", "import hosts; print(hosts.lacking())"],
        cwd=Path(__file__).parent, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert words in asked.stdout and asked.returncode == 0, asked.stdout + asked.stderr


def test_the_nodes_run_the_code_that_was_mounted_and_the_head_trains_nothing(cluster: Cluster) -> None:
    for host in (cluster.head, *cluster.workers):
        where = host.run("cd / && python -c 'import sweep; print(sweep.__file__)'").stdout.strip()
        assert where == "/root/buttress/sweep/__init__.py"
        assert host.run("stat -c %a ~/.ray/auth_token").stdout.strip() == "600"
    offered = {node["address"]: node.get("CPU", 0) for node in cluster.nodes()}
    assert offered[cluster.head.address] == 0 and all(offered[worker.address] >= 1 for worker in cluster.workers)


def test_a_script_of_ones_own_is_submitted_and_files_come_back(cluster: Cluster) -> None:
    cluster.laptop.write("/root/mine.py", "import socket; print('I ran on', socket.gethostname())")
    assert "I ran on head" in cluster.timed("ray submit", "ray submit ~/onprem.yaml ~/mine.py")
    cluster.timed("rsync-down", "ray rsync-down ~/onprem.yaml ~/buttress/pyproject.toml ~/fetched.toml")
    assert cluster.laptop.run("cat ~/fetched.toml").stdout == (ROOT / "pyproject.toml").read_text()


def test_without_the_token_nobody_gets_in(cluster: Cluster, tunnel: None) -> None:
    laptop, address = cluster.laptop, f"{cluster.head.address}:6379"
    for settings in ("RAY_AUTH_MODE=token RAY_AUTH_TOKEN=0123", "RAY_AUTH_MODE=disabled"):
        asked = laptop.run(f"{settings} ray status --address {address}", check=False, timeout=60)
        assert asked.returncode != 0 and "Active" not in asked.stdout, asked.stdout
    assert "Active" in laptop.run(f"RAY_AUTH_MODE=token ray status --address {address}").stdout
    token = laptop.run("cat ~/.ray/auth_token").stdout.strip()
    codes = {}
    for name, headers in (("none", {}), ("wrong", {"Authorization": "Bearer 0123"}),
                          ("right", {"Authorization": f"Bearer {token}"})):  # fmt: skip
        codes[name] = laptop.run(f'python /root/get.py "{headers}"').stdout.strip()
    assert codes == {"none": "401", "wrong": "403", "right": "200"}
    job = laptop.run("ray job submit --address http://127.0.0.1:8265 -- true", check=False)
    assert job.returncode != 0
    probe = f"import socket; socket.create_connection(('{cluster.head.address}', 8265), 3)"
    assert "refused" in laptop.run(f'python -c "{probe}"', check=False).stderr  # the head's loopback only


def test_the_sweep_is_read_and_exported_on_the_laptop(cluster: Cluster, sweep: Path) -> None:
    rows = json.loads(cluster.timed("table", f"buttress table /mnt/runs/{sweep.name} --all --json").splitlines()[-1])
    assert [row["outcome"] for row in rows] == ["completed"] * TRIALS
    assert [row["config.buttress.workers"] for row in rows] == [2] * TRIALS
    best = max(rows, key=lambda row: row["metric.val/ari"])
    done = cluster.laptop.run(f"buttress export /mnt/runs/{sweep.name} -o ~/best.yaml --weights")
    assert done.stdout.count("wrote") == 2
    config = yaml.safe_load(cluster.laptop.run("cat ~/best.yaml").stdout)
    assert config["train"]["lr"] == best["config.train.lr"] and config["loss"]["beta"] == 0.3


def test_data_are_staged_once_on_each_node_that_trains(cluster: Cluster, sweep: Path) -> None:
    """Both trials' data come from one cache on each node, and its entries were written before the second began."""
    rows = [json.loads(line) for line in (sweep / "journal.jsonl").read_text().splitlines()]
    second = [row["time"] for row in rows if row["line"] == "start"][-1]
    look = "find ~/buttress /tmp/ray -path '*/.cache/buttress/*' -name manifest.json -printf '%T@ %h\\n'"
    for worker in cluster.workers:
        made = [line.split() for line in worker.run(look).stdout.splitlines()]
        assert made and len({Path(entry).parent for _, entry in made}) == 1, made
        assert all(float(written) < second for written, _ in made), made
    assert not cluster.head.run(look).stdout  # it trains nothing


def test_ray_down_leaves_nothing_and_the_sweep_can_still_be_read(
    cluster: Cluster, sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.timed("ray down", "ray down --yes ~/onprem.yaml")
    began = time.monotonic()
    nodes = lambda: [title for title in cluster.left() if "raylet" in title or "gcs_server" in title]  # noqa: E731
    until(lambda: not nodes(), "the workers left by themselves, but for", 60, nodes)
    cluster.seconds["workers leave"] = time.monotonic() - began
    for worker in cluster.workers:  # two helpers of a node try for a minute to tell the head of its end
        cluster.laptop.run(f"ssh -o StrictHostKeyChecking=no {worker.address} '~/venv/bin/ray stop'")
    until(lambda: not cluster.left(), "all of Ray gone, but for", 20, cluster.left)
    cluster.seconds["all gone"] = time.monotonic() - began
    rows = json.loads(cluster.laptop.run(f"buttress table /mnt/runs/{sweep.name} --json").stdout.splitlines()[-1])
    assert len(rows) == TRIALS
    with capsys.disabled():
        print("\n" + ", ".join(f"{step} {seconds:.1f} s" for step, seconds in cluster.seconds.items()))
