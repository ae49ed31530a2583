"""Connects a sweep to Ray: to a running cluster, or to one of its own that ends with the sweep."""

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
    """Connects to Ray for the duration of the context and yields the module `ray`.

    Args:
        address: Address of a running cluster; None starts Ray on this machine. A process that is connected already
            stays so, whatever the address.
    """
    prepare_environment()
    import ray

    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it misses the result files that are switched off
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)  # and a snapshot, on a full disk, that nobody reads
    common: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": logging.ERROR}
    if ray.is_initialized():  # the caller's, left as it is
        yield ray
        return
    with _preserved_sigterm_handler():
        if address:
            ray.init(address=address, **common)
        else:
            ray.init(address="local", include_dashboard=False, **common)
    try:
        yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _preserved_sigterm_handler() -> Iterator[None]:
    """Keeps this process's own handler of SIGTERM, if it has one: `ray.init` would replace it by Ray's.

    Ray's drains the node for up to half a minute, then kills everything and leaves with exit code 1.
    """
    before = signal.getsignal(signal.SIGTERM)
    yield
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def wait_for_released_resources(ray: Any, timeout_s: float = 5.0) -> None:
    """Waits until all CPUs and GPUs of the cluster are free: a sweep that has just ended may still hold some.

    Args:
        ray: The module, connected.
        timeout_s: Seconds after which what is taken counts as taken for other reasons.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        free, total = ray.available_resources(), ray.cluster_resources()
        if all(free.get(kind, 0.0) >= total.get(kind, 0.0) - 1e-6 for kind in ("CPU", "GPU")):
            return
        time.sleep(0.2)


def free_resources(address: str | None = None) -> dict[str, float]:
    """CPUs and GPUs that a sweep would find free.

    Args:
        address: Of a running cluster; None: this machine, on which Ray is not started.

    Returns:
        Amounts of `CPU` and `GPU`.
    """
    prepare_environment()
    if address is None:
        import torch

        return {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
    with connected(address) as ray:
        free = ray.available_resources()
    return {kind: float(free.get(kind, 0.0)) for kind in ("CPU", "GPU")}
