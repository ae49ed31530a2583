"""A Ray Train trainer that its driver can kill; uses private parts of Ray Train. Importing it imports Ray Train."""

from __future__ import annotations

import contextlib
from typing import Any

from buttress.compat.ray import cancel_autoscaler_requests, set_ray_environment

set_ray_environment()  # Ray Train reads it when it is imported

import ray  # noqa: E402
from ray.train.torch import TorchTrainer  # noqa: E402
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
