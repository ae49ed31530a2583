"""Connects a sweep to Ray: to a running cluster, or to one of its own that ends with the sweep."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from buttress.cache_folder import cache_folder
from buttress.compat.ray import set_ray_environment
from buttress.errors import BadInput
from buttress.storage import first_line

NAMESPACE = "buttress"
#: Seconds for a cluster to answer at its address.
CONNECT_TIMEOUT_S = 10.0
ADDRESSES = "host:port of a running cluster's head, or auto on one of its nodes"


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
            _init_at(address, common)
        else:
            ray.init(address="local", include_dashboard=False, **common)
    try:
        yield ray
    finally:
        ray.shutdown()


def _init_at(address: str, options: dict[str, Any]) -> None:
    """Connects to a running cluster, or says within `CONNECT_TIMEOUT_S` why it cannot.

    Ray itself tries for up to 14 minutes where nobody answers.

    Raises:
        BadInput: Nothing answers there, or what answers is no Ray cluster.
    """
    import ray

    def refused(problem: str) -> BadInput:
        return BadInput(problem, where="--address, or RAY_ADDRESS", value=address, accepted=ADDRESSES)

    host, colon, port = address.rpartition(":")
    if "://" in address:
        raise refused("Ray Client addresses are not supported")
    if colon and port.isdecimal() and int(port) < 1 << 16:
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
        except OSError as error:
            raise refused(f"nothing answers there ({first_line(error)})") from None
        if not os.environ.get("RAY_USE_TLS") and not _speaks_grpc(address):
            raise refused("what answers there is not a Ray cluster")
    elif address not in ("auto", "local"):
        raise refused("not an address")
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise refused(f"Ray cannot connect: {first_line(error)}") from error


def _speaks_grpc(address: str) -> bool:
    import grpc

    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(CONNECT_TIMEOUT_S)
        except grpc.FutureTimeoutError:
            return False
    return True


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
