"""The private and undocumented parts of Ray that Buttress uses, but for those of Ray Train (`ray_train`)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from typing import Any

#: Environment variables of the driver, and so of every Ray process that it starts; Ray reads them when it is imported
#: or started. Most are documented nowhere.
RAY_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal is the log; Tune's loggers halve its result rate
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is the driver's: it closes the slots and keeps the journal
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # a sweep is resumed from its journal, not from Tune
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # saves a helper process of 118 MB per slot
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # a dead worker is noticed a second earlier
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}

#: Name and namespace of the actor through which libraries ask Ray's autoscaler for nodes.
AUTOSCALING_COORDINATOR = "AutoscalingCoordinator"


def set_ray_environment() -> None:
    """Sets `RAY_ENVIRONMENT` before Ray is imported; what the user has set stays."""
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def draining_nodes() -> frozenset[str]:
    """Ids (hex) of the nodes that are being drained: preempted, or idle for the autoscaler.

    The public `ray.nodes()` does not say so, and the State API needs the dashboard.
    """
    from ray._private import state

    return frozenset(state.state.get_draining_nodes())


def free_resources_per_node() -> dict[str, dict[str, float]]:
    """Node id (hex) -> resource -> amount that is free; the public `ray.available_resources()` only gives the sum."""
    from ray._private import state

    return {node: dict(free) for node, free in state.available_resources_per_node().items()}


def train_requester_id(run_id: str) -> str:
    """The name under which a Ray Train run asks the autoscaling coordinator for resources."""
    return f"train-{run_id}"


def cancel_autoscaler_requests(run_ids: Iterable[str], timeout_s: float = 5.0) -> None:
    """Withdraws what Ray Train runs whose controllers were killed have asked the autoscaler for.

    A controller that ends by itself does so; the requests of a killed one would hold nodes for three minutes more.
    Does nothing where nothing was asked for, or Ray is shutting down.
    """
    import ray

    with contextlib.suppress(Exception):
        coordinator = ray.get_actor(AUTOSCALING_COORDINATOR, namespace=AUTOSCALING_COORDINATOR)
        pending: list[Any] = [
            coordinator.cancel_request.remote(requester_id=train_requester_id(run_id)) for run_id in run_ids
        ]
        ray.wait(pending, num_returns=len(pending), timeout=timeout_s)


def tune_actor_manager() -> Any:
    """The class whose `add_actor` Tune calls for every trial actor; a benchmark counts the calls."""
    from ray.air.execution._internal.actor_manager import RayActorManager

    return RayActorManager


# ------------------------------------------------------------------------------------------------ cluster launcher


def node_providers() -> frozenset[str]:
    """The values of `provider.type` that `ray up` knows."""
    from ray.autoscaler._private.providers import _NODE_PROVIDERS

    return frozenset(_NODE_PROVIDERS)


def prepare_cluster_config(config: dict[str, Any]) -> dict[str, Any]:
    """The content of a cluster file as `ray up` uses it: with Ray's defaults, and the limits of every node type."""
    from ray.autoscaler._private.util import prepare_config

    prepared: dict[str, Any] = prepare_config(config)
    return prepared


def validate_cluster_config(prepared: dict[str, Any]) -> None:
    """Raises what `ray up` raises for a prepared cluster file."""
    from ray.autoscaler._private.util import validate_config

    validate_config(prepared)


def autoscaling_config_of(raycluster: Mapping[str, Any]) -> dict[str, Any]:
    """The autoscaler's configuration that Ray derives from a RayCluster manifest of KubeRay; raises what Ray raises."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    derived: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(dict(raycluster))
    return derived
