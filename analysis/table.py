"""The trial table as data: one flat row per trial, the same keys in every row.

In goes a `Journal`, out come JSON rows (`rows`), the same rows filtered (`where`) and sorted (`sort`), or a pandas
`frame`. Keys: `trial, outcome, kind, margin, warnings, epoch, step, epochs_saved, seconds, seed`, where trials were
audited also `audited`, then `config.<path>` (the searched paths, or all of them), `metric.<name>` (at the best valid
epoch) and `last.<name>`. What is missing is None, never NaN. `epoch` and `step` are those the trial had run when it
ended (or by now); `epochs_saved` is what was left of its budget, known once it has ended; `audited` trials were
condemned and ran on to their real end. Drawing is in `buttress.analysis.render`.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from buttress.analysis.selection import best_of, healthy
from buttress.errors import BadInput
from buttress.journal import Journal, TrialRecord

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
FIXED = ("trial", "outcome", "kind", "margin", "warnings", "epoch", "step", "epochs_saved", "seconds", "seed")
#: The order of outcomes in a table: what can be used first, what needs a look last.
ORDER = ("completed", "running", "waiting", "paused", "pruned", "collapsed", "diverged", "failed")


def rows(journal: Journal, *, all: bool = False) -> list[Row]:
    """One row per trial in the order of the ids. `all`: every leaf of the config, not only the searched paths."""
    records = sorted(journal.trials.values(), key=lambda record: record.id)
    configs = [flat(record.config) if all else {} for record in records]
    bests = [best_of(record, journal.objectives) for record in records]
    lasts = [last_values(record) for record in records]
    audited = any(record.audit for record in records)
    paths = _union([searched(journal), *configs])
    first = [objective.metric for objective in journal.objectives]
    metrics = _union([first, sorted(_union(found.metrics for found in bests if found))])
    last = _union([[name for name in first if any(name in each for each in lasts)], sorted(_union(lasts))])
    table = []
    for record, config, found, newest in zip(records, configs, bests, lasts, strict=True):
        row = _fixed(record) | ({"audited": record.audit is not None} if audited else {})
        row |= {f"config.{path}": _json(record.params.get(path, config.get(path))) for path in paths}
        row |= {f"metric.{name}": _json(found.metrics.get(name) if found else None) for name in metrics}
        row |= {f"last.{name}": _json(newest.get(name)) for name in last}
        table.append(row)
    return table


def frame(journal: Journal, *, all: bool = False) -> pd.DataFrame:
    """`rows` as a DataFrame; columns of numbers are float64 with NaN where a value is missing."""
    import pandas as pd

    table = rows(journal, all=all)
    return pd.DataFrame(table, columns=list(table[0]) if table else list(FIXED))


def searched(journal: Journal) -> list[str]:
    """The searched paths, in the order of the spec; those that only trials mention come last."""
    declared = journal.header.spec.get("search") or {}
    return _union([declared, *(record.params for record in journal.trials.values())])


def epochs_run(record: TrialRecord) -> tuple[int | None, int | None]:
    """Epochs and optimiser steps that the trial has completed; None before its first report."""
    if record.outcome is not None:
        step = record.outcome.step
        return record.outcome.epochs, record.reports[-1].step if step is None and record.reports else step
    return (record.reports[-1].epoch, record.reports[-1].step) if record.reports else (None, None)


def budget_of(record: TrialRecord) -> int | None:
    budget = record.outcome.epochs_budget if record.outcome else None
    return record.budget_epochs if budget is None else budget


def epochs_saved(record: TrialRecord) -> int | None:
    """Budgeted epochs that were not run; None while the trial is unfinished."""
    budget = budget_of(record)
    if record.outcome is None or budget is None:
        return None
    return max(0, budget - record.outcome.epochs)


def last_values(record: TrialRecord) -> dict[str, float | None]:
    """The newest value of every metric: the outcome line's, else the latest report that has it."""
    if record.outcome is not None and record.outcome.last:
        return record.outcome.last
    values: dict[str, float | None] = {}
    for report in record.reports:
        values |= report.metrics
    return values


