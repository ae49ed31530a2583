"""Connects a sweep to Ray: to a running cluster, or to one of its own that ends with the sweep."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from buttress.cache_folder import cache_folder
from buttress.compat.ray import bound_to_loopback, set_ray_environment, socket_below
from buttress.errors import BadInput
from buttress.execution import auth_token
from buttress.storage import first_line

NAMESPACE = "buttress"
#: Seconds for a cluster to answer at its address.
CONNECT_TIMEOUT_S = 10.0
ADDRESSES = "host:port of a running cluster's head, or auto on one of its nodes"
#: Characters that the path of a Unix socket may have.
MAX_SOCKET_PATH = 107


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
        if address and address != "local":
            _init_at(address, common)
        else:
            check_machine()
            with bound_to_loopback():
                ray.init(address="local", include_dashboard=False, **common)
    try:
        yield ray
    finally:
        ray.shutdown()


def check_machine(address: str | None = None) -> None:
    """Sees to what a Ray on this machine needs: a folder for temporary files, and a token that nobody else can read.

    Args:
        address: Of a running cluster, for which nothing is started here; None: this machine.

    Raises:
        BadInput: Ray cannot be started.
    """
    if (address and address != "local") or ("ray" in sys.modules and sys.modules["ray"].is_initialized()):
        return
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    folder = os.environ[name] if name else "/tmp"
    accepted = "RAY_TMPDIR=/a/short/folder that can be written to"
    if not Path(folder).is_absolute():
        raise BadInput("has to be an absolute path", key=name, value=folder, accepted=accepted)
    if len(os.fsencode(socket_below(folder))) > MAX_SOCKET_PATH:
        problem = f"is too long a path for Ray, whose sockets lie below it and may have {MAX_SOCKET_PATH} characters"
        raise BadInput(problem, key=name, value=folder, accepted=accepted)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        places = [place for place in (Path(folder), Path(folder, "ray")) if place.exists()]
        if not all(os.access(place, os.W_OK | os.X_OK) for place in places):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        problem = f"Ray cannot write there ({error.strerror})"
        raise BadInput(problem, key=name, value=folder, accepted=accepted) from None
    auth_token.ensure()


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
    elif address != "auto":
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
