"""How much a Gaussian latent code still says: KL, active units and their spread over samples and ranks."""

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
    median_of_ranks,
    no_statistics,
    on_host,
    ranked_values,
)
from buttress.monitors.summaries import Merged, largest_share

#: A latent dimension is active when its mean moves with the input: Var over samples of mu above this. 1e-2 is the
#: threshold of Burda, Grosse & Salakhutdinov 2016 (IWAE); 1e-3 also counts units that are barely alive.
ACTIVE_VARIANCE = {"active_var_1e2": 1e-2, "active_var_1e3": 1e-3}
#: ... or when its mean KL is above this (nats). Less noisy than the variance early in training.
ACTIVE_KL = 0.05


class LatentMonitor:
    """Measures how much a Gaussian latent code N(mu, exp(logvar)) still says about its input.

    Call `update` once per batch. Then report the monitor itself (after a validation pass), or `summary()`, which
    returns the window so far and starts the next one (during training). The statistics cover all samples of the window
    on all ranks. Reported under the key `latent`, they are:

    | name | meaning |
    | --- | --- |
    | `latent/kl_total` | nats: mean over samples of the KL to N(0, 1), summed over dimensions |
    | `latent/kl_per_dim`, `latent/dims` | `kl_total` / `dims`; number of latent dimensions |
    | `latent/active_kl` | number of dimensions whose mean KL is above 0.05 nat |
    | `latent/active_var_1e2` | dimensions whose mu has a variance over samples above 1e-2 (Burda et al. 2016) |
    | `latent/active_var_1e3` | the same above 1e-3 |
    | `latent/kl_sample_median` | nats: median over samples of a sample's KL |
    | `latent/kl_sample_below_1e3` | share (0 to 1) of the samples whose KL is below 1e-3 nat |
    | `latent/logvar_min`, `latent/logvar_max` | extremes of logvar as given: pass it before any clamping |
    | `latent/nonfinite` | share (0 to 1) of the entries of mu and logvar that are not finite, on the worst rank |
    | vectors `latent/kl`, `latent/var_mu` | per dimension: mean KL (nats), variance over samples of mu |
    | vector `latent/nonfinite` | the share on each rank |

    Variances are population variances (divided by n), NaN for fewer than two samples. Without samples everything but
    `dims` is NaN, never a 0 that would look like a collapse.

    Samples with an entry that is not finite are left out of the statistics, and the report's key itself is marked "not
    finite" as soon as one rank has met one, also when the trainer has replaced the loss of that batch by 0.

    Accuracy: float64 arithmetic on the values as given (bf16, fp16, float32), in forms that do not cancel near collapse
    or far from zero; per-sample KLs are kept in float32 (6e-8) for their median. The median is exact on one rank, on
    several with at most `ranked` samples each, and otherwise within the bound of `moments.median_of_ranks`. Beyond
    1,048,576 samples per rank and window, the median (and nothing else) is that of every 2nd, 4th, ... sample.

    Cost: `update` keeps references and computes once per 32,768 elements of mu (1,048,576 on an accelerator), so memory
    is bounded. At batch 256 x 10 dimensions it takes 30 to 40 microseconds a batch on one core, packing included; where
    a step takes no longer than a millisecond, use `every=4`. The tensors must not be changed in place afterwards
    (RuntimeError where torch can detect it; clone the static outputs of a CUDA graph).

    Args:
        dims: Number of latent dimensions (all entries of a spatial code), at least 1.
        every: Use every n-th batch of a window, beginning with its first.
        ranked: Order statistics of the per-sample KL that each rank sends for the median, at least 16; the packed row
            has 7 + 3 * dims + `ranked` cells.

    Raises:
        ValueError: An argument is out of its range.

    Example:
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
        """Adds one batch.

        Args:
            mu: Posterior means, [batch, dims] or [batch, ...] with `dims` entries per sample, in any float type.
            logvar: Log-variances of the same shape, before any clamping.

        Raises:
            ValueError: The shapes differ or do not have `dims` entries per sample.
        """
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
        """Returns the window since the last call, to be reported, and starts an empty one."""
        window = copy.copy(self)
        self._clear()
        return window

    @torch.no_grad()
    def pack(self) -> Tensor:
        """This rank's statistics as one row, float64 [7 + 3 * dims + ranked] (see `Summary.pack`)."""
        if self._held:
            self._fold()
        if not self._parts:
            return torch.cat([no_statistics(self.dims), ranked_values(torch.empty(0), self.ranked)])
        self._samples = [torch.cat(self._samples)]
        return torch.cat([combine(torch.stack(self._parts)), ranked_values(self._samples[0], self.ranked)])

    def merge(self, rows: Tensor) -> Merged:
        """The values of the class's table from the rows of all ranks (see `Summary.merge`)."""
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
        """`""` (the key) if any rank met an entry that is not finite; the KL's names if a finite logvar overflowed."""
        names = ("",) if bool((rows[:, NONFINITE] > 0).any()) else ()
        kl_sums = rows[:, HEADER + 2 * self.dims : HEADER + 3 * self.dims]
        return names if bool(kl_sums.isfinite().all()) else (*names, "kl_total", "kl_per_dim", "vector.kl")


def _count_above(threshold: float, values: list[float]) -> float:
    """How many values are above a threshold; NaN when they are not known."""
    return math.nan if any(map(math.isnan, values)) else float(sum(value > threshold for value in values))
