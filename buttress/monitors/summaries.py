"""How ranks put their shares of a report together.

Comes in: on every rank the same keys with numbers, vectors or `Summary` objects. `pack_row` turns them into one short
float64 row; the rows of all ranks travel in one all-reduce; `merge_rows` turns the [ranks, width] matrix into plain
numbers, by mean for plain ones and by each summary's own rule for the others. Nothing here makes an accelerator wait
for the host: rows are packed on the device of what is in them.
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
    """One rank's share of a monitored quantity, and the rule that merges the shares.

    Names in what `merge` returns are relative to the key it is reported under: `""` is the key itself, `"kl_total"`
    becomes `<key>/kl_total`, and a list under `"vector.kl"` becomes the vector `<key>/kl` (`"vector."`: the key's own).

    A summary may also have `nonfinite(rows) -> Collection[str]`: the relative names that count as not finite. Without
    it these are the names whose merged value is not finite. A NaN that only says "no samples" should not be among them.
    """

    def pack(self) -> Tensor:
        """Float64 [width], on any device; the same width on every rank. Packing twice gives the same."""
        ...

    def merge(self, rows: Tensor) -> Merged:
        """From float64 [ranks, width] on the CPU; a pure function of them and of what is the same on every rank."""
        ...


class _Plain:
    """What the small summaries share: their row is not finite if, and only if, this rank's value is not."""

    def nonfinite(self, rows: Tensor) -> Collection[str]:
        return () if bool(rows.isfinite().all()) else ("",)


@dataclass(frozen=True)
class Mean(_Plain):
    """Mean over all samples of all ranks; sums and counts are merged, so that ranks weigh by their samples.

    NaN when the count is 0 on every rank, which does not count as "not finite". Serves shares too: `Mean(hits, count)`.
    """

    sum: float | Tensor
    count: float | Tensor

    @classmethod
    def of(cls, values: Tensor) -> Mean:
        """Of all elements of a tensor of any shape, summed in float64."""
        return cls(values.detach().sum(dtype=torch.float64), values.numel())

    def pack(self) -> Tensor:
        return cells(self.sum, self.count)

    def merge(self, rows: Tensor) -> Merged:
        total, count = rows.sum(0).tolist()
        return {"": total / count if count else math.nan}


@dataclass(frozen=True)
class Total(_Plain):
    """Sum over ranks."""

    value: float | Tensor

    def pack(self) -> Tensor:
        return cells(self.value)

    def merge(self, rows: Tensor) -> Merged:
        return {"": float(rows.sum())}


@dataclass(frozen=True)
class Maximum(_Plain):
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
class NonFinite(_Plain):
    """Share of things (steps, entries) that are not finite: the largest over ranks; each rank's as the key's vector.

    The share is a finite number itself, so that its key does not count as "not finite". NaN where there was nothing.
    """

    bad: float | Tensor
    count: float | Tensor

    @classmethod
    def of(cls, values: Tensor) -> NonFinite:
        """Of the elements of a tensor of any shape."""
        return cls((~values.detach().isfinite()).sum(), values.numel())

    def pack(self) -> Tensor:
        return cells(self.bad, self.count)

    def merge(self, rows: Tensor) -> Merged:
        return largest_share("", (rows[:, 0] / rows[:, 1]).tolist())


def largest_share(name: str, shares: list[float]) -> Merged:
    """The worst rank's share under `name` and every rank's as its vector; NaN stands for a rank without samples."""
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
    """What the cells of a packed row mean: the first holds `signature`, then come the fields, sorted by key."""

    fields: tuple[Field, ...]

    @property
    def width(self) -> int:
        return 1 + sum(field.width for field in self.fields)

    @cached_property
    def signature(self) -> int:
        """Tells a report with other keys apart: 32 bits over keys, kinds and widths."""
        return zlib.crc32(json.dumps([(field.key, field.kind, field.width) for field in self.fields]).encode())


def pack_row(values: Mapping[str, Any]) -> tuple[Tensor, Layout]:
    """This rank's share of a report as one row, float64 [layout.width], on the accelerator if any value is on one.

    `values`: key -> number, 0-dim tensor, list of numbers (or 1-D tensor), or `Summary`. Every rank must give the same
    keys with the same kinds and widths, in any order. Raises TypeError, naming the key, for anything else.
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
            given = f"a tensor {[*value.shape]}" if isinstance(value, Tensor) else f"of type {type(value).__name__}"
            raise TypeError(f"report: {key} is {given}; accepted: number, 0-dim tensor, list of numbers, Summary")
    layout = Layout(tuple(fields))
    return cells(float(layout.signature), *pieces), layout


def merge_rows(layout: Layout, rows: Tensor) -> tuple[dict[str, float], dict[str, list[float]], tuple[str, ...]]:
    """Metrics, vectors and the keys that are not finite, from all ranks' packed rows (float64 [ranks, width], CPU).

    Plain numbers and lists are merged by mean; a number that is the same on every rank comes out as it went in. A key
    is "not finite" when some rank's plain value is not finite, or when its summary says so; the metric of such a key is
    NaN. Raises ValueError when the ranks reported different keys.
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
    tell = getattr(summary, "nonfinite", None)
    if tell is not None:
        return merged, tell(share)
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
