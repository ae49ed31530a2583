"""A file for `ray up`, judged: Ray's own schema and validation first, then everything those do not see."""

from __future__ import annotations

import contextlib
import copy
import io
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from buttress.cluster.check import providers, starts
from buttress.cluster.check.capacity import Nodes, fits
from buttress.cluster.check.findings import Finding, path_of
from buttress.cluster.check.shapes import LAUNCHER, faults, rays_own
from buttress.compat.ray import node_providers, prepare_cluster_config, validate_cluster_config
from buttress.errors import BadInput

TOKEN = "~/.ray/auth_token"
#: A GPU node that waits longer than this for the next trial costs more than starting another one.
LONGEST_IDLE_MINUTES = 60
_INTERNAL = {"readonly", "fake_multinode", "fake_multinode_docker", "kuberay", "spark"}


def check(cluster: dict[str, Any], spec: Any = None) -> list[Finding]:
    """Findings of the mapping in a cluster file. `spec`: a sweep that is to fit it."""
    found = _shape(cluster)
    if found:  # nothing below can rely on the file's shape
        return found
    prepared = _prepared(cluster)
    kind = cluster["provider"]["type"]
    found = providers.provider(cluster["provider"])
    if kind != "local":
        found += _node_types(prepared, kind)
        found += _idle(cluster)
    found += _login(cluster, kind)
    found += _mounts(cluster)
    found += _setup(cluster)
    found += _starts(cluster, kind)
    if not found:
        found = _rays_own(prepared)
    if not found and spec is not None:
        found = fits(*_largest(prepared, cluster), spec)
    return found


def _shape(cluster: dict[str, Any]) -> list[Finding]:
    """Ray's schema, of the file as it stands, one finding per fault."""
    section = cluster.get("provider")
    if isinstance(section, dict) and isinstance(kind := section.get("type"), str):
        known = sorted(node_providers() - _INTERNAL)
        if kind not in known:
            accepted = ", ".join(known)
            return [BadInput("no such provider", key="provider.type", value=kind, accepted=accepted)]
        if kind == "local":
            for key in ("available_node_types", "head_node_type"):
                if key in cluster:
                    problem = "a local provider has one node type of its own, and Ray refuses others"
                    return [BadInput(problem, key=key, accepted="head_ip and worker_ips under provider")]
            cluster = {key: value for key, value in cluster.items() if key != "min_workers"}  # read, then removed
    found = [*faults(cluster, rays_own()), *faults(cluster, LAUNCHER)]
    types = cluster.get("available_node_types")
    if found or section is None or section.get("type") in ("local", "external"):
        return found
    head = cluster.get("head_node_type")
    if types is None or head is None:
        missing = "available_node_types" if types is None else "head_node_type"
        return [BadInput("is missing", key=missing)]
    if head not in types:
        return [BadInput("no such node type", key="head_node_type", value=head, accepted=", ".join(types))]
    return []


def _prepared(cluster: dict[str, Any]) -> dict[str, Any]:
    """The file as `ray up` would use it: with Ray's defaults, and the limits of every node type."""
    section = cluster["provider"]
    addresses = {"head_ip", "worker_ips"} <= {*section} or "coordinator_address" in section
    if section["type"] == "local" and not addresses:
        return cluster  # Ray would print and leave; `providers` tells of it
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        prepared: dict[str, Any] = prepare_cluster_config(copy.deepcopy(cluster))
    return prepared


def _rays_own(prepared: dict[str, Any]) -> list[Finding]:
    """What `ray up` itself refuses and nothing above has told of."""
    try:
        validate_cluster_config(prepared)
    except Exception as error:
        return [BadInput(f"`ray up` refuses the file: {(str(error).splitlines() or [''])[0]}")]
    return []


def _node_types(prepared: dict[str, Any], kind: str) -> list[Finding]:
    types, head, most = prepared["available_node_types"], prepared["head_node_type"], prepared["max_workers"]
    found = []
    for name, node in types.items():
        found += providers.node_type(kind, name, node, is_head=name == head)
        if name != head and node["max_workers"] > most:
            problem = f"can never be reached: the cluster as a whole has at most {most} workers"
            key = path_of("available_node_types", name, "max_workers")
            found.append(BadInput(problem, key=key, value=node["max_workers"], accepted=f"1 to {most}"))
    least = sum(node["min_workers"] for node in types.values())
    if least > most:
        problem = f"is less than what the node types' min_workers come to together, {least}"
        found.append(BadInput(problem, key="max_workers", value=most, accepted=f"{least} or more"))
    if all(name == head for name in types):
        problem = "has no node type for workers"
        found.append(BadInput(problem, key="available_node_types", accepted="one or more besides head_node_type"))
    return found


