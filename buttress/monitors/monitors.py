"""What the training loop looks at to see a collapse coming.

Comes in: detached tensors of a step or of the validation set, on any device and in any AMP type. Goes out: a `Summary`
to hand to `report`; `monitors.summaries` says how ranks merge theirs (everything in it can be imported from here).
Updates and packing stay on the device of their input and never wait for it.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from buttress.compat.torch import inplace_version
from buttress.monitors.moments import (
    HEADER,
    LOGVAR_MAX,
    LOGVAR_MIN,
    NONFINITE,
    SAMPLES,
    SILENT,
    USED,
    chunk_statistics,
    combine,
    kl_per_dim,
    median_of_ranks,
    no_statistics,
    on_host,
    ranked_values,
)
from buttress.monitors.summaries import (
    Layout,
    Maximum,
    Mean,
    Merged,
    Minimum,
    NonFinite,
    Summary,
    Total,
    largest_share,
    merge_rows,
    pack_row,
)

__all__ = [
    "ACTIVE_KL",
    "ACTIVE_VARIANCE",
    "AblationMonitor",
    "LatentMonitor",
    "Layout",
    "Maximum",
    "Mean",
    "Merged",
    "Minimum",
    "NonFinite",
    "Summary",
    "Total",
    "kl_per_dim",
    "merge_rows",
    "pack_row",
]

#: A latent dimension is active when its mean moves with the input: Var over samples of mu above this. 1e-2 is the
#: threshold of Burda, Grosse & Salakhutdinov 2016 (IWAE); 1e-3 also counts units that are barely alive.
ACTIVE_VARIANCE = {"active_var_1e2": 1e-2, "active_var_1e3": 1e-3}
#: ... or when it costs something: mean KL above this (nats). Steadier than the variance early in training.
ACTIVE_KL = 0.05


class LatentMonitor:
    """How much a Gaussian latent code N(mu, exp(logvar)) still says, over all samples of a window and of all ranks.

    `update` once per batch; then report the monitor itself (a validation pass), or `summary()`, which hands out the
    window and starts the next one (training). Merged, under the key `latent`:

    | name | what |
    | --- | --- |
    | `kl_total` | nats: mean over samples of the KL to N(0, 1) summed over dimensions |
    | `kl_per_dim`, `dims` | `kl_total` / `dims`; number of latent dimensions |
    | `active_kl` | dimensions whose mean KL is above 0.05 nat |
    | `active_var_1e2`, `active_var_1e3` | dimensions whose Var over samples of mu is above 1e-2, 1e-3 |
    | `kl_sample_median` | nats: median over samples of the KL of a sample |
    | `kl_sample_below_1e3` | share of the samples whose KL is below 1e-3 nat |
    | `logvar_min`, `logvar_max` | extremes of what was given: hand over logvar before any clamping |
    | `nonfinite` | share of the entries of mu and logvar that are not finite, on the worst rank |
    | vectors `kl`, `var_mu` | per dimension: mean KL (nats), Var over samples of mu |
    | vector `nonfinite` | the share on each rank |

    Variances are population variances (divided by n), NaN for fewer than two samples: one sample cannot show that a
    unit is dead. Without samples everything but `dims` is NaN, never a 0 that would look like a collapse.

    Samples with an entry that is not finite are left out of the statistics, and the report's key itself counts as "not
    finite" as soon as one rank has met one: a trainer that turns the loss of such a batch into 0.0 is found out.

    Accuracy: float64 arithmetic on the values as they come (bf16, fp16, float32), with forms that do not cancel near
    collapse or far from zero; per-sample KLs are kept in float32 (6e-8) for their median. The median is exact on one
    rank, on several with at most `ranked` samples each, and otherwise as `moments.median_of_ranks` says. Beyond
    1,048,576 samples per rank and window the median, and nothing else, is that of every 2nd, 4th, ... sample.

    Cost: `update` keeps references and works once per 32,768 elements of mu (on an accelerator 1,048,576), so that
    memory is bounded. At batch 256 x 10 dimensions that is 30 to 40 microseconds a batch on one core, packing included:
    where a step takes no longer than a millisecond use `every=4`, which sees every fourth batch of a window, beginning
    with its first. The tensors must not be changed in place afterwards (RuntimeError where torch can tell; clone the
    static outputs of a CUDA graph). The row has 7 + 3 * dims + `ranked` cells.

        >>> monitor = LatentMonitor(dims=2)
        >>> monitor.update(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.zeros(2, 2))
        >>> merged = monitor.merge(monitor.pack().unsqueeze(0))
        >>> merged["kl_total"], merged["active_kl"], merged["vector.var_mu"]
        (0.5, 1.0, [1.0, 0.0])
    """

    HOLD_HOST, HOLD_DEVICE = 1 << 15, 1 << 20  # elements of mu; on the host what stays in a core's cache
    KEEP = 1 << 20  # per-sample values
    PARTS = 64  # rows of statistics waiting to be combined

    def __init__(self, dims: int, *, every: int = 1, ranked: int = 8192) -> None:
        """`dims`: latent dimensions (all entries of a spatial code). `every`, `ranked` (>= 16): see the class."""
        if dims < 1 or every < 1 or ranked < 16:
            given = f"dims={dims}, every={every}, ranked={ranked}"
            raise ValueError(f"LatentMonitor needs dims >= 1, every >= 1 and ranked >= 16, got {given}")
        self.dims, self.every, self.ranked = dims, every, ranked
        self._clear()

    def _clear(self) -> None:
        self._calls = 0
        self._held: list[tuple[Tensor, Tensor, int, int]] = []  # mu, logvar and their versions
        self._elements = 0
        self._parts: list[Tensor] = []
        self._samples: list[Tensor] = []  # KL of samples 0, stride, 2 * stride, ...
        self._kept, self._seen, self._stride = 0, 0, 1

    def update(self, mu: Tensor, logvar: Tensor) -> None:
        """One batch: mu and logvar (not clamped), [batch, dims] or [batch, ...] with `dims` entries per sample."""
        self._calls += 1
        if (self._calls - 1) % self.every:
            return
        shape = mu.shape
        if not shape or shape != logvar.shape or mu.numel() != shape[0] * self.dims:
            given = f"{[*shape]} and {[*logvar.shape]}"
            raise ValueError(f"LatentMonitor takes mu and logvar [batch, {self.dims}], got {given}")
        mu, logvar = mu.detach(), logvar.detach()
        self._held.append((mu, logvar, inplace_version(mu), inplace_version(logvar)))
        self._elements += mu.numel()
        if self._elements >= (self.HOLD_HOST if on_host(mu) else self.HOLD_DEVICE):
            self._fold()

    @torch.no_grad()
    def _fold(self) -> None:
        held, self._held, self._elements = self._held, [], 0
        if any(inplace_version(mu) != at or inplace_version(logvar) != logvar_at for mu, logvar, at, logvar_at in held):
            raise RuntimeError("mu or logvar was changed in place after LatentMonitor.update: give it a clone")
        mu = torch.cat([mu.reshape(-1, self.dims) for mu, *_ in held])
        logvar = torch.cat([logvar.reshape(-1, self.dims) for _, logvar, *_ in held])
        if not len(mu):
            return
        row, kl = chunk_statistics(mu, logvar)
        self._parts.append(row)
        if len(self._parts) >= self.PARTS:
            self._parts = [combine(torch.stack(self._parts))]
        self._keep(kl.float())

    def _keep(self, kl: Tensor) -> None:
        chosen = kl[-self._seen % self._stride :: self._stride]
        self._seen += len(kl)
        self._samples.append(chosen)
        self._kept += len(chosen)
        while self._kept > self.KEEP:
            self._samples = [torch.cat(self._samples)[::2].clone()]
            self._kept, self._stride = len(self._samples[0]), 2 * self._stride

    def summary(self) -> LatentMonitor:
        """The window since the last call, to be reported; this monitor starts an empty one."""
        window = copy.copy(self)
        self._clear()
        return window

    @torch.no_grad()
    def pack(self) -> Tensor:
        if self._held:
            self._fold()
        if not self._parts:
            return torch.cat([no_statistics(self.dims), ranked_values(torch.empty(0), self.ranked)])
        self._samples = [torch.cat(self._samples)]
        return torch.cat([combine(torch.stack(self._parts)), ranked_values(self._samples[0], self.ranked)])

    def merge(self, rows: Tensor) -> Merged:
        statistics, ranked = rows.split([HEADER + 3 * self.dims, 1 + self.ranked], dim=1)
        whole = combine(statistics)
        used = float(whole[USED])
        _, squares, kl_sums = whole[HEADER:].split(self.dims)
        kl = (kl_sums / used).tolist()  # without samples 0 / 0: NaN
        var_mu = (squares / used).tolist() if used > 1 else [math.nan] * self.dims
        kl_total = math.fsum(kl)
        weights = (statistics[:, USED] / ranked[:, 0].clamp(min=1.0)).tolist()
        return {
            "kl_total": kl_total,
            "kl_per_dim": kl_total / self.dims,
            "dims": float(self.dims),
            "active_kl": _count_above(ACTIVE_KL, kl),
            **{name: _count_above(threshold, var_mu) for name, threshold in ACTIVE_VARIANCE.items()},
            "kl_sample_median": median_of_ranks(ranked, weights),
            "kl_sample_below_1e3": float(whole[SILENT]) / used if used else math.nan,
            "logvar_min": float(whole[LOGVAR_MIN]) if used else math.nan,
            "logvar_max": float(whole[LOGVAR_MAX]) if used else math.nan,
            **largest_share("nonfinite", (rows[:, NONFINITE] / (rows[:, SAMPLES] * 2 * self.dims)).tolist()),
            "vector.kl": kl,
            "vector.var_mu": var_mu,
        }

    def nonfinite(self, rows: Tensor) -> tuple[str, ...]:
        """The key itself when one met an entry that is not finite; the KL's names when a finite logvar overflowed."""
        names = ("",) if bool((rows[:, NONFINITE] > 0).any()) else ()
        kl_sums = rows[:, HEADER + 2 * self.dims : HEADER + 3 * self.dims]
        return names if bool(kl_sums.isfinite().all()) else (*names, "kl_total", "kl_per_dim", "vector.kl")


