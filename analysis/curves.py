"""Reads recorded training curves from journals and tables, as the reports that rules judge.

A table has one row per report, in order, and a column `step`, `epoch` or both; a column `trial`, `curve` or `run`
separates several curves, and a column `truth` (healthy, collapsed, diverged, ambiguous) holds how each ended. An empty
cell means that the metric was not reported; `nan` and `inf` mean that it was not finite.

What a table does not hold is filled in: epochs numbered from 0 count as completed when their row is written; a curve
without steps has `STEPS_PER_EPOCH` in each epoch, and one without epochs completes none, unless `steps_per_epoch` is
given; beta is final from the row on from which its column (`beta`, `train/beta`, `beta_schedule`, `kl_weight`) never
changes again, from the start where there is no such column, and never where it still changes in the last row; phases
are numbered from 0.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

from buttress import journal
from buttress.errors import BadInput
from buttress.journal.events import Report
from buttress.wording import plural

#: For curves without steps: long enough that a grace in steps has passed after one epoch.
STEPS_PER_EPOCH = 1000
TABLES = (".csv", ".parquet")
#: Key of a CollapseBench file's metadata.
COLLAPSEBENCH = b"collapsebench"

NAMES = ("trial", "curve", "run")
STEPS = ("step", "global_step", "iteration")
BETAS = ("train/beta", "beta", "beta_schedule", "kl_weight")
_MOMENT = (*NAMES, *STEPS, "epoch", "phase", "full_beta_epochs", "full_beta_steps", "closing", "truth", "cpu_s")
DEAD = ("collapsed", "diverged")
TRUTHS = ("healthy", *DEAD, "ambiguous")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Truth:
    """How a trial ended that nobody stopped (benchmarks/collapsebench).

    Attributes:
        outcome: `healthy`, `collapsed`, `diverged` or `ambiguous`.
        onset: Index of the first report from which a dead trial stayed dead.
        value: Its objective at its best epoch at full beta; None without one.
        late_bloomer: Whether it became good late.
        recoverer: Whether it looked dead for a while.
    """

    outcome: str
    onset: int | None = None
    value: float | None = None
    late_bloomer: bool = False
    recoverer: bool = False

    @property
    def dead(self) -> bool:
        """Whether it collapsed or diverged."""
        return self.outcome in DEAD


@dataclass(frozen=True)
class Curve:
    """One recorded trial.

    Attributes:
        name: Its name in the source.
        reports: Its reports, in order.
        at: The source's own number of each report: its step, else its epoch.
        budget_epochs: Epochs that it could have run.
        truth: How it ended, where that is known.
        seconds: Training time up to each report, where the source holds it.
        about: Further metadata, such as the trial's parameters.
    """

    name: str
    reports: tuple[Report, ...]
    at: tuple[float, ...]
    budget_epochs: int
    truth: Truth | None = None
    seconds: tuple[float, ...] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def fraction_run(self, index: int) -> float:
        """Share of the curve that was run when report `index` came, 0 to 1."""
        first, last = self.reports[index], self.reports[-1]
        return first.step / last.step if last.step else (index + 1) / len(self.reports)


@dataclass(frozen=True)
class CurveSet:
    """The curves of one source.

    Attributes:
        curves: The curves.
        about: Metadata of a CollapseBench file: family, objective, direction and more.
        notes: Sentences on what was filled in or left out.
    """

    curves: tuple[Curve, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_curves(source: str | os.PathLike[str], *, steps_per_epoch: int | None = None, runs: str = "runs") -> CurveSet:
    """Reads the curves of a source.

    Args:
        source: A sweep's folder, journal or name, a CSV or Parquet table, a CollapseBench file, or a folder of tables.
        steps_per_epoch: For tables that have steps or epochs, and not both.
        runs: The folder in which sweeps are looked up by name.

    Raises:
        BadInput: The source does not exist, is empty, or is neither a table of curves nor a sweep.
    """
    path = Path(source)
    if path.is_dir() and not (path / journal.FILE).is_file():
        files = sorted(file for file in path.rglob("*") if file.suffix in TABLES)
        if not files:
            raise BadInput("the folder holds neither curves nor a sweep", where=path, accepted=", ".join(TABLES))
        return _joined(path, files, [_read_file(file, steps_per_epoch) for file in files])
    if path.suffix in TABLES:
        return _read_file(path, steps_per_epoch)
    if path.is_file() and path.suffix != Path(journal.FILE).suffix:
        raise BadInput("is neither a table of curves nor a sweep", where=path, accepted=", ".join(TABLES))
    return _from_journal(journal.read(journal.find(source, runs).path))


def _joined(folder: Path, files: Sequence[Path], parts: Sequence[CurveSet]) -> CurveSet:
    """The curves of several files; a name that occurs twice is preceded by that of its file."""
    if len({part.about.get("family") for part in parts}) > 1:
        accepted = "one file, or files of one family"
        raise BadInput("the folder holds curves of several families", where=folder, accepted=accepted)
    notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
    names = Counter(curve.name for part in parts for curve in part.curves)

    def own(file: Path, curve: Curve) -> Curve:
        place = file.relative_to(folder).with_suffix("")
        return curve if names[curve.name] == 1 else replace(curve, name=f"{place}/{curve.name}")

    curves = tuple(own(file, curve) for file, part in zip(files, parts, strict=True) for curve in part.curves)
    return CurveSet(curves, parts[0].about, notes)


def _read_file(path: Path, steps_per_epoch: int | None) -> CurveSet:
    if path.suffix == ".csv":
        columns, rows = _csv(path)
        about: dict[str, Any] = {}
    else:
        columns, rows, about = _parquet(path)
    if not rows:
        raise BadInput("the table has no rows", where=path)
    if not {"epoch", *STEPS} & set(columns):
        accepted = "a column `step` or `epoch`, one row per report"
        raise BadInput("no column says when a row was reported", where=path, value=columns, accepted=accepted)
    name = next((name for name in NAMES if name in columns), None)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row[name]) if name else path.stem, []).append(row)
    known = {str(entry["trial"]): entry for entry in about.get("trials", ())}
    notes = []
    if not set(STEPS) & set(columns) and steps_per_epoch is None:
        notes.append(f"curves without steps are taken to have {STEPS_PER_EPOCH:,} an epoch")
    notes += _notes_on_texts(columns, rows)
    curves = tuple(_curve(key, group, known.get(key), steps_per_epoch, path) for key, group in groups.items())
    return CurveSet(curves, {key: value for key, value in about.items() if key != "trials"}, tuple(notes))


def _csv(path: Path) -> tuple[list[str], list[Row]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle)
            names = next(reader, [])
            lines = [(reader.line_num, cells) for cells in reader if cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"the table cannot be read ({error})", where=path) from None
    columns = [name for name in names if name]
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
        raise BadInput("is a column twice", where=path, key=twice[0])
    rows: list[Row] = []
    for number, cells in lines:
        if any(cell.strip() for cell in cells[len(names) :]):
            problem, accepted = f"line {number} has more cells than there are columns", "numbers with a decimal point"
            raise BadInput(problem, where=path, value=",".join(cells), accepted=accepted)
        pairs = zip_longest(names, cells[: len(names)])
        rows.append({name: cell if name in NAMES else _cell(cell) for name, cell in pairs if name})  # 0007 is a name
    return columns, rows


def _cell(text: str | None) -> float | str | None:
    """A number (NaN where it is not finite), None for an empty cell, else the text."""
    if text is None or not text.strip():
        return None
    if text.strip().lower() in ("true", "false"):
        return float(text.strip().lower() == "true")
    try:
        return float(text)
    except ValueError:
        return text


def _notes_on_texts(columns: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Notes on columns of numbers in which some cells hold text."""
    notes = []
    for column in columns:
        texts = [row[column] for row in rows if isinstance(row[column], str)]
        if column not in _MOMENT and texts and any(isinstance(row[column], (int, float)) for row in rows):
            cells = plural(len(texts), "cell")
            notes.append(f"column {column}: {cells} without a number left out, such as {texts[0]!r}")
    return notes


