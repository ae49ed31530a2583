"""Reads the rules that a sweep was judged by out of its journal's header, as they are written there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from buttress.errors import BadInput
from buttress.journal import Journal
from buttress.rules import RuleSet
from buttress.rules.coverage import coverage_warnings


def rules_of(journal: Journal) -> dict[str, Mapping[str, Any]]:
    """Rule -> its keys; what is no rule is left out."""
    rules = journal.header.rules
    inner = rules.get("rules", rules)
    found = inner if isinstance(inner, Mapping) else {}
    return {str(name): rule for name, rule in found.items() if isinstance(rule, Mapping)}


def kill_rules(journal: Journal) -> dict[str, Mapping[str, Any]]:
    """Of these the ones that stop a trial."""
    return {name: rule for name, rule in rules_of(journal).items() if rule.get("action") == "kill"}


def signs_of(rule: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The signs of a rule, each a mapping with its `metric`."""
    for sign in rule.get("signs") or ():
        if isinstance(sign, Mapping) and isinstance(sign.get("metric"), str):
            yield sign


def rule_set(journal: Journal) -> RuleSet | None:
    """The rules, validated; None where an earlier version wrote what is refused now."""
    try:
        return RuleSet.from_dict(journal.header.rules)
    except BadInput:
        return None


def rule_coverage(journal: Journal) -> list[str]:
    """What kept the sweep's rules from judging its trials, in sentences (see `coverage_warnings`)."""
    rules = rule_set(journal)
    reports = (report for record in journal.trials.values() for report in record.reports)
    return coverage_warnings(rules, reports) if rules is not None else []
