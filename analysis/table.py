"""Builds the trial table as data: one flat row per trial, the same keys in every row."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buttress.analysis.selection import best_epoch, healthy_trials
from buttress.errors import BadInput
from buttress.journal import Journal, TrialRecord
from buttress.wording import number

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
FIXED_COLUMNS = ("trial", "outcome", "kind", "margin", "warnings", "epoch", "step", "epochs_saved", "seconds", "seed")
#: Outcomes and states in the order of the table.
OUTCOME_ORDER = ("completed", "running", "waiting", "paused", "stopped", "pruned", "collapsed", "diverged", "failed")


def rows(journal: Journal, *, all: bool = False) -> list[Row]:
    """The trial table as JSON-able rows.

    Args:
        journal: The sweep.
        all: Include every value of the config, not only the searched ones.

    Returns:
        One row per trial in the order of the ids. Keys: `trial`, `outcome`, `kind`, `margin`, `warnings`, `epoch` and
        `step` (completed so far), `epochs_saved` (budgeted and not run; known once the trial has ended), `seconds`,
        `seed`; in a sweep with audited trials `audited` (condemned, and ran on to its end); then `config.<path>`,
        `metric.<name>` (at the best valid epoch) and `last.<name>`. What is missing is None, never NaN.
    """
    records = sorted(journal.trials.values(), key=lambda record: record.id)
    configs = [flatten(record.config) if all else {} for record in records]
    bests = [best_epoch(record, journal.objectives) for record in records]
    lasts = [last_values(record) for record in records]
    audited = any(record.audit for record in records)
    paths = _union([searched_paths(journal), *configs])
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


def data_frame(table: Sequence[Row], columns: Sequence[str] = FIXED_COLUMNS) -> pd.DataFrame:
    """Rows as a DataFrame; columns of numbers are float64 with NaN for missing values.

    Args:
        table: Rows with the same keys.
        columns: The columns of a table without rows.
    """
    import pandas as pd

    return pd.DataFrame(table, columns=list(table[0] if table else columns))


def searched_paths(journal: Journal) -> list[str]:
    """The searched config paths, in the order of the spec; those that only trials have come last."""
    declared = journal.header.spec.get("search") or {}
    return _union([declared, *(record.params for record in journal.trials.values())])


def epochs_run(record: TrialRecord) -> tuple[int | None, int | None]:
    """Epochs and optimiser steps that the trial has completed; None before its first report."""
    if record.outcome is not None:
        step = record.outcome.step
        return record.outcome.epochs, record.reports[-1].step if step is None and record.reports else step
    return (record.reports[-1].epoch, record.reports[-1].step) if record.reports else (None, None)


def epoch_budget(record: TrialRecord) -> int | None:
    """Epochs that the trial may run; None where the journal does not say."""
    budget = record.outcome.epochs_budget if record.outcome else None
    return record.budget_epochs if budget is None else budget


def epochs_saved(record: TrialRecord) -> int | None:
    """Budgeted epochs that were not run, of which a failed trial has saved none; None while it is unfinished."""
    budget = epoch_budget(record)
    if record.outcome is None or budget is None:
        return None
    return 0 if record.state == "failed" else max(0, budget - record.outcome.epochs)


def epochs_of_sweep(journal: Journal) -> tuple[int, int]:
    """Epochs that ended trials have run, and had in their budgets; failed ones are left out: they saved nothing."""
    ended = [each for each in journal.trials.values() if each.outcome and each.state != "failed" and epoch_budget(each)]
    budget = sum(epoch_budget(each) or 0 for each in ended)
    return budget - sum(epochs_saved(each) or 0 for each in ended), budget


def last_values(record: TrialRecord) -> dict[str, float | None]:
    """The newest value of every metric, from the outcome line, else from the latest report that has it."""
    if record.outcome is not None and record.outcome.last:
        return record.outcome.last
    values: dict[str, float | None] = {}
    for report in record.reports:
        values |= report.metrics
    return values


def flatten(config: Mapping[str, Any], under: str = "") -> dict[str, Any]:
    """A nested config as `{key path: value}`; lists and empty groups are leaves."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{under}.{key}" if under else str(key)
        leaves |= flatten(value, path) if isinstance(value, Mapping) and value else {path: value}
    return leaves


_COMPARE = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}


def filter_rows(table: Sequence[Row], conditions: Iterable[str]) -> list[Row]:
    """The rows that meet every condition.

    Args:
        table: Rows with the same keys.
        conditions: Such as `outcome=collapsed`, `outcome=pruned,failed`, `margin>1`. A column may be named without its
            prefix (`loss.beta<0.1`) or by its last part (`ari>=0.4`). Texts are compared as texts, numbers as numbers;
            a missing value meets `=null` and nothing else.

    Raises:
        BadInput: A condition that cannot be parsed, or a column that does not exist.
    """
    chosen = list(table)
    for condition in conditions:
        match = re.fullmatch(r"\s*(.+?)\s*(==|!=|<=|>=|=|<|>)\s*(.*?)\s*", condition)
        if match is None:
            accepted = "COLUMN=VALUE, or with != < <= > >="
            raise BadInput("is not a valid condition", where="--where", value=condition, accepted=accepted)
        name, sign, wanted = match.groups()
        key = column(table, name, where="--where")
        if key == "outcome" and (unknown := {each.strip() for each in wanted.split(",")} - {*OUTCOME_ORDER, "null"}):
            accepted = ", ".join(OUTCOME_ORDER)
            raise BadInput("no such outcome", where="--where", value=min(unknown), accepted=accepted)
        if key == "trial":  # 0 and 0000 are one trial, and 9 is below 10
            wanted = ",".join(_trial_number(each.strip()) for each in wanted.split(","))
            numbers = {row[key]: int(row[key]) if row[key].isdecimal() else row[key] for row in chosen}
            chosen = [row for row in chosen if _meets(numbers[row[key]], sign, wanted, condition)]
            continue
        chosen = [row for row in chosen if _meets(row[key], sign, wanted, condition)]
    return chosen


