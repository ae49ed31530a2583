"""`buttress cluster check` finds each fault of a broken cluster file, says where it is, and says nothing else.

Every broken file is a shipped one with one thing changed.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from buttress.cluster import kuberay, ray_up
from buttress.cluster.check import check
from buttress.cluster.findings import WorkerNodes, concurrent_trials
from buttress.cluster.ray_up import parse_shell
from buttress.errors import BadInput
from buttress.spec.spec import SweepSpec

ROOT = Path(__file__).parents[1]
SHIPPED = ["cluster.yaml", "clusters/onprem.yaml", "clusters/gcp.yaml", "clusters/kuberay.yaml"]
AWS, ONPREM, GCP, KUBERAY = SHIPPED


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """At the root, where `ray up` is called, in a home without a token, no credentials, and no way to the network."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the check opened a connection")

    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_files_have_no_fault(name: str) -> None:
    checked = check(ROOT / name)
    assert [str(finding) for finding in checked.findings] == []
    assert "token authentication" in checked.summary and any("fill in" in todo for todo in checked.todo)


#: file, text in it, text instead of it, key path of the fault, words of the sentence
BROKEN: dict[str, tuple[str, str, str, str, str]] = {
    # what Ray's own schema and validation see
    "unknown key": (AWS, "max_workers: 8 ", "max_worker: 8 ", "max_worker", "did you mean max_workers?"),
    "unknown auth key": (AWS, "ssh_user: ubuntu", "ssh_user: ubuntu\n  ssh_port: 22", "auth.ssh_port", "unknown key"),
    "unknown provider": (AWS, "type: aws", "type: awz", "provider.type", "no such provider"),
    "wrong type": (AWS, "max_workers: 8 ", "max_workers: eight ", "max_workers", "whole number"),
    "no such head type": (
        AWS, "head_node_type: head", "head_node_type: master", "head_node_type", "one of `available_node_types`",
    ),
    "no node_config": (
        AWS, "    max_workers: 0\n    node_config:", "    max_workers: 0\n    node_configs:",
        "available_node_types.head.node_configs", "did you mean node_config?",
    ),
    "worker without resources": (
        AWS, "    resources: {CPU: 8, GPU: 1}              #", "    #",
        "available_node_types.spot-worker.resources", "missing",
    ),
    "fraction of a GPU": (
        AWS, "{CPU: 8, GPU: 1}", "{CPU: 8, GPU: 0.5}", "available_node_types.spot-worker.resources.GPU", "whole number",
    ),
    "more least workers than workers": (
        AWS, "    min_workers: 0\n    max_workers: 4", "    min_workers: 8\n    max_workers: 8",
        "max_workers", "min_workers",
    ),
    # authentication
    "head without a mode": (
        AWS, "RAY_AUTH_MODE=token ray start --head", "ray start --head", "head_start_ray_commands.1", "mode",
    ),
    "worker without a mode": (
        ONPREM, "RAY_AUTH_MODE=token RAY_gcs", "RAY_gcs", "worker_start_ray_commands.1", "mode",
    ),
    "authentication off": (
        AWS, "RAY_AUTH_MODE=token ray start --address", "RAY_AUTH_MODE=disabled ray start --address",
        "worker_start_ray_commands.1", "anyone",
    ),
    "mode set for another command": (
        AWS, "RAY_AUTH_MODE=token ray start --head", "RAY_AUTH_MODE=token true; ray start --head",
        "head_start_ray_commands.1", "mode",
    ),
    "token not mounted": (AWS, "  ~/.ray/auth_token: ~/.ray/auth_token\n", "", "file_mounts", "not mounted"),
    "token mounted elsewhere": (
        AWS, "  ~/.ray/auth_token: ~", "  ~/auth_token: ~", "file_mounts", "not mounted where the nodes look",
    ),
    "token readable for all": (AWS, "  - chmod 600 ~/.ray/auth_token\n", "", "setup_commands", "readable"),
    "exec without a mode": (
        GCP, "'export RAY_AUTH_MODE=token' ", "", "setup_commands", "`ray exec`",
    ),
    # the start commands
    "no autoscaling config": (
        AWS, "    --autoscaling-config=~/ray_bootstrap_config.yaml\n", "",
        "head_start_ray_commands.1", "autoscaling config",
    ),
    "another autoscaling config": (
        AWS, "--autoscaling-config=~/ray_bootstrap_config.yaml", "--autoscaling-config=~/buttress/cluster.yaml",
        "head_start_ray_commands.1", "autoscaling config of `ray up`",
    ),
    "address of the head spelt out": (
        ONPREM, "--address=$RAY_HEAD_IP:6379", "--address=192.0.2.10:6379",
        "worker_start_ray_commands.1", "$RAY_HEAD_IP",
    ),
    "worker goes to another port": (
        AWS, "--address=$RAY_HEAD_IP:6379", "--address=$RAY_HEAD_IP:6380",
        "worker_start_ray_commands.1", "$RAY_HEAD_IP:6379",
    ),
    "worker without an address": (
        AWS, "--address=$RAY_HEAD_IP:6379\n", "\n", "worker_start_ray_commands.1", "does not join the head",
    ),
    "worker starts a head": (
        AWS, "--address=$RAY_HEAD_IP:6379\n", "--head\n", "worker_start_ray_commands.1", "does not join the head",
    ),
    "head does not start a head": (AWS, "start --head", "start", "head_start_ray_commands.1", "start a head"),
    "misspelt option": (
        AWS, "--dashboard-host=127", "--dashbord-host=127", "head_start_ray_commands.1", "--dashboard-host",
    ),
    "a quote that does not close": (
        AWS, "--disable-usage-stats\n    --auto", "--disable-usage-stats '\n    --auto",
        "head_start_ray_commands", "shell",
    ),
    "never starts Ray": (
        ONPREM, "ray start --block", "ray stop --block", "worker_start_ray_commands", "never starts Ray",
    ),
    "autoscaler v2 with a local provider": (
        ONPREM, " RAY_enable_autoscaler_v2=0", "", "head_start_ray_commands.1", "RAY_enable_autoscaler_v2=0",
    ),
    # the nodes
    "unknown key of EC2": (
        AWS, "      InstanceMarketOptions:", "      InstanceMarketOption:",
        "available_node_types.spot-worker.node_config.InstanceMarketOption", "did you mean InstanceMarketOptions?",
    ),
    "unknown key of the provider": (
        AWS, "  cache_stopped_nodes: false", "  cache_stoped_nodes: false",
        "provider.cache_stoped_nodes", "did you mean cache_stopped_nodes?",
    ),
    "workers that nobody counts": (
        GCP, "{CPU: 12, GPU: 1}", "{GPU: 1}", "available_node_types.spot-worker.resources", "starts none",
    ),
    "a limit out of reach": (
        AWS, "    min_workers: 1\n    max_workers: 4", "    min_workers: 1\n    max_workers: 40",
        "available_node_types.worker.max_workers", "(8)",
    ),
    "least above most": (
        AWS, "    min_workers: 1\n    max_workers: 4", "    min_workers: 6\n    max_workers: 4",
        "available_node_types.worker.max_workers", "min_workers (6)",
    ),
    "head among the workers": (
        ONPREM, "[192.0.2.11, 192.0.2.12]", "[192.0.2.10, 192.0.2.12]", "provider.worker_ips", "started twice",
    ),
    "node types of a local provider": (
        ONPREM, "upscaling_speed: 1.0", "available_node_types: {head: {resources: {}, node_config: {}}}",
        "available_node_types", "on-premise",
    ),
    "a mount that is not there": (
        AWS, "  ~/buttress/analysis: analysis\n", "  ~/buttress/analysis: analyses\n",
        "file_mounts.~/buttress/analysis", "no such file",
    ),
    # secrets
    "AWS key": (
        AWS, "  cache_stopped_nodes: false", "  cache_stopped_nodes: false\n  # AKIAIOSFODNN7EXAMPLE",
        "line 14", "AWS access key",
    ),
    "W&B key in a command": (
        AWS, "  - chmod 600", "  - echo export WANDB_API_KEY=0123456789abcdef >> ~/.bashrc\n  - chmod 600",
        "setup_commands.0", "WANDB_API_KEY",
    ),
    "token in a command": (
        AWS, "RAY_AUTH_MODE=token ray start --head", "RAY_AUTH_MODE=token RAY_AUTH_TOKEN=0a1b2c3d ray start --head",
        "head_start_ray_commands.1", "RAY_AUTH_TOKEN",
    ),
    # RayCluster manifests
    "unknown field": (
        KUBERAY, "enableInTreeAutoscaling: true", "enableInTreeAutoscale: true",
        "spec.enableInTreeAutoscale", "did you mean enableInTreeAutoscaling?",
    ),
    "no autoscaler": (
        KUBERAY, "enableInTreeAutoscaling: true", "enableInTreeAutoscaling: false",
        "spec.enableInTreeAutoscaling", "off",
    ),
    "container without a token": (
        KUBERAY, "              env: *token\n              resources:                     # CHANGE",
        "              env: [{name: RAY_AUTH_MODE, value: token}, {name: RAY_USAGE_STATS_ENABLED, value: \"0\"}]\n"
        "              resources:                     # CHANGE",
        "spec.workerGroupSpecs.0.template.spec.containers.0.env", "not given the token",
    ),
    "start parameter that is a number": (
        KUBERAY, 'num-cpus: "0"', "num-cpus: 0", "spec.headGroupSpec.rayStartParams.num-cpus", "has to be a text",
    ),
    "unknown start parameter": (
        KUBERAY, "dashboard-host: 127", "dashbord-host: 127",
        "spec.headGroupSpec.rayStartParams.dashbord-host", "did you mean dashboard-host?",
    ),
    "no memory limit": (
        KUBERAY, 'limits: {cpu: "8", memory: 28Gi,', 'limits: {cpu: "8",',
        "spec.workerGroupSpecs.1.template.spec.containers.0.resources.limits.memory", "missing",
    ),
    "object store beyond the container": (
        KUBERAY, 'object-store-memory: "1000000000"', 'object-store-memory: "100000000000"',
        "spec.headGroupSpec.rayStartParams.object-store-memory", "16Gi",
    ),
    "group without an end": (
        KUBERAY, "      maxReplicas: 4 ", "      # maxReplicas: 4 ",
        "spec.workerGroupSpecs.0.maxReplicas", "missing",
    ),
    "token in the manifest": (
        KUBERAY, "valueFrom: {secretKeyRef: {name: buttress-ray-token, key: auth_token}}", "value: 0a1b2c3d4e",
        "spec.autoscalerOptions.env.1.value", "RAY_AUTH_TOKEN",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_file_gets_one_sentence_about_its_fault_and_no_other(fault: str, tmp_path: Path) -> None:
    name, old, new, key, words = BROKEN[fault]
    text = (ROOT / name).read_text()
    assert old in text, "the shipped file has changed: this test would break nothing"
    path = tmp_path / "broken.yaml"
    path.write_text(text.replace(old, new, 1))
    findings = check(path).findings
    repeated = {key, *(f"{other}" for other in _aliases(key))}
    assert findings and {finding.key for finding in findings} <= repeated, [str(finding) for finding in findings]
    told = str(findings[0])
    assert told.startswith(f"{path}: {key}: ") and words in told and "\n" not in told


def _aliases(key: str) -> set[str]:
    """Where a fault in an anchored part of a file is told of as well: everywhere it is used."""
    if key == "spec.autoscalerOptions.env.1.value":
        groups = ("headGroupSpec", "workerGroupSpecs.0", "workerGroupSpecs.1")
        return {f"spec.{group}.template.spec.containers.0.env.1.value" for group in groups}
    return set()


def test_a_secret_is_named_and_never_printed(tmp_path: Path) -> None:
    secret = "0123456789abcdef" * 4
    path = tmp_path / "cluster.yaml"
    path.write_text((ROOT / AWS).read_text().replace("RAY_AUTH_MODE=token ray", f"RAY_AUTH_TOKEN={secret} ray"))
    told = " ".join(map(str, check(path).findings))
    assert "a Ray token is in the file" in told and secret not in told and secret not in json.dumps(
        check(path).to_dict()
    )


def test_several_faults_are_all_told(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    text = (ROOT / AWS).read_text().replace("ray start --head", "ray start")
    text = text.replace("  - chmod 600 ~/.ray/auth_token\n", "")
    path.write_text(text.replace("max_workers: 4\n", "max_workers: 9\n", 1))
    keys = [finding.key for finding in check(path).findings]
    assert keys == ["available_node_types.worker.max_workers", "setup_commands", "head_start_ray_commands.1"]


# --- does a sweep fit ----------------------------------------------------------------------------------------------


def spec(**resources: Any) -> SweepSpec:
    return SweepSpec.from_dict(
        {
            "trainable": "lithology",
            "search": {"loss.beta": {"loguniform": [0.05, 30]}},
            "objectives": ["val/ari"],
            "budget": {"trials": 4},
            "resources": resources,
        }
    )


@pytest.mark.parametrize("name", [AWS, KUBERAY])
def test_a_sweep_that_fits_is_no_finding(name: str) -> None:
    fits = spec(workers=2, cpus_per_worker=4, gpus_per_worker=1, concurrency=10)
    assert check(ROOT / name, fits).findings == ()


@pytest.mark.parametrize("name", [AWS, KUBERAY])
def test_a_concurrency_that_does_not_fit_is_told_with_the_largest_that_does(name: str) -> None:
    (finding,) = check(ROOT / name, spec(workers=2, cpus_per_worker=4, gpus_per_worker=1, concurrency=11)).findings
    assert "holds 10 trials" in str(finding) and "1 to 10" in str(finding) and "11" in str(finding)


def test_a_worker_that_fits_no_node_is_told() -> None:
    (finding,) = check(ROOT / AWS, spec(workers=1, cpus_per_worker=64, gpus_per_worker=0)).findings
    assert "64 CPU" in str(finding) and "does not fit" in str(finding)


def test_nothing_is_known_about_machines_that_do_not_say_what_they_have() -> None:
    assert check(ROOT / ONPREM, spec(workers=1, cpus_per_worker=64, concurrency=99)).findings == ()


def test_trials_are_counted_over_nodes_of_both_kinds() -> None:
    nodes = [WorkerNodes("small", 8, 1, 4), WorkerNodes("large", 48, 4, 2)]
    resources = spec(workers=3, cpus_per_worker=4, gpus_per_worker=1).resources
    assert concurrent_trials(nodes, 6, resources) == (4 + 2 * 4) // 3
    assert concurrent_trials(nodes, 3, resources) == (1 + 2 * 4) // 3  # three nodes: both large ones, one small one
    assert concurrent_trials([*nodes, WorkerNodes("silent", None, 0, 1)], 6, resources) is None


# --- start commands as the shell reads them ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "ulimit -n 65536; RAY_AUTH_MODE=token ray start --head",
        "export RAY_AUTH_MODE=token; ulimit -n 65536; ray start --head",
        "ulimit -n 65536\nexport RAY_AUTH_MODE=token\n~/venv/bin/ray start \\\n --head > ray.log 2>&1",
        "ulimit -n 65536; RAY_AUTH_MODE=token setsid nohup ray start --head > ray.log 2>&1 < /dev/null &",
        "ulimit -c unlimited; ulimit -n 65536 || true; env RAY_AUTH_MODE='token' exec ray start --head 2>&1 | tee log",
    ],
)
def test_a_start_command_is_read_as_the_shell_would(command: str) -> None:
    ((words, environment),) = parse_shell(command)
    assert words == ["--head"] and environment["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize("command", ["ray stop", "echo ray start --head", "ray status; true", "my-ray start --head"])
def test_what_only_looks_like_a_start_is_none(command: str) -> None:
    assert parse_shell(command) == []


# --- the file as such, and the command line ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("- a\n- b\n", "mapping"),
        ("a: [", "line 1"),
        ("provider: {type: aws}\nprovider: {type: gcp}\n", "twice"),
        ("apiVersion: v1\nkind: Pod\n", "holds no RayCluster"),
    ],
)
def test_a_file_that_is_none_is_refused_in_one_sentence(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=words) as refusal:
        check(path)
    assert str(path) in str(refusal.value)


