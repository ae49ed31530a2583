"""Checks a RayCluster manifest for KubeRay: misspelt keys, the token, `ray start` parameters, and resources."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from buttress.cluster.findings import WorkerNodes, schema_findings, unknown_keys
from buttress.compat.ray import check_kuberay_manifest, start_options
from buttress.errors import BadInput

GPU = "nvidia.com/gpu"
#: Fields of a cluster's spec and its groups (ray.io/v1). Kubernetes drops what is not one of its fields without a word.
_FIELDS = {
    "authOptions", "autoscalerOptions", "enableIngress", "enableInTreeAutoscaling", "gcsFaultToleranceOptions",
    "groupName", "headGroupSpec", "managedBy", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams",
    "rayVersion", "replicas", "resources", "scaleStrategy", "serviceType", "suspend", "template", "workerGroupSpecs",
}  # fmt: skip


def _mapping(required: str = "", **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required.split(), "properties": properties}


_TEXT, _WHOLE, _MAPPING = {"type": "string"}, {"type": "integer"}, {"type": "object"}
_ENV = {"type": "array", "items": _mapping("name", name=_TEXT, valueFrom=_MAPPING)}
_CONTAINER = _mapping(env=_ENV, resources=_mapping(limits=_MAPPING))
_POD = _mapping("containers", containers={"type": "array", "minItems": 1, "items": _CONTAINER})
_GROUP = {"rayStartParams": {**_MAPPING, "additionalProperties": _TEXT}, "template": _mapping("spec", spec=_POD)}
_REPLICAS = {"groupName": _TEXT, "minReplicas": _WHOLE, "maxReplicas": _WHOLE, "numOfHosts": _WHOLE}
_WORKERS = _mapping("groupName maxReplicas rayStartParams template", **_GROUP, **_REPLICAS)
_SPEC = _mapping(
    "rayVersion headGroupSpec workerGroupSpecs", authOptions=_MAPPING, autoscalerOptions=_mapping(env=_ENV),
    headGroupSpec=_mapping("rayStartParams template", **_GROUP),
    workerGroupSpecs={"type": "array", "minItems": 1, "items": _WORKERS},
)  # fmt: skip
_RAYCLUSTER = _mapping("metadata spec", apiVersion={"const": "ray.io/v1"}, metadata=_mapping("name"), spec=_SPEC)


def findings(cluster: dict[str, Any]) -> list[BadInput]:
    """Returns one finding per fault of a RayCluster, none for a good one."""
    if found := list(schema_findings(cluster, _RAYCLUSTER)) or list(unknown_keys(cluster["spec"], _FIELDS, "spec")):
        return found  # what follows relies on the manifest's shape
    try:
        check_kuberay_manifest(cluster)
    except ValueError as error:
        found = [BadInput(f"Ray's autoscaler cannot read the manifest: {error}", key="spec")]
    return list(_cluster(cluster["spec"])) or found


def description(cluster: dict[str, Any]) -> tuple[str, list[WorkerNodes], int]:
    """Returns the name of a manifest without findings, its worker groups, and its most workers."""
    nodes = []
    for group in cluster["spec"]["workerGroupSpecs"]:
        offers = {**group["template"]["spec"]["containers"][0]["resources"]["limits"], **group["rayStartParams"]}
        cpus, gpus = offers.get("num-cpus", offers["cpu"]), offers.get("num-gpus", offers.get(GPU, 0))
        count = group["maxReplicas"] * group.get("numOfHosts", 1)
        nodes.append(WorkerNodes(group["groupName"], _quantity(cpus), _quantity(gpus) or 0.0, count))
    return f"{cluster['metadata']['name']} on KubeRay", nodes, sum(kind.count for kind in nodes)


def _cluster(inside: dict[str, Any]) -> Iterator[BadInput]:
    groups = {f"spec.workerGroupSpecs.{number}": group for number, group in enumerate(inside["workerGroupSpecs"])}
    containers = {}
    if inside.get("enableInTreeAutoscaling"):
        containers["spec.autoscalerOptions"] = inside.get("autoscalerOptions") or {}
    elif any(group.get("minReplicas", 0) != group["maxReplicas"] for group in groups.values()):
        yield BadInput("is off, so no worker comes or goes", key="spec.enableInTreeAutoscaling", accepted="true")
    for key, group in {"spec.headGroupSpec": inside["headGroupSpec"], **groups}.items():
        container = containers[f"{key}.template.spec.containers.0"] = group["template"]["spec"]["containers"][0]
        yield from _group(group, (container.get("resources") or {}).get("limits") or {}, key)
    if (inside.get("authOptions") or {}).get("mode") == "token":
        return  # KubeRay from 1.5.1 makes the token itself
    for key, container in containers.items():
        entries = {entry["name"]: entry for entry in container.get("env") or []}
        token, mode = entries.get("RAY_AUTH_TOKEN", {}), entries.get("RAY_AUTH_MODE", {}).get("value", ...)
        if mode != "token":
            accepted = "RAY_AUTH_MODE with the value token"
            yield BadInput("starts Ray without token authentication", key=f"{key}.env", value=mode, accepted=accepted)
        if not ({"value", "valueFrom"} & set(token) or "RAY_AUTH_TOKEN_PATH" in entries):
            accepted = "RAY_AUTH_TOKEN from a secretKeyRef, or RAY_AUTH_TOKEN_PATH inside a mounted secret"
            yield BadInput("the container is not given the token", key=f"{key}.env", accepted=accepted)


def _group(group: dict[str, Any], limits: dict[str, Any], key: str) -> Iterator[BadInput]:
    """Start parameters, `limits` of the Ray container (the first of the pod), and the number of pods."""
    params = group["rayStartParams"]
    yield from unknown_keys(group, _FIELDS, key)
    yield from unknown_keys(params, start_options(), key, "rayStartParams")
    for name in ("cpu", "memory"):
        if _quantity(limits.get(name)) is None:
            problem, value = "is missing or no quantity: Ray would count all of the machine", limits.get(name, ...)
            yield BadInput(problem, key=f"{key}.template.spec.containers.0.resources.limits.{name}", value=value)
    for name, limit in (("object-store-memory", "memory"), ("num-cpus", "cpu"), ("num-gpus", GPU)):
        promised, there = _quantity(params.get(name)), _quantity(limits.get(limit, "0" if limit == GPU else None))
        if promised is not None and there is not None and promised > there:
            problem = f"is more than the container gets: resources.limits.{limit} is {limits.get(limit, 0)}"
            yield BadInput(problem, key=f"{key}.rayStartParams.{name}", value=params[name])
    minimum, maximum = group.get("minReplicas", 0), group.get("maxReplicas", 1)
    if maximum < max(1, minimum):
        yield BadInput("allows too few", key=f"{key}.maxReplicas", value=maximum, accepted=f"{max(1, minimum)} or more")


def _quantity(text: Any) -> float | None:
    """A Kubernetes quantity (`500m`, `16Gi`, 4) as a number; None where it is none."""
    units = {"": 1.0, "m": 1e-3, **{unit: 1000.0**power for power, unit in enumerate("kMGT", 1)}}
    units |= {f"{unit}i": 1024.0**power for power, unit in enumerate("KMGT", 1)}
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([a-zA-Z]*)", str(text))
    return float(match[1]) * units[match[2]] if match and match[2] in units else None
