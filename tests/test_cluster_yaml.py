"""cluster.yaml judged without an account by Ray's own offline validation; tests/test_cluster_check.py has our own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILE = ROOT / "cluster.yaml"


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials and no sockets: validation that asked AWS for anything would fail."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the offline validation opened a connection")

    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)


def prepared(cluster: dict[str, Any]) -> dict[str, Any]:
    """The file as `ray up` would use it, validated; raises what Ray raises for a broken one."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(copy.deepcopy(cluster))
    validate_config(config)
    return config


def test_passes_rays_own_validation_offline(cluster: dict[str, Any], offline: None) -> None:
    config = prepared(cluster)
    assert config["max_workers"] == 8
    assert config["idle_timeout_minutes"] == 10
    assert config["available_node_types"]["worker"]["max_workers"] == 4


def test_head_is_on_demand_and_trains_nothing(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert "--num-cpus=0 --num-gpus=0" in cluster["head_start_ray_commands"][-1]


def test_workers_have_gpus_come_in_two_kinds_and_go_when_idle(cluster: dict[str, Any]) -> None:
    kinds = {name: node for name, node in cluster["available_node_types"].items() if name != cluster["head_node_type"]}
    assert all(node["resources"]["GPU"] >= 1 for node in kinds.values())
    assert all(node["min_workers"] < node["max_workers"] for node in kinds.values())
    spot = [name for name, node in kinds.items() if "InstanceMarketOptions" in node["node_config"]]
    assert spot == ["spot-worker"] and len(kinds) == 2


def test_installs_the_pinned_versions_from_files_that_exist(cluster: dict[str, Any]) -> None:
    assert any("-c ~/buttress/constraints.txt" in command for command in cluster["setup_commands"])
    mounts = {remote: local for remote, local in cluster["file_mounts"].items() if not local.startswith("~")}
    missing = [local for local in mounts.values() if not (ROOT / local).exists()]
    assert missing == []
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages <= set(mounts.values()), "a package that no node would have"


def broken(cluster: dict[str, Any], change: str) -> dict[str, Any]:
    types = cluster["available_node_types"]
    match change:
        case "unknown key":
            cluster["max_worker"] = 3
        case "unknown auth key":
            cluster["auth"]["ssh_port"] = 2222
        case "head type that is not there":
            cluster["head_node_type"] = "master"
        case "more least workers than workers":
            types["worker"]["min_workers"] = 9
        case "node type without node_config":
            del types["worker"]["node_config"]
        case "unknown provider":
            cluster["provider"]["type"] = "awz"
    return cluster


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("unknown key", jsonschema.ValidationError),
        ("unknown auth key", jsonschema.ValidationError),
        ("head type that is not there", ValueError),
        ("more least workers than workers", ValueError),
        ("node type without node_config", jsonschema.ValidationError),
        ("unknown provider", NotImplementedError),
    ],
)
def test_a_broken_copy_is_refused(cluster: dict[str, Any], change: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        prepared(broken(cluster, change))