def test_a_cluster_file_of_hardly_anything_is_judged_without_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    for content in ({"cluster_name": "c"}, {"cluster_name": "c", "provider": {}}, {"provider": {"type": "aws"}},
                    {"cluster_name": "c", "provider": {"type": "local"}, "available_node_types": {}},
                    {"apiVersion": "ray.io/v1", "kind": "RayCluster"},
                    {"apiVersion": "ray.io/v1", "kind": "RayCluster", "spec": {"headGroupSpec": 3}}):  # fmt: skip
        path.write_text(yaml.safe_dump(content))
        assert check(path).findings, content


def damaged(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Where `tree` can be damaged, and with what: every key and entry, taken out or replaced by what it cannot be."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        wrong = [3] if isinstance(value, (str, dict)) else "x"
        yield from (((*path, key), each) for each in (..., None, wrong))
        yield from damaged(value, (*path, key))


@pytest.mark.parametrize("name", [AWS, ONPREM, KUBERAY])
def test_no_damage_to_a_file_keeps_it_from_being_judged(name: str) -> None:
    whole = json.loads(json.dumps(yaml.safe_load((ROOT / name).read_text())))
    told = 0
    for path, value in damaged(whole):
        if path == ("kind",):
            continue
        tree = copy.deepcopy(whole)
        inner = tree
        for key in path[:-1]:
            inner = inner[key]
        if value is ...:
            del inner[path[-1]]
        else:
            inner[path[-1]] = value
        module = kuberay if name == KUBERAY else ray_up
        findings = module.findings(tree)
        assert findings or module.description(tree)
        told += bool(findings)
    assert told > 50


def test_a_secret_document_beside_the_cluster_is_told(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "t"}, "stringData": {"auth_token": "abc"}}
    path.write_text((ROOT / KUBERAY).read_text() + "---\n" + yaml.safe_dump(secret))
    assert [finding.key for finding in check(path).findings] == ["stringData.auth_token"]


