"""The Ray that a sweep runs on: a cluster that is there, or one of its own that ends with it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from buttress.cache_folder import cache_folder

NAMESPACE = "buttress"
#: Environment of the driver, and so of every Ray process it starts; read when Ray is imported or started.
RAY_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal is the log; Tune's loggers halve its result rate
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: close the slots, keep the journal
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # a sweep is resumed from its journal, not from Tune
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}


def prepare_environment() -> None:
    """Sets what Ray reads when it is imported or started; what the user has set stays."""
    os.environ.setdefault("BUTTRESS_CACHE", str(cache_folder()))
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def connected(address: str | None = None) -> Iterator[Any]:
    """`ray`, connected: to what this process uses already, to the cluster at `address`, or to a new one of its own."""
    prepare_environment()
    import ray

    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it misses the result files that are switched off
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)  # and a snapshot, on a full disk, that nobody reads
    common: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": logging.ERROR}
    if ray.is_initialized():  # somebody else's, left as it is
        yield ray
        return
    with _own_sigterm():
        if address:
            ray.init(address=address, **common)
        else:
            ray.init(address="local", include_dashboard=False, **common)
    try:
        yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keeps this process's own reaction to SIGTERM, if it has one: `ray.init` would put Ray's in its place.

    Ray's drains the node for up to half a minute, then kills everything and leaves with exit code 1.
    """
    before = signal.getsignal(signal.SIGTERM)
    yield
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def settled_resources(ray: Any, wait_s: float = 5.0) -> dict[str, float]:
    """What is free on the cluster, once a sweep that has just ended has given back what it held.

    A cluster that is partly taken for other reasons is waited for in vain, for `wait_s`.
    """
    deadline = time.monotonic() + wait_s
    while True:
        free, total = ray.available_resources(), ray.cluster_resources()
        taken = any(free.get(kind, 0.0) < total.get(kind, 0.0) - 1e-6 for kind in ("CPU", "GPU"))
        if not taken or time.monotonic() > deadline:
            return dict(free)
        time.sleep(0.2)


def free_resources(address: str | None = None) -> dict[str, float]:
    """CPUs and GPUs that a sweep would find: of the cluster at `address`, else of this machine (no Ray is started)."""
    prepare_environment()
    if address is None:
        import torch

        return {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
    with connected(address) as ray:
        free = ray.available_resources()
    return {kind: float(free.get(kind, 0.0)) for kind in ("CPU", "GPU")}
