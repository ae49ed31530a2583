"""cluster.yaml judged without an account: Ray's own offline validation, and what that one does not see."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILE = ROOT / "cluster.yaml"
SECRETS = re.compile(r"(?i)AKIA[0-9A-Z]{16}|-----BEGIN|(secret|password|api_key|RAY_AUTH_TOKEN)\s*[:=]\s*\S")


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


def start_commands(cluster: dict[str, Any]) -> list[str]:
    return [
        command
        for kind in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in cluster[kind]
        if "ray start" in command
    ]


def problems(cluster: dict[str, Any]) -> list[str]:
    """What Ray's validation does not see: authentication, the dashboard's address, statistics, limits, secrets."""
    found = []
    starts = start_commands(cluster)
    if len(starts) != 2:
        found.append("one start command for the head and one for the workers")
    for command in starts:
        if "RAY_AUTH_MODE=token ray start" not in command:
            found.append(f"no token authentication: {command}")
        for part in ("--disable-usage-stats", "--object-store-memory=", "ulimit -n"):
            if part not in command:
                found.append(f"no {part}: {command}")
    if "--dashboard-host=127.0.0.1" not in cluster["head_start_ray_commands"][-1]:
        found.append("the dashboard listens beyond the head's loopback")
    if not any("export RAY_AUTH_MODE=token" in command for command in cluster["setup_commands"]):
        found.append("exec and submit would come without the token mode")
    if cluster["file_mounts"].get("~/.ray/auth_token") != "~/.ray/auth_token":
        found.append("the token is not mounted")
    if not any("chmod 600 ~/.ray/auth_token" in command for command in cluster["setup_commands"]):
        found.append("the token can be read by others")
    if SECRETS.search(yaml.safe_dump(cluster)):
        found.append("a secret stands in the file")
    return found


def test_passes_rays_own_validation_offline(cluster: dict[str, Any], offline: None) -> None:
    config = prepared(cluster)
    assert config["max_workers"] == 4
    assert config["idle_timeout_minutes"] == 10
    assert config["available_node_types"]["worker"]["max_workers"] == 4


def test_authenticates_everywhere_and_holds_no_secret(cluster: dict[str, Any]) -> None:
    assert problems(cluster) == []
    assert not SECRETS.search(FILE.read_text())  # comments too


def test_head_is_on_demand_and_trains_nothing(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert "--num-cpus=0 --num-gpus=0" in cluster["head_start_ray_commands"][-1]


def test_workers_have_gpus_and_go_when_idle(cluster: dict[str, Any]) -> None:
    worker = cluster["available_node_types"]["worker"]
    assert worker["resources"]["GPU"] >= 1
    assert worker["min_workers"] < worker["max_workers"]


def test_installs_the_pinned_versions_from_files_that_exist(cluster: dict[str, Any]) -> None:
    assert any("-c ~/buttress/constraints.txt" in command for command in cluster["setup_commands"])
    mounts = {remote: local for remote, local in cluster["file_mounts"].items() if not local.startswith("~")}
    missing = [local for local in mounts.values() if not (ROOT / local).exists()]
    assert missing == []
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages <= set(mounts.values()), "a room that no node would have"


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


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("RAY_AUTH_MODE=token ray start --address", "ray start --address"),
        ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"),
        ("export RAY_AUTH_MODE=token", "export PATH=$PATH"),
        ("~/.ray/auth_token: ~/.ray/auth_token", "~/.ray/other: ~/.ray/other"),
        ("RAY_AUTH_MODE=token ray start --head", "RAY_AUTH_TOKEN=0a1b2c ray start --head"),
    ],
)
def test_a_copy_with_a_hole_in_it_is_noticed(old: str, new: str) -> None:
    text = FILE.read_text()
    assert old in text
    assert problems(yaml.safe_load(text.replace(old, new))) != []