def _idle(cluster: dict[str, Any]) -> list[Finding]:
    minutes, key = cluster.get("idle_timeout_minutes"), "idle_timeout_minutes"
    accepted = f"more than 0, at most {LONGEST_IDLE_MINUTES}"
    if minutes is None:
        problem = "is missing: nobody has decided how long an idle node is paid for"
        return [BadInput(problem, key=key, accepted=accepted)]
    if minutes == 0:
        return [BadInput("nodes would be taken away between two trials", key=key, value=minutes, accepted=accepted)]
    if minutes > LONGEST_IDLE_MINUTES:
        return [BadInput("idle nodes would be paid for long after a sweep", key=key, value=minutes, accepted=accepted)]
    return []


def _login(cluster: dict[str, Any], kind: str) -> list[Finding]:
    auth = cluster.get("auth")
    if (auth is None and kind != "local") or (auth or {}).get("ssh_user"):
        return []
    return [BadInput("is missing: `ray up` logs in with it", key="auth.ssh_user", accepted="ubuntu, say")]


def _mounts(cluster: dict[str, Any]) -> list[Finding]:
    """The token arrives as a file where Ray looks for it, readable by its owner; other mounts exist on this machine."""
    mounts = cluster.get("file_mounts") or {}
    wanted = {_home(path) for path in _token_paths(cluster)} or {TOKEN}
    arrives = {_home(remote) for remote in mounts}
    found = []
    for path in sorted(wanted - arrives):
        problem = "the token is not mounted where the nodes look for it"
        found.append(BadInput(problem, key="file_mounts", accepted=f"{path}: {TOKEN}"))
    if not found and not any(_closes(command) for command in _setup_commands(cluster)):
        path = sorted(wanted)[0]
        problem = "the token is left readable for every user of a node"
        found.append(BadInput(problem, key="setup_commands", accepted=f"chmod 600 {path}"))
    for remote, local in mounts.items():
        source = Path(str(local)).expanduser()
        if source != Path(TOKEN).expanduser() and not source.exists():
            problem = "there is no such file or folder here, so `ray up` would stop"
            found.append(BadInput(problem, key=path_of("file_mounts", remote), value=str(local)))
    return found


def _token_paths(cluster: dict[str, Any]) -> set[str]:
    """Where the start commands look for the token, if they say so."""
    paths = set()
    for _, command in _commands(cluster):
        with contextlib.suppress(ValueError):
            paths |= {start.environment.get("RAY_AUTH_TOKEN_PATH", TOKEN) for start in starts.read(command)}
    return paths


def _home(path: str) -> str:
    """A remote path with the login's home folder as `~`."""
    return re.sub(r"^(\$HOME|\$\{HOME\}|/root|/home/[^/]+)(?=/)", "~", str(PurePosixPath(path)))


def _closes(command: str) -> bool:
    return bool(re.search(r"chmod\s+(0?[46]00|go-rwx|u=rw,go=)\s+\S*auth_token|umask 0?77", command))


def _setup_commands(cluster: dict[str, Any]) -> list[str]:
    keys = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
    return [command for key in keys for command in cluster.get(key) or []]


def _setup(cluster: dict[str, Any]) -> list[Finding]:
    """`ray exec`, `ray submit` and a job's driver get their environment from ~/.bashrc."""
    commands = cluster.get("setup_commands") or []
    commands = [*commands, *(cluster.get("head_setup_commands") or [])]
    if any("export RAY_AUTH_MODE=token" in command and ".bashrc" in command for command in commands):
        return []
    problem = "what is run by `ray exec` and `ray submit` would not show the token"
    return [BadInput(problem, key="setup_commands", accepted="export RAY_AUTH_MODE=token, appended to ~/.bashrc")]


