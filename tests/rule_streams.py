"""Short forms that the tests of rules share: one rule, a report, a stream of reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from buttress.rules import RuleEngine, RuleSet, Verdict

Row = Mapping[str, float | None]
DEFAULT = Path(__file__).parents[1] / "buttress" / "rules" / "default.yaml"


def one_rule(*signs: Mapping[str, Any], action: str = "kill", **keys: Any) -> RuleSet:
    return RuleSet.from_dict({"rules": {"low": {"action": action, "signs": list(signs), **keys}}})


KL = {"metric": "kl", "below": 0.3}
A, B, C = ({"metric": name, "below": 1.0} for name in "abc")


def report(engine: RuleEngine, row: Row, index: int, *, closing: bool = False, **keys: Any) -> Verdict:
    """Report number `index` (from 1) of a trial with one report per epoch of 100 steps, at full beta from the start."""
    age = {"epoch": index, "step": 100 * index, "full_beta_epochs": index, "full_beta_steps": 100 * index}
    return engine.update(row, **{**age, **keys}, closing=closing)


def play(rules: RuleSet, rows: Iterable[Row], *, budget: int | None = None, **keys: Any) -> list[Verdict]:
    engine = RuleEngine(rules, budget_epochs=budget)
    return [report(engine, row, index, **keys) for index, row in enumerate(rows, 1)]


def states(rules: RuleSet, values: Sequence[float | None], metric: str = "kl", **keys: Any) -> str:
    """One letter per report (healthy, suspect, collapsed, diverged); None is a report without the metric."""
    rows = [{metric: value} if value is not None else {"other": 1.0} for value in values]
    return "".join(verdict.state[0] for verdict in play(rules, rows, **keys))
