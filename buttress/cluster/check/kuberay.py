"""A RayCluster manifest for KubeRay, judged: groups, containers, what `ray start` gets, and who may log in.

The operator writes the start commands itself, from each group's `rayStartParams` and the container's own command, with
the limit of open files raised; what is left to the manifest is judged here, and at the end Ray's own reading of it.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from typing import Any

from buttress.cluster.check import starts
from buttress.cluster.check.capacity import Nodes, fits
from buttress.cluster.check.findings import Finding, path_of, unknown
from buttress.cluster.check.shapes import RAYCLUSTER, faults
from buttress.compat.ray import autoscaling_config_of
from buttress.errors import BadInput

LONGEST_IDLE_S = 3600
OVERWRITE = "ray.io/overwrite-container-cmd"
GENERATED = "KUBERAY_GEN_RAY_START_CMD"
GPU = "nvidia.com/gpu"


def check(documents: list[dict[str, Any]], spec: Any = None) -> list[Finding]:
    """Findings of a manifest's documents, of which one is a RayCluster. `spec`: a sweep that is to fit it."""
    found = [_secret(each) for each in documents if each.get("kind") == "Secret" and holds_values(each)]
    cluster = raycluster(documents)
    shape = list(faults(cluster, RAYCLUSTER))
    found += shape
    if shape:  # nothing below can rely on the manifest's shape
        return found
    inside = cluster["spec"]
    for key, group in groups(cluster):
        found += _group(group, key, inside)
        if "groupName" in group:
            found += _replicas(group, key)
    found += _autoscaling(inside)
    found += _version(inside)
    if not found:
        found = _rays_own(cluster)
    if not found and spec is not None:
        found = fits(*_largest(inside), spec)
    return found


