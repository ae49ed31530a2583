"""Says which rules cannot judge what a trainer reports."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Set
from typing import Protocol

from buttress.rules.conditions import Limit
from buttress.rules.schema import RuleSet, Sign
from buttress.rules.transforms import TRANSFORMS
from buttress.rules.verdict import metric_label
from buttress.wording import listing, number


class MetricReport(Protocol):
    """A report, of a trainer or of a journal."""

    @property
    def metrics(self) -> Mapping[str, float | None]: ...
    @property
    def nonfinite(self) -> Collection[str]: ...
    @property
    def phase(self) -> int: ...


def unwatched_rules(rules: RuleSet, reported: Set[str]) -> dict[str, tuple[str, ...]]:
    """Rules that can judge no trial which reports these metrics and no others.

    Args:
        rules: The rules; those that are off are left out.
        reported: Every metric that has been reported, finite or not; aliases count.

    Returns:
        Name of the rule -> the metrics that it looks at and that have not been reported.
    """
    known = {ours for ours, columns in rules.aliases.items() if not reported.isdisjoint(columns)} | set(reported)
    unwatched = {}
    for name, rule in rules.rules.items():
        needs = [(sign.metric, Limit.of(sign).metrics) for sign in rule.signs if sign.transform != "absent"]
        lacking = [one for one, others in needs if one not in known or (others and known.isdisjoint(others))]
        if rule.action != "off" and len(rule.signs) - len(lacking) < (rule.votes or 1):
            missing = [each for one, others in needs for each in (one, *others[:1]) if each not in known]
            unwatched[name] = tuple(dict.fromkeys(missing))
    return unwatched


def coverage_warnings(rules: RuleSet, reports: Iterable[MetricReport]) -> list[str]:
    """What keeps the rules from judging these reports, one sentence each, without a full stop.

    Named are kill rules none of whose metrics has been reported, ratios of values below 0, and a total KL so small in
    all reports that it is probably not the total.

    Args:
        rules: The rules.
        reports: Reports of one trial or of many; without any there is nothing to say.
    """
    ranges: dict[str, tuple[float, float]] = {}
    reported: set[str] = set()
    phases: set[int] = set()
    signs = [sign for rule in rules.rules.values() if rule.action != "off" for sign in rule.signs]
    columns = {name for sign in signs for name in (sign.metric, *rules.aliases.get(sign.metric, ()))}
    for report in reports:
        reported |= report.metrics.keys()
        reported.update(report.nonfinite)
        phases.add(report.phase)
        for name in columns & report.metrics.keys():
            value = report.metrics[name]
            if value is not None and math.isfinite(value):
                low, high = ranges.get(name, (value, value))
                ranges[name] = min(low, value), max(high, value)
    if not reported:
        return []
    kills = {name for name, rule in rules.rules.items() if rule.action == "kill"}
    # of a phase without reports nothing is known; a vote may be meant for trainers that report one metric more
    kills -= {name for name in kills if rules.rules[name].phase not in (None, *phases)}
    voting = {name: {sign.metric for sign in rule.signs} for name, rule in rules.rules.items() if rule.votes}
    kills -= {name for name, metrics in voting.items() if reported & metrics}
    said = [
        f"{name} stops no trial: {listing(missing)} {'was' if len(missing) == 1 else 'were'} never reported"
        + _alias_hint(missing[0], reported)
        for name, missing in unwatched_rules(rules, reported).items()
        if name in kills
    ]
    for sign in dict.fromkeys(signs):
        for column in (sign.metric, *rules.aliases.get(sign.metric, ())):
            if column in ranges:
                said += _value_warnings(sign, column, *ranges[column], reported)
                break
    return list(dict.fromkeys(said))


def _value_warnings(sign: Sign, column: str, low: float, high: float, reported: Set[str]) -> list[str]:
    """What is odd about a sign's metric, whose values lay between `low` and `high`."""
    difference, said = TRANSFORMS[sign.transform].difference, []
    if low < 0 and difference:
        said.append(
            f"{column} was as low as {number(low)}, and a `{sign.transform}` says nothing of values below 0: take "
            f"`transform: {difference}`"
        )
    total = metric_label(sign.metric)[0] == "total KL" and sign.transform == "value" and sign.comparison == "below"
    limit, dims = sign.threshold, f"{column.rpartition('/')[0]}/dims"
    if total and isinstance(limit, float) and high < limit and dims not in reported:  # LatentMonitor reports the dims
        said.append(
            f"{column} was never above {number(high)}: the rules take it for nats, summed over the dimensions of the "
            "code and averaged over samples; is it a mean over dimensions?"
        )
    return said


def _alias_hint(missing: str, reported: Set[str]) -> str:
    """Reported metrics that may be the one that is missing, in words."""
    word = missing.rpartition("/")[2].partition("_")[0].lower()
    close = [name for name in sorted(reported) if word == re.split("[^a-z0-9]+", name.lower())[-1]]
    if len(close) != 1:
        return f"; of that kind are {listing(close[:5])}" if close else ""
    return f"; if that is what {close[0]} holds: `aliases: {{{missing}: {close[0]}}}` under `rules:`"
