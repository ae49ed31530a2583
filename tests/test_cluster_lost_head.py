"""A cluster that loses its head in mid-sweep: another `ray up`, and the sweep on S3 goes on.

The storage is a moto server on the laptop, which reads the table from it all the while.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from on_hosts import DASHBOARD, JOB, OF_RAY, ROOT, Cluster, on_hosts, until

from buttress.journal.mirror import LEASE_S

pytestmark = [pytest.mark.cluster, pytest.mark.long]


class OnStorage:
    """Commands on the laptop about a sweep on the bucket."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://{cluster.laptop.address}:5000", "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip

    def typed(self, line: str, **options: Any) -> str:
        settings = " ".join(f"{name}={value}" for name, value in self.environment.items())
        return self.cluster.laptop.run(f"cd {ROOT} && export {settings} && {line}", **options).stdout

    def sweep(self) -> str:
        listed = "from buttress.storage import Storage; print(*Storage('s3://bucket/sweeps').folders())"
        return self.typed(f'python -c "{listed}"').strip()

    def rows(self, url: str) -> dict[str, dict[str, Any]]:
        said = self.typed(f"buttress table {url} --all --json", check=False)
        return {row["trial"]: row for row in json.loads(said.splitlines()[-1])} if said else {}


def test_a_sweep_whose_head_is_lost_goes_on_on_another_cluster(hosts_allowed: None, tmp_path: Path) -> None:
    with on_hosts(tmp_path) as cluster:
        server = cluster.laptop.start("python -m moto.server -H 0.0.0.0 -p 5000", tmp_path / "moto.log")
        storage = OnStorage(cluster)
        cluster.up()
        made = "S3FileSystem(endpoint_override='127.0.0.1:5000', scheme='http', allow_bucket_creation=True)"
        storage.typed(f"python -c \"from pyarrow.fs import S3FileSystem; {made}.create_dir('bucket')\"")
        run = "buttress run search_spaces/lithology.yaml --profile quick --out s3://bucket/sweeps --quiet"
        with cluster.tunnel():
            cluster.submit("first", f"{run} {cluster.quick(4, epochs=12)}", storage.environment)
            url = f"s3://bucket/sweeps/{until(storage.sweep, 'a sweep on the bucket', 90)}"
            done = lambda: [t for t, row in storage.rows(url).items() if row["outcome"] == "completed"]  # noqa: E731
            completed = until(done, "a trial completed", 120)
            before = storage.rows(url)
            assert len(completed) < 4, "the sweep was over before its head could be lost"
            _lose(cluster)
        lost = time.monotonic()
        until(lambda: not [p for w in cluster.workers for p in w.processes("raylet")], "the workers left", 60)
        cluster.up()
        with cluster.tunnel():
            cluster.submit("refused", f"buttress resume {url} --quiet", storage.environment)
            assert "is being run by another driver" in cluster.followed("refused")
            time.sleep(max(0.0, LEASE_S + 1 - (time.monotonic() - lost)))
            cluster.submit("second", f"buttress resume {url} --quiet", storage.environment)
            said = cluster.followed("second", timeout=240)
            assert "since the last of 1 resume" in said, said
            after = storage.rows(url)
            assert {row["outcome"] for row in after.values()} == {"completed"} and len(after) == 4
            for trial in completed:  # what was done before is as it was
                then = {name: value for name, value in before[trial].items() if value is not None}
                assert {name: after[trial][name] for name in then} == then
            # a job that is stopped leaves a sweep that can be resumed
            cluster.submit("stopped", f"buttress resume {url} --trials 8 --quiet", storage.environment)
            until(lambda: any(row["outcome"] == "running" for row in storage.rows(url).values()), "it went on", 90)
            cluster.laptop.run(f"{JOB} stop {DASHBOARD} stopped")
            said = cluster.laptop.run(f"{JOB} logs {DASHBOARD} stopped", check=False).stdout
            assert f"buttress resume {url}" in said, said
        cluster.timed("ray down", "ray down --yes ~/onprem.yaml")
        exported = storage.typed(f"buttress export {url} -o ~/best.yaml --weights")
        assert exported.count("wrote") == 2
        server.kill()
        server.wait()


def _lose(cluster: Cluster) -> None:
    """Kills all of Ray and the driver on the head, at once."""
    listed = cluster.head.run("ps -eo pid,args --no-headers").stdout.splitlines()
    words = (*OF_RAY, "buttress run")
    found = [line.split()[0] for line in listed if any(word in line for word in words)]
    cluster.head.run(f"kill -9 {' '.join(found)}", check=False)
