"""How many slots a sweep has, and the pool's table of them under several threads; without Ray."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buttress.errors import BadInput
from buttress.execution.elasticity import describe_wait
from buttress.execution.messages import WorkerInfo
from buttress.execution.worker_pool import START_TIMEOUT_S, WorkerPool, resolve_concurrency
from buttress.spec.sections import Resources


@pytest.mark.parametrize(
    ("resources", "free", "expected"),
    [
        ({}, {"CPU": 2.0}, 2),
        ({"workers": 2}, {"CPU": 2.0}, 1),
        ({"workers": 2, "cpus_per_worker": 4.0, "gpus_per_worker": 1.0}, {"CPU": 64.0, "GPU": 7.0}, 3),
        ({"gpus_per_worker": 0.25}, {"CPU": 64.0, "GPU": 1.0}, 4),
        ({"concurrency": 1}, {"CPU": 8.0}, 1),
    ],
)
def test_concurrency_is_what_fits(resources: dict[str, Any], free: dict[str, float], expected: int) -> None:
    assert resolve_concurrency(Resources(**resources), [free]) == expected


@pytest.mark.parametrize(
    ("resources", "sentence"),
    [
        ({"workers": 3}, "resources.workers: a trial of 3 workers does not fit the cluster: it needs 3 CPUs and"),
        ({"gpus_per_worker": 1.0}, "gpus_per_worker: a trial of 1 worker does not fit the cluster: it needs 1 GPU and"),
        ({"concurrency": 5}, "resources.concurrency: no more than 2 trials of this size at once fit"),
    ],
)
def test_a_trial_that_does_not_fit_is_refused_before_the_start(resources: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput) as told:
        resolve_concurrency(Resources(**resources), [{"CPU": 2.0}])
    assert sentence in str(told.value)


def pool(folder: Path, count: int) -> WorkerPool:
    """A pool whose slots are not started."""
    return WorkerPool(None, count, Resources(), folder, fail=lambda error: None)


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads take turns after microseconds, so that what can come between two steps does."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_slots_may_be_added_while_other_threads_read_the_table(tmp_path: Path, eager_threads: None) -> None:
    """Nodes join (drain thread) while Tune asks how many slots are usable (main thread)."""
    made, faults = pool(tmp_path, 200), []

    def read() -> None:
        try:
            while len(made) < 600:
                made.slots_on({"n"})
                made.count_usable()
                made.count_waiting()
                made.pop_long_waiting()
        except BaseException as fault:
            faults.append(fault)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(400):
        made._create(1)
    for reader in readers:
        reader.join(60.0)
    assert faults == [] and len(made) == 600


def test_a_slot_counts_as_usable_while_its_workers_are_up_or_may_be_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pool(tmp_path, 3)
    now = time.monotonic()
    for name in ("slot-0", "slot-1", "slot-2"):
        made.mark_lost(name)
    made.mark_ready("slot-0", {0: WorkerInfo(1, "here", "n")})
    assert (made.count_usable(), made.count_waiting(), made.slots_on({"n"})) == (3, 2, ["slot-0"])
    monkeypatch.setattr(time, "monotonic", lambda: now + START_TIMEOUT_S + 1)
    assert made.count_usable() == 1 and made.pop_long_waiting() == ["slot-1", "slot-2"]
    assert made.pop_long_waiting() == []  # each wait is named once
    made.mark_ready("slot-1", {0: WorkerInfo(2, "there", "m")})
    assert (made.count_usable(), made.slots_on({"m", "n"})) == (2, ["slot-0", "slot-1"])


def test_a_slow_start_is_not_told_as_a_lack_of_room() -> None:
    needs, node = Resources(workers=2, cpus_per_worker=2, gpus_per_worker=1), {"CPU": 4.0, "GPU": 2.0}
    said = describe_wait("slot-0", needs, [node])
    assert said == "slot-0 is not up yet, though the cluster has room for it: its workers start slowly"
    said = describe_wait("slot-0", needs, [{"CPU": 1.5, "GPU": 2.0}])
    wanted, free = "2 times 2 CPU and 1 GPU", "1.5 CPU and 2 GPU"
    assert said == f"slot-0 waits for {wanted}, or for its workers to start: {free} are free now"
