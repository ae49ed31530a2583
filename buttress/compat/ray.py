"""The private and undocumented parts of Ray that Buttress uses, but for those of Ray Train (`ray_train`)."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
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


@contextlib.contextmanager
def bound_to_loopback() -> Iterator[None]:
    """A Ray that is started inside listens on 127.0.0.1 only, its metrics included; nodes cannot join it.

    Ray does so by itself on macOS and Windows. The public way, `_node_ip_address="127.0.0.1"`, does not: Ray takes that
    for the machine's address.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


#: Environment variables that hold credentials, by their names.
CREDENTIALS = re.compile("KEY|SECRET|TOKEN|PASSW|CREDENTIAL")


@contextlib.contextmanager
def credentials_kept_in_the_driver() -> Iterator[None]:
    """Tune hands no credentials of the driver's environment to the trial actors that it starts inside.

    It would put them into a runtime environment, which Ray writes into a log file that everybody can read.
    """
    from ray.tune.execution import class_cache

    before = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in before if not CREDENTIALS.search(name)}
    try:
        yield
    finally:
        class_cache.ENV_VARS_TO_PROPAGATE = before


def socket_below(folder: str) -> str:
    """The longest path of a socket of a Ray that is started with `folder` as its folder for temporary files."""
    return f"{folder}/ray/session_2026-12-01_00-00-00_000000_0000000/sockets/plasma_store"


def draining_nodes() -> frozenset[str]:
    """Ids (hex) of the nodes that are being drained: preempted, or idle for the autoscaler.

    The public `ray.nodes()` does not say so, and the State API needs the dashboard.
    """
    from ray._private import state

    return frozenset(state.state.get_draining_nodes())


def killed_for_memory(actor: Any) -> bool:
    """Whether Ray's memory monitor killed an actor (given by its handle) because its node ran out of memory."""
    from ray._private import state

    try:
        cause = state.state.actor_table(actor._actor_id.hex()).get("DeathCause")
    except Exception:  # Ray is shutting down, or has forgotten the actor
        return False
    return bool(cause is not None and cause.HasField("oom_context"))


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


#: Node providers for Ray's own tests and for other products; `ray up` is not used with them.
_INTERNAL_PROVIDERS = {"readonly", "fake_multinode", "fake_multinode_docker", "kuberay", "spark"}


@cache
def launcher_schema() -> dict[str, Any]:
    """Returns the JSON schema (draft 7) that `ray up` validates a cluster file with."""
    import ray.autoscaler

    schema: dict[str, Any] = json.loads((Path(str(ray.autoscaler.__file__)).parent / "ray-schema.json").read_text())
    return schema


def node_providers() -> list[str]:
    """Returns the names that `provider.type` of a cluster file may have."""
    from ray.autoscaler._private.providers import _NODE_PROVIDERS

    return sorted({*_NODE_PROVIDERS} - _INTERNAL_PROVIDERS)


def prepared_cluster_file(cluster: dict[str, Any]) -> dict[str, Any]:
    """Validates a cluster file as `ray up` does, without contacting anything.

    Args:
        cluster: The file's mapping; it keeps to `launcher_schema()`.

    Returns:
        The mapping with the provider's defaults, and `min_workers` and `max_workers` in every node type.

    Raises:
        ValueError: With Ray's own sentence about what it refuses.
    """
    from ray.autoscaler._private.util import prepare_config, validate_config

    with _in_rays_words():
        prepared: dict[str, Any] = prepare_config(copy.deepcopy(cluster))
        validate_config(prepared)
    return prepared


def check_kuberay_manifest(cluster: dict[str, Any]) -> None:
    """Reads a RayCluster manifest as the autoscaler on its head does at every turn.

    Raises:
        ValueError: With Ray's own sentence about what it cannot read.
    """
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr as derive

    with _in_rays_words():
        derive({**cluster, "metadata": {"namespace": "default", **cluster["metadata"]}})


def start_options() -> set[str]:
    """Returns the options of `ray start`, without their dashes."""
    from ray.scripts.scripts import start

    return {name.removeprefix("--") for option in start.params for name in option.opts}


def parse_start(words: Sequence[str]) -> dict[str, Any]:
    """Parses the words behind `ray start`.

    Returns:
        Option (`dashboard_host`) -> its value as text, or True for a flag; only those that are given.

    Raises:
        ValueError: With the sentence of `ray start` about what it refuses.
    """
    import click
    from ray.scripts.scripts import start

    try:
        given, extra, _ = start.make_parser(click.Context(start)).parse_args(list(words))
    except click.exceptions.UsageError as error:
        raise ValueError(f"`ray start` refuses it: {error.format_message()}") from None
    if extra:
        raise ValueError(f"`ray start` takes no arguments, and is given {' '.join(extra)}")
    return dict(given)


@contextlib.contextmanager
def _in_rays_words() -> Iterator[None]:
    """Turns whatever Ray's loaders raise, or print before they give up, into a ValueError of one line."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            yield
    except Exception as error:
        lines = [line for line in (*str(error).splitlines(), *printed.getvalue().splitlines()) if line.strip()]
        raise ValueError(lines[0] if lines else type(error).__name__) from None
