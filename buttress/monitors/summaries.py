"""Summaries: each rank's share of a reported quantity, and the rule that merges the shares of all ranks.

`pack_row` turns a report's values into one short float64 row on the device that holds them; the rows of all ranks
travel in one all-reduce; `merge_rows` turns the [ranks, width] matrix into plain numbers. Nothing waits for an
accelerator.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

Merged = dict[str, float | list[float]]


@runtime_checkable
class Summary(Protocol):
    """One rank's share of a monitored quantity, and the rule that merges the shares of all ranks.

    Names in what `merge` returns are relative to the key that the summary is reported under: `""` is the key itself,
    `"kl_total"` becomes `<key>/kl_total`, and a list under `"vector.kl"` becomes the vector `<key>/kl` (`"vector."`:
    the vector `<key>`).

    A summary may also have a method `nonfinite(rows) -> Collection[str]`: the relative names that count as not finite.
    Without it these are the names whose merged value is not finite. A NaN that only says "no samples" should not be
    among them.
    """

    def pack(self) -> Tensor:
        """This rank's share.

        Returns:
            Float64 [width], on any device; the width is the same on every rank, and packing twice gives the same.
        """
        ...

    def merge(self, rows: Tensor) -> Merged:
        """The values that all ranks' shares give together.

        Args:
            rows: Float64 [ranks, width] on the CPU, the packed shares in rank order.

        Returns:
            Relative name -> float, or list of floats under `"vector.<name>"`; a function of `rows` and of what is the
            same on every rank alone.
        """
        ...


class _FiniteWhereTheRowIs:
    """Base of the small summaries: not finite if, and only if, a rank's packed row is not."""

    def nonfinite(self, rows: Tensor) -> Collection[str]:
        return () if bool(rows.isfinite().all()) else ("",)


@dataclass(frozen=True)
class Mean(_FiniteWhereTheRowIs):
    """Mean over all samples of all ranks: sum of the ranks' `sum` divided by the sum of their `count`.

    NaN when the count is 0 on every rank, which does not count as "not finite". A share is a mean: `Mean(hits, count)`.

    Args:
        sum: Sum of the values on this rank, a number or 0-dim tensor.
        count: How many values that are.
    """

    sum: float | Tensor
    count: float | Tensor

    @classmethod
    def of(cls, values: Tensor) -> Mean:
        """The mean of all elements of a tensor of any shape, summed in float64."""
        return cls(values.detach().sum(dtype=torch.float64), values.numel())

    def pack(self) -> Tensor:
        return cells(self.sum, self.count)

    def merge(self, rows: Tensor) -> Merged:
        total, count = rows.sum(0).tolist()
        return {"": total / count if count else math.nan}


@dataclass(frozen=True)
class Total(_FiniteWhereTheRowIs):
    """Sum of `value` (a number or 0-dim tensor) over ranks."""

    value: float | Tensor

    def pack(self) -> Tensor:
        return cells(self.value)

    def merge(self, rows: Tensor) -> Merged:
        return {"": float(rows.sum())}


@dataclass(frozen=True)
class Maximum(_FiniteWhereTheRowIs):
    """Largest value over ranks; `Maximum()` on a rank that has none, NaN when no rank has one."""

    value: float | Tensor | None = None

    def pack(self) -> Tensor:
        return cells(0.0, 0.0) if self.value is None else cells(self.value, 1.0)

    def merge(self, rows: Tensor) -> Merged:
        present = rows[rows[:, 1] > 0, 0]
        return {"": float(present.max()) if len(present) else math.nan}


@dataclass(frozen=True)
class Minimum(Maximum):
    """Smallest value over ranks; `Minimum()` on a rank that has none, NaN when no rank has one."""

    def merge(self, rows: Tensor) -> Merged:
        present = rows[rows[:, 1] > 0, 0]
        return {"": float(present.min()) if len(present) else math.nan}


@dataclass(frozen=True)
class NonFinite(_FiniteWhereTheRowIs):
    """Share (0 to 1) of steps or entries that are not finite: the largest over ranks, and each rank's as a vector.

    The share is itself a finite number, so its key does not count as "not finite". NaN where the count is 0.

    Args:
        bad: How many on this rank are not finite, a number or 0-dim tensor.
        count: How many there are.
    """

    bad: float | Tensor
    count: float | Tensor

    @classmethod
    def of(cls, values: Tensor) -> NonFinite:
        """The share of a tensor's elements (any shape) that are not finite."""
        return cls((~values.detach().isfinite()).sum(), values.numel())

    def pack(self) -> Tensor:
        return cells(self.bad, self.count)

    def merge(self, rows: Tensor) -> Merged:
        return largest_share("", (rows[:, 0] / rows[:, 1]).tolist())


def largest_share(name: str, shares: list[float]) -> Merged:
    """The worst rank's share under `name` and every rank's as its vector; NaN for a rank without samples."""
    known = [share for share in shares if not math.isnan(share)]
    return {name: max(known, default=math.nan), f"vector.{name}": shares}


@dataclass(frozen=True)
class Field:
    """One key of a report and how many cells it has."""

    key: str
    kind: Literal["number", "vector", "summary"]
    width: int
    summary: Summary | None = dataclass_field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Layout:
    """The meaning of a packed row's cells: the first holds `signature`, the fields follow, sorted by key."""

    fields: tuple[Field, ...]

    @property
    def width(self) -> int:
        return 1 + sum(field.width for field in self.fields)

    @cached_property
    def signature(self) -> int:
        """32 bits over keys, kinds and widths: differs between reports with different keys."""
        return zlib.crc32(json.dumps([(field.key, field.kind, field.width) for field in self.fields]).encode())


