"""From the parameters of a draw to the config of a trial, or to the reason why the spec refuses it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from buttress.errors import BadInput
from buttress.spec import trial_config
from buttress.spec.spec import SweepSpec
from buttress.training.trainable import Schedule


def build(spec: SweepSpec, trainable: Any, params: Mapping[str, Any], seed: int) -> tuple[Any, str | None]:
    """The config of a draw, and why the draw is refused (None: it is not). No config: the family's own refuses it."""
    try:
        config = trial_config.build(
            spec,
            params,
            trainable.Config,
            seed=seed,
            schedule=trainable.schedule,
            epochs_path=getattr(trainable, "epochs_path", "train.epochs"),
        )
    except BadInput as error:
        return None, str(error)
    return config, trial_config.violated_requirement(spec, config) or unsettled(trainable.schedule(config))


def unsettled(schedule: Schedule) -> str | None:
    """Why no epoch of this schedule could ever be valid, or None: beta must settle before the last epoch begins."""
    if schedule.full_beta_epochs(schedule.epochs) >= 1:
        return None
    when = "never" if schedule.full_at_epoch == float("inf") else f"only after {schedule.full_at_epoch:g} epochs"
    return f"beta settles {when}, in a budget of {schedule.epochs} epochs"
