"""The rainfall network at the original's size takes real steps: finite, all of it trained, a report for the rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.rainfall_full import full_config, measure

pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    ("model", "parameters"),
    [({}, 152_895_553), ({"decoder": "transposed", "inject": "all"}, 170_354_401)],
    ids=["bilinear", "transposed"],
)
def test_the_full_profile_takes_real_steps(
    model: dict[str, str], parameters: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUTTRESS_CACHE", str(tmp_path))
    found = measure(full_config(model, batch=4), steps=2)
    assert found["parameters"] == parameters and found["steps"] == 2
    assert found["without_gradient"] == [] and found["nonfinite"] == []
    assert 0 < found["loss"] < 1e3 and found["prior/crps"] > 0
    assert found["verdict"] == "healthy" and found["latent/kl_total"] > 0
    assert found["peak_gb"] < 16
