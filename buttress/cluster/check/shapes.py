"""Shapes of cluster files as JSON schemas, and what does not keep to them as sentences.

Ray's own schema (`ray-schema.json`) is read from the installed Ray. What it leaves open and the checks rely on is added
here, and so is the part of KubeRay's ray.io/v1 API that they look at.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from buttress.cluster.check.findings import Finding, misspelt, path_of, unknown
from buttress.errors import BadInput

_TEXT, _WHOLE, _ANY = {"type": "string"}, {"type": "integer"}, {"type": "object"}
_TEXTS = {"type": "array", "items": _TEXT}
_SAID = {
    "string": "a text", "integer": "a whole number", "number": "a number", "object": "a mapping (key: value)",
    "array": "a list", "boolean": "true or false", "null": "nothing",
}  # fmt: skip

#: Of a file for `ray up`, beside Ray's own schema.
LAUNCHER = {
    "properties": {
        "file_mounts": {"type": "object", "additionalProperties": _TEXT},
        "provider": {"properties": {"worker_ips": _TEXTS, "availability_zone": _TEXT}},
    }
}

_ENV = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": _TEXT,
            "value": _TEXT,
            "valueFrom": {"type": "object", "properties": {"secretKeyRef": _ANY}},
        },
    },
}
_CONTAINER = {
    "type": "object",
    "properties": {
        "image": _TEXT, "env": _ENV, "command": _TEXTS, "args": _TEXTS,
        "resources": {"type": "object", "properties": {"limits": _ANY, "requests": _ANY}},
        "volumeMounts": {"type": "array", "items": _ANY},
    },
}  # fmt: skip
_TEMPLATE = {
    "type": "object",
    "required": ["spec"],
    "properties": {
        "metadata": {"type": "object", "properties": {"annotations": _ANY}},
        "spec": {
            "type": "object",
            "required": ["containers"],
            "properties": {
                "containers": {"type": "array", "minItems": 1, "items": _CONTAINER},
                "volumes": {"type": "array", "items": _ANY},
            },
        },
    },
}


def _closed(required: list[str], properties: dict[str, Any], others: str) -> dict[str, Any]:
    """A mapping with these keys and no more; `others` are known but not looked at. Kubernetes drops unknown ones."""
    known = {**{key: {} for key in others.split()}, **properties}
    return {"type": "object", "required": required, "properties": known, "additionalProperties": False}


_GROUP = {"rayStartParams": {"type": "object", "additionalProperties": _TEXT}, "template": _TEMPLATE}
_HEAD = _closed(
    ["rayStartParams", "template"], {**_GROUP, "serviceType": _TEXT}, "enableIngress headService labels resources"
)
_WORKERS = _closed(
    ["groupName", "maxReplicas", "rayStartParams", "template"],
    {**_GROUP, "groupName": _TEXT, "minReplicas": _WHOLE, "maxReplicas": _WHOLE, "numOfHosts": _WHOLE},
    "idleTimeoutSeconds labels priority replicas resources scaleStrategy suspend",
)
_AUTOSCALER = _closed(
    [],
    {"env": _ENV, "idleTimeoutSeconds": _WHOLE},
    "envFrom image imagePullPolicy resources securityContext upscalingMode version volumeMounts",
)
#: Of a RayCluster.
RAYCLUSTER = {
    "type": "object",
    "required": ["apiVersion", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "metadata": {"type": "object", "required": ["name"], "properties": {"name": _TEXT}},
        "spec": _closed(
            ["rayVersion", "headGroupSpec", "workerGroupSpecs"],
            {
                "rayVersion": _TEXT,
                "autoscalerOptions": _AUTOSCALER,
                "authOptions": _ANY,
                "headGroupSpec": _HEAD,
                "workerGroupSpecs": {"type": "array", "minItems": 1, "items": _WORKERS},
            },
            "enableInTreeAutoscaling gcsFaultToleranceOptions headServiceAnnotations managedBy networkPolicy suspend "
            "tlsOptions upgradeStrategy",
        ),
    },
}


def rays_own() -> dict[str, Any]:
    """The schema that `ray up` validates with."""
    import ray.autoscaler

    schema: dict[str, Any] = json.loads((Path(str(ray.autoscaler.__file__)).parent / "ray-schema.json").read_text())
    return schema


def faults(tree: Any, schema: dict[str, Any]) -> Iterator[Finding]:
    """One finding per place where `tree` does not keep to `schema`."""
    import jsonschema

    for error in jsonschema.Draft7Validator(schema).iter_errors(tree):
        here, value, known = list(error.absolute_path), error.instance, set(error.schema.get("properties", {}))
        key = path_of(*here) or None
        match error.validator:
            case "additionalProperties":
                yield from (unknown(str(name), known, *here) for name in value if name not in known)
            case "required":
                missing = [name for name in error.validator_value if name not in value]
                told = [name for name in sorted(set(missing)) if not misspelt(name, value, known)]
                yield from (BadInput("is missing", key=path_of(*here, name)) for name in told)
            case "type":
                wanted = error.validator_value
                words = " or ".join(_SAID[each] for each in ([wanted] if isinstance(wanted, str) else wanted))
                quoted = wanted == "string" and isinstance(value, (int, float)) and not isinstance(value, bool)
                yield BadInput(f"has to be {words}", key=key, value=value, accepted=f'"{value}"' if quoted else None)
            case "minimum":
                yield BadInput(f"has to be at least {error.validator_value}", key=key, value=value)
            case "minItems":
                yield BadInput("is empty", key=key)
            case "const":
                yield BadInput("is not supported", key=key, value=value, accepted=str(error.validator_value))
            case _:
                yield BadInput(error.message[:1].lower() + error.message[1:], key=key)
