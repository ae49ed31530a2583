"""The typed config of the rainfall family: one value per choice of the original trainer, and its run history by name.

The defaults are the original's full-size run S4 (96/384/96, 96 filters, 152.9 M parameters, lambda_ext 5, beta_kl 0.01,
15 epochs of warm-up), less its bugs. Paths are the original's YAML keys where it has one; the README holds the table.
This module imports no torch, because the driver of a sweep reads configs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from buttress.training.schedules import Linear
from buttress.training.trainable import Buttress, Section

#: What early stopping may watch: no scheduled weight moves any of these, and no searched one but `val/l_rec`, which
#: therefore ranks epochs of one trial (its loss is weighted alike in all of them) and is refused as an objective.
STOPPING = Literal[
    "prior/mae_tail", "prior/crps", "posterior/mae_all", "posterior/mae_tail", "posterior/combined", "val/l_rec"
]


class Data(Section):
    kind: Literal["synthetic", "files"] = "synthetic"
    size: Literal["full", "sample", "small", "tiny"] = Field("full", description="of the synthetic data set")
    seed: int = Field(1, ge=0, description="of the synthetic data set")
    root: str | None = Field(None, description="the folder (data_root) of kind `files`, with data/ and metadata/ in it")
    unit: Literal["mm/day", "mm/h"] = Field("mm/day", description="of rain; a folder that says another one is refused")
    elevation: bool = Field(False, description="use statics/elevation_m.npy as a third static map")

    @model_validator(mode="after")
    def _complete(self) -> Data:
        if self.kind == "files" and not self.root:
            raise ValueError("data of kind files needs data.root, the folder that the prepare command wrote")
        return self


class Model(Section):
    d_x: int = Field(96, ge=1, description="width of the encoded predictor")
    d_y: int = Field(384, ge=1, description="width of the encoded target")
    d_z: int = Field(96, ge=1, description="latent dimensions")
    base_filters: int = Field(96, ge=1, description="f: the target encoder has f..8f channels, the decoder 8f..f")
    decoder: Literal["bilinear", "resized", "transposed"] = Field(
        "bilinear",
        description="bilinear x2 + conv on floor(H/8) (19x16) with a last resize; the same on ceil(H/8) (20x17) with "
        "exact sizes; 4x4 transposed convolutions on ceil(H/8), brought to these sizes",
    )
    inject: Literal["none", "first", "all"] = Field(
        "none",
        description="the predictor's first feature map, through a 1x1 convolution and ReLU, before the upsampling of "
        "the decoder's first stage or of all three",
    )
    output_relu: bool = Field(
        False, description="the original's last ReLU (before a last resize): below-average values cannot be reached"
    )
    norm: Literal["batch", "none"] = Field("batch", description="after each convolution but the last")
    fc: int = Field(512, ge=1, description="width of the wide fully connected layers (a constant in the original)")
    head: int = Field(256, ge=1, description="width of the narrow ones (a constant in the original)")
    pool: int = Field(8, ge=1, description="target encoder: cells per side after pooling (a constant in the original)")
    dropout: float = Field(0.1, ge=0, lt=1, description="in both encoders' heads (a constant 0.1 in the original)")
    decoder_dropout: float = Field(0.0, ge=0, lt=1, description="on the predictor's code inside the decoder (S12: 0.5)")
    stage_dropout: float = Field(0.0, ge=0, lt=1, description="of whole channels, after each stage of the decoder")


class Loss(Section):
    reconstruction: Literal["batch", "ratio_buggy", "per_sample", "intensity"] = Field(
        "per_sample",
        description="R1 extremes as one mean over the batch; R2 per sample, scaled by the share of samples with any (a "
        "bug, kept as negative control); R3 per sample; R5 weighted by intensity, in mm",
    )
    over: Literal["land", "all"] = Field("land", description="pixels of the means: land, or sea too (the original)")
    lambda_base: float = Field(1.0, ge=0)
    lambda_ext: float = Field(5.0, ge=0, description="weight of the extreme pixels' term (R1 to R3)")
    scale: float = Field(11.7, gt=0, description="mm: weight 1 (R5); P90 of rain is 11.7, P95 20.1, SRDRN's 36.6")
    w_min: float = Field(0.1, gt=0, description="smallest intensity weight (R5)")
    w_max: float = Field(10.0, gt=0, description="largest intensity weight (R5)")
    tail_boost: float = Field(5.0, ge=1, description="further factor from p99_mmday on (R5)")
    lambda_mass: float = Field(0.1, ge=0, description="weight of |mean rain error over land| of a sample")
    mass_in: Literal["mm", "z"] = Field("mm", description="what is averaged for the mass: rain, or z values (original)")
    lambda_gradient: float = Field(0.0, ge=0, description="weight of the mean error of differences between neighbours")
    beta_kl: float = Field(0.01, ge=0, description="final weight of the KL (nats summed over d_z, mean over the batch)")
    warmup_epochs: int = Field(15, ge=0, description="beta rises from 0 by the epoch and is beta_kl from this one on")
    free_bits: float = Field(0.0, ge=0, description="nats; the KL is not pushed below this; 0 = off")
    free_bits_per: Literal["dimension", "element", "total"] = "dimension"

    @model_validator(mode="after")
    def _sensible(self) -> Loss:
        if self.w_min >= self.w_max:
            raise ValueError(f"loss.w_min ({self.w_min:g}) has to be below loss.w_max ({self.w_max:g})")
        return self

    def beta_schedule(self) -> Linear:
        return Linear(start=0.0, end=self.beta_kl, length=self.warmup_epochs)


class Train(Section):
    epochs: int = Field(100, ge=1)
    batch_size: int = Field(64, ge=1, description="days, over all ranks")
    lr: float = Field(1e-4, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    clip: float | None = Field(1.0, gt=0, description="largest gradient norm")
    lr_warmup_epochs: int = Field(0, ge=0, description="lr * (e + 1) / this in epoch e before it")
    scheduler: Literal["cosine", "plateau", "step", "none"] = Field(
        "cosine", description="cosine: T_max is train.epochs, always"
    )
    eta_min: float = Field(1e-5, ge=0, description="cosine: the last learning rate")
    plateau_factor: float = Field(0.5, gt=0, lt=1)
    plateau_patience: int = Field(20, ge=0, description="epochs at full beta without a better early_stopping_metric")
    step_size: int = Field(30, ge=1)
    gamma: float = Field(0.1, gt=0, le=1)
    early_stopping_metric: STOPPING = "prior/crps"
    early_stopping_patience: int | None = Field(25, ge=1, description="epochs at full beta; null = never")
    early_stopping_min_delta: float = Field(0.0, ge=0, description="in the metric's unit; of val/l_rec, in the loss's")
    min_heavy_fraction: float = Field(0.0, ge=0, lt=1, description="share of heavy days in every batch; 0 = any")
    amp: bool = Field(True, description="bf16 autocast on CUDA; the CPU always computes in buttress.dtype")
    augment_flip: bool = Field(False, description="flip whole batches, with everything that stands on the grid")
    augment_rotate: bool = Field(False, description="turn whole batches by 0 to 270 degrees; square grids alone")
    augment_mixup: float = Field(
        0.0, ge=0, description="a: heavy days are mixed with another one, in shares l and 1 - l of Beta(a, a); 0 = off"
    )
    augment_noise: float = Field(0.0, ge=0, description="deviation of the noise added to the standardised predictors")

    @model_validator(mode="after")
    def _sensible(self) -> Train:
        if self.heavy_per_batch >= self.batch_size:
            raise ValueError(
                f"train.min_heavy_fraction {self.min_heavy_fraction:g} of train.batch_size {self.batch_size} leaves no "
                "room for other days"
            )
        return self

    @property
    def heavy_per_batch(self) -> int:
        """Heavy days in each global batch: the original's max(1, floor(B f)); 0 without stratification."""
        return max(1, int(self.batch_size * self.min_heavy_fraction)) if self.min_heavy_fraction > 0 else 0


