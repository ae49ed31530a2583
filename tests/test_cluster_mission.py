"""The mission on simulated hosts: the README's trainer in a user's folder, swept over two hosts by the installed wheel.

Each host has the wheel in ~/venv; none imports the checkout.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path

import pytest
import yaml
from hosts import HOME
from on_hosts import ROOT, on_hosts, until
from test_packaging import NOT_SOURCE, build

TRIALS = 3
pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("copy") / "buttress", symlinks=True, ignore=NOT_SOURCE))
    return build("wheel", copy)


def own_files() -> dict[str, str]:
    """The README's trainer and spec; every rank also notes on the storage where it runs, and whose Buttress it has."""
    blocks = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", (ROOT / "README.md").read_text(), re.S))
    note = "Path('/mnt/ranks', f'{socket.gethostname()}-{world.rank}').write_text(buttress.__file__)"
    code, changes = re.subn(r"( +)wrapped, monitor = world\.wrap", rf"\1{note}\n\g<0>", blocks["my_vae.py"])
    assert changes == 1
    imports = "import socket\nfrom pathlib import Path\n\nimport buttress\n"
    return {"my_vae.py": imports + code, "my_vae.yaml": blocks["my_vae.yaml"]}


def test_a_users_trainer_is_swept_over_two_hosts_by_the_wheel_and_its_best_config_trained(
    hosts_allowed: None, wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with on_hosts(tmp_path, wheel, own_files()) as cluster:
        storage = tmp_path / "storage"
        (storage / "ranks").mkdir()
        assert "token authentication" in cluster.timed("check", "buttress cluster check ~/onprem.yaml")
        cluster.up()
        began = time.monotonic()
        with cluster.tunnel():
            settings = f"{cluster.spanning(TRIALS)} --set config.epochs=3"
            cluster.submit("own", f"buttress run my_vae.yaml --out /mnt/runs --quiet {settings}")
            said = cluster.followed("own", timeout=300)
        assert "succeeded" in said.lower(), said
        cluster.seconds["sweep"] = time.monotonic() - began
        noted = {file.name: file.read_text() for file in (storage / "ranks").iterdir()}
        assert sorted(name.split("-")[0] for name in noted) == ["worker1", "worker2"], noted
        assert sorted(name.split("-")[1] for name in noted) == ["0", "1"], noted
        assert all(re.match(rf"{HOME}/venv/lib/python[^/]+/site-packages/buttress/", where) for where in noted.values())

        (sweep,) = (storage / "runs").iterdir()
        url = f"/mnt/runs/{sweep.name}"
        rows = json.loads(cluster.timed("table", f"buttress table {url} --all --json").splitlines()[-1])
        assert len(rows) == TRIALS and {row["config.buttress.workers"] for row in rows} == {2}
        assert {row["outcome"] for row in rows} <= {"completed", "collapsed"}
        healthy = [row for row in rows if row["outcome"] == "completed"]
        best = min(healthy, key=lambda row: row["metric.val/elbo"])
        for row in rows:
            assert row["outcome"] in cluster.timed("why", f"buttress why {url} {row['trial']}")

        cluster.timed("export", f"buttress export {url} -o best.yaml")
        config = yaml.safe_load(cluster.laptop.run("cat ~/own/best.yaml").stdout)
        assert (config["beta"], config["lr"]) == (best["config.beta"], best["config.lr"])
        cluster.timed("ray down", "ray down --yes ~/onprem.yaml")
        until(lambda: not cluster.head.processes("gcs_server"), "the head is down", 30)
        trained = json.loads(cluster.timed("train", "buttress train best.yaml --json").splitlines()[-1])
        assert trained["metrics"]["val/elbo"] == pytest.approx(best["metric.val/elbo"], rel=1e-4)
    with capsys.disabled():
        print("\n" + ", ".join(f"{step} {seconds:.1f} s" for step, seconds in cluster.seconds.items()))
