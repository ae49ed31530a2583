"""Checks a file for `ray up`: Ray's own schema and validation, then what those do not see."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from buttress.cluster.findings import WorkerNodes, schema_findings, unknown_keys
from buttress.compat.botocore import ec2_launch_parameters
from buttress.compat.ray import launcher_schema, node_providers, parse_start, prepared_cluster_file
from buttress.errors import BadInput

TOKEN = "~/.ray/auth_token"
#: What the checks below rely on and Ray's schema leaves open.
_SCHEMA = {"properties": {"file_mounts": {"type": "object", "additionalProperties": {"type": "string"}},
                          "provider": {"properties": {"worker_ips": {"items": {"type": "string"}}}}}}  # fmt: skip
#: Keys of `provider` that Ray reads and its schema does not name.
_PROVIDER_KEYS = {"aws_credentials", "coordinator_address", "disable_launch_config_check", "external_head_ip",
                  "foreground_node_launch", "key_pair", "worker_liveness_check"}  # fmt: skip
_START = re.compile(
    r"(?:^|[;&|\n])\s*(?P<before>(?:(?:\w+=(?:'[^']*'|\"[^\"]*\"|[^\s;&|]*)|env|exec|nohup|setsid)\s+)*)"
    r"(?:\S*/)?ray\s+start\b(?P<options>[^;&|\n<>]*?)(?=\s\d?[<>]|\s*[;&|\n]|\s*$)"
)


def findings(cluster: dict[str, Any]) -> list[BadInput]:
    """Returns one finding per fault of a cluster file's mapping, none for a good one."""
    provider = cluster.get("provider")
    kind = provider.get("type") if isinstance(provider, dict) else None
    if isinstance(kind, str) and kind not in (names := node_providers()):
        return [BadInput("no such provider", key="provider.type", value=kind, accepted=", ".join(names))]
    # Ray reads the `min_workers` of a local provider, and removes it before it validates
    known = {key: value for key, value in cluster.items() if key != "min_workers" or kind != "local"}
    if found := [*schema_findings(known, launcher_schema()), *schema_findings(cluster, _SCHEMA)]:
        return found  # what follows relies on the file's shape
    found = [*_token(cluster), *_start_commands(cluster)]
    try:
        prepared = prepared_cluster_file(cluster)
    except ValueError as error:
        key = next((key for key in re.findall(r"\w+_\w+", str(error)) if key in cluster), None)
        return found or [BadInput(f"`ray up` refuses the file: {error}", key=key, value=cluster[key] if key else ...)]
    return [*_nodes(prepared), *found]


def description(cluster: dict[str, Any]) -> tuple[str, list[WorkerNodes], int]:
    """Returns name and provider of a file without findings, its kinds of worker nodes, and the most workers at once."""
    prepared, provider = prepared_cluster_file(cluster), cluster["provider"]
    nodes, total = [], prepared["max_workers"]
    for name, node in prepared["available_node_types"].items():
        cpus = node["resources"].get("CPU", 0) if node["resources"] else None  # none given: whatever the node has
        if name != prepared["head_node_type"]:
            nodes.append(WorkerNodes(name, cpus, node["resources"].get("GPU", 0), node["max_workers"]))
    nodes = [WorkerNodes("worker", None, 0, total)] if provider["type"] == "local" else nodes
    place = provider.get("availability_zone") or provider.get("region") or provider.get("head_ip")
    return f"{cluster['cluster_name']} on {provider['type']}" + (f" ({place})" if place else ""), nodes, total


def _nodes(prepared: dict[str, Any]) -> Iterator[BadInput]:
    """Misspelt keys, hosts that are given twice, limits and resources that contradict each other."""
    provider, total = prepared["provider"], prepared["max_workers"]
    known = {*_PROVIDER_KEYS, *launcher_schema()["properties"]["provider"]["properties"]}
    yield from unknown_keys(provider, known, "provider")
    hosts = [provider.get("head_ip"), *provider.get("worker_ips", ())]
    for host in sorted({host for host in hosts if host and hosts.count(host) > 1}):
        yield BadInput("would be started twice", key="provider.worker_ips", value=host, accepted="each address once")
    for name, node in prepared["available_node_types"].items():
        key, minimum, maximum = f"available_node_types.{name}", node["min_workers"], node["max_workers"]
        if provider["type"] == "aws":
            yield from unknown_keys(node["node_config"], ec2_launch_parameters(), key, "node_config")
        if name == prepared["head_node_type"]:
            continue
        if provider["type"] != "aws" and not node["resources"].get("CPU"):
            problem = "does not say what a worker has, so the autoscaler starts none for a trial"
            yield BadInput(problem, key=f"{key}.resources", value=node["resources"], accepted="{CPU: ..., GPU: ...}")
        if not max(1, minimum) <= maximum <= total:
            accepted = f"min_workers ({minimum}), at least 1, to the cluster's max_workers ({total})"
            yield BadInput("contradicts the other limits", key=f"{key}.max_workers", value=maximum, accepted=accepted)


