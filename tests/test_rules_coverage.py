"""Rules that cannot judge what a trainer reports are named, and what is probably meant instead."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from journals import SyntheticSweep
from rule_streams import DEFAULT, one_rule

from buttress.analysis.advice import advice
from buttress.analysis.header_rules import rule_coverage
from buttress.analysis.render import render_summary
from buttress.journal import find, read
from buttress.rules import RuleSet
from buttress.rules.coverage import coverage_warnings, unwatched_rules

KL, ACTIVE = {"metric": "latent/kl_total", "below": 0.1}, {"metric": "latent/active_kl", "below": 1}
OWN_KEY = (
    "low stops no trial: latent/kl_total was never reported; if that is what val/kl holds: "
    "`aliases: {latent/kl_total: val/kl}` under `rules:`"
)


@dataclass(frozen=True)
class Row:
    metrics: dict[str, float | None]
    nonfinite: tuple[str, ...] = field(default=())
    phase: int = 0


def said(rules: RuleSet, *rows: dict[str, float | None], nonfinite: tuple[str, ...] = ()) -> list[str]:
    return coverage_warnings(rules, [Row(row, nonfinite) for row in rows])


def test_a_kill_rule_whose_metrics_never_came_is_named_with_the_key_that_may_hold_them() -> None:
    assert said(one_rule(KL), {"val/kl": 5.0, "val/loss": 1.0}) == [OWN_KEY]
    assert said(one_rule(KL), {"kl": 5.0, "val/kl": 5.0}) == [
        "low stops no trial: latent/kl_total was never reported; of that kind are kl and val/kl"
    ]
    assert said(one_rule(KL, ACTIVE), {"loss": 5.0}) == [
        "low stops no trial: latent/kl_total and latent/active_kl were never reported"
    ]
    assert said(one_rule(KL)) == []  # before the first report nothing is known
    assert said(one_rule(KL, action="warn"), {"loss": 5.0}) == []
    assert unwatched_rules(one_rule(KL, action="warn"), {"loss"}) == {"low": ("latent/kl_total",)}


@pytest.mark.parametrize(
    ("rules", "row", "watched"),
    [
        (one_rule(KL, ACTIVE), {"latent/kl_total": 5.0}, True),  # the other sign is left out
        (one_rule(KL, ACTIVE, votes=2), {"latent/kl_total": 5.0}, True),  # meant for trainers that report both
        (one_rule(KL, ACTIVE, votes=2), {"loss": 5.0}, False),
        (one_rule({"metric": "kl", "below": {"per_dim": 0.1}}), {"kl": 5.0}, False),  # of how many dimensions?
        (one_rule({"metric": "kl", "below": {"per_dim": 0.1}}), {"kl": 5.0, "latent/dims": 8.0}, True),
        (one_rule({"metric": "d", "transform": "absent"}, grade=KL), {"loss": 1.0}, True),
        (one_rule({"metric": "d", "transform": "lost"}, grade=KL), {"loss": 1.0}, False),
        (RuleSet.from_dict({**one_rule(KL).to_dict(), "aliases": {"latent/kl_total": "kl"}}), {"kl": 5.0}, True),
    ],
)
def test_what_watches_is_told_from_what_cannot(rules: RuleSet, row: dict[str, float | None], watched: bool) -> None:
    assert (said(rules, row) == []) == watched


def test_of_a_phase_that_has_not_begun_nothing_is_known() -> None:
    later = one_rule(KL, phase=1)
    assert coverage_warnings(later, [Row({"loss": 1.0})]) == []
    assert len(coverage_warnings(later, [Row({"loss": 1.0}), Row({"loss": 1.0}, phase=1)])) == 1


def test_a_value_that_was_never_finite_was_reported() -> None:
    assert said(one_rule({"metric": "loss", "transform": "nonfinite"}, kind="diverged"), {}, nonfinite=("loss",)) == []


def test_a_ratio_of_values_below_zero_is_named_with_the_difference() -> None:
    rules = one_rule({"metric": "mi", "transform": "best_ratio", "below": 0.1})
    assert said(rules, {"mi": 3.0}, {"mi": -0.25}) == [
        "mi was as low as -0.25, and a `best_ratio` says nothing of values below 0: take `transform: best_difference`"
    ]
    assert said(rules, {"mi": 3.0}, {"mi": None}, {"mi": 0.0}) == []


def test_a_kl_that_may_be_a_mean_over_dimensions_gets_a_hint() -> None:
    (hint,) = said(one_rule(KL), {"latent/kl_total": 3e-7}, {"latent/kl_total": 4e-7})
    assert hint.startswith("latent/kl_total was never above 4e-07: the rules take it for nats, summed over the dim")
    assert said(one_rule(KL), {"latent/kl_total": 5.0}, {"latent/kl_total": 4e-7}) == []  # it has collapsed
    assert said(one_rule(KL), {"latent/kl_total": 4e-7, "latent/dims": 8.0}) == []  # of `LatentMonitor`, which sums


def test_the_end_of_a_sweep_and_its_report_name_them() -> None:
    book = SyntheticSweep()
    book.lines[0]["rules"] = one_rule({"metric": "vq/perplexity", "below": 2}).to_dict()
    book.completed("0000", ari=[0.1])
    sentence = "low stops no trial: vq/perplexity was never reported"
    assert rule_coverage(book.journal()) == [sentence]
    assert f"warning: {sentence}" in render_summary(book.journal()).plain
    assert sentence in advice(book.journal())


def test_no_rule_of_ours_is_named_in_our_own_sweeps(recorded_sweeps: Path) -> None:
    journals = [read(find(str(path.parent)).path) for path in recorded_sweeps.rglob("journal.jsonl")]
    assert len(journals) > 3
    assert {each.header.sweep: rule_coverage(each) for each in journals if rule_coverage(each)} == {}


def test_the_default_rules_know_their_metrics() -> None:
    reported: dict[str, Any] = {"latent/kl_total": 5.0, "latent/active_kl": 3.0, "latent/dims": 8.0, "train/loss": 1.0}
    assert said(RuleSet.load(DEFAULT), {**reported, "train/nonfinite": 0.0}) == []
