"""What a trial that nobody stopped became: the README's definitions as code. No rule is looked at here.

In comes the record of one trial (`make.run`), out goes what `curves.Truth` holds and where it came from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.collapsebench.family import Family

Record = Mapping[str, Any]


def truth_of(record: Record, family: Family, objective: str, direction: str) -> dict[str, Any]:
    """`truth`, `state` and `blind`; `onset` (index of a report, None for a living trial); `value` (of the best epoch at
    full beta) and `last_value`; `late_bloomer`, `recoverer` and `looked_dead` (at how many reports one did).
    """
    reports: Sequence[Record] = record["reports"]
    dead = [family.looks_dead(report["metrics"]) for report in reports]
    values = [report["metrics"].get(objective) for report in reports if report["full_beta_epochs"] >= 1]
    known = [value for value in values if value is not None and math.isfinite(value)]
    best = None if not known else max(known) if direction == "max" else min(known)
    found: dict[str, Any] = {"value": best, "last_value": known[-1] if known else None, "onset": None}
    found |= {"late_bloomer": False, "recoverer": False, "looked_dead": 0, "state": None, "blind": None}
    if not reports or record["error"] or _nonfinite(reports[-1], objective):
        bad = [_nonfinite(report, objective) for report in reports]
        return found | {"truth": "diverged", "onset": _since(bad, [True] * len(bad))}
    eligible = [_eligible(report, family) for report in reports]
    found |= {"state": dead[-1], "blind": family.blind(record["measured"], reports[-1]["metrics"])}
    if found["state"] and found["blind"]:
        return found | {"truth": "collapsed", "onset": _since([each is not False for each in dead], eligible)}
    if found["state"] or found["blind"] or found["state"] is None:
        return found | {"truth": "ambiguous"}
    looked = [each for each, counts in zip(dead, eligible, strict=True) if counts and each is not None]
    late = bool(looked and looked[0])
    found |= {"looked_dead": sum(looked), "late_bloomer": late, "recoverer": any(looked) and not late}
    return found | {"truth": "healthy"}


def _eligible(report: Record, family: Family) -> bool:
    """Not before beta is full and not before the family's minimum of steps."""
    return report["full_beta_steps"] > 0 and report["step"] >= family.min_steps


def _nonfinite(report: Record, objective: str) -> bool:
    return any(name in (objective, "train/loss") for name in report["nonfinite"])


def _since(dead: Sequence[bool], eligible: Sequence[bool]) -> int | None:
    """Index of the first eligible report from which on every one is dead; the last one where none is eligible."""
    index = len(dead)
    while index and dead[index - 1]:
        index -= 1
    return next((i for i in range(index, len(dead)) if eligible[i]), len(dead) - 1 if dead else None)
