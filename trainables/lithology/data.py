"""Reads core and well-log tables from CSV files into standardised arrays split by borehole.

Reads the 20 cm table of the original, LILY `*_DataLITH` tables, the FORCE 2020 wells and any table whose columns the
config names. A table is parsed once per node and split once per data config (`World.cache`); what was dropped, filled
or out of range is counted. Whatever is wrong in a file is a `BadInput` that names file, column and row.
"""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from buttress.cache_folder import cache_folder
from buttress.errors import BadInput
from buttress.trainables.lithology import synthetic
from buttress.trainables.lithology.config import LAYOUTS, Config, Data, Feature, Layout

Cache = Callable[[Any, Callable[[], Mapping[str, np.ndarray]]], dict[str, np.ndarray]]

SPLITS = ("train", "val", "test")
_VERSION = 4  # of the cached arrays and of the synthetic table
_NUMBERS = "numbers, or empty cells"


@dataclass(frozen=True)
class Table:
    """A parsed table: one row per record of the file, in the file's order."""

    values: np.ndarray  # float64 [rows, features], transformed; NaN = missing
    label: np.ndarray  # int64 [rows], index into `labels`; -1 = no label
    hole: np.ndarray  # int64 [rows], index into `holes`
    depth: np.ndarray  # float64 [rows]; NaN without a depth column
    features: tuple[str, ...]  # short names
    labels: tuple[str, ...]  # sorted
    holes: tuple[str, ...]  # sorted
    empty: np.ndarray  # int64 [features], empty cells
    outside: np.ndarray  # int64 [features], cells outside their possible range

    def pack(self) -> dict[str, np.ndarray]:
        return {key: _pack(value) for key, value in vars(self).items()}

    @classmethod
    def unpack(cls, arrays: Mapping[str, np.ndarray]) -> Table:
        return cls(**_unpack(arrays, ("features", "labels", "holes")))


@dataclass(frozen=True)
class Dataset:
    """Standardised rows, split; what the models see."""

    x: np.ndarray  # float64 [rows, features], zero mean and unit deviation over the training rows
    label: np.ndarray  # int64 [rows], -1 = no label
    hole: np.ndarray  # int64 [rows]
    source: np.ndarray  # int64 [rows], row of the file
    part: np.ndarray  # int64 [rows], 0 train, 1 val, 2 test
    mean: np.ndarray  # float64 [features], of the transformed training rows
    sd: np.ndarray  # float64 [features], population deviation of the same
    fill: np.ndarray  # float64 [features], what an empty cell became (transformed); NaN where rows were dropped
    seen: np.ndarray  # bool [labels], has a training row
    features: tuple[str, ...]
    labels: tuple[str, ...]
    holes: tuple[str, ...]
    dropped: np.ndarray  # int64 [], rows left out for an empty cell
    filled: np.ndarray  # int64 [features], cells filled by kind

    def pack(self) -> dict[str, np.ndarray]:
        return {key: _pack(value) for key, value in vars(self).items()}

    @classmethod
    def unpack(cls, arrays: Mapping[str, np.ndarray]) -> Dataset:
        return cls(**_unpack(arrays, ("features", "labels", "holes")))

    def rows(self, split: str) -> np.ndarray:
        """Positions of the rows of `split`, int64."""
        return np.flatnonzero(self.part == SPLITS.index(split))


def load(data: Data, cache: Cache) -> Dataset:
    """The table that `data` names, split and standardised; `cache` is `World.cache`."""
    columns = data.columns()
    source = _source(data)
    table_key = {"lithology": _VERSION, "source": source, "columns": columns.model_dump(mode="json")}
    choices = data.model_dump(
        mode="json",
        include={"missing", "split", "fractions", "split_seed", "train_holes", "val_holes", "test_holes"},
    )

    def parse() -> dict[str, np.ndarray]:
        return read(_file(data), columns).pack()

    def divide() -> dict[str, np.ndarray]:
        return prepare(Table.unpack(cache(table_key, parse)), data).pack()

    return Dataset.unpack(cache(table_key | {"choices": choices}, divide))