def raycluster(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return next(each for each in documents if each.get("kind") == "RayCluster")


def groups(cluster: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Key path and spec of the head group and of every worker group."""
    yield "spec.headGroupSpec", cluster["spec"]["headGroupSpec"]
    for number, group in enumerate(cluster["spec"]["workerGroupSpecs"]):
        yield path_of("spec.workerGroupSpecs", number), group


def holds_values(secret: dict[str, Any]) -> bool:
    return bool(secret.get("data") or secret.get("stringData"))


def _secret(document: dict[str, Any]) -> Finding:
    name = (document.get("metadata") or {}).get("name", "Secret")
    accepted = "a Secret made by `kubectl create secret generic NAME --from-file=auth_token=...`"
    return BadInput("a secret stands in the file", key=path_of("Secret", name), accepted=accepted)


# --- what the groups start -----------------------------------------------------------------------------------------


def _group(group: dict[str, Any], key: str, inside: dict[str, Any]) -> Iterator[Finding]:
    head = key.endswith("headGroupSpec")
    container = group["template"]["spec"]["containers"][0]
    here = path_of(key, "template.spec.containers.0")
    params = {name.replace("-", "_"): value for name, value in group["rayStartParams"].items()}
    environment = {each["name"]: each.get("value", "") for each in container.get("env") or [] if "name" in each}
    if not _by_operator(inside):
        volumes = group["template"]["spec"].get("volumes") or []
        yield from _authentication(container, volumes, here)
    if strange := list(_params(group["rayStartParams"], path_of(key, "rayStartParams"))):
        yield from strange
        return
    store = path_of(key, "rayStartParams", "object-store-memory")
    problems = starts.object_store(params, store)
    yield from problems
    if head:
        host = params.get("dashboard_host", "0.0.0.0")  # KubeRay's default, not Ray's
        yield from starts.dashboard(host, path_of(key, "rayStartParams.dashboard-host"))
        yield from _exposed(group, key)
    off = {**params, "disable_usage_stats": params.get("disable_usage_stats") == "true"}
    if found := starts.usage(off, environment, path_of(here, "env")):
        yield BadInput(found[0].problem, key=path_of(here, "env"), accepted="RAY_USAGE_STATS_ENABLED with the value 0")
    yield from _commands(group, container, here)
    yield from _resources(group, container, key, here, None if problems else int(params["object_store_memory"]))


def _by_operator(inside: dict[str, Any]) -> bool:
    """KubeRay 1.5.1 and later make a token themselves and hand it to every container."""
    return (inside.get("authOptions") or {}).get("mode") == "token"


def _authentication(container: dict[str, Any], volumes: list[Any], here: str) -> Iterator[Finding]:
    entries = {each.get("name"): each for each in container.get("env") or []}
    key, mode = path_of(here, "env"), entries.get("RAY_AUTH_MODE", {}).get("value")
    if mode != "token":
        problem = "starts Ray without token authentication"
        value = ... if mode is None else mode
        yield BadInput(problem, key=key, value=value, accepted="RAY_AUTH_MODE with the value token")
    if (entries.get("RAY_AUTH_TOKEN", {}).get("valueFrom") or {}).get("secretKeyRef"):
        return
    path = entries.get("RAY_AUTH_TOKEN_PATH", {}).get("value")
    secrets = {each.get("name") for each in volumes if each.get("secret")}
    mounts = [each for each in container.get("volumeMounts") or [] if each.get("name") in secrets]
    if path and any(path.startswith(str(each.get("mountPath"))) for each in mounts):
        return
    if "value" not in entries.get("RAY_AUTH_TOKEN", {}):  # a token in plain sight is told of as a secret
        problem = "the container is not given the token"
        accepted = "RAY_AUTH_TOKEN from a secretKeyRef, or RAY_AUTH_TOKEN_PATH inside a mounted secret"
        yield BadInput(problem, key=key, accepted=accepted)


def _params(params: dict[str, str], key: str) -> Iterator[Finding]:
    from ray.scripts.scripts import start

    known = {name.removeprefix("--") for option in start.params for name in option.opts}
    yield from (unknown(name, known, key) for name in params if name not in known)


def _exposed(group: dict[str, Any], key: str) -> Iterator[Finding]:
    kind = group.get("serviceType")
    if kind in ("LoadBalancer", "NodePort"):
        problem = "opens the head's ports to everybody who reaches the cluster's nodes"
        accepted = "ClusterIP, and kubectl port-forward"
        yield BadInput(problem, key=path_of(key, "serviceType"), value=kind, accepted=accepted)
    if group.get("enableIngress"):
        problem = "shows the dashboard outside the cluster"
        accepted = "false, and kubectl port-forward"
        yield BadInput(problem, key=path_of(key, "enableIngress"), value=True, accepted=accepted)


def _commands(group: dict[str, Any], container: dict[str, Any], here: str) -> Iterator[Finding]:
    """The operator puts `ray start` behind the container's own command, unless an annotation says otherwise."""
    words = [*(container.get("command") or []), *(container.get("args") or [])]
    text = "\n".join(str(word) for word in words)
    key = path_of(here, "args" if container.get("args") else "command")
    annotations = ((group["template"].get("metadata")) or {}).get("annotations") or {}
    starts_ray = bool(re.search(r"\bray\s+start\b", text))
    if str(annotations.get(OVERWRITE)).lower() == "true":
        if GENERATED not in text and not starts_ray:
            problem = f"never starts Ray, although {OVERWRITE} leaves that to it"
            yield BadInput(problem, key=key, accepted=f"a command that ends with ${GENERATED}")
        elif starts_ray and "ulimit -n" not in text:
            problem = "does not raise the limit of open files"
            yield BadInput(problem, key=key, accepted=f"ulimit -n 65536; before it, or ${GENERATED}")
    elif starts_ray or GENERATED in text:
        problem = "starts Ray, and the operator starts it a second time behind it"
        yield BadInput(problem, key=key, accepted=f"no `ray start`, or the annotation {OVERWRITE}")
    elif re.search(r"sleep\s+(inf|infinity)\b|tail\s+-[fF]\b", text):
        problem = "never ends, and the operator starts Ray only behind it"
        yield BadInput(problem, key=key, value=text, accepted="commands that end")


def _resources(
    group: dict[str, Any], container: dict[str, Any], key: str, here: str, store: int | None
) -> Iterator[Finding]:
    limits = (container.get("resources") or {}).get("limits") or {}
    for name in ("cpu", "memory"):
        if quantity(limits.get(name)) is None:
            problem = "is missing or no quantity: Ray would count what the whole machine has"
            value = limits.get(name, ...)
            yield BadInput(problem, key=path_of(here, "resources.limits", name), value=value,
                           accepted="a quantity, such as " + ("8" if name == "cpu" else "32Gi"))  # fmt: skip
    memory = quantity(limits.get("memory"))
    if store is not None and memory is not None and store >= memory:
        problem = f"is not less than the container's memory ({limits['memory']})"
        yield BadInput(problem, key=path_of(key, "rayStartParams.object-store-memory"), value=store)
    told, there = group["rayStartParams"].get("num-gpus"), quantity(limits.get(GPU)) or 0
    if told is not None and told.isdecimal() and int(told) > there:
        problem = "promises GPUs that the container does not get"
        yield BadInput(problem, key=path_of(key, "rayStartParams.num-gpus"), value=told,
                       accepted=f"at most resources.limits.{GPU} ({there:g})")  # fmt: skip


def quantity(text: Any) -> float | None:
    """A Kubernetes quantity (`500m`, `16Gi`, 4) as a number; None where it is none."""
    units = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    units |= {f"{prefix}i": 1024.0**power for power, prefix in enumerate("KMGT", 1)}
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([a-zA-Z]*)", str(text))
    return float(match[1]) * units[match[2]] if match and match[2] in units else None


def _replicas(group: dict[str, Any], key: str) -> Iterator[Finding]:
    least, most = group.get("minReplicas", 0), group["maxReplicas"]
    if most < 1:
        yield BadInput("no worker of this group can be started", key=path_of(key, "maxReplicas"), value=most)
    elif least > most:
        problem = f"asks for more workers than maxReplicas ({most}) allows"
        yield BadInput(problem, key=path_of(key, "minReplicas"), value=least, accepted=f"0 to {most}")


# --- the cluster as a whole ----------------------------------------------------------------------------------------


def _autoscaling(inside: dict[str, Any]) -> Iterator[Finding]:
    grows = any(group.get("minReplicas", 0) != group["maxReplicas"] for group in inside["workerGroupSpecs"])
    if not inside.get("enableInTreeAutoscaling"):
        if grows:
            problem = "is off, so the head never starts or ends a worker"
            yield BadInput(problem, key="spec.enableInTreeAutoscaling", accepted="true")
        return
    options, key = inside.get("autoscalerOptions") or {}, "spec.autoscalerOptions.idleTimeoutSeconds"
    seconds, accepted = options.get("idleTimeoutSeconds"), f"more than 0, at most {LONGEST_IDLE_S}"
    if seconds is None:
        problem = "is missing: nobody has decided how long an idle worker is kept"
        yield BadInput(problem, key=key, accepted=accepted)
    elif not 0 < seconds <= LONGEST_IDLE_S:
        soon, late = "workers would be taken away between two trials", "idle workers would be kept too long"
        yield BadInput(soon if seconds <= 0 else late, key=key, value=seconds, accepted=accepted)
    if not _by_operator(inside):
        yield from _authentication(options, [], "spec.autoscalerOptions")


def _version(inside: dict[str, Any]) -> Iterator[Finding]:
    import ray

    version = inside.get("rayVersion")
    if str(version) != ray.__version__:
        problem = "is another Ray than the one that Buttress is installed with here"
        yield BadInput(problem, key="spec.rayVersion", value=version, accepted=ray.__version__)
    for key, group in groups({"spec": inside}):
        image = str(group["template"]["spec"]["containers"][0].get("image", ""))
        here = path_of(key, "template.spec.containers.0.image")
        tag = image.rpartition(":")[2] if ":" in image.rpartition("/")[2] else "latest"
        if tag.partition("-")[0] in ("latest", "nightly"):
            problem = "is whatever is newest when a worker starts"
            yield BadInput(problem, key=here, value=image, accepted="an image with a version")
        elif re.fullmatch(r"(?:docker\.io/)?rayproject/ray(?:-ml)?:.*", image) and not tag.startswith(str(version)):
            yield BadInput(f"is another Ray than rayVersion ({version})", key=here, value=image)


def _rays_own(cluster: dict[str, Any]) -> list[Finding]:
    """What Ray's autoscaler reads from the manifest at every turn, and validates against Ray's schema."""
    metadata = {"namespace": "default", **cluster["metadata"]}
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            autoscaling_config_of({**cluster, "metadata": metadata})
    except Exception as error:
        said = (str(error).splitlines() or [""])[0]
        return [BadInput(f"Ray's autoscaler cannot read the manifest: {type(error).__name__}: {said}", key="spec")]
    return []


def _largest(inside: dict[str, Any]) -> tuple[list[Nodes], int]:
    kinds = []
    for group in inside["workerGroupSpecs"]:
        params, limits = group["rayStartParams"], group["template"]["spec"]["containers"][0]["resources"]["limits"]
        cpus = quantity(params.get("num-cpus", limits["cpu"]))
        gpus = quantity(params.get("num-gpus", limits.get(GPU, 0)))
        kinds.append(Nodes(group["groupName"], cpus, gpus, group["maxReplicas"] * group.get("numOfHosts", 1)))
    return kinds, sum(nodes.most for nodes in kinds)


def summary(documents: list[dict[str, Any]]) -> str:
    """One line about a manifest without findings."""
    cluster = raycluster(documents)
    inside = cluster["spec"]
    kinds, most = _largest(inside)
    described = ", ".join(f"{each.most} {each.name} ({each.cpus:g} CPU, {each.gpus or 0:g} GPU)" for each in kinds)
    idle = (inside.get("autoscalerOptions") or {}).get("idleTimeoutSeconds")
    name, version = cluster["metadata"]["name"], inside["rayVersion"]
    parts = [f"{name} on KubeRay, Ray {version}", f"up to {most} workers: {described}"]
    if idle:
        parts.append(f"idle workers go after {idle / 60:g} min")
    return "; ".join([*parts, "token authentication"])
