"""A cluster from `ray up` to `ray down` as docs/clusters.md describes it, on four hosts with an sshd each.

The file is clusters/onprem.yaml with the addresses and the login filled in. One host is the laptop, on which every
command is run; /mnt is the network storage. Trials have two workers, each as large as a host, so that every trial spans
both. Skipped where namespaces cannot be made; hosts.py says what that takes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hosts import HOME
from on_hosts import DASHBOARD, JOB, ROOT, Cluster, on_hosts, until

MOUNT = shutil.which("mount")
TRIALS = 2
pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster(hosts_allowed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Hosts with a cluster on them, brought up from the laptop as the documents say."""
    with on_hosts(tmp_path_factory.mktemp("hosts")) as found:
        assert "token authentication" in found.timed("check", "buttress cluster check ~/onprem.yaml")
        found.up()
        assert "Active" in found.timed("ray exec", "ray exec ~/onprem.yaml 'ray status'")
        yield found


@pytest.fixture(scope="module")
def tunnel(cluster: Cluster) -> Iterator[None]:
    with cluster.tunnel():
        yield


@pytest.fixture(scope="module")
def sweep(cluster: Cluster, tunnel: None) -> Path:
    """A quick sweep submitted as a job, seen through to its end; its folder on the shared storage."""
    run = "buttress run search_spaces/lithology.yaml --profile quick --out /mnt/runs --quiet"
    settings = cluster.quick(TRIALS, epochs=8)
    began = time.monotonic()
    cluster.submit("quick", f"{run} {settings}")
    cluster.seconds["job submit"] = time.monotonic() - began

    storage = cluster.folder / "storage" / "runs"
    journal: Path = until(lambda: next(iter(storage.glob("*/journal.jsonl")), None), "a journal on the storage", 60)
    try:
        until(lambda: '"line":"start"' in journal.read_text(), "a trial began", 90)
    except AssertionError:
        logs = cluster.laptop.run(f"{JOB} logs {DASHBOARD} quick", check=False)
        raise AssertionError(logs.stdout + logs.stderr) from None
    cluster.seconds["first trial began"] = time.monotonic() - began
    trained = {host.name: len(host.processes("RayTrainWorker")) for host in [cluster.head, *cluster.workers]}
    assert trained == {"head": 0, "worker1": 1, "worker2": 1}, "a trial's workers do not span both hosts"
    seen = cluster.laptop.run(f"cd {ROOT} && buttress status /mnt/runs/{journal.parent.name} --json").stdout
    assert json.loads(seen.splitlines()[-1])["sweep"] == journal.parent.name

    said = cluster.followed("quick")
    cluster.seconds["sweep"] = time.monotonic() - began
    assert "succeeded" in said.lower(), said
    return journal.parent


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        ("sys_admin", "unshare: unshare failed"), ("net_admin", "link add br0 type bridge"), ("setgid", "logged in to"),
        ("tmpfs", "mount -t tmpfs"), ("proc", "mount -t proc"), ("devpts", "mount -t devpts"),
    ],
)  # fmt: skip
def test_a_machine_that_refuses_what_hosts_are_made_of_is_told_what(
    refused: str, words: str, hosts_allowed: None, tmp_path: Path
) -> None:
    """A capability, or a kind of mount, that the machine withholds: the other tests are skipped with this sentence."""
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
        where = host.run("cd / && python -c 'import buttress; print(buttress.__file__)'").stdout.strip()
        assert where == f"{HOME}/buttress/buttress/__init__.py"
        assert host.run("stat -c %a ~/.ray/auth_token").stdout.strip() == "600"
    offered = {node["address"]: node.get("CPU", 0) for node in cluster.nodes()}
    assert offered[cluster.head.address] == 0 and all(offered[worker.address] >= 1 for worker in cluster.workers)


def test_a_script_of_ones_own_is_submitted_and_files_come_back(cluster: Cluster) -> None:
    cluster.laptop.write(f"{HOME}/mine.py", "import socket; print('I ran on', socket.gethostname())")
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
        codes[name] = laptop.run(f'python ~/get.py "{headers}"').stdout.strip()
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