class Sampling(Section):
    """How fields are drawn at evaluation; nothing here changes training."""

    samples: int = Field(8, ge=2, description="K: prior draws per day")
    temperature: float = Field(1.0, ge=0, description="factor on the noise of prior draws")
    pixel_threshold: float = Field(0.0, ge=0, description="mm: less rain than this in a sampled pixel becomes 0")


class Extra(Buttress):
    dtype: Literal["float32", "float64"] = "float32"
    eval_days: int | None = Field(512, ge=2, description="validation days of an epoch, evenly spaced; null = all")
    eval_batch: int = Field(16, ge=1, description="days decoded at a time; each K times")
    eval_seed: int = Field(7, ge=0, description="of the evaluation's noise: the same in every trial and epoch")


class Config(Section):
    """One trial of the rainfall family."""

    data: Data = Field(default_factory=Data)
    model: Model = Field(default_factory=Model)
    loss: Loss = Field(default_factory=Loss)
    train: Train = Field(default_factory=Train)
    sampling: Sampling = Field(default_factory=Sampling)
    buttress: Extra = Field(default_factory=Extra)

    @model_validator(mode="after")
    def _settles(self) -> Config:
        if self.loss.warmup_epochs >= self.train.epochs:
            raise ValueError(
                f"loss.warmup_epochs ({self.loss.warmup_epochs}) leaves none of train.epochs ({self.train.epochs}) at "
                "full beta"
            )
        weight = self.loss.lambda_base + self.loss.lambda_ext
        if self.train.early_stopping_metric == "val/l_rec" and not weight and self.loss.reconstruction != "intensity":
            raise ValueError(
                "train.early_stopping_metric val/l_rec weighs nothing: loss.lambda_base and loss.lambda_ext are 0"
            )
        if self.train.lr_warmup_epochs > max(self.loss.warmup_epochs, 1):
            raise ValueError(
                f"train.lr_warmup_epochs ({self.train.lr_warmup_epochs}) ends after loss.warmup_epochs "
                f"({self.loss.warmup_epochs})"
            )
        return self

    @classmethod
    def recipe(cls, name: str, **groups: Mapping[str, Any]) -> Config:
        """The config of a named run of the original's history, its groups updated by `groups`.

        >>> Config.recipe("s9", train={"epochs": 60}).loss.scale
        20.0
        """
        return cls.of_groups(RECIPES[name], groups)


