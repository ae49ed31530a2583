"""What lies beside a journal for people: the spec, and a README of the folder."""

from __future__ import annotations

from pathlib import Path

from buttress.execution.setup import describe_folder
from buttress.spec.spec import SweepSpec
from buttress.spec.yaml_io import read_yaml


def test_the_spec_beside_a_journal_runs_the_same_sweep_again(root: Path, tmp_path: Path) -> None:
    spec = SweepSpec.load(root / "search_spaces" / "lithology.yaml", profile="quick", overrides=["breaker=off"])
    describe_folder(tmp_path, spec, "lithology-abc123")
    again = SweepSpec.load(tmp_path / "spec.yaml")
    assert {**again.to_dict(), "profile": "quick"} == spec.to_dict()
    assert "lithology-abc123 with the profile quick" in (tmp_path / "spec.yaml").read_text()
    assert "`spec.yaml` | what was run" in (tmp_path / "README.md").read_text()
    describe_folder(tmp_path / "nowhere", spec, "lithology-abc123")  # nothing is raised


def test_every_packaged_spec_and_profile_survives_being_written_beside_a_journal(root: Path, tmp_path: Path) -> None:
    for path in sorted((root / "search_spaces").glob("*.yaml")):
        profiles = [None, *(read_yaml(path).get("profiles") or {})]
        for profile in profiles:
            spec = SweepSpec.load(path, profile=profile)
            describe_folder(tmp_path, spec, "x")
            assert SweepSpec.load(tmp_path / "spec.yaml").to_dict() == {**spec.to_dict(), "profile": None}
