"""Rainfall: a code of less than 0.05 nat, or one that the decoder ignores, is dead; a decoder that does as well with z
from the prior is blind."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

from benchmarks.collapsebench.family import Family, Metrics

DEAD_NATS = 0.05
WORTH = 0.02  # of the error without the code
STANDARD_ERRORS = 2.0  # of 120 days
MODES, UNITS = ("posterior", "prior"), ("z", "mm")
DRAWS = 8  # of a day's code, from the posterior and from the prior
NOISE_SEED = 7  # the same in every trial


def looks_dead(metrics: Metrics) -> bool | None:
    """Inside an epoch only the KL is known: enough to tell a dead code, not a living one that the decoder ignores."""
    nats, worth = metrics.get("latent/kl_total"), metrics.get("ablation/relative")
    if nats is not None and nats < DEAD_NATS:
        return True
    return None if nats is None or worth is None else worth < WORTH


def measure(config: Any, checkpoint: Path, folder: Path) -> dict[str, float]:
    """Mean absolute error of a day over land, code from the posterior and from the prior, in z and in mm; standard
    error of the difference over the validation days."""
    import torch

    from buttress.trainables.rainfall import data as files
    from buttress.trainables.rainfall.train import Rainfall, RainfallTask
    from buttress.training.checkpoints import load_checkpoint
    from buttress.training.losses import reparameterize
    from buttress.training.randomness import keyed_normal
    from buttress.training.world import World

    world = World.single(folder, seed=config.buttress.seed)
    task = RainfallTask(config, Rainfall().schedule(config), world)
    task.objective.load_state_dict(load_checkpoint(checkpoint, world.device)["module.vae"])
    task.objective.eval()
    model, rain, days = task.model, task.rain, files.load(config.data, world.cache)
    rows = days.rows("val")
    x, y = (torch.from_numpy(array[rows]).to(world.device, task.dtype) for array in (days.x, days.y))
    ids, width = torch.from_numpy(days.day[rows]) * DRAWS, model.latent_dim
    land = rain.land.flatten().nonzero().squeeze(1)

    units: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"z": lambda field: field, "mm": rain.fallen}
    errors = {(mode, unit): torch.zeros(len(rows), dtype=torch.float64) for mode in MODES for unit in UNITS}
    with torch.no_grad():
        condition = model.condition(x)
        code = model.posterior(condition, y, task.objective.statics)
        for k in range(DRAWS):
            seen, unseen = (keyed_normal(NOISE_SEED, ids + k, width, stream, task.dtype) for stream in (0, 1))
            posterior = reparameterize(code.mu, code.logvar, seen.to(world.device))
            drawn = {"posterior": posterior, "prior": unseen.to(world.device)}
            for mode, z in drawn.items():
                field = model.decode(z, condition)
                for unit, turned in units.items():
                    missed = (turned(field) - turned(y)).abs().flatten(1)[:, land].mean(1)
                    errors[mode, unit] += missed.double().cpu() / DRAWS
    world.close()
    found = {f"error_{mode}_{unit}": float(by_day.mean()) for (mode, unit), by_day in errors.items()}
    for unit in UNITS:
        gained = errors["prior", unit] - errors["posterior", unit]
        found[f"standard_error_{unit}"] = float(gained.std()) / sqrt(len(rows))
    return found


def blind(measured: Metrics, last: Metrics) -> bool:
    return not any(_sees(measured, unit) for unit in UNITS)


def _sees(measured: Metrics, unit: str) -> bool:
    names = (f"error_posterior_{unit}", f"error_prior_{unit}", f"standard_error_{unit}")
    seen, unseen, error = (measured[name] for name in names)
    assert seen is not None and unseen is not None and error is not None
    return unseen - seen >= max(WORTH * unseen, STANDARD_ERRORS * error)


def validation_loss(metrics: Metrics) -> float | None:
    """What the original stopped and chose by. (Its total loss is not reported: every variant has a unit of its own.)"""
    return metrics.get("posterior/combined")


FAMILY = Family(
    "rainfall",
    min_steps=80,
    looks_dead=looks_dead,
    blind=blind,
    measure=measure,
    validation_loss=validation_loss,
)
