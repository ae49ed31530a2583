"""A Ray Train trainer that its driver can kill; uses private parts of Ray Train. Importing it imports Ray Train."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import sys
from datetime import timedelta
from typing import Any

from buttress.compat.ray import cancel_autoscaler_requests, set_ray_environment

set_ray_environment()  # Ray Train reads it when it is imported

import ray  # noqa: E402
from ray.train.torch import TorchConfig, TorchTrainer  # noqa: E402
from ray.train.torch import config as torch_config  # noqa: E402
from ray.train.v2._internal.constants import get_env_vars_to_propagate  # noqa: E402
from ray.train.v2._internal.execution.controller import TrainController  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

#: Ray Train's callbacks that a warm slot does without; each costs a helper process of about 120 MB per slot.
UNUSED_CALLBACKS = frozenset({"PlacementGroupCleanerCallback", "DatasetsCallback"})


class ControllableTrainer(TorchTrainer):
    """A `TorchTrainer` whose `fit`, running in another thread, can be ended by `kill`, without two unused helpers.

    The placement group cleaner is a detached actor that asks the State API whether its controller lives; without the
    dashboard it never hears an answer and stays for ever. Slots are closed by their driver, and Ray itself removes a
    placement group whose owner died. The datasets manager serves Ray Data, which no trainable here uses.
    """

    _controller: Any = None
    _killed = False
    _run_id = ""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]
        return [callback for callback in callbacks if type(callback).__name__ not in UNUSED_CALLBACKS]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        """Ray Train's own method, but the controller's handle is kept for `kill`."""
        env = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0", **get_env_vars_to_propagate()}
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": here, "runtime_env": {"env_vars": env}}
        self._run_id = settings["train_run_context"].run_id
        self._controller = ray.remote(**options)(TrainController).remote(**settings)
        if self._killed:
            self.kill()
        try:
            ray.get(self._controller.run.remote())
            return ray.get(self._controller.get_result.remote())
        finally:  # its process (390 MB) would stay for as long as anybody holds this trainer
            with contextlib.suppress(Exception):
                ray.kill(self._controller)

    def kill(self) -> None:
        """Makes `fit` raise, whatever it is waiting for; Ray ends the workers and removes their placement group."""
        self._killed = True
        if self._controller is not None:
            ray.kill(self._controller)

    @staticmethod
    def cancel_requests(trainers: list[ControllableTrainer]) -> None:
        """Withdraws what killed trainers have asked the autoscaler for (`cancel_autoscaler_requests`)."""
        cancel_autoscaler_requests([trainer._run_id for trainer in trainers if trainer._run_id])


class SlotTorchConfig(TorchConfig):
    """A `TorchConfig` whose ranks meet on loopback where Ray itself is bound to it (`bound_to_loopback`)."""

    @property
    def backend_cls(self) -> type[torch_config._TorchBackend]:
        return SlotTorchBackend


class SlotTorchBackend(torch_config._TorchBackend):
    """Ray Train's backend for torch, but for where the store of the ranks and gloo listen on a machine of its own.

    The store that torch makes by itself listens on all interfaces and asks for no token.
    """

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Sets up the process group of all workers."""
        if not ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback:
            super().on_start(worker_group, backend_config)
            return
        worker_group.execute(_meet_on_loopback)
        names = vars(torch_config)
        before = names["get_address_and_port"]
        names["get_address_and_port"] = _start_store  # what rank 0 is asked for
        try:
            super().on_start(worker_group, backend_config)
        finally:
            names["get_address_and_port"] = before


#: The store that this process serves; it ends with the process.
_store: Any = None


def _meet_on_loopback() -> None:
    """In every worker: torch uses the store that rank 0 has started, and gloo the loopback interface."""
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform.startswith("linux") else "lo0")


def _start_store() -> tuple[str, int]:
    """In rank 0: starts the store of the ranks on loopback, and returns its address and port."""
    global _store
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    listener = socket.create_server(("127.0.0.1", 0))
    address, port = listener.getsockname()
    _store = TCPStore(
        address, port, is_master=True, timeout=timedelta(minutes=30), wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )  # fmt: skip
    return str(address), int(port)
