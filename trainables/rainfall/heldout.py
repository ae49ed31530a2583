"""Measures held-out days: fields drawn in prior mode and in posterior mode against the observed rain.

All figures are in the data's unit (mm/day) over land, of fields floored at 0, and none depends on a weight of the loss,
so that trials with different weights and loss variants can be compared. Each rank measures its share of the days; sums
and counts travel in one all-reduce, so that every rank knows every value. A figure for which no pixel or day qualifies
is missing (left out of the report), never 0.

Prior mode: K codes from N(0, I) per day, nothing known but the predictor. Posterior mode: one code from the posterior,
which has seen the target; good for finding out what the decoder can do, never for choosing between trials.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from buttress.monitors import AblationMonitor, LatentMonitor
from buttress.trainables.rainfall.config import Config
from buttress.trainables.rainfall.data import Dataset
from buttress.trainables.rainfall.loss import ReconstructionSums, reconstruction_sums
from buttress.trainables.rainfall.model import Condition, RainVae
from buttress.trainables.rainfall.rain import Rain
from buttress.training.losses import gaussian_kl, reparameterize
from buttress.training.randomness import keyed_normal
from buttress.training.world import World

WET_MM = 0.1
_POSTERIOR, _PRIOR = 0, 1  # streams of the evaluation's noise


class HeldOut:
    """This rank's days of a split: those whose fields are scored at every epoch, and the others."""

    def __init__(
        self, dataset: Dataset, split: str, config: Config, world: World, rain: Rain, dtype: torch.dtype
    ) -> None:
        self.config, self.world, self.rain, self.dtype = config, world, rain, dtype
        rows = dataset.rows(split)
        wanted = len(rows) if config.buttress.eval_days is None else min(config.buttress.eval_days, len(rows))
        scored = np.zeros(len(rows), dtype=bool)
        scored[np.linspace(0, len(rows) - 1, wanted).round().astype(int)] = True
        own = {True: rows[scored], False: rows[~scored]}
        self.rows = {kind: part[world.share(len(part))] for kind, part in own.items()}
        self.data = dataset
        self.statics = torch.from_numpy(np.ascontiguousarray(dataset.statics))[None].to(world.device, dtype)
        self.land = torch.from_numpy(np.flatnonzero(dataset.land > 0.5)).to(world.device)
        tail_z = (math.log1p(rain.tail_mm) - dataset.mean) / dataset.std
        self.has_tail = any(bool(((dataset.y[at, 0] >= tail_z) & (dataset.land > 0.5)).any()) for at in rows[scored])

    def measure(
        self,
        model: RainVae,
        latent: LatentMonitor | None = None,
        ablation: AblationMonitor | None = None,
        *,
        full: bool = False,
        objectives: bool = True,
    ) -> dict[str, float]:
        """Scores on the fixed days; feeds the monitors with these days and, if `full`, with all others of the split."""
        sums = Sums(self.rain, self.config.sampling.samples)
        for scored in (True, False) if full else (True,):
            rows = self.rows[scored]
            for first in range(0, len(rows), self.config.buttress.eval_batch):
                at = rows[first : first + self.config.buttress.eval_batch]
                self._batch(model, at, latent, ablation, sums if scored and objectives else None)
        total = self.world.sum(sums.packed(self.world.device)).cpu()
        found = scores(total, self.config.sampling.samples)
        rec = ReconstructionSums(*total[-len(RECONSTRUCTION) :])
        return found | {"val/l_rec": rec.value(self.config.loss)} if found else {}

    def _batch(
        self,
        model: RainVae,
        at: np.ndarray,
        latent: LatentMonitor | None,
        ablation: AblationMonitor | None,
        sums: Sums | None,
    ) -> None:
        device, days = self.world.device, torch.from_numpy(self.data.day[at])
        x = torch.from_numpy(np.ascontiguousarray(self.data.x[at])).to(device, self.dtype)
        y = torch.from_numpy(np.ascontiguousarray(self.data.y[at])).to(device, self.dtype)
        condition = model.condition(x)
        code = model.posterior(condition, y, self.statics)
        if latent is not None:
            latent.update(code.mu, code.logvar)
        if ablation is not None:
            losses = [self._error(model.decode(z, condition), y) for z in (code.mu, torch.zeros_like(code.mu))]
            ablation.update(*losses)
        if sums is None:
            return
        truth = self._fallen(y, floor=0.0)
        noise = keyed_normal(self.config.buttress.eval_seed, days, model.latent_dim, _POSTERIOR, self.dtype).to(device)
        field = model.decode(reparameterize(code.mu, code.logvar, noise), condition)
        mask = self.rain.land if self.config.loss.over == "land" else torch.ones_like(self.rain.land)
        seen, rec = self._fallen(field), reconstruction_sums(self.config.loss, self.rain, field, y, mask)
        drawn = torch.stack([self._fallen(field) for field in self.prior(model, condition, days)], dim=1)
        sums.add(truth, seen, drawn, gaussian_kl(code.mu, code.logvar).sum(dtype=torch.float64), rec)

    def prior(self, model: RainVae, condition: Condition, days: torch.Tensor) -> list[torch.Tensor]:
        """K fields [days, 1, H, W] in z, drawn for day ids `days` with the noise that is theirs at every evaluation."""
        drawn, sampling = [], self.config.sampling
        for k in range(sampling.samples):
            index = days * sampling.samples + k
            z = keyed_normal(self.config.buttress.eval_seed, index, model.latent_dim, _PRIOR, self.dtype)
            drawn.append(model.decode(sampling.temperature * z.to(condition.code.device), condition))
        return drawn

    def _fallen(self, z: torch.Tensor, floor: float | None = None) -> torch.Tensor:
        """z[days, 1, H, W] -> mm over land [days, L]."""
        mm = self.rain.fallen(z, self.config.sampling.pixel_threshold if floor is None else floor)
        return mm.flatten(1).index_select(1, self.land)

    def _error(self, y_hat: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Mean absolute error in z over land, by day [days]."""
        return (y_hat - y).abs().flatten(1).index_select(1, self.land).mean(1)


def crps(drawn: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """drawn[days, K, L], truth[days, L] -> continuous ranked probability score [days, L], the fair ensemble estimate.

    mean_k |x_k - y| - sum_{k<l} |x_k - x_l| / (K (K - 1)): without bias for the distribution that the K members were
    drawn from (Ferro 2014), so that more samples do not look like a better model. In the unit of rain; can be below 0.
    """
    k = drawn.shape[1]
    ordered = drawn.sort(1).values
    place = torch.arange(k, device=drawn.device, dtype=drawn.dtype) * 2 - (k - 1)
    pairs = (ordered * place[None, :, None]).sum(1)
    return (drawn - truth[:, None]).abs().mean(1) - pairs / (k * (k - 1))


def diversity(drawn: torch.Tensor) -> torch.Tensor:
    """drawn[days, K, L] -> 1 - mean cosine similarity of the pairs of fields, by day; NaN where two fields are 0."""
    norm = drawn.norm(dim=2)
    unit = drawn / norm[:, :, None].clamp_min(1e-30)
    k, known = drawn.shape[1], norm > 0
    together = unit.sum(1).square().sum(1)  # sum over all pairs, each with itself included
    pairs = known.sum(1) * (known.sum(1) - 1)
    similar = (together - known.sum(1)) / pairs.clamp_min(1)
    return torch.where(known.sum(1) >= min(k, 2), 1 - similar, torch.full_like(similar, math.nan))


def correlation(field: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """field, truth[..., L] -> Pearson's correlation over pixels [...]; NaN where one of them is constant."""
    one, other = field - field.mean(-1, keepdim=True), truth - truth.mean(-1, keepdim=True)
    product = one.norm(dim=-1) * other.norm(dim=-1)
    return torch.where(product > 1e-12, (one * other).sum(-1) / product.clamp_min(1e-30), math.nan)


RECONSTRUCTION = tuple(f"l_rec_{name}" for name in ReconstructionSums._fields)
NAMES = (
    "pixels", "tail", "extreme", "rainy", "days", "kl",  # counts, nats
    "y", "y_wet", "y_max", "y_sd",  # truth
    "y_tail", "p_abs", "p_square", "p_tail_abs", "p_tail_square", "p_tail", "p", "p_wet", "p_extreme",  # posterior
    "p_corr", "p_corr_n",
    "crps", "m_abs", "m_tail_abs", "q", "q_wet", "q_extreme", "q_max", "q_sd", "q_corr", "q_corr_n",  # prior
    "div", "div_n",
    *RECONSTRUCTION,
)  # fmt: skip


class Sums:
    """Sums and counts of one rank's days, float64."""

    def __init__(self, rain: Rain, samples: int) -> None:
        self.rain, self.samples = rain, samples
        self.total: torch.Tensor | None = None

    def add(
        self,
        truth: torch.Tensor,
        seen: torch.Tensor,
        drawn: torch.Tensor,
        kl: torch.Tensor,
        rec: ReconstructionSums | None = None,
    ) -> None:
        """truth, seen[days, L], drawn[days, K, L] in mm; kl[] nats, summed over the days; rec: of the loss."""
        truth, seen, drawn = truth.double(), seen.double(), drawn.double()
        tail, extreme = truth >= self.rain.tail_mm, truth >= self.rain.extreme_mm
        rainy = tail.any(1)
        error, middle = seen - truth, (drawn.median(1).values + _upper_median(drawn)) / 2
        missed = (middle - truth).abs()
        seen_corr, drawn_corr = correlation(seen, truth)[rainy], correlation(drawn, truth[:, None])[rainy]
        apart = diversity(drawn)[rainy]
        values = {
            "pixels": torch.tensor(truth.numel()), "tail": tail.sum(), "extreme": extreme.sum(), "rainy": rainy.sum(),
            "days": torch.tensor(len(truth)), "kl": kl, "y": truth.sum(), "y_wet": (truth > WET_MM).sum(),
            "y_max": truth.amax(1)[rainy].sum(), "y_sd": truth.std(1, correction=0)[rainy].sum(),
            "p_abs": error.abs().sum(), "p_square": error.square().sum(), "p_tail_abs": error[tail].abs().sum(),
            "p_tail_square": error[tail].square().sum(), "p_tail": error[tail].sum(), "y_tail": truth[tail].sum(),
            "p": seen.sum(), "p_wet": (seen > WET_MM).sum(),
            "p_extreme": (seen >= self.rain.extreme_mm).sum(), "p_corr": seen_corr.nansum(),
            "p_corr_n": (~seen_corr.isnan()).sum(), "crps": crps(drawn, truth).sum(), "m_abs": missed.sum(),
            "m_tail_abs": missed[tail].sum(), "q": drawn.sum(), "q_wet": (drawn > WET_MM).sum(),
            "q_extreme": (drawn >= self.rain.extreme_mm).sum(), "q_max": drawn.amax(2)[rainy].sum(),
            "q_sd": drawn.std(2, correction=0)[rainy].sum(), "q_corr": drawn_corr.nansum(),
            "q_corr_n": (~drawn_corr.isnan()).sum(), "div": apart.nansum(), "div_n": (~apart.isnan()).sum(),
        }  # fmt: skip
        values |= dict(zip(RECONSTRUCTION, rec or [torch.zeros(())] * len(RECONSTRUCTION), strict=True))
        row = torch.stack([values[name].to(truth.device, torch.float64) for name in NAMES])
        self.total = row if self.total is None else self.total + row

    def packed(self, device: torch.device) -> torch.Tensor:
        return torch.zeros(len(NAMES), dtype=torch.float64, device=device) if self.total is None else self.total


def _upper_median(drawn: torch.Tensor) -> torch.Tensor:
    """The upper of the two middle values over dimension 1 (torch's median is the lower)."""
    return -(-drawn).median(1).values


def scores(total: torch.Tensor, samples: int) -> dict[str, float]:
    """The sums of all ranks [len(NAMES)] -> what is reported. A figure without a count is left out on every rank: a
    report takes a NaN for a number that went wrong, and such an epoch is nobody's best."""
    s = dict(zip(NAMES, total.tolist(), strict=True))
    if not s["days"]:
        return {}
    drawn = {name: s[name] / samples for name in ("q", "q_wet", "q_extreme", "q_max", "q_sd")}
    root = math.sqrt
    found: dict[str, tuple[float, float]] = {
        "prior/crps": (s["crps"], s["pixels"]),
        "prior/mae_tail": (s["m_tail_abs"], s["tail"]),
        "prior/mae_all": (s["m_abs"], s["pixels"]),
        "prior/max": (drawn["q_max"], s["rainy"]),
        "prior/max_ratio": (drawn["q_max"], s["y_max"]),
        "prior/sd_ratio": (drawn["q_sd"], s["y_sd"]),
        "prior/diversity": (s["div"], s["div_n"]),
        "prior/correlation": (s["q_corr"], s["q_corr_n"]),
        "prior/mass_bias": (drawn["q"] - s["y"], s["y"]),
        "prior/wet_fraction": (drawn["q_wet"], s["pixels"]),
        "prior/dry_ratio": (s["pixels"] - drawn["q_wet"], s["pixels"] - s["y_wet"]),
        "prior/extreme_ratio": (drawn["q_extreme"], s["extreme"]),
        "posterior/mae_all": (s["p_abs"], s["pixels"]),
        "posterior/rmse_all": (root(s["p_square"] / s["pixels"]), 1.0),
        "posterior/mae_tail": (s["p_tail_abs"], s["tail"]),
        "posterior/rmse_tail": (root(s["p_tail_square"] / max(s["tail"], 1.0)), min(s["tail"], 1.0)),
        "posterior/tail_bias": (s["p_tail"], s["y_tail"]),
        "posterior/mass_bias": (s["p"] - s["y"], s["y"]),
        "posterior/correlation": (s["p_corr"], s["p_corr_n"]),
        "posterior/wet_fraction": (s["p_wet"], s["pixels"]),
        "posterior/extreme_ratio": (s["p_extreme"], s["extreme"]),
        "truth/wet_fraction": (s["y_wet"], s["pixels"]),
        "truth/max": (s["y_max"], s["rainy"]),
        "val/kl": (s["kl"], s["days"]),
    }
    if s["tail"]:
        combined = 0.4 * s["p_abs"] / s["pixels"] + 0.6 * s["p_tail_abs"] / s["tail"]
        found["posterior/combined"] = (combined, 1.0)
    return {name: value / count for name, (value, count) in found.items() if count}