def sort_rows(table: Sequence[Row], by: str | None = None, journal: Journal | None = None) -> list[Row]:
    """The rows in the order of a column, missing values last.

    Args:
        table: Rows with the same keys.
        by: The column (`-column`: descending). By default rows are sorted by outcome, completed trials best first,
            stopped ones by margin, largest first.
        journal: The sweep, for the default order.

    Raises:
        BadInput: The column does not exist.
    """
    if by is None:
        ranks = {record.id: rank for rank, record in enumerate(healthy_trials(journal))} if journal is not None else {}
        return sorted(table, key=lambda row: _natural(row, ranks))
    descending = by.startswith("-") and f"metric.{by}" not in (table[0] if table else ())
    key = column(table, by[1:] if descending else by, where="--sort")
    present = [row for row in table if row[key] is not None]
    numbers = all(isinstance(row[key], (int, float)) for row in present)
    present.sort(key=lambda row: row[key] if numbers else _text(row[key]), reverse=descending)
    return present + [row for row in table if row[key] is None]


def column(table: Sequence[Row], name: str, *, where: str) -> str:
    """The full key of a column.

    Args:
        table: Rows with the same keys.
        name: The key, with or without its prefix, or its last part where that is unambiguous.
        where: The option that named it, for error messages.

    Raises:
        BadInput: The column does not exist; names similar ones.
    """
    keys = list(table[0]) if table else list(FIXED_COLUMNS)
    for candidate in (name, f"config.{name}", f"metric.{name}", f"last.{name}"):
        if candidate in keys:
            return candidate
    for prefix in ("config.", "metric.", "last."):
        own = [key for key in keys if key.startswith(prefix)]
        ends = [key for key in own if name in (key.split("/")[-1], re.split("[./]", key)[-1])]
        if len(ends) == 1:
            return ends[0]
    close = difflib.get_close_matches(name, keys, n=4, cutoff=0.6) or keys[:10]
    raise BadInput("no such column", where=where, value=name, accepted=", ".join(close))


def _natural(row: Row, ranks: Mapping[str, int]) -> tuple[int, float, str]:
    place = OUTCOME_ORDER.index(row["outcome"])
    if row["outcome"] == "completed":
        return place, ranks.get(row["trial"], len(ranks)), row["trial"]
    return place, -(row["margin"] or 0.0), row["trial"]


def _trial_number(name: str) -> str:
    """`7` of `7`, `0007` or `<sweep id>-0007`; anything else as it is."""
    found = re.fullmatch(r"(?:.*-)?([0-9]{1,9})", name)
    return str(int(found[1])) if found else name


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
    return _text(value) == wanted


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
    return {key: _json(value) for key, value in zip(FIXED_COLUMNS, values, strict=True)}


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _union(groups: Iterable[Iterable[str]]) -> list[str]:
    def each() -> Iterator[str]:
        for group in groups:
            yield from group

    return list(dict.fromkeys(each()))


SUFFIXES = {".csv": "csv", ".parquet": "parquet", ".md": "markdown"}


def write_table(table: pd.DataFrame, format: str | None, output: Path | None) -> str:
    """A trial table for other programs.

    Args:
        table: As of `Sweep.table`.
        format: `csv`, `parquet` or `markdown`; None: as the file's suffix says.
        output: The file; None: only returned.

    Returns:
        The text that was written; empty for a Parquet file.

    Raises:
        BadInput: A format that is not known, a Parquet table without a file, or a file that cannot be written.
    """
    accepted = f"a file that ends in {', '.join(SUFFIXES)}, or --format"
    format = format or SUFFIXES.get(output.suffix.lower() if output is not None else "")
    if format is None:
        raise BadInput("no format", key="--output", value=str(output), accepted=accepted)
    if format == "parquet" and output is None:
        raise BadInput("a Parquet table is no text", key="--format", value=format, accepted="--output FILE.parquet")
    try:
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
        if format == "parquet":
            table.to_parquet(output, index=False)
            return ""
        table = table.map(lambda cell: ", ".join(map(str, cell)) if isinstance(cell, list | tuple) else cell)
        text: str = table.to_csv(index=False) if format == "csv" else _markdown(table)
        if output is not None:
            output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot be written ({error.strerror})", key="--output", value=str(output)) from None
    return text


def _markdown(table: pd.DataFrame) -> str:
    """As a table of GitHub's Markdown."""
    import pandas as pd

    lines = [[str(name) for name in table.columns], ["---"] * len(table.columns)]
    lines += [["" if pd.isna(cell) else number(cell, 4) for cell in row] for row in table.itertuples(index=False)]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
