"""Measures held-out maps: the error of the reconstruction from the posterior's mean, independent of loss weights.

Each rank measures its share of the images; sums and counts travel in one all-reduce, so that every rank knows every
value.
"""

from __future__ import annotations

import numpy as np
import torch

from buttress.errors import BadInput
from buttress.monitors import AblationMonitor, LatentMonitor, Merged
from buttress.trainables.radio.config import Config
from buttress.trainables.radio.data import Dataset, scaled
from buttress.trainables.radio.model import RadioVae
from buttress.training.world import World

PEAK = 2.0  # an image's range, -1 to 1
LEAST = 1e-12  # mean squared error of an image that is reproduced exactly: 126 dB


class MapMonitor(LatentMonitor):
    """As its base, over all cells of the latent map; the vectors are means over the cells, one entry per channel: those
    of 12,288 dimensions would be most of a sweep's journal."""

    def __init__(self, channels: int, cells: int) -> None:
        super().__init__(channels * cells, ranked=1024)
        self.channels = channels

    def merge(self, rows: torch.Tensor) -> Merged:
        merged = dict(super().merge(rows))
        for name in ("vector.kl", "vector.var_mu"):
            of_cells = torch.tensor(merged[name], dtype=torch.float64).view(self.channels, -1)
            merged[name] = of_cells.mean(1).tolist()
        return merged


class HeldOut:
    """This rank's images of a split: those that are scored at every epoch, and the others."""

    def __init__(self, dataset: Dataset, split: str, config: Config, world: World, dtype: torch.dtype) -> None:
        self.config, self.world, self.dtype, self.data = config, world, dtype, dataset
        rows = dataset.rows(split)
        if not len(rows):
            raise BadInput(f"leaves no image in {split}", key="data.fractions", value=list(config.data.fractions))
        wanted = min(config.buttress.eval_images or len(rows), len(rows))
        scored = np.zeros(len(rows), dtype=bool)
        scored[np.linspace(0, len(rows) - 1, wanted).round().astype(int)] = True
        own = {True: rows[scored], False: rows[~scored]}
        self.rows = {kind: part[world.share(len(part))] for kind, part in own.items()}

    def measure(
        self,
        model: RadioVae,
        latent: LatentMonitor | None = None,
        ablation: AblationMonitor | None = None,
        *,
        full: bool = False,
        objectives: bool = True,
    ) -> dict[str, float]:
        """Scores of the fixed images; feeds the monitors with these and, if `full`, with all others of the split."""
        sums = torch.zeros(4, dtype=torch.float64, device=self.world.device)  # |e|, e^2, dB, images
        for scored in (True, False) if full else (True,):
            rows = self.rows[scored]
            for first in range(0, len(rows), self.config.buttress.eval_batch):
                x = self.images(rows[first : first + self.config.buttress.eval_batch])
                code = model.encode(x)
                y = model.decode(code.mu)
                error = (y - x).abs().mean((1, 2, 3))
                if latent is not None:
                    latent.update(code.mu, code.raw_logvar)
                if ablation is not None:
                    blank = model.decode(torch.zeros_like(code.mu[:1]))  # one image for all
                    ablation.update(error, (blank - x).abs().mean((1, 2, 3)))
                if scored:
                    square = (y - x).double().square().mean((1, 2, 3))
                    decibel = 10 * torch.log10(PEAK**2 / square.clamp_min(LEAST))
                    count = torch.full_like(square, 1.0)
                    sums += torch.stack([error.double(), square, decibel, count]).sum(1)
        if not objectives:
            return {}
        l1, l2, psnr, count = self.world.sum(sums).tolist()
        return {"val/l1": l1 / count, "val/l2": l2 / count, "val/psnr": psnr / count}

    def images(self, rows: np.ndarray) -> torch.Tensor:
        """rows[b] -> [b, 1, H, W] on the device."""
        return torch.from_numpy(scaled(self.data.grey[rows])[:, None]).to(self.world.device, self.dtype)