def pack_row(values: Mapping[str, Any]) -> tuple[Tensor, Layout]:
    """Packs this rank's share of a report into one row.

    Args:
        values: Key -> number, 0-dim tensor, list of numbers (or 1-D tensor), or `Summary`. Every rank must give the
            same keys with the same kinds and widths, in any order.

    Returns:
        The row, float64 [layout.width], on the accelerator if any value is on one; and its layout.

    Raises:
        TypeError: A value is of another kind; the message names its key.
    """
    fields: list[Field] = []
    pieces: list[Tensor | float] = []
    for key in sorted(values):
        value = values[key]
        if hasattr(value, "tolist") and not isinstance(value, Tensor):  # numpy
            value = value.tolist()
        if isinstance(value, (int, float)):
            fields.append(Field(key, "number", 1))
            pieces.append(float(value))
        elif isinstance(value, Tensor) and value.dim() <= 1:
            fields.append(Field(key, "vector" if value.dim() else "number", value.numel()))
            pieces.append(value)
        elif isinstance(value, (list, tuple)) and all(isinstance(item, (int, float)) for item in value):
            fields.append(Field(key, "vector", len(value)))
            pieces += map(float, value)
        elif isinstance(value, Summary):
            share = value.pack()
            fields.append(Field(key, "summary", share.numel(), value))
            pieces.append(share)
        else:
            raise TypeError(f"report: {key} is {kind_of(value)}; accepted: {REPORTABLE}")
    layout = Layout(tuple(fields))
    return cells(float(layout.signature), *pieces), layout


REPORTABLE = "number, 0-dim tensor, list of numbers, Summary"


def kind_of(value: Any) -> str:
    """What a value is, for the error that it cannot be reported."""
    return f"a tensor {[*value.shape]}" if isinstance(value, Tensor) else f"of type {type(value).__name__}"


def merge_rows(layout: Layout, rows: Tensor) -> tuple[dict[str, float], dict[str, list[float]], tuple[str, ...]]:
    """Merges the packed rows of all ranks.

    Plain numbers and lists are merged by mean; a number that is the same on every rank keeps its bits. A key is "not
    finite" when some rank's plain value is not finite, or when its summary says so; the metric of such a key is NaN.

    Args:
        layout: This rank's layout, as `pack_row` returned it.
        rows: Float64 [ranks, layout.width] on the CPU.

    Returns:
        Metrics (key -> number), vectors (key -> list) and the keys that are not finite.

    Raises:
        ValueError: The ranks reported different keys.
    """
    if rows.shape[1] != layout.width or bool((rows[:, 0] != layout.signature).any()):
        keys = ", ".join(field.key for field in layout.fields)
        raise ValueError(f"the ranks reported different keys, kinds or widths; this one: {keys}")
    metrics: dict[str, float] = {}
    vectors: dict[str, list[float]] = {}
    nonfinite: set[str] = set()
    start = 1
    for field in layout.fields:
        share = rows[:, start : start + field.width]
        start += field.width
        merged, bad = _merge_summary(field.summary, share) if field.summary else _merge_plain(field, share)
        for name, value in merged.items():
            if isinstance(value, list):
                vectors[_absolute(field.key, name)] = value
            else:
                metrics[_absolute(field.key, name)] = math.nan if name in bad else value
        nonfinite |= {_absolute(field.key, name) for name in bad}
    return metrics, vectors, tuple(sorted(nonfinite))


def _merge_summary(summary: Summary, share: Tensor) -> tuple[Merged, Collection[str]]:
    merged = summary.merge(share)
    own = getattr(summary, "nonfinite", None)
    if own is not None:
        return merged, own(share)
    lists = {name: value if isinstance(value, list) else [value] for name, value in merged.items()}
    return merged, [name for name, numbers in lists.items() if not all(map(math.isfinite, numbers))]


def _merge_plain(field: Field, share: Tensor) -> tuple[Merged, Collection[str]]:
    finite = share.isfinite().all(0)
    same = (share == share[0]).all(0)
    mean = torch.where(same, share[0], share.mean(0))
    numbers = torch.where(finite, mean, torch.nan).tolist()
    name = "vector." if field.kind == "vector" else ""
    return {name: numbers if field.kind == "vector" else numbers[0]}, () if bool(finite.all()) else (name,)


def _absolute(key: str, name: str) -> str:
    name = name.removeprefix("vector.")
    return f"{key}/{name}" if name else key


@torch.no_grad()
def cells(*values: float | Tensor) -> Tensor:
    """One float64 row of numbers and tensors, on the accelerator if one of them is there, without waiting for it."""
    pieces: list[Tensor] = []
    host: list[float] = []
    for value in values:
        if isinstance(value, Tensor):
            if host:
                pieces.append(torch.tensor(host, dtype=torch.float64))
                host = []
            pieces.append(value.double().reshape(-1))
        else:
            host.append(value)
    if host:
        pieces.append(torch.tensor(host, dtype=torch.float64))
    device = next((piece.device for piece in pieces if piece.device.type != "cpu"), pieces[0].device)
    return torch.cat([piece.to(device, non_blocking=True) for piece in pieces])
