"""Lithology: a code of less than 0.05 nat is dead, and a decoder that does as well with z from the prior is blind."""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import Any

from benchmarks.collapsebench.family import Family, Metrics

DEAD_NATS = 0.05
WORTH = 0.05  # of the error with z from the prior
STANDARD_ERRORS = 3.0


def looks_dead(metrics: Metrics) -> bool | None:
    nats = metrics.get("latent/kl_total")
    return None if nats is None else nats < DEAD_NATS


def measure(config: Any, checkpoint: Path, folder: Path) -> dict[str, float]:
    """Squared error of a row with z from the posterior and from the prior; standard error of the difference."""
    import torch

    from buttress.trainables.lithology.train import Lithology, LithologyTask
    from buttress.training.checkpoints import load_checkpoint
    from buttress.training.world import World

    world = World.single(folder, seed=config.buttress.seed)
    task = LithologyTask(config, Lithology().schedule(config), world)
    task.objective.load_state_dict(load_checkpoint(checkpoint, world.device)["module.vae"])
    task.objective.eval()
    x, noise = task.held_out.x, task.held_out.noise
    prior = torch.randn(noise.shape, generator=torch.Generator().manual_seed(7), dtype=noise.dtype)
    with torch.no_grad():
        mu, logvar = task.model.encode(x)
        seen = (task.model.decode(mu + (0.5 * logvar).exp() * noise) - x).square().sum(1).double()
        unseen = (task.model.decode(prior) - x).square().sum(1).double()
    world.close()
    return {
        "error_posterior": float(seen.mean()),
        "error_prior": float(unseen.mean()),
        "standard_error": float((unseen - seen).std()) / sqrt(len(x)),
    }


def blind(measured: Metrics, last: Metrics) -> bool:
    seen, unseen, error = (measured[name] for name in ("error_posterior", "error_prior", "standard_error"))
    assert seen is not None and unseen is not None and error is not None
    return not unseen - seen >= max(WORTH * unseen, STANDARD_ERRORS * error)


def validation_loss(metrics: Metrics) -> float | None:
    """recon + beta * kl + alpha * ce, with the epoch's weights in canonical units."""
    values = [metrics.get(name) for name in ("val/recon", "train/beta_canonical", "val/kl")]
    if any(value is None for value in values):
        return None
    recon, beta, kl = (float(value) for value in values if value is not None)
    ce, alpha = metrics.get("val/ce"), metrics.get("train/alpha_canonical")
    return recon + beta * kl + (alpha * ce if ce is not None and alpha is not None else 0.0)


FAMILY = Family(
    "lithology",
    min_steps=300,
    looks_dead=looks_dead,
    blind=blind,
    measure=measure,
    validation_loss=validation_loss,
)
