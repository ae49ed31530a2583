"""`ray up cluster.yaml` against a mock of AWS on loopback: everything that AWS is asked for, up to the head's launch.

The launcher is the real one, in a process of its own with dummy keys and a home of its own. Where it would log in to
the head, a stand-in for ssh notes that it was called and fails: behind it begins what tests/test_cluster_hosts.py
shows with real hosts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("moto", reason="moto (extra `dev`) is not installed")
boto3 = pytest.importorskip("boto3")

ROOT = Path(__file__).parents[1]
RAY = Path(sys.executable).parent / "ray"
REGION = "us-west-2"
pytestmark = pytest.mark.cluster


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The environment in which AWS is the mock, ssh the stand-in, and the home an empty folder with a token."""
    monkeypatch.setenv("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    home, tools = tmp_path / "home", tmp_path / "bin"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("0" * 8)
    tools.mkdir()
    for tool in ("ssh", "rsync"):
        (tools / tool).write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/{tool}.log\nexit 255\n')
        (tools / tool).chmod(0o755)
    mine = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": REGION,
        "HOME": str(home),
        "PATH": f"{tools}:{RAY.parent}:{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    for name, value in mine.items():
        monkeypatch.setenv(name, value)
    yield {**os.environ, **mine}
    server.stop()


def cluster_file(folder: Path, image: str) -> Path:
    """The shipped file with an image filled in, as its comments ask."""
    text = (ROOT / "cluster.yaml").read_text()
    assert "ami-00000000000000000" in text
    path = folder / "cluster.yaml"
    path.write_text(text.replace("ami-00000000000000000", image))
    return path


def instances(ec2: Any) -> list[dict[str, Any]]:
    states = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    return [each for group in ec2.describe_instances(Filters=states)["Reservations"] for each in group["Instances"]]


def test_ray_up_reaches_the_launch_of_the_head_and_ray_down_ends_it(aws: dict[str, str], tmp_path: Path) -> None:
    ec2 = boto3.client("ec2", region_name=REGION)
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    path = cluster_file(tmp_path, image)
    log = tmp_path / "up.log"
    with log.open("w") as out:
        up = subprocess.Popen(
            [str(RAY), "up", "--yes", "--disable-usage-stats", "--no-config-cache", str(path)],
            cwd=ROOT, env=aws, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 300  # the mock answers with all of AWS: 20 s of computing
        while not (tmp_path / "ssh.log").exists():
            assert up.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
    finally:
        up.terminate()
        up.wait(120)
    (head,) = instances(ec2)
    tags = {tag["Key"]: tag["Value"] for tag in head["Tags"]}
    assert (head["InstanceType"], head["ImageId"]) == ("m6i.xlarge", image)
    assert head.get("InstanceLifecycle") is None  # on demand
    assert tags["ray-node-type"] == "head" and tags["ray-user-node-type"] == "head"
    assert tags["ray-cluster-name"] == "buttress"
    assert head["Placement"]["AvailabilityZone"] in ("us-west-2a", "us-west-2b")
    assert "/ray-autoscaler-v1" in head["IamInstanceProfile"]["Arn"]
    attached = [{"Name": "attachment.instance-id", "Values": [head["InstanceId"]]}]
    (disk,) = ec2.describe_volumes(Filters=attached)["Volumes"]
    assert disk["Size"] == 200
    (group,) = ec2.describe_security_groups(GroupIds=[head["SecurityGroups"][0]["GroupId"]])["SecurityGroups"]
    open_to_all = [
        rule["FromPort"]
        for rule in group["IpPermissions"]
        if any(each["CidrIp"] == "0.0.0.0/0" for each in rule["IpRanges"])
    ]
    assert open_to_all == [22]
    key = tmp_path / "home" / ".ssh" / f"{head['KeyName']}.pem"
    assert key.stat().st_mode & 0o777 == 0o600
    login = (tmp_path / "ssh.log").read_text().splitlines()[0]
    assert str(key) in login and f"ubuntu@{head['PublicIpAddress']}" in login

    down = subprocess.run(
        [str(RAY), "down", "--yes", str(path)],
        cwd=ROOT, env=aws, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert down.returncode == 0, down.stdout + down.stderr
    assert instances(ec2) == []


def test_every_worker_type_is_one_that_aws_would_launch(aws: dict[str, str]) -> None:
    """The node types' settings, as parameters of RunInstances: botocore refuses unknown names and wrong types."""
    ec2 = boto3.client("ec2", region_name=REGION)
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    spot = {}
    for name, node in cluster["available_node_types"].items():
        config = {**node["node_config"], "ImageId": image}
        (launched,) = ec2.run_instances(**config, MinCount=1, MaxCount=1)["Instances"]
        spot[name] = launched.get("InstanceLifecycle") == "spot"
        (kind,) = ec2.describe_instance_types(InstanceTypes=[config["InstanceType"]])["InstanceTypes"]
        if name != cluster["head_node_type"]:
            offered = {"CPU": kind["VCpuInfo"]["DefaultVCpus"], "GPU": sum(g["Count"] for g in kind["GpuInfo"]["Gpus"])}
            assert node["resources"] == offered
    assert spot == {"head": False, "worker": False, "spot-worker": True}