def _token(cluster: dict[str, Any]) -> Iterator[BadInput]:
    """The token reaches every node where Ray looks for it, readable by its owner, and every shell presents it."""
    mounts, setup = cluster.get("file_mounts") or {}, "\n".join(cluster.get("setup_commands") or [])
    if TOKEN not in {re.sub(r"^(\$HOME|\$\{HOME\}|/root|/home/[^/]+)/", "~/", remote) for remote in mounts}:
        problem = "the token is not mounted where the nodes look for it"
        yield BadInput(problem, key="file_mounts", accepted=f"{TOKEN}: {TOKEN}")
    elif not re.search(r"chmod\s+(0?[46]00|go-rwx|u=rw,go=)\s+\S*auth_token|umask 0?77", setup):
        problem = "the token is left readable for every user of a node"
        yield BadInput(problem, key="setup_commands", accepted=f"chmod 600 {TOKEN}")
    on_head = [setup, *(cluster.get("head_setup_commands") or [])]
    if not any("export RAY_AUTH_MODE=token" in command and ".bashrc" in command for command in on_head):
        problem = "what is run by `ray exec` and `ray submit` would not present the token"
        yield BadInput(problem, key="setup_commands", accepted="export RAY_AUTH_MODE=token, appended to ~/.bashrc")
    for remote, local in mounts.items():
        if local != TOKEN and not Path(local).expanduser().exists():
            yield BadInput("no such file or folder here", key=f"file_mounts.{remote}", value=local)


def parse_shell(command: str) -> list[tuple[list[str], dict[str, str]]]:
    """Returns the words behind every `ray start` in a line of shell, and the environment variables set for it."""
    command, found = command.replace("\\\n", " "), []
    for start in _START.finditer(command):
        exported = re.findall(r"\bexport\s+(\w+)=([^\s;&|]*)", command[: start.start()])
        try:
            own = [word.split("=", 1) for word in shlex.split(start["before"]) if "=" in word]
            found.append((shlex.split(start["options"]), dict([*exported, *own])))
        except ValueError as error:
            raise ValueError(f"cannot be read as shell: {error}") from None
    return found


def _start_commands(cluster: dict[str, Any]) -> Iterator[BadInput]:
    """Both roles start Ray once, with the token, with options that Ray knows, and find each other."""
    port = "6379"
    for role in ("head", "worker"):
        key = f"{role}_start_ray_commands"
        commands = enumerate(cluster.get(key) or [])
        try:
            starts = [(f"{key}.{number}", *start) for number, text in commands for start in parse_shell(text)]
            if len(starts) != 1:
                raise ValueError(f"starts Ray {len(starts)} times" if starts else "never starts Ray")
            key, words, environment = starts[0]
            options = parse_start(words)
        except ValueError as error:
            yield BadInput(str(error), key=key)
            continue
        mode = environment.get("RAY_AUTH_MODE", "")
        if mode.lower() != "token":
            problem = "lets in anyone who reaches the port" if mode else "starts Ray without an authentication mode"
            yield BadInput(problem, key=key, value=mode or ..., accepted="RAY_AUTH_MODE=token ray start ...")
        if role == "worker":
            address = str(options.get("address", "")).replace("{", "").replace("}", "")
            if address != f"$RAY_HEAD_IP:{port}":
                problem = "does not join the head, whose address `ray up` puts into $RAY_HEAD_IP"
                yield BadInput(problem, key=key, value=address, accepted=f"--address=$RAY_HEAD_IP:{port}")
            continue
        port = str(options.get("port") or port)
        if not options.get("head") or options.get("autoscaling_config") != "~/ray_bootstrap_config.yaml":
            problem = "does not start a head that reads the autoscaling config of `ray up`, so no worker ever starts"
            yield BadInput(problem, key=key, accepted="--head --autoscaling-config=~/ray_bootstrap_config.yaml")
        if cluster["provider"]["type"] == "local" and environment.get("RAY_enable_autoscaler_v2") != "0":
            problem = "autoscaler v2, the default of `ray up`, never starts the last worker of a local provider"
            yield BadInput(problem, key=key, accepted="RAY_enable_autoscaler_v2=0 ray start ...")
