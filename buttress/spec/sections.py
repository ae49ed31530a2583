"""Sections of a sweep's spec: `objectives`, `scheduler`, `sampler`, `breaker`, `budget`, `audit`, `resources`, `wandb`.

The descriptions of the fields are the reference documentation of the spec's keys.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from buttress.errors import BadInput


def _whole(given: Any) -> Any:
    """`1e3` is a whole number, as YAML writes it: a float."""
    return int(given) if isinstance(given, float) and given.is_integer() else given


Whole = Annotated[int, BeforeValidator(_whole), Field(strict=True)]
Count = Annotated[Whole, Field(ge=1)]
#: Random generators take no more than 64 bits, and a sign is one of them.
Seed = Annotated[Whole, Field(ge=0, lt=2**63)]
Positive = Annotated[float, Field(strict=True, gt=0)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]


class Section(BaseModel):
    """A frozen group of keys; unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Objective(Section):
    """A metric by which trials are compared."""

    metric: str = Field(min_length=1, description="Name of a metric of the trainable.")
    direction: Literal["min", "max"] | None = Field(
        None,
        description="Whether smaller or larger is better. Default: the metric's own direction; another is refused.",
    )
    allow_weighted: bool = Field(
        False,
        description="Accepts a metric whose scale depends on a searched parameter, so that trials are not comparable.",
    )


class Scheduler(Section):
    """Early stopping of trials that do worse than others of the same age."""

    kind: Literal["asha", "fifo"] = Field(
        "asha", description="`asha`: asynchronous successive halving; `fifo`: every trial runs to its end."
    )
    first: Count = Field(4, description="Age of the first rung, in epochs at full beta; at least 1.")
    factor: Annotated[Whole, Field(ge=2)] = Field(
        3,
        description="Rungs lie at ages `first`, `first * factor`, `first * factor^2`, ...; one trial in `factor` goes "
        "on from each. At least 2.",
    )


class Sampler(Section):
    """How configurations are drawn."""

    repeats: Annotated[bool, Field(strict=True)] = Field(
        False,
        description="Allows a configuration to be drawn again, under another seed: for a study of seeds. Otherwise a "
        "draw that repeats a trial is refused and drawn again.",
    )


class Breaker(Section):
    """The circuit breaker: stops a sweep whose first trials collapse; `breaker: off` never stops it."""

    first: Annotated[Whole, Field(ge=5)] = Field(
        20, description="How many trials, from the first on, are counted; at least 5."
    )
    collapsed: Annotated[float, Field(strict=True, gt=0, le=1)] = Field(
        0.9, description="The sweep stops (exit code 4) when this share of the counted trials has collapsed; 0 to 1."
    )

    @property
    def limit(self) -> int:
        """Number of collapsed trials among the first that stops the sweep."""
        return math.ceil(self.first * self.collapsed - 1e-9)


class Budget(Section):
    """When the sweep ends (at the first of `trials`, `healthy`, `hours`) and what one trial may take."""

    trials: Count | None = Field(
        None, description="The sweep ends after this many trials, whatever their outcome. Default: no limit."
    )
    healthy: Count | None = Field(
        None, description="The sweep ends after this many completed trials (healthy to their end). Default: no limit."
    )
    hours: Positive | None = Field(
        None, description="The sweep starts no trial after this many hours. Default: no limit."
    )
    trial_minutes: Positive | None = Field(
        None, description="A trial that runs longer is pruned with its best epoch, in minutes. Default: no limit."
    )
    stall_minutes: Positive = Field(
        10.0,
        description="A trial whose workers have neither reported nor computed, read or written anything for so many "
        "minutes is restarted from its last checkpoint; workers that do not leave within them when told to are killed.",
    )
    full_beta_epochs: Count | None = Field(
        None,
        description="Sets each trial's epochs so that this many whole epochs follow the end of its beta schedule. "
        "Default: the config's own number of epochs.",
    )

    @model_validator(mode="after")
    def _has_end(self) -> Budget:
        if self.trials is None and self.healthy is None and self.hours is None:
            raise BadInput("does not say when the sweep ends", accepted="at least one of trials, healthy, hours")
        return self


class Audit(Section):
    """Checks the rules of a sweep by letting some of the trials that they stop run on."""

    share: Share = Field(
        0.0, description="Share of the collapsed trials that train on to their budget's end, as a control; 0 to 1."
    )


class Resources(Section):
    """What one trial holds while it runs, and how many trials run at a time."""

    workers: Count = Field(1, description="DDP processes per trial; at least 1.")
    cpus_per_worker: Positive = Field(1.0, description="CPU cores that Ray reserves for each worker; above 0.")
    gpus_per_worker: Annotated[float, Field(strict=True, ge=0)] = Field(
        0.0, description="GPUs per worker: 0, a whole number, or, with one worker, a share below 1."
    )
    concurrency: Literal["auto"] | Count = Field(
        "auto", description="Trials at a time: a number, or `auto` for as many as fit, and more as nodes join."
    )
    autoscale: bool = Field(
        False,
        description="Trials that do not fit yet wait for nodes, which an autoscaler brings for them; `concurrency` has "
        "to be a number.",
    )

    @field_validator("concurrency", mode="before")
    @classmethod
    def _auto_or_count(cls, given: Any) -> Any:
        given = _whole(given)
        if given != "auto" and (not isinstance(given, int) or isinstance(given, bool) or given < 1):
            raise BadInput("has to be auto or a whole number of at least 1", value=given)
        return given

    @model_validator(mode="after")
    def _autoscale_has_count(self) -> Resources:
        if self.autoscale and self.concurrency == "auto":
            raise BadInput(
                "does not say for how many trials the autoscaler is to bring nodes", key="concurrency", value="auto",
                accepted="with autoscale: true, a number of trials at a time",
            )
        return self

    @model_validator(mode="after")
    def _whole_gpus(self) -> Resources:
        shared = not float(self.gpus_per_worker).is_integer()
        if shared and self.workers > 1:
            raise BadInput(
                f"{self.workers} workers cannot share a GPU: NCCL refuses two ranks on one device (duplicate GPU)",
                key="gpus_per_worker", value=self.gpus_per_worker, accepted="a whole number, or workers: 1",
            )
        if shared and self.gpus_per_worker > 1:
            raise BadInput(
                "more than one GPU comes in whole numbers only",
                key="gpus_per_worker", value=self.gpus_per_worker, accepted="a share below 1, or a whole number",
            )
        return self


class Wandb(Section):
    """Weights & Biases logging by the driver; only `online` needs a key, from WANDB_API_KEY in the environment."""

    project: str | None = Field(None, description="W&B project. Default: the spec's `name`.")
    entity: str | None = Field(None, description="W&B user or team. Default: that of the key.")
    group: str | None = Field(None, description="W&B group of the sweep's runs. Default: the sweep's id.")
    mode: Literal["offline", "online", "disabled"] = Field(
        "offline",
        description="`offline`: files in the sweep's folder, for `wandb sync`; `online`: sent at once; `disabled`: "
        "nothing.",
    )
    tags: tuple[str, ...] = Field((), description="Tags of every run of the sweep.")