def read(path: Path, columns: Layout) -> Table:
    """Parse the CSV file at `path`; raises `BadInput` for whatever keeps it from being used."""
    frame, features = _frame(path, columns)
    groups = frame[list(columns.groups)]
    unnamed = groups.isna().any(axis=1).to_numpy()
    if unnamed.any():
        column = columns.groups[int(np.argmax(groups.isna().to_numpy()[unnamed.argmax()]))]
        raise BadInput(f"{_row(unnamed)} names no borehole: column {column!r} is empty", where=path)
    hole_name = groups.agg("-".join, axis=1) if len(columns.groups) > 1 else groups.iloc[:, 0]
    holes, hole = np.unique(hole_name.to_numpy(dtype=str), return_inverse=True)

    labels, label = np.array([], dtype=str), np.full(len(frame), -1)
    if columns.label is not None:
        named = frame[columns.label].notna().to_numpy()
        labels, label[named] = np.unique(frame[columns.label].to_numpy()[named].astype(str), return_inverse=True)

    values = np.empty((len(frame), len(features)))
    empty, outside = np.zeros(len(features), dtype=np.int64), np.zeros(len(features), dtype=np.int64)
    for i, feature in enumerate(features):
        raw = _numbers(frame[feature.column], path, feature.column)
        raw[np.isin(raw, columns.null_values)] = np.nan
        empty[i] = np.isnan(raw).sum()
        impossible = np.zeros(raw.size, dtype=bool)
        if feature.low is not None:
            impossible |= raw < feature.low
        if feature.high is not None:
            impossible |= raw > feature.high
        outside[i] = impossible.sum()
        raw[impossible] = np.nan
        values[:, i] = transform(raw, feature, path)
    depth = np.full(len(frame), np.nan)
    if columns.depth is not None:
        depth = _numbers(frame[columns.depth], path, columns.depth)
    return Table(
        values, label, hole.reshape(-1), depth, tuple(feature.name for feature in features),
        tuple(labels.tolist()), tuple(holes.tolist()), empty, outside,
    )  # fmt: skip


def transform(raw: np.ndarray, feature: Feature, path: Path) -> np.ndarray:
    """raw[rows] -> the feature's transform of it; slog(x) = sign(x) ln(1 + |x|). NaN stays NaN."""
    if feature.transform == "none":
        return raw
    if feature.transform == "slog":
        return np.sign(raw) * np.log1p(np.abs(raw))
    least = -1.0 if feature.transform == "log1p" else 0.0
    wrong = raw <= least
    if wrong.any():
        raise BadInput(
            f"{_row(wrong)} has a value of which {feature.transform} cannot be taken", where=path, key=feature.column,
            value=float(raw[wrong.argmax()]),
            accepted=f"numbers above {least:g}, another transform, or a `low` for this feature",
        )  # fmt: skip
    return np.log1p(raw) if feature.transform == "log1p" else np.log10(raw)


def inverse(value: np.ndarray, kind: str) -> np.ndarray:
    """A transformed value back in raw units."""
    if kind == "slog":
        return np.sign(value) * np.expm1(np.abs(value))
    return np.expm1(value) if kind == "log1p" else 10.0**value if kind == "log10" else value