def _parquet(path: Path) -> tuple[list[str], list[Row], dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise BadInput(f"the table cannot be read ({str(error).splitlines()[0]})", where=path) from None
    about = json.loads((table.schema.metadata or {}).get(COLLAPSEBENCH, b"{}"))
    columns = [name for name in table.column_names if not name.startswith("__index")]
    values = {name: table.column(name).to_pylist() for name in columns}
    rows: list[Row] = [dict(zip(columns, row, strict=True)) for row in zip(*values.values(), strict=True)]
    return columns, rows, about


def _curve(
    name: str, rows: Sequence[Row], known: Mapping[str, Any] | None, steps_per_epoch: int | None, path: Path
) -> Curve:
    step_column = next((column for column in STEPS if any(row.get(column) is not None for row in rows)), None)
    by = step_column or "epoch"
    at = [_at(row, by, path) for row in rows]
    for before, after in pairwise(at):
        if after < before:
            problem = f"the rows of {name} go back from {by} {before:g} to {after:g}"
            accepted = f"rows in the order of their reports; of several curves also a column {' or '.join(NAMES)}"
            raise BadInput(problem, where=path, key=by, accepted=accepted)
    epochs = _epochs(rows)
    steps = [int(value) for value in at]
    if step_column is None:
        assert epochs is not None  # `_at` has read them
        steps = [epoch * (steps_per_epoch or STEPS_PER_EPOCH) for epoch in epochs]
    elif epochs is None:
        epochs = [step // steps_per_epoch if steps_per_epoch else 0 for step in steps]
    given = "full_beta_steps" in rows[0] and "full_beta_epochs" in rows[0]
    full = None if given else _full_from(rows)
    phases = [_count(row, "phase", path) for row in rows]
    reports: list[Report] = []
    for index, row in enumerate(rows):
        metrics = {key: value for key, value in row.items() if key not in _MOMENT and not isinstance(value, str)}
        present = {key: float(value) for key, value in metrics.items() if value is not None}
        since = (epochs[full - 1], steps[full - 1]) if full else (0, 0)
        age = (epochs[index] - since[0], steps[index] - since[1]) if full is not None and index >= full else (0, 0)
        if given:
            age = (_count(row, "full_beta_epochs", path), _count(row, "full_beta_steps", path))
        reports.append(
            Report(
                time=0.0,
                trial=name,
                attempt=1,
                seq=index,
                epoch=epochs[index],
                step=steps[index],
                full_beta_epochs=age[0],
                full_beta_steps=age[1],
                phase=phases[index] - (0 if given else min(phases)),
                closing=bool(_count(row, "closing", path)),
                metrics={key: value if math.isfinite(value) else None for key, value in present.items()},
                nonfinite=tuple(key for key, value in present.items() if not math.isfinite(value)),
            )
        )
    spent = [row.get("cpu_s") for row in rows]
    seconds = tuple(float(each) for each in spent if isinstance(each, (int, float)))
    budget = int((known or {}).get("budget_epochs") or max(epochs))
    timed = seconds if len(seconds) == len(rows) else None
    return Curve(name, tuple(reports), tuple(at), budget, _truth(rows, known, path), timed, known or {})


def _at(row: Row, column: str, path: Path) -> float:
    value = row.get(column)
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise BadInput("a row does not say when it was reported", where=path, key=column, value=value)
    return int(value) if float(value).is_integer() else float(value)


def _count(row: Row, column: str, path: Path) -> int:
    """A whole number; 0 for an empty cell or a missing column."""
    value = row.get(column)
    if value is None:
        return 0
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BadInput("is not a number", where=path, key=column, value=value)
    return int(value)


def _epochs(rows: Sequence[Row]) -> list[int] | None:
    """Completed epochs at each row; None where there are only steps."""
    given = [row.get("epoch") for row in rows]
    numbers = [int(each) for each in given if isinstance(each, (int, float)) and math.isfinite(each)]
    if len(numbers) < len(rows):
        return None
    health = len(set(numbers)) < len(numbers)  # several reports an epoch: ours, which count what is completed
    return [number + 1 for number in numbers] if numbers[0] == 0 and not health else numbers


def _full_from(rows: Sequence[Row]) -> int | None:
    """Index of the first row at full beta; None where beta still moves at the end."""
    name = next((name for name in BETAS if any(isinstance(row.get(name), (int, float)) for row in rows)), None)
    if name is None:
        return 0
    values = [row.get(name) for row in rows]
    last = values[-1]
    index = len(values)
    while index and values[index - 1] == last:
        index -= 1
    return index if index == 0 or len(values) - index >= 2 else None


def _truth(rows: Sequence[Row], known: Mapping[str, Any] | None, path: Path) -> Truth | None:
    if known is not None and "truth" in known:
        return Truth(
            known["truth"], known.get("onset"), known.get("value"),
            bool(known.get("late_bloomer")), bool(known.get("recoverer")),
        )  # fmt: skip
    given = rows[-1].get("truth")
    if given is None:
        return None
    if given not in TRUTHS:
        raise BadInput("is not a valid ground truth", where=path, key="truth", value=given, accepted=", ".join(TRUTHS))
    return Truth(str(given))


def _from_journal(read: journal.Journal) -> CurveSet:
    curves = []
    for record in read.trials.values():
        if not record.reports:
            continue
        at, seconds = tuple(r.step for r in record.reports), tuple(r.seconds for r in record.reports)
        budget = record.budget_epochs or record.reports[-1].epoch
        curves.append(Curve(record.id, record.reports, at, int(budget), None, seconds, {"params": record.params}))
    if not curves:
        raise BadInput("no trial of this sweep has reported anything yet", where=read.path)
    objective = read.objectives[0]
    about = {"family": read.header.trainable, "objective": objective.metric, "direction": objective.direction}
    note = "the curves of a sweep end where its own rules and rungs stopped them"
    return CurveSet(tuple(curves), about, (note,))


def objectives(curves: Iterable[Curve]) -> set[str]:
    """Every metric that some curve reports."""
    return {key for curve in curves for report in curve.reports for key in report.metrics}
