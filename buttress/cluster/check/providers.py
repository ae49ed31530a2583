"""What Ray's schema leaves open: the provider section and each node type's `node_config`, cloud by cloud."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from buttress.cluster.check.findings import Finding, misspelt, path_of, unknown
from buttress.errors import BadInput

_ANY = {
    "type", "module", "use_internal_ips", "disable_node_updaters", "disable_launch_config_check",
    "foreground_node_launch", "worker_liveness_check",
}  # fmt: skip
#: What each provider of Ray 2.60 reads; providers that are not listed are not judged.
PROVIDER_KEYS = {
    "aws": _ANY | {
        "region", "availability_zone", "cache_stopped_nodes", "security_group", "key_pair", "aws_credentials",
        "cloudwatch",
    },
    "gcp": _ANY | {"region", "availability_zone", "project_id", "gcp_credentials", "cache_stopped_nodes"},
    "local": _ANY | {"head_ip", "worker_ips", "external_head_ip", "coordinator_address"},
}  # fmt: skip
#: Parameters of EC2's RunInstances that a node type may set, and `SubnetIds`, which is Ray's.
AWS_NODE_KEYS = {
    "BlockDeviceMappings", "CapacityReservationSpecification", "CpuOptions", "CreditSpecification", "DisableApiStop",
    "DisableApiTermination", "EbsOptimized", "EnablePrimaryIpv6", "EnclaveOptions", "HibernationOptions",
    "IamInstanceProfile", "ImageId", "InstanceInitiatedShutdownBehavior", "InstanceMarketOptions", "InstanceType",
    "Ipv6AddressCount", "Ipv6Addresses", "KernelId", "KeyName", "LaunchTemplate", "LicenseSpecifications",
    "MaintenanceOptions", "MetadataOptions", "Monitoring", "NetworkInterfaces", "NetworkPerformanceOptions",
    "Placement", "PrivateDnsNameOptions", "PrivateIpAddress", "RamdiskId", "SecurityGroupIds", "SecurityGroups",
    "SubnetId", "SubnetIds", "TagSpecifications", "UserData",
}  # fmt: skip
#: Fields of Compute Engine's instances.insert that a node type may set.
GCP_NODE_KEYS = {
    "advancedMachineFeatures", "canIpForward", "confidentialInstanceConfig", "deletionProtection", "description",
    "disks", "guestAccelerators", "hostname", "labels", "machineType", "metadata", "minCpuPlatform",
    "networkInterfaces", "networkPerformanceConfig", "params", "reservationAffinity", "resourcePolicies", "scheduling",
    "serviceAccounts", "shieldedInstanceConfig", "sourceInstanceTemplate", "tags",
}  # fmt: skip
#: vCPUs by size, for the GPU families below, and GPUs by instance type (AWS's instance tables).
_CPUS = {"xlarge": 4, **{f"{n}xlarge": 4 * n for n in (2, 4, 8, 12, 16, 24, 48)}}
_GPUS = {
    **{f"{family}.{size}": 1 for family in ("g4dn", "g5", "g6", "g6e") for size in
       ("xlarge", "2xlarge", "4xlarge", "8xlarge", "16xlarge")},
    **{f"{family}.12xlarge": 4 for family in ("g4dn", "g5", "g6", "g6e")},
    **{f"{family}.24xlarge": 4 for family in ("g5", "g6", "g6e")},
    **{f"{family}.48xlarge": 8 for family in ("g5", "g6", "g6e")},
    "p3.2xlarge": 1, "p3.8xlarge": 4, "p3.16xlarge": 8, "p4d.24xlarge": 8, "p4de.24xlarge": 8, "p5.48xlarge": 8,
}  # fmt: skip


def provider(section: dict[str, Any]) -> list[Finding]:
    """Findings of the `provider` section."""
    kind = section["type"]
    known = PROVIDER_KEYS.get(kind)
    if known is None:
        return []
    found = [unknown(str(key), known, "provider") for key in section if key not in known]
    needed = {"aws": ("region",), "gcp": ("region", "availability_zone", "project_id")}.get(kind, ())
    found += [
        BadInput("is missing", key=path_of("provider", key))
        for key in needed
        if not section.get(key) and not misspelt(key, section, known)
    ]
    if kind in ("aws", "gcp"):
        found += _zones(section)
    return found + (_addresses(section) if kind == "local" else [])


def _zones(section: dict[str, Any]) -> list[Finding]:
    region, zones = section.get("region"), section.get("availability_zone")
    if not region or not zones:
        return []
    apart = [zone for each in str(zones).split(",") if not (zone := each.strip()).startswith(str(region))]
    if not apart:
        return []
    problem, example = f"is no zone of the region {region}", f"{region}-a" if section["type"] == "gcp" else f"{region}a"
    value, accepted = ", ".join(apart), f"{example} or the like"
    return [BadInput(problem, key="provider.availability_zone", value=value, accepted=accepted)]


def _addresses(section: dict[str, Any]) -> list[Finding]:
    if "coordinator_address" in section:
        return []
    head, workers = section.get("head_ip"), section.get("worker_ips")
    if not head:
        return [BadInput("is missing", key="provider.head_ip", accepted="the address of the head")]
    if workers is None:
        return [BadInput("is missing", key="provider.worker_ips", accepted="a list of addresses, one per worker")]
    if head in workers:
        problem = "the head is one of the workers, and would be started twice"
        return [BadInput(problem, key="provider.worker_ips", value=head, accepted="addresses other than head_ip")]
    twice = [address for address, count in Counter(workers).items() if count > 1]
    if twice:
        return [BadInput("an address stands twice", key="provider.worker_ips", value=twice[0])]
    return []


def node_type(kind: str, name: str, node: dict[str, Any], is_head: bool) -> list[Finding]:
    """Findings of one entry of `available_node_types`, beyond Ray's schema; `kind` is the provider's type."""
    config, here = node["node_config"], ("available_node_types", name)
    found: list[Finding] = []
    if kind == "aws":
        found += _aws(config, node["resources"], here)
    elif kind == "gcp":
        found += [unknown(key, GCP_NODE_KEYS, *here, "node_config") for key in config if key not in GCP_NODE_KEYS]
    if is_head and spot(config):
        problem = "the head is a spot instance: when it is taken away the driver and the cluster go with it"
        found.append(BadInput(problem, key=path_of(*here, "node_config"), accepted="an on-demand head"))
    if not is_head and kind != "aws" and not node["resources"].get("CPU"):
        problem = "does not say what a worker has, so the autoscaler starts none for a trial"
        accepted = "{CPU: ..., GPU: ...}"
        found.append(BadInput(problem, key=path_of(*here, "resources"), value=node["resources"], accepted=accepted))
    least, most = node.get("min_workers", 0), node.get("max_workers")
    if most is not None and least > most:
        problem = f"asks for more nodes than max_workers ({most}) allows"
        found.append(BadInput(problem, key=path_of(*here, "min_workers"), value=least, accepted=f"0 to {most}"))
    if not is_head and most == 0:
        problem = "nodes of this type can never be started"
        found.append(BadInput(problem, key=path_of(*here, "max_workers"), value=0, accepted="1 or more"))
    return found


def spot(config: dict[str, Any]) -> bool:
    """Whether nodes of this `node_config` may be taken away by the cloud."""
    market = config.get("InstanceMarketOptions")
    scheduling = config.get("scheduling")
    scheduling = scheduling if isinstance(scheduling, list) else [scheduling]
    preemptible = any(isinstance(each, dict) and (each.get("preemptible") or each.get("provisioningModel") == "SPOT")
                      for each in scheduling)  # fmt: skip
    return preemptible or (isinstance(market, dict) and market.get("MarketType") == "spot")


def _aws(config: dict[str, Any], resources: dict[str, Any], here: tuple[str, ...]) -> list[Finding]:
    found = [unknown(key, AWS_NODE_KEYS, *here, "node_config") for key in config if key not in AWS_NODE_KEYS]
    kind, image = config.get("InstanceType"), config.get("ImageId")
    if "LaunchTemplate" in config:
        return found
    if kind is None and not found:
        key = path_of(*here, "node_config.InstanceType")
        found.append(BadInput("is missing", key=key, accepted="g5.12xlarge, say"))
    elif kind is not None and not re.fullmatch(r"[a-z][a-z0-9-]*\.[a-z0-9-]+", str(kind)):
        key = path_of(*here, "node_config.InstanceType")
        found.append(BadInput("is no instance type", key=key, value=kind, accepted="FAMILY.SIZE, such as g5.12xlarge"))
    if image is not None and not re.fullmatch(r"ami-([0-9a-f]{8}|[0-9a-f]{17})", str(image)):
        key = path_of(*here, "node_config.ImageId")
        found.append(BadInput("is no image", key=key, value=image, accepted="ami- and 8 or 17 hexadecimal digits"))
    has = {"CPU": _CPUS.get(str(kind).partition(".")[2]), "GPU": _GPUS.get(str(kind))}
    for name, there in has.items():
        if there is not None and resources.get(name, 0) > there:
            problem = f"promises more {name}s than a {kind} has"
            key = path_of(*here, "resources", name)
            found.append(BadInput(problem, key=key, value=resources[name], accepted=f"0 to {there}"))
    return found


def capacity(kind: str, node: dict[str, Any]) -> tuple[float | None, float | None]:
    """CPUs and GPUs of a node of this type; None where neither the file nor its instance type tells."""
    resources, size = node["resources"], str(node["node_config"].get("InstanceType", ""))
    if resources:
        return float(resources.get("CPU", 0)), float(resources.get("GPU", 0))
    if kind == "aws" and size in _GPUS and (cpus := _CPUS.get(size.partition(".")[2])) is not None:
        return float(cpus), float(_GPUS[size])
    return None, None