def prepare(table: Table, data: Data) -> Dataset:
    """Drop or mark incomplete rows, split by borehole, fill and standardise with what the training split says."""
    missing = np.isnan(table.values)
    source = np.flatnonzero(~missing.any(axis=1)) if data.missing == "drop" else np.flatnonzero(~missing.all(axis=1))
    if not source.size:
        raise BadInput(
            "every row has an empty feature cell" + (f" ({_worst(table)})" if missing.any() else ""),
            where=data.path, key="data.missing", value=data.missing, accepted="median, or other data.features",
        )  # fmt: skip
    values, hole = table.values[source], table.hole[source]
    labels, label = np.unique(table.label[source], return_inverse=True)  # labels of dropped rows only are gone
    label = label.reshape(-1).astype(np.int64)
    if labels[0] == -1:
        labels, label = labels[1:], label - 1
    part = _split(hole, table.holes, data)

    training = values[part == 0]
    fill = np.full(values.shape[1], np.nan)
    gaps = np.isnan(values)
    if gaps.any():
        blank = np.isnan(training).all(axis=0)
        if blank.any():
            raise BadInput(
                "is empty in the whole training split, so there is no median to fill it with", where=data.path,
                key=table.features[int(blank.argmax())],
            )  # fmt: skip
        fill = np.where(gaps.any(axis=0), np.nanmedian(training, axis=0), np.nan)
        values = np.where(gaps, fill, values)
        training = values[part == 0]
    mean, sd = training.mean(axis=0), training.std(axis=0)
    if not (sd > 0).all():
        raise BadInput("is the same in every training row", where=data.path, key=table.features[int(sd.argmin())])
    seen = np.zeros(labels.size, dtype=bool)
    seen[label[(part == 0) & (label >= 0)]] = True
    return Dataset(
        x=(values - mean) / sd, label=label, hole=hole, source=source, part=part, mean=mean, sd=sd, fill=fill,
        seen=seen, features=table.features, labels=tuple(table.labels[i] for i in labels), holes=table.holes,
        dropped=np.array(len(missing) - source.size), filled=gaps.sum(axis=0),
    )  # fmt: skip


def check(path: Path, config: Config) -> list[tuple[str, str]]:
    """What `buttress data check lithology PATH` prints, as (what, finding). Raises `BadInput` as training would."""
    data = config.data.model_copy(update={"kind": "files", "path": str(path)})
    if data.columns() == Data().columns() and (fits := fitting_layout(_header(path))):
        data = data.model_copy(update={"layout": fits})
    table = read(path, data.columns())
    dataset = prepare(table, data)
    rows = len(table.label)
    found = [
        ("layout", data.layout),
        ("rows", f"{rows:,}"),
        ("boreholes", f"{len(table.holes):,}"),
        ("labels", f"{len(table.labels):,} distinct, {int((table.label < 0).sum()):,} rows without one"),
    ]
    if not np.isnan(table.depth).all():
        found.append(("depth", f"{np.nanmin(table.depth):g} to {np.nanmax(table.depth):g}"))
    kinds = {feature.name: feature for feature in data.columns().features}
    for i, name in enumerate(table.features):
        feature = kinds[name]
        low, middle, high = inverse(np.nanquantile(table.values[:, i], [0, 0.5, 1]), feature.transform)
        text = f"{feature.column}: {low:.4g} / {middle:.4g} / {high:.4g} (min, median, max)"
        text += f", {feature.transform}" if feature.transform != "none" else ""
        text += f", {table.empty[i]:,} empty ({table.empty[i] / rows:.1%})" if table.empty[i] else ""
        text += f", {table.outside[i]:,} out of range" if table.outside[i] else ""
        found.append((f"feature {name}", text))
    action = f"{int(dataset.dropped):,} rows dropped"
    if dataset.filled.any():
        action += f", {int(dataset.filled.sum()):,} cells filled with the training median"
    found.append(("incomplete rows", f"{data.missing}: {action}"))
    for split in SPLITS:
        at = dataset.rows(split)
        unseen = int((~dataset.seen[dataset.label[at]] & (dataset.label[at] >= 0)).sum()) if dataset.seen.size else 0
        text = f"{at.size:,} rows, {np.unique(dataset.hole[at]).size} boreholes"
        text += f", {np.unique(dataset.label[at][dataset.label[at] >= 0]).size} labels"
        text += f", {unseen:,} rows of labels unseen in training" if unseen else ""
        found.append((f"split {split}", text))
    if data.split == "rows_leaky":
        found.append(("warning", "rows of one borehole stand in several splits: scores are too good"))
    return found


