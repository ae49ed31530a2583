"""Workers that compute, read or write are told from workers that hang, whatever their interpreter lets them say."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buttress.execution.activity import ActivityProbe, read_activity, was_active
from buttress.execution.messages import WorkerInfo

HUNG_ALL_REDUCE = """
import sys, threading, time, torch, torch.distributed as dist
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
print(threading.get_native_id(), flush=True)
if rank == 1:
    time.sleep(600)
dist.all_reduce(torch.ones(1000))
"""
PRINT_THREAD = "import threading; print(threading.get_native_id(), flush=True)\n"
SLOW_STORAGE = """
import socket, threading, time
server, client = socket.socketpair()
def serve():
    while True:
        server.send(b"x" * 100)
        time.sleep(0.1)
threading.Thread(target=serve, daemon=True).start()
while True:
    client.recv(100)
"""
CHILD_COMPUTES = """
import subprocess, sys
subprocess.run([sys.executable, "-c", "while True: pass"])
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


def workers(processes: list[subprocess.Popen[str]]) -> list[tuple[int, int]]:
    """Process ids and native ids of the main threads, once each process has printed its own."""
    return [(process.pid, int(process.stdout.readline())) for process in processes if process.stdout is not None]


@pytest.fixture
def end() -> Iterator[Any]:
    import psutil

    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            each.kill()
        process.wait()


def test_what_counts_as_activity(end: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    cases = {
        "sleeps": [PRINT_THREAD + "import time; time.sleep(600)"],
        "spins in C and keeps the interpreter's lock": [PRINT_THREAD + "sum(range(10**15))"],
        "reads from slow storage, 1 kB a second": [PRINT_THREAD + SLOW_STORAGE],
        "waits for a child that computes": [PRINT_THREAD + CHILD_COMPUTES],
    }
    groups = {name: [start(*codes)] for name, codes in cases.items()}
    groups["hung all-reduce"] = [start(HUNG_ALL_REDUCE, str(rank), str(tmp_path / "store")) for rank in (0, 1)]
    end += [process for group in groups.values() for process in group]
    found = {name: workers(group) for name, group in groups.items()}
    time.sleep(0.5)
    before = {name: read_activity(group) for name, group in found.items()}
    began = time.monotonic()
    time.sleep(1.5)
    after = {name: read_activity(group) for name, group in found.items()}
    seconds = time.monotonic() - began
    active = {name for name in groups if was_active(before[name], after[name], seconds)}
    assert active == set(cases) - {"sleeps"}


def test_a_process_that_is_gone_does_nothing(end: list[subprocess.Popen[str]]) -> None:
    process = start(PRINT_THREAD)
    gone = workers([process])
    process.wait()
    assert not was_active(read_activity(gone), read_activity(gone), 1.0)
    assert [each.dead for each in read_activity([*gone, (os.getpid(), 0)])] == [True, False]


@pytest.mark.parametrize("elsewhere", [False, True], ids=["on the driver's node", "on another node"])
def test_a_node_is_asked(ray_cluster: Any, end: list[subprocess.Popen[str]], elsewhere: bool) -> None:
    import ray

    node = ray.get_runtime_context().get_node_id()
    end += [start(PRINT_THREAD + "while True: pass"), start(PRINT_THREAD + "import time; time.sleep(600)")]
    (spinning, one), (sleeping, two) = workers(end)
    silent = {
        "spins": [WorkerInfo(spinning, "here", node, thread=one)],
        "sleeps": [WorkerInfo(sleeping, "here", node, thread=two)],
    }
    probe = ActivityProbe(0.5, node="the driver's" if elsewhere else None)
    deadline = time.monotonic() + 60
    found: set[str] = set()
    while not found and time.monotonic() < deadline:
        found |= set(probe.find_active(silent))
        time.sleep(0.05)
    assert found == {"spins"}
    assert probe.find_active({}) == []