Groups = dict[str, dict[str, Any]]


def _changed(before: Groups, **groups: dict[str, Any]) -> Groups:
    """`before` with some values of some groups replaced."""
    return {name: before.get(name, {}) | groups.get(name, {}) for name in before | groups}


_RELU = {"output_relu": True}  # to S16
_SMALLER = {"d_x": 64, "d_y": 256, "d_z": 64, "base_filters": 64}
_S4: Groups = {"model": _RELU, "train": {"early_stopping_metric": "posterior/mae_all"}}
_S0 = _changed(
    _S4,
    model=_SMALLER,
    loss={"reconstruction": "batch", "lambda_ext": 3.0, "beta_kl": 0.5, "warmup_epochs": 10},
    train={"epochs": 80, "batch_size": 6, "lr": 1e-3, "early_stopping_patience": 15,
           "early_stopping_metric": "val/l_rec"},
)  # fmt: skip
_S7: Groups = {
    "model": _SMALLER | _RELU | {"decoder": "resized"},
    "loss": {"reconstruction": "intensity", "scale": 36.6, "w_max": 2.0, "tail_boost": 1.5},
    "train": {"epochs": 150, "weight_decay": 5e-4, "eta_min": 1e-6, "min_heavy_fraction": 0.2,
              "early_stopping_patience": 40, "early_stopping_metric": "posterior/mae_tail"},
}  # fmt: skip
_S9 = _changed(
    _S7,
    loss={"scale": 20.0, "w_max": 3.0, "tail_boost": 2.0},
    train={"lr": 3e-4, "lr_warmup_epochs": 5, "early_stopping_min_delta": 0.001},
)
_S11 = _changed(
    _S9,
    model={"decoder": "transposed", "d_z": 128},
    loss={"w_max": 2.0, "tail_boost": 3.0, "beta_kl": 0.005, "warmup_epochs": 20},
    train={"epochs": 250, "scheduler": "plateau", "lr_warmup_epochs": 10, "min_heavy_fraction": 0.4,
           "early_stopping_patience": 60, "early_stopping_min_delta": 0.01},
)  # fmt: skip
_S17 = _changed(_S9, model={"output_relu": False}, sampling={"temperature": 1.2, "pixel_threshold": 1.0})
_S21 = _changed(
    _S17,
    model={"d_z": 128, "base_filters": 96},
    loss={"scale": 11.7, "w_max": 2.0, "tail_boost": 1.5, "lambda_gradient": 0.1, "beta_kl": 0.05, "warmup_epochs": 30},
    train={"epochs": 250, "early_stopping_patience": 60},
    sampling={"temperature": 0.7, "pixel_threshold": 0.0},
)
_S22 = _changed(_S21, model={"inject": "all"}, loss={"beta_kl": 0.01})
_S25 = _changed(
    _S22,
    loss={"w_max": 10.0, "tail_boost": 5.0, "warmup_epochs": 50},
    train={"epochs": 300, "early_stopping_patience": 80},
    sampling={"temperature": 1.0, "pixel_threshold": 0.1},
)

#: Runs of the original's history, as differences from the defaults. Not carried over (README): means over the sea, a
#: lambda_mass that is a sum over some 9,000 land pixels of z, a T_max of 80 for 100 epochs (s3, s4), what a plateau
#: watches (s11, s12).
RECIPES: dict[str, Groups] = {
    "s0": _S0,
    "s1_free_bits": _changed(
        _S0,
        loss={"warmup_epochs": 30, "free_bits": 0.5, "free_bits_per": "total"},
        train={"early_stopping_patience": 30},
    ),
    "s2": {
        "model": _RELU,
        "loss": {"reconstruction": "batch", "lambda_ext": 10.0, "beta_kl": 0.1, "warmup_epochs": 30},
        "train": {"epochs": 80, "lr": 5e-5, "early_stopping_patience": 20, "early_stopping_metric": "val/l_rec"},
    },
    "s3": _changed(_S4, loss={"reconstruction": "ratio_buggy", "lambda_ext": 2.0}),
    "s4": _S4,
    "s7": _S7,
    "s9": _S9,
    "s11": _S11,
    "s12": _changed(
        _S11, model={"decoder_dropout": 0.5}, loss={"w_min": 1.0, "w_max": 3.0, "tail_boost": 3.0, "beta_kl": 5e-4}
    ),
    "s17": _S17,
    "s21": _S21,
    "s22": _S22,
    "s25": _S25,
    "s26": _changed(_S25, model={"inject": "first"}, train={"early_stopping_patience": 100}),
}