def scaler(data: Data, dataset: Dataset) -> dict[str, Any]:
    """Everything a new row needs to become an input and an output to become a label; plain JSON."""
    kinds = {feature.name: feature for feature in data.columns().features}
    inputs = [
        {
            "name": name,
            "column": kinds[name].column,
            "transform": kinds[name].transform,
            "mean": float(dataset.mean[i]),
            "sd": float(dataset.sd[i]),
            "fill": None if np.isnan(dataset.fill[i]) else float(dataset.fill[i]),
        }
        for i, name in enumerate(dataset.features)
    ]
    return {"features": inputs, "labels": list(dataset.labels)}


def fingerprint(data: Data) -> dict[str, Any]:
    """What tells this table from another: path, size and time of the file, or the generator's size and seed."""
    return _source(data)


def _source(data: Data) -> dict[str, Any]:
    if data.kind == "synthetic":
        return {"synthetic": data.size, "seed": data.seed, "version": _VERSION}
    path = Path(str(data.path)).expanduser()
    try:
        stat = path.stat()
    except OSError as error:
        raise BadInput(_reason(error), key="data.path", value=data.path, accepted="a readable CSV file") from None
    return {"file": str(path.resolve()), "bytes": stat.st_size, "modified_ns": stat.st_mtime_ns}


def _file(data: Data) -> Path:
    """The file to read; the synthetic one is written when it is not there."""
    if data.kind == "files":
        return Path(str(data.path)).expanduser()
    path = cache_folder() / "lithology" / f"synthetic-{data.size}-{data.seed}-v{_VERSION}.csv"
    return path if path.is_file() else synthetic.write(path, data.size, data.seed)


def fitting_layout(header: Sequence[str]) -> str | None:
    """The name of the preset whose columns these are."""
    for name, layout in LAYOUTS.items():
        measured = [feature.column in header for feature in layout.features]
        needed = {*layout.groups, layout.label, layout.depth}
        if needed <= set(header) and (all(measured) if layout.all_features else any(measured)):
            return name
    return None


