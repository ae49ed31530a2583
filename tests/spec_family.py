"""A family with every kind of key, and the spec of the design's example, for the tests of specs."""

# ruff: noqa: E501  (the example stands as the design has it)

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, model_validator

from buttress.errors import BadInput
from buttress.spec import validation
from buttress.spec.spec import SweepSpec
from buttress.spec.yaml_io import parse_yaml
from buttress.training.trainable import Buttress, Metric, Schedule, Section

# "The spec, by example" of the design, as written there
EXAMPLE = """\
trainable: rainfall                      # or my_package.module:MyTrainable
data: {kind: synthetic}                  # or {kind: files, root: /data/prism}
fixed: {train.epochs: 100, train.batch_size: 64}
search:
  loss.lambda_ext:    {loguniform: [1, 20]}
  loss.beta_kl:       {loguniform: [3.0e-4, 1.0e-1]}
  loss.warmup_epochs: {int: [5, 60]}
  loss.free_bits:     {uniform: [0.0, 0.5], when: "config.loss.use_free_bits"}
  loss.use_free_bits: {choice: [false, true]}
require: ["config.loss.warmup_epochs < config.train.epochs - config.train.early_stopping_patience"]
objectives: [{metric: prior/mae_tail, direction: min}, {metric: prior/crps, direction: min}]
rules: {extends: rainfall, posterior_collapse: {patience: 3}}
scheduler: {kind: asha, first: 4, factor: 3}     # ages in full-beta epochs
budget: {trials: 100, healthy: 40, hours: 12, trial_minutes: 90, stall_minutes: 10}
resources: {workers: 2, cpus_per_worker: 4, gpus_per_worker: 1, concurrency: auto}
wandb: {project: rainfall, mode: offline}
profiles:
  quick: {data: {kind: synthetic, size: small}, fixed: {train.epochs: 25}, budget: {trials: 24}, resources: {workers: 1, cpus_per_worker: 1, gpus_per_worker: 0}}
"""

SMALL = """\
trainable: rainfall
search:
  loss.lambda_ext: {loguniform: [1, 20]}
objectives: [{metric: prior/crps}]
budget: {trials: 4}
"""


class Data(Section):
    kind: Literal["synthetic", "files"] = "synthetic"
    size: Literal["full", "small"] = "full"
    root: str | None = None
    scale: dict[str, float] = {"gra": 1.0, "ms": 2.0}

    @model_validator(mode="after")
    def _complete(self) -> Data:
        if self.kind == "files" and not self.root:
            raise ValueError("data of kind files needs data.root")
        return self


class Linear(Section):
    kind: Literal["linear"] = "linear"
    start: float = 0.0
    end: float = Field(1.0, ge=0)
    length: int = 10


class Constant(Section):
    kind: Literal["constant"] = "constant"
    value: float = 1.0


class Loss(Section):
    lambda_ext: float = Field(5.0, gt=0)
    beta_kl: float = Field(1e-3, ge=0, lt=1)
    warmup_epochs: int = 10
    free_bits: float = 0.0
    use_free_bits: bool = False
    clip: float | None = None
    kind: Literal["mse", "focal"] = "mse"
    gamma: float = 2.0
    beta: Annotated[Linear | Constant, Field(discriminator="kind")] = Linear(end=0.5, length=30)


class Train(Section):
    epochs: int = Field(200, ge=1)
    batch_size: int = 64
    early_stopping_patience: int = 10
    low: float = 0.1
    high: float = 0.9

    @model_validator(mode="after")
    def _ordered(self) -> Train:
        if self.low >= self.high:
            raise ValueError(f"train.low ({self.low:g}) has to lie below train.high ({self.high:g})")
        return self


class Config(Section):
    data: Data = Data()
    loss: Loss = Loss()
    train: Train = Train()
    optimizer: Linear | None = None
    buttress: Buttress = Buttress()


METRICS = {
    "prior/mae_tail": Metric("min", unit="mm"),
    "prior/crps": Metric("min"),
    "val/skill": Metric("max"),
    "val/loss": Metric("min", weighted_by=("loss.lambda_ext", "loss.beta")),
    "posterior/mae": Metric("min", sees_target=True),
}


@pytest.fixture
def load(tmp_path):
    def load(text: str, profile: str | None = None, *overrides: str, file: str = "rain.yaml") -> SweepSpec:
        path = tmp_path / file
        path.write_text(text)
        return SweepSpec.load(path, profile=profile, overrides=overrides)

    return load


def schedule(config: Config) -> Schedule:
    return Schedule(epochs=config.train.epochs, full_at_epoch=config.loss.warmup_epochs)


@dataclass
class Family:
    """As much of a trainable as a spec is checked against."""

    Config: type[BaseModel] = Config
    metrics: Mapping[str, Any] = field(default_factory=lambda: METRICS)
    conditional: bool = True
    schedule: Callable[[Any], Schedule] = schedule


def check(spec: SweepSpec, **options: Any) -> SweepSpec:
    return validation.check(spec, Family(**options))


def sentence(error: pytest.ExceptionInfo[BadInput]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def put(addition: str) -> str:
    """SMALL with the sections of `addition` in place of its own."""
    tree = parse_yaml(SMALL) | parse_yaml(addition)
    return json.dumps({key: value for key, value in tree.items() if value != "gone"})