def _count_above(threshold: float, values: list[float]) -> float:
    """How many values are above a threshold; NaN when they are not known."""
    return math.nan if any(map(math.isnan, values)) else float(sum(value > threshold for value in values))


class AblationMonitor:
    """What the decoder loses when its code is taken away: reconstruction with z = mu against z = 0, sample by sample.

    Sees the collapse that a healthy KL hides: a decoder that ignores its code. Use the same fixed validation subset at
    every report. Merged, under the key `ablation` (unit: that of the losses): `loss_mu` and `loss_zero`, means over the
    samples of all ranks; `delta` = loss_zero - loss_mu; `relative` = delta / loss_zero, for losses that are not
    negative (1: the code carries everything, 0: nothing, below 0: it harms; NaN when loss_zero is 0). Without samples
    all four are NaN; with a loss that is not finite they are NaN and "not finite".
    """

    NAMES = ("loss_mu", "loss_zero", "delta", "relative")

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # of loss_mu, loss_zero, their difference sample by sample, and 1

    @torch.no_grad()
    def update(self, loss_mu: Tensor, loss_zero: Tensor) -> None:
        """Losses [batch] of the same samples, in any AMP type, not scaled by a weight that a sweep may search."""
        if loss_mu.shape != loss_zero.shape or loss_mu.dim() != 1:
            given = f"{[*loss_mu.shape]} and {[*loss_zero.shape]}"
            raise ValueError(f"AblationMonitor takes two losses [batch], got {given}")
        with_code, without = loss_mu.double(), loss_zero.double()
        sums = torch.stack([with_code, without, without - with_code, torch.ones_like(without)]).sum(1)
        self._sums = sums if self._sums is None else self._sums + sums

    def summary(self) -> AblationMonitor:
        """The window since the last call, to be reported; this monitor starts an empty one."""
        window = copy.copy(self)
        self._sums = None
        return window

    def pack(self) -> Tensor:
        return torch.zeros(4, dtype=torch.float64) if self._sums is None else self._sums

    def merge(self, rows: Tensor) -> Merged:
        loss_mu, loss_zero, delta, count = rows.sum(0).tolist()
        if not count:
            return dict.fromkeys(self.NAMES, math.nan)
        relative = delta / loss_zero if loss_zero else math.nan
        return dict(zip(self.NAMES, (loss_mu / count, loss_zero / count, delta / count, relative), strict=True))

    def nonfinite(self, rows: Tensor) -> tuple[str, ...]:
        return () if bool(rows.isfinite().all()) else self.NAMES
