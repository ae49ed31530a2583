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
from buttress.compat.ray import set_ray_environment

NAMESPACE = "buttress"


def prepare_environment() -> None:
    """Sets what Ray reads when it is imported or started; what the user has set stays."""
    os.environ.setdefault("BUTTRESS_CACHE", str(cache_folder()))
    set_ray_environment()


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
