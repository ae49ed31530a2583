"""Metric keys of published trainers, through every place that parses or writes one."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from journals import SyntheticSweep
from toy import Collected

import buttress
from buttress.analysis.table import filter_rows, rows, sort_rows
from buttress.errors import BadInput
from buttress.rules import RuleEngine, RuleSet
from buttress.spec.overrides import parse_override
from buttress.spec.spec import SweepSpec
from buttress.spec.yaml_io import parse_yaml
from buttress.training.reporting import Reporter
from buttress.training.trainable import METRIC_KEY, Schedule
from buttress.training.world import World

KEYS = [
    "val/FID", "metrics/mAP50-95(B)", "metrics/mAP@0.5", "val/R^2", "Recon loss (nats)", "*best*", "@loss", "-loss",
    "val/KL+CE", "1e-3", "on",
]  # fmt: skip


def is_plain(key: str) -> bool:
    """Whether it needs no quotes in YAML."""
    try:
        return bool(parse_yaml(f"[{key}]") == [key])
    except BadInput:
        return False


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_reported_judged_and_found_in_every_table(key: str, tmp_path: Path) -> None:
    sink = Collected()
    with Reporter(World.single(tmp_path), Schedule(2), sink) as report:
        report({"epoch": 1, "step": 1, key: 0.25, f"{key} x": torch.ones(3)})
    assert sink.reports[0].metrics == {key: 0.25} and sink.reports[0].vectors == {f"{key} x": [1.0, 1.0, 1.0]}

    written = key if is_plain(key) else f'"{key}"'
    low = f"action: kill, signs: [{{metric: {written}, below: 0.5}}], message: 'it is {{{key}:.2f}}'"
    text = f"rules: {{low: {{{low}}}}}"
    (tmp_path / "rules.yaml").write_text(text)
    engine = RuleEngine(RuleSet.load(tmp_path / "rules.yaml"))
    verdict = engine.update({key: 0.25}, epoch=1, step=1, full_beta_epochs=1, full_beta_steps=1)
    assert verdict.state == "collapsed" and verdict.message == "it is 0.25"

    _, objectives = parse_override(f"objectives=[{written}]")
    spec = SweepSpec.from_dict({"trainable": "m:T", "name": "m", "search": {"lr": {"uniform": [0, 1]}},
                                "objectives": objectives, "budget": {"trials": 1}})  # fmt: skip
    assert spec.objectives[0].metric == key

    book = SyntheticSweep(objectives={key: "max"})
    book.completed("0000", {"loss.beta": 0.1}, **{key: [0.1, 0.5]})
    book.completed("0001", {"loss.beta": 0.2}, **{key: [0.1, 0.3]})
    table = rows(book.journal())
    for name in (key, f"metric.{key}", f"last.{key}", key.rpartition("/")[2]):
        assert [row["trial"] for row in filter_rows(table, [f"{name}>=0.4"])] == ["0000"], name
        assert [row["trial"] for row in sort_rows(table, name)] == ["0001", "0000"], name
        assert [row["trial"] for row in sort_rows(table, f"-{name}")] == ["0000", "0001"], name

    sweep = buttress.load(book.write(tmp_path / "runs").parent)
    history = sweep.trials["0000"].history()
    history.to_parquet(tmp_path / "one.parquet")
    history.to_csv(tmp_path / "one.csv")
    assert pd.read_parquet(tmp_path / "one.parquet")[key].tolist() == [0.1, 0.5]
    for curves in (sweep, history.reset_index(), tmp_path / "one.csv"):
        found = buttress.replay(curves, tmp_path / "rules.yaml")
        assert found.summary["killed"] >= 1


@pytest.mark.parametrize("key", ["", " a", "a ", "a:b", "a=b", "a{b}", "a\nb", "[b]", "a,b", "ä", "a\u202eb"])
def test_other_keys_are_none(key: str) -> None:
    assert METRIC_KEY.fullmatch(key) is None