def flat(config: Mapping[str, Any], under: str = "") -> dict[str, Any]:
    """A nested config as `{key path: value}`; lists and empty groups are leaves."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{under}.{key}" if under else str(key)
        leaves |= flat(value, path) if isinstance(value, Mapping) and value else {path: value}
    return leaves


# ------------------------------------------------------------------------------------------------- filters and order

_COMPARE = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}


def where(table: Sequence[Row], conditions: Iterable[str]) -> list[Row]:
    """The rows that meet every condition, such as `outcome=collapsed`, `outcome=pruned,failed`, `margin>1`.

    A column may be named without its prefix (`loss.beta<0.1`, `ari>=0.4`) or by its last part. Texts are compared as
    texts, numbers as numbers; a missing value meets `=null` and nothing else. Raises BadInput for a condition that is
    none and for a column that is not there.
    """
    chosen = list(table)
    for condition in conditions:
        match = re.fullmatch(r"\s*(.+?)\s*(==|!=|<=|>=|=|<|>)\s*(.*?)\s*", condition)
        if match is None:
            raise BadInput(
                "this is no condition", where="--where", value=condition, accepted="COLUMN=VALUE, or with != < <= > >="
            )
        name, sign, wanted = match.groups()
        key = column(table, name, where="--where")
        if key == "outcome" and (unknown := {each.strip() for each in wanted.split(",")} - {*ORDER, "null"}):
            accepted = ", ".join(ORDER)
            raise BadInput("no such outcome", where="--where", value=min(unknown), accepted=accepted)
        chosen = [row for row in chosen if _meets(row[key], sign, wanted, condition)]
    return chosen


def sort(table: Sequence[Row], by: str | None = None, journal: Journal | None = None) -> list[Row]:
    """The rows in order of a column (`-column`: descending), missing values last.

    Without `by`: by outcome (completed first), completed ones best first, stopped ones by margin, the clearest first;
    this needs the `journal`.
    """
    if by is None:
        ranks = {record.id: rank for rank, record in enumerate(healthy(journal))} if journal is not None else {}
        return sorted(table, key=lambda row: _natural(row, ranks))
    key = column(table, by.removeprefix("-"), where="--sort")
    present = [row for row in table if row[key] is not None]
    numbers = all(isinstance(row[key], (int, float)) for row in present)
    present.sort(key=lambda row: row[key] if numbers else _text(row[key]), reverse=by.startswith("-"))
    return present + [row for row in table if row[key] is None]


def column(table: Sequence[Row], name: str, *, where: str) -> str:
    """The full key of the column called `name`; raises BadInput naming similar columns."""
    keys = list(table[0]) if table else list(FIXED)
    for candidate in (name, f"config.{name}", f"metric.{name}", f"last.{name}"):
        if candidate in keys:
            return candidate
    for prefix in ("config.", "metric.", "last."):
        ends = [key for key in keys if key.startswith(prefix) and re.split(r"[./]", key)[-1] == name]
        if len(ends) == 1:
            return ends[0]
    close = difflib.get_close_matches(name, keys, n=4, cutoff=0.6) or keys[:10]
    raise BadInput("no such column", where=where, value=name, accepted=", ".join(close))


def _natural(row: Row, ranks: Mapping[str, int]) -> tuple[int, float, str]:
    place = ORDER.index(row["outcome"])
    if row["outcome"] == "completed":
        return place, ranks.get(row["trial"], len(ranks)), row["trial"]
    return place, -(row["margin"] or 0.0), row["trial"]


def _meets(value: Any, sign: str, wanted: str, condition: str) -> bool:
    compare = _COMPARE[sign]
    if wanted == "null" or value is None:
        return sign in ("=", "==", "!=") and bool(compare(value is None, wanted == "null"))
    if sign in ("=", "==", "!="):
        equal = any(_equal(value, each.strip()) for each in wanted.split(","))
        return equal if sign != "!=" else not equal
    if not isinstance(value, (int, float)):
        return bool(compare(_text(value), wanted))
    number = _number(wanted)
    if number is None:
        raise BadInput("a number is compared with a text", where="--where", value=condition, accepted="a number")
    return bool(compare(value, number))


def _equal(value: Any, wanted: str) -> bool:
    if isinstance(value, list):
        return wanted in map(_text, value) or wanted == _text(value)
    number = _number(wanted)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and number is not None:
        return value == number
    return _text(value) == wanted or (isinstance(value, str) and value.isdigit() and value.lstrip("0") == wanted)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(_text, value)) if isinstance(value, list) else str(value)


def _fixed(record: TrialRecord) -> Row:
    epoch, step = epochs_run(record)
    done = record.outcome
    seconds = done.seconds if done else record.reports[-1].seconds if record.reports else None
    values = (
        record.id, record.state, done.kind if done else None, done.margin if done else None, list(record.warnings),
        epoch, step, epochs_saved(record), seconds, record.seed,
    )
    return {key: _json(value) for key, value in zip(FIXED, values, strict=True)}


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _union(groups: Iterable[Iterable[str]]) -> list[str]:
    def each() -> Iterator[str]:
        for group in groups:
            yield from group

    return list(dict.fromkeys(each()))
