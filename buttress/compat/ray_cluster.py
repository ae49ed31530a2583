"""The private and undocumented parts of Ray's cluster launcher that Buttress uses."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from buttress.errors import BadInput

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
        BadInput: For what `ray start` would refuse.
    """
    import click
    from ray.scripts.scripts import start

    try:
        given, extra, _ = start.make_parser(click.Context(start)).parse_args(list(words))
    except click.exceptions.NoSuchOption as error:
        close = ", ".join(error.possibilities or [])
        raise BadInput("unknown option of ray start", value=error.option_name, accepted=close or None) from None
    except click.exceptions.UsageError as error:
        raise BadInput(f"`ray start` refuses it: {error.message}") from None
    if extra:
        raise BadInput("is not an option of ray start", value=" ".join(extra))
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