def test_a_token_that_the_operator_makes_will_do(tmp_path: Path) -> None:
    manifest = yaml.safe_load((ROOT / KUBERAY).read_text())
    inside = manifest["spec"]
    off = [{"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}]
    inside["authOptions"] = {"mode": "token"}
    inside["autoscalerOptions"].pop("env")
    for group in (inside["headGroupSpec"], *inside["workerGroupSpecs"]):
        group["template"]["spec"]["containers"][0]["env"] = off
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(manifest))
    assert check(path).findings == ()
    inside["authOptions"]["mode"] = "disabled"
    path.write_text(yaml.safe_dump(manifest))
    assert len({finding.key for finding in check(path).findings}) == 4  # the autoscaler and three groups


def buttress(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "buttress", "cluster", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_command_says_what_is_wrong_with_every_file_and_leaves_with_2(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text((ROOT / AWS).read_text().replace("RAY_AUTH_MODE=token ray start", "ray start"))
    done = buttress("check", str(ROOT / AWS), str(bad), "--json")
    first, second, third, told = done.stdout.splitlines()
    assert done.returncode == 2 and done.stderr == ""
    assert first.startswith(f"{ROOT / AWS}: buttress on aws")
    assert second.startswith(f"{bad}: head_start_ray_commands.1: ") and str(bad) in third
    good, broken = json.loads(told)
    assert good["ok"] and good["findings"] == [] and good["summary"]
    assert not broken["ok"] and broken["summary"] is None
    assert {finding["key"] for finding in broken["findings"]} == {
        "head_start_ray_commands.1", "worker_start_ray_commands.1",
    }  # fmt: skip


def test_the_command_leaves_with_0_where_nothing_is_wrong() -> None:
    done = buttress("check", *(str(ROOT / name) for name in SHIPPED), "--spec", "search_spaces/lithology.yaml")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == len(SHIPPED), done.stdout + done.stderr


# --- the token -----------------------------------------------------------------------------------------------------


def test_the_token_is_made_where_ray_looks_closed_to_others_and_not_printed(tmp_path: Path) -> None:
    done = buttress("token")
    token = tmp_path / "home" / ".ray" / "auth_token"
    assert done.returncode == 0 and token.stat().st_mode & 0o777 == 0o600
    text = token.read_text()
    assert len(text) == 64 and int(text, 16) and text not in done.stdout + done.stderr
    code = (
        "from ray._raylet import AuthenticationTokenLoader as A; a = A.instance();"
        "print(a.has_token(ignore_auth_mode=True), a.get_raw_token(ignore_auth_mode=True))"
    )
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert asked.stdout.split() == ["True", text]  # Ray itself finds it


def test_a_token_is_not_replaced_by_accident(tmp_path: Path) -> None:
    path = tmp_path / "tokens" / "mine"
    assert buttress("token", "--path", str(path)).returncode == 0
    first = path.read_text()
    refused = buttress("token", "--path", str(path))
    assert refused.returncode == 2 and "--force" in refused.stderr and path.read_text() == first
    assert first not in refused.stderr
    assert buttress("token", "--path", str(path), "--force").returncode == 0
    assert path.read_text() != first and path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["mine"]


def test_a_token_that_others_could_read_is_closed_to_them_and_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("0123")
    path.chmod(0o644)
    refused = buttress("token", "--path", str(path))
    assert refused.returncode == 2 and "others could read it, which is mended" in refused.stderr
    assert path.stat().st_mode & 0o777 == 0o600 and path.read_text() == "0123"


def test_a_token_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = buttress("token", "--path", str(tmp_path / "file" / "token"))
    assert refused.returncode == 2 and "cannot be written" in refused.stderr