def _header(path: Path) -> list[str]:
    """The first record of the file; empty for one that cannot be read (reading it says why)."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def _frame(path: Path, columns: Layout) -> tuple[Any, tuple[Feature, ...]]:
    """The needed columns as a pandas frame, and the features it has."""
    import pandas as pd

    try:
        header = pd.read_csv(path, nrows=0, encoding="utf-8-sig").columns.tolist()
        features = columns.features
        if not columns.all_features:
            features = tuple(feature for feature in features if feature.column in header)
            if not features:
                raise BadInput(
                    "has none of the layout's measurements", where=path, key="data.features",
                    accepted="features by name; this table's columns are " + ", ".join(header),
                )  # fmt: skip
        text = [*columns.groups, *([columns.label] if columns.label is not None else [])]
        numbers = [feature.column for feature in features] + ([columns.depth] if columns.depth is not None else [])
        for column in [*text, *numbers]:
            if column not in header:
                fits = fitting_layout(header)
                hint = f" (the columns are those of data.layout: {fits})" if fits else ""
                raise BadInput(f"there is no column {column!r}{hint}", where=path, accepted=", ".join(map(str, header)))
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # all columns: told to take only some, pandas silently cuts rows that are longer than the header
            frame = pd.read_csv(
                path, index_col=False, dtype=dict.fromkeys(text, str), low_memory=False, encoding="utf-8-sig"
            )
    except BadInput:
        raise
    except pd.errors.EmptyDataError:
        raise BadInput("is empty", where=path, accepted="a CSV table with a header") from None
    except OSError as error:
        raise BadInput(_reason(error), where=path) from None
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.ParserWarning, ValueError) as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"is not a CSV table in UTF-8: {reason}", where=path) from None
    if frame.empty:
        raise BadInput("has a header but no rows", where=path)
    return frame, features


def _numbers(column: Any, path: Path, name: str) -> np.ndarray:
    """A column as float64[rows]; empty cells are NaN, anything else that is no finite number is an error."""
    import pandas as pd

    if pd.api.types.is_bool_dtype(column):
        column = column.astype(str)
    if pd.api.types.is_numeric_dtype(column):
        numbers = column.to_numpy(dtype=float, copy=True)
    else:
        numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=float, copy=True)
        wrong = np.isnan(numbers) & column.notna().to_numpy()
        if wrong.any():
            value = column.to_numpy()[wrong.argmax()]
            raise BadInput(f"{_row(wrong)} holds no number", where=path, key=name, value=value, accepted=_NUMBERS)
    endless = np.isinf(numbers)
    if endless.any():
        value = float(numbers[endless.argmax()])
        raise BadInput(f"{_row(endless)} is not finite", where=path, key=name, value=value, accepted=_NUMBERS)
    return numbers


def _split(hole: np.ndarray, names: tuple[str, ...], data: Data) -> np.ndarray:
    """0, 1 or 2 (train, val, test) for every row."""
    from sklearn.model_selection import train_test_split

    present = np.unique(hole)
    if data.train_holes is not None:
        part_of = np.full(len(names), -1)
        for number, split in enumerate(SPLITS):
            key = f"data.{split}_holes"
            for name in getattr(data, f"{split}_holes"):
                at = names.index(name) if name in names else -1
                if at not in present:
                    raise BadInput("no complete row is of this borehole", where=data.path, key=key, value=name)
                if part_of[at] >= 0:
                    raise BadInput("the borehole stands in two splits", key=key, value=name)
                part_of[at] = number
        sizes = [int((part_of == number).sum()) for number in range(3)]
        for split, size in zip(SPLITS, sizes, strict=True):
            if size == 0:
                raise BadInput(f"the {split} split has no borehole", key=f"data.{split}_holes", value=[])
        part = part_of[hole]
        if (part < 0).any():
            left = [names[at] for at in present if part_of[at] < 0]
            raise BadInput(f"the lists leave out {len(left)} boreholes, {left[0]} first", key="data.train_holes")
    else:
        # as the original: two successive splits of the shuffled units, the test part first
        units = present if data.split == "borehole" else np.arange(hole.size)
        test, val = data.fractions[2], data.fractions[1] / max(data.fractions[0] + data.fractions[1], 1e-12)
        try:
            rest, tested = train_test_split(units, test_size=test, random_state=data.split_seed)
            _, validated = train_test_split(rest, test_size=val, random_state=data.split_seed)
        except ValueError:
            share = [round(fraction * units.size, 2) for fraction in data.fractions]
            raise BadInput(
                f"of {units.size} boreholes every split needs one, and these shares give {share}",
                where=data.path, key="data.fractions", value=list(data.fractions),
            ) from None  # fmt: skip
        part_of = np.zeros(len(names) if data.split == "borehole" else hole.size, dtype=np.int64)
        part_of[validated], part_of[tested] = 1, 2
        part = part_of[hole] if data.split == "borehole" else part_of
    return part.astype(np.int64)


def _row(wrong: np.ndarray) -> str:
    """`row 17` of the first True, counted as a spreadsheet does: the header is row 1."""
    return f"row {int(wrong.argmax()) + 2}"


def _worst(table: Table) -> str:
    empty = np.isnan(table.values).mean(axis=0)
    return f"{table.features[int(empty.argmax())]} is empty in {empty.max():.0%} of the rows"


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _pack(value: Any) -> np.ndarray:
    """Arrays as they are; tuples of strings as the UTF-8 bytes of a JSON list."""
    if isinstance(value, tuple):
        return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)
    return np.asarray(value)


def _unpack(arrays: Mapping[str, np.ndarray], strings: tuple[str, ...]) -> dict[str, Any]:
    return {
        key: tuple(json.loads(np.asarray(array).tobytes().decode())) if key in strings else np.asarray(array)
        for key, array in arrays.items()
    }
