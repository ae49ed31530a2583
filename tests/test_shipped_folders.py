"""Cluster files and image bring the folders that `buttress/` links to: without them it imports nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
IMPORT = "import buttress.trainables.lithology as family; print(family.__file__)"


def needed() -> set[str]:
    """`buttress` and the folders at the top that its links lead to."""
    links = {path: path.resolve() for path in (ROOT / "buttress").iterdir() if path.is_symlink()}
    assert all(target.parent == ROOT and not path.readlink().is_absolute() for path, target in links.items())
    return {"buttress", *(target.name for target in links.values())}


def test_the_links_are_those_of_the_documents() -> None:
    assert needed() == {"buttress", "trainables", "analysis", "search_spaces"}


@pytest.mark.parametrize("name", ["cluster.yaml", "clusters/gcp.yaml", "clusters/onprem.yaml"])
def test_a_cluster_file_mounts_every_folder_beside_the_others(name: str) -> None:
    mounts: dict[str, str] = yaml.safe_load((ROOT / name).read_text())["file_mounts"]
    for folder in needed():
        assert mounts.get(f"~/buttress/{folder}") == folder, f"{name} does not mount {folder}"
    installed = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE")
    assert [mounts.get(f"~/buttress/{file}") for file in installed] == [*installed]


def test_the_image_gets_every_folder_beside_the_others() -> None:
    dockerfile = (ROOT / "clusters" / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (?:--\S+ )*(\S+) (\S+)$", dockerfile, re.MULTILINE)
    assert {source for source, target in copied if source == target} >= needed()


def imported(folder: Path) -> subprocess.CompletedProcess[str]:
    """Imports a family in a fresh interpreter that finds `folder` and the dependencies, but no installed Buttress."""
    site = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}  # not the editable install
    paths = f"import sys; sys.path[:0] = {[str(folder), *site]!r}"
    command = [sys.executable, "-I", "-S", "-c", f"{paths}; {IMPORT}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("tool", ["rsync", "copy"])
def test_the_folders_together_import_a_family(tool: str, tmp_path: Path) -> None:
    for folder in needed():
        if tool == "copy":
            shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True)
        elif rsync := shutil.which("rsync"):  # with the options of `ray up`
            subprocess.run([rsync, "-avz", "--exclude=__pycache__", f"{ROOT / folder}/", tmp_path / folder],
                           check=True, capture_output=True)  # fmt: skip
        else:
            pytest.skip("not installed: rsync")
    done = imported(tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == tmp_path / "buttress" / "trainables" / "lithology" / "__init__.py"


def test_buttress_alone_fails_at_the_folder_that_is_missing(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "buttress", tmp_path / "buttress", symlinks=True)
    done = imported(tmp_path)
    assert done.returncode != 0
    assert "No module named 'buttress.trainables'" in done.stderr, done.stderr
