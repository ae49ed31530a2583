"""Occupancy: a network to which occupied voxels look like all others is dead; one that ranks them no better is blind.

The family reports no loss on held-out windows, because nothing here may look at one; a user of a stock tuner would, so
the bench trains a task that does.
"""

from __future__ import annotations

from typing import Any

from benchmarks.collapsebench.family import Family, Metrics

LOSS = "val/loss"
STANDS_OUT = 1.25  # odds on occupied voxels over those on empty ones
SURE = 0.999  # a mean probability beyond it says as much as this one
WORTH = 1.5  # times the occupied share


def odds_ratio(mean: float, sep: float, rate: float) -> float:
    """Of the mean probability on occupied voxels and of that on empty ones: from the mean over all voxels, the ratio
    `sep` of the two and the occupied share (mean = rate * on + (1 - rate) * off, on = sep * off)."""
    off = mean / (1 + rate * (sep - 1))
    on, off = min(sep * off, SURE), min(off, SURE)
    return on / (1 - on) * (1 - off) / off if off else 0.0


def looks_dead(metrics: Metrics) -> bool | None:
    mean, sep, rate = (metrics.get(f"occ/{name}") for name in ("mean", "sep", "rate"))
    if mean is None or sep is None or rate is None:
        return None
    return odds_ratio(mean, sep, rate) < STANDS_OUT


def blind(measured: Metrics, last: Metrics) -> bool:
    """Whether the closing report's average precision is within 1.5 times that of any constant: the occupied share."""
    precision, rate = last["val/average_precision"], last["occ/rate"]
    assert precision is not None and rate is not None
    return precision <= WORTH * rate


def validation_loss(metrics: Metrics) -> float | None:
    return metrics.get(LOSS)


def watched() -> Any:
    """The family's trainable, which also reports its training loss on the validation windows at the end of an epoch."""
    from buttress.trainables.occupancy.loss import Batch
    from buttress.trainables.occupancy.train import Occupancy, OccupancyTask
    from buttress.training.loop import StepState

    class WatchedTask(OccupancyTask):
        def evaluate(self, state: StepState, *, full: bool, objectives: bool) -> dict[str, Any]:
            return super().evaluate(state, full=full, objectives=objectives) | {LOSS: self._loss(state)}

        def _loss(self, state: StepState) -> float:
            """Mean over batches, as in the original."""
            known, losses = self.config.data.history_frames, []
            for history, future, poses in self.held_out.batches():
                batch = Batch(history, future, poses[:, :known], poses[:, known:], 0, len(poses))
                losses.append(float(self.objective(batch, state)[0]))
            return sum(losses) / len(losses)

    class Watched(Occupancy):
        def task(self, config: Any, world: Any) -> OccupancyTask:
            return WatchedTask(config, world)

    return Watched()


FAMILY = Family(
    "occupancy",
    min_steps=125,
    looks_dead=looks_dead,
    blind=blind,
    validation_loss=validation_loss,
    watched=watched,
)
