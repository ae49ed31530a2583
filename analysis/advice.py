"""What a sweep suggests to try next: winners at the edge of a range, thin corners, rules that never spoke."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from buttress.analysis.header_rules import kill_rules, rule_coverage, rule_set
from buttress.analysis.selection import best_trial, healthy_trials, objective_value
from buttress.journal import Journal
from buttress.rules.coverage import unwatched_rules
from buttress.spec.parameters import choice_key
from buttress.wording import listing, number, plural

#: A value within this share of a range from its end lies at the edge.
EDGE = 0.03
#: Trials from which on a trend or a thin corner is spoken of; |rank correlation| from which on it is a trend.
MIN_TRIALS, MIN_CORRELATION = 8, 0.8


class Edge(NamedTuple):
    """The winner's value lies at an end of its range."""

    path: str
    value: float
    side: Literal["lower", "upper"]
    bound: float

    def __str__(self) -> str:
        return (
            f"the best trial's {self.path} is {number(self.value)}, at the {self.side} end of its range "
            f"({number(self.bound)}): widen it"
        )


class Trend(NamedTuple):
    """Over the healthy trials the objective becomes better with a parameter, up to its end: rank correlation `rho`."""

    path: str
    side: Literal["lower", "upper"]
    rho: float
    trials: int

    def __str__(self) -> str:
        ways = "grows" if self.side == "upper" else "falls"
        return (
            f"the objective becomes better as {self.path} {ways} (rank correlation {self.rho:+.2f} over "
            f"{plural(self.trials, 'healthy trial')}): is it one that this value can buy by itself?"
        )


def edges(journal: Journal) -> list[Edge]:
    """Parameters whose range the best trial has reached the end of; none without a best trial."""
    winner = best_trial(journal)
    found: list[Edge] = []
    if winner is None:
        return found
    for path, low, high, log in _ranges(journal):
        value = winner.params.get(path)
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        place = _place(value, low, high, log)
        if place <= EDGE:
            found.append(Edge(path, value, "lower", low))
        elif place >= 1 - EDGE:
            found.append(Edge(path, value, "upper", high))
    return found


def trends(journal: Journal) -> list[Trend]:
    """Parameters with which the objective becomes better nearly monotonically, the best trial in the last fifth."""
    from scipy.stats import spearmanr

    first, winner = journal.objectives[0], best_trial(journal)
    healthy = healthy_trials(journal)
    found: list[Trend] = []
    for path, low, high, log in _ranges(journal):
        pairs = [
            (record.params[path], value)
            for record in healthy
            if path in record.params and (value := objective_value(record, journal.objectives)) is not None
        ]
        if winner is None or path not in winner.params or len(pairs) < MIN_TRIALS or len({x for x, _ in pairs}) < 4:
            continue
        rho = float(spearmanr(*zip(*pairs, strict=True)).statistic)
        if not math.isfinite(rho) or abs(rho) < MIN_CORRELATION:
            continue
        side: Literal["lower", "upper"] = "upper" if (rho > 0) == (first.direction == "max") else "lower"
        place = _place(winner.params[path], low, high, log)
        if (place if side == "upper" else 1 - place) >= 0.8:
            found.append(Trend(path, side, rho, len(pairs)))
    return found


def thin_corners(journal: Journal) -> list[str]:
    """Values of choices, and thirds of ranges, of which fewer than two trials were drawn; in words."""
    search: Mapping[str, Any] = journal.header.spec.get("search") or {}
    found: list[str] = []
    if len(journal.trials) < MIN_TRIALS:
        return found
    for path, parameter in search.items():
        drawn = [record.params[path] for record in journal.trials.values() if path in record.params]
        choices = parameter.get("choice") or ()
        counts = Counter(map(choice_key, drawn))
        for value in choices if len(choices) <= len(journal.trials) else ():
            if (count := counts[choice_key(value)]) < 2:
                found.append(f"{path} {number(value)} ({plural(count, 'trial')})")
    for path, low, high, log in _ranges(journal):
        values = [record.params[path] for record in journal.trials.values() if path in record.params]
        thirds = Counter(min(2, int(3 * _place(value, low, high, log))) for value in values)
        for third, name in enumerate(("lower", "middle", "upper")):
            if values and thirds[third] < 2:
                found.append(f"the {name} third of {path} ({plural(thirds[third], 'trial')})")
    return found


def silent_rules(journal: Journal) -> tuple[list[str], list[str]]:
    """Kill rules that held in no trial, and of them those whose metrics no trial has reported."""
    spoken = {record.outcome.rule for record in journal.trials.values() if record.outcome}
    spoken |= {record.audit.rule for record in journal.trials.values() if record.audit}
    silent = [name for name in kill_rules(journal) if name not in spoken]
    seen = {name for record in journal.trials.values() for report in record.reports
            for name in (*report.metrics, *report.nonfinite)}  # fmt: skip
    rules = rule_set(journal)
    unwatched = unwatched_rules(rules, seen) if rules is not None and seen else {}
    return [name for name in silent if name not in unwatched], [name for name in silent if name in unwatched]


def advice(journal: Journal) -> list[str]:
    """What to try next, one sentence each, the weightiest first; without a full stop."""
    said = [str(edge) for edge in edges(journal)] + [str(trend) for trend in trends(journal)]
    close = _close_runner_up(journal)
    if close:
        said.append(close)
    if corners := thin_corners(journal):
        more = f" and {len(corners) - 4} more" if len(corners) > 4 else ""
        said.append(f"hardly tried: {', '.join(corners[:4])}{more}")
    silent, _ = silent_rules(journal)
    said += rule_coverage(journal)
    if silent:
        said.append(f"{listing(silent)} held in no trial")
    return said


def _close_runner_up(journal: Journal) -> str | None:
    """A sentence where the second is nearly as good as the best, measured by the spread of the better half."""
    values = [value for record in healthy_trials(journal)
              if (value := objective_value(record, journal.objectives)) is not None]  # fmt: skip
    if len(values) < 4:
        return None
    half = values[: max(2, len(values) // 2)]
    spread = max(half) - min(half)
    if spread <= 0 or abs(values[0] - values[1]) > 0.1 * spread:
        return None
    return "the two best trials are nearly equal: train both with other seeds before you choose"


def _ranges(journal: Journal) -> Iterator[tuple[str, float, float, bool]]:
    """(path, low, high, on a log scale) of the searched ranges."""
    search: Mapping[str, Any] = journal.header.spec.get("search") or {}
    for path, parameter in search.items():
        for kind in ("uniform", "loguniform", "int", "logint"):
            if kind in parameter and float(parameter[kind][0]) < float(parameter[kind][1]):
                yield path, float(parameter[kind][0]), float(parameter[kind][1]), kind.startswith("log")


def _place(value: float, low: float, high: float, log: bool) -> float:
    """Where a value lies in its range, 0 to 1."""
    if log:
        value, low, high = math.log(max(value, low * 1e-9)), math.log(low), math.log(high)
    return min(1.0, max(0.0, (value - low) / (high - low)))