def _commands(cluster: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for role in ("head", "worker"):
        for number, command in enumerate(cluster.get(f"{role}_start_ray_commands") or []):
            yield path_of(f"{role}_start_ray_commands", number), command


def _starts(cluster: dict[str, Any], kind: str) -> Iterator[Finding]:
    """Every finding of the start commands."""
    port = starts.GCS_PORT
    role: starts.Role
    for role in ("head", "worker"):
        name = f"{role}_start_ray_commands"
        commands = cluster.get(name)
        if commands is None:
            problem = "is missing, and Ray's own has no token"
            if role == "head":
                problem += " and shows the dashboard to everybody"
            yield BadInput(problem, key=name, accepted="ulimit -n 65536; RAY_AUTH_MODE=token ray start ...")
            continue
        try:
            calls = [(path_of(name, n), call) for n, text in enumerate(commands) for call in starts.read(text)]
        except ValueError as error:
            yield BadInput(f"cannot be read as shell: {error}", key=name)
            continue
        if len(calls) != 1:
            problem = "never starts Ray" if not calls else "starts Ray more than once"
            yield BadInput(problem, key=name, accepted="one command with `ray start`")
            continue
        key, start = calls[0]
        if role == "head":
            with contextlib.suppress(BadInput):
                port = str(starts.options(start).get("port") or port)
        yield from starts.judge(start, role, key, port=port)
        if role == "head" and kind == "local":
            yield from _autoscaler_of_local(start, key)


def _autoscaler_of_local(start: starts.RayStart, key: str) -> list[Finding]:
    if start.environment.get("RAY_enable_autoscaler_v2") == "0":
        return []
    problem = "autoscaler v2, the default of `ray up`, never brings up the last worker of a local provider"
    return [BadInput(problem, key=key, accepted="RAY_enable_autoscaler_v2=0 ray start ...")]


def _largest(prepared: dict[str, Any], cluster: dict[str, Any]) -> tuple[list[Nodes], int]:
    """The cluster with all the workers it may have. A local provider's hosts say what they have as they start Ray."""
    kind, most = cluster["provider"]["type"], prepared["max_workers"]
    if kind == "local":
        given: dict[str, Any] = {}
        for key, command in _commands(cluster):
            for start in starts.read(command) if key.startswith("worker") else ():
                given = starts.options(start)
        cpus = float(given["num_cpus"]) if str(given.get("num_cpus", "")).isdecimal() else None
        gpus = float(given["num_gpus"]) if str(given.get("num_gpus", "")).isdecimal() else 0.0
        return [Nodes("worker", cpus, gpus, most)], most
    head = prepared["head_node_type"]
    types = {name: node for name, node in prepared["available_node_types"].items() if name != head}
    return [Nodes(name, *providers.capacity(kind, node), node["max_workers"]) for name, node in types.items()], most


def summary(cluster: dict[str, Any]) -> str:
    """One line about a cluster without findings."""
    prepared = _prepared(cluster)
    section, (kinds, most) = cluster["provider"], _largest(prepared, cluster)
    where = section.get("availability_zone") or section.get("region") or section.get("head_ip")
    parts = [f"{cluster['cluster_name']} on {section['type']}" + (f" ({where})" if where else "")]
    if section["type"] == "local":
        workers = [_described(nodes) for nodes in kinds]
    else:
        head = prepared["available_node_types"][prepared["head_node_type"]]
        size = head["node_config"].get("InstanceType") or head["node_config"].get("machineType")
        trains = "" if head["resources"].get("CPU", 1) else " that trains nothing"
        parts.append(f"head {size or prepared['head_node_type']}{trains}")
        types = prepared["available_node_types"]
        workers = [_described(nodes, types[nodes.name]) for nodes in kinds]
    parts.append(f"up to {most} workers: {', '.join(workers)}")
    if section["type"] != "local":
        parts.append(f"idle nodes go after {cluster['idle_timeout_minutes']:g} min")
    return "; ".join([*parts, "token authentication"])


def _described(nodes: Nodes, node: dict[str, Any] | None = None) -> str:
    offers = "all it has" if nodes.cpus is None else f"{nodes.cpus:g} CPU, {nodes.gpus or 0:g} GPU"
    taken = ", spot" if node is not None and providers.spot(node["node_config"]) else ""
    return f"{nodes.most} {nodes.name} ({offers}{taken})"
