"""The typed config of the radio family: the original trainer's YAML by its own key paths, and `buttress:` for the rest.

The defaults are the original's full size (ch 128, 1-2-4, 55.3 M parameters, 256 px, 150,000 steps, discriminator from
step 50,001, lr 5e-6, batch 2). The README holds the table of names. This module imports no torch, because the driver of
a sweep reads configs.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from buttress.training.trainable import Buttress, Schedule, Section

#: Rows and columns of the synthetic maps, by size.
PIXELS = {"full": 256, "small": 64, "tiny": 32}
GROUPS = 32  # of every GroupNorm: a constant in the original


def _numbers(value: Any) -> Any:
    """`"1-2-4"` as well as `[1, 2, 4]`: a search space chooses among layouts by one word."""
    if isinstance(value, str):
        try:
            return tuple(int(part) for part in value.split("-"))
        except ValueError:
            raise ValueError(f"width multipliers are written [1, 2, 4] or 1-2-4, not {value!r}") from None
    return value


Multipliers = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_numbers), Field(min_length=1, max_length=6)
]


class Data(Section):
    kind: Literal["synthetic", "files"] = "synthetic"
    size: Literal["full", "small", "tiny"] = Field("full", description="of the synthetic maps: 256, 64, 32 px")
    seed: int = Field(3, ge=0, description="of the synthetic maps")
    root: str | None = Field(None, description="the RadioMapSeer folder of kind `files`, with gain/ and png/ in it")
    simulation: Literal["DPM", "IRT2", "IRT4", "carsDPM", "carsIRT2", "carsIRT4"] = Field(
        "DPM", description="which folder of gain/ is read"
    )
    transmitters: int | None = Field(None, ge=1, description="of each map, the first so many; null = all")
    shrink: int = Field(1, ge=1, description="block means of so many pixels a side: 4 makes 64 px of 256 px")
    split: Literal["auto", "map", "transmitter"] = Field(
        "auto", description="what a split never shares; auto: maps, or transmitters where there are fewer than 3 maps"
    )
    fractions: tuple[float, float, float] = Field((0.7, 0.15, 0.15), description="train, val, test")
    split_seed: int = Field(42, ge=0)
    batch_size: int = Field(2, ge=1, description="images, over all ranks")

    @model_validator(mode="after")
    def _complete(self) -> Data:
        if self.kind == "files" and not self.root:
            raise ValueError("data of kind files needs data.root, the RadioMapSeer folder")
        if any(share <= 0 for share in self.fractions) or not 0.999 < sum(self.fractions) < 1.001:
            raise ValueError(f"data.fractions must be three shares above 0 that sum to 1, not {list(self.fractions)}")
        if self.kind == "synthetic" and self.simulation != "DPM":
            raise ValueError(f"the synthetic maps imitate DPM: data.simulation {self.simulation} needs kind files")
        if self.kind == "synthetic" and PIXELS[self.size] % self.shrink:
            raise ValueError(f"data.shrink {self.shrink} does not divide the {PIXELS[self.size]} px of {self.size}")
        return self


class DDConfig(Section):
    double_z: Literal[True] = Field(True, description="the encoder gives mean and log-variance")
    z_channels: int = Field(3, ge=1, description="channels between encoder or decoder and the 1x1 convolutions")
    in_channels: Literal[1] = Field(1, description="path gain; buildings and transmitter are not shown to this stage")
    out_ch: Literal[1] = 1
    ch: int = Field(128, ge=1, description="width of the first level")
    ch_mult: Multipliers = Field((1, 2, 4), description="width of each level, in ch; every level but the last halves")
    num_res_blocks: int = Field(2, ge=1, description="per level of the encoder; the decoder has one more")
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _groups(self) -> DDConfig:
        for mult in self.ch_mult:
            if self.ch * mult % GROUPS:
                raise ValueError(
                    f"model.ddconfig.ch {self.ch} times {mult} is no multiple of {GROUPS}, the groups of every "
                    "GroupNorm: accepted are 32, 64, 96, 128, ..."
                )
        return self

    @property
    def downsampling(self) -> int:
        """Pixels per side of a latent cell."""
        return int(2 ** (len(self.ch_mult) - 1))


class LossConfig(Section):
    kl_weight: float = Field(
        1e-6, ge=0, description="of the KL summed over the latent map; the error is one over pixels"
    )
    perceptual_weight: float = Field(
        1.0, ge=0, description="of the perceptual distance, in every pixel's error; 0: off"
    )
    logvar_init: float = Field(0.0, description="log-variance of the reconstruction")
    disc_start: int = Field(50_001, ge=0, description="first step with a discriminator; none if the run is over")
    disc_factor: float = Field(1.0, ge=0, description="of both adversarial losses; 0 = no discriminator")
    disc_weight: float = Field(0.5, ge=0, description="factor on the adaptive weight of the generator's loss")
    disc_num_layers: int = Field(3, ge=1, le=5, description="strided convolutions of the PatchGAN")
    disc_loss: Literal["hinge", "vanilla"] = "hinge"


class Model(Section):
    embed_dim: int = Field(3, ge=1, description="channels of the latent map")
    ddconfig: DDConfig = Field(default_factory=DDConfig)
    lossconfig: LossConfig = Field(default_factory=LossConfig)

    def refuses(self, rows: int, columns: int) -> str | None:
        """Why images of this size cannot be used, in one sentence; None if they can."""
        factor, layers = self.ddconfig.downsampling, self.lossconfig.disc_num_layers
        size = f"{rows} x {columns} px"
        if rows % factor or columns % factor:
            mults = "-".join(map(str, self.ddconfig.ch_mult))
            return f"maps of {size} cannot be halved evenly by model.ddconfig.ch_mult {mults}, a factor of {factor}"
        if min(rows, columns) // 2**layers - 2 < 1:
            least = 3 * 2**layers
            return f"maps of {size} are too small for a PatchGAN of {layers} layers: it needs {least} px or more"
        return None


class Trainer(Section):
    lr: float = Field(5e-6, gt=0, description="of both optimisers (the discriminator's: buttress.disc_lr_factor)")
    min_lr: float = Field(5e-7, ge=0, le=1, description="floor of the schedule's FACTOR, as in the original; no rate")
    train_num_steps: int = Field(150_000, ge=1)
    amp: bool = Field(False, description="bf16 autocast on CUDA; the CPU always computes in buttress.dtype")


class Extra(Buttress):
    dtype: Literal["float32", "float64"] = "float32"
    epoch_steps: int = Field(5000, ge=1, description="steps between evaluations and checkpoints: an epoch of the loop")
    epochs: int | None = Field(None, ge=1, description="sets trainer.train_num_steps to so many times epoch_steps")
    lr_warmup_steps: int = Field(0, ge=0, description="linear rise of both learning rates over the first steps")
    disc_lr_factor: float = Field(
        1.0, ge=0, description="of trainer.lr; 0 leaves the discriminator's pass out, as the original's frozen run did"
    )
    clip: float | None = Field(1.0, gt=0, description="largest gradient norm of each optimiser, before its step")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    weight_decay: float = Field(0.01, ge=0)
    perceptual: Literal["none", "random", "vgg16"] = Field(
        "random", description="features of the perceptual term: fixed random convolutions, or VGG16 from files"
    )
    vgg_weights: str | None = Field(None, description="torchvision's VGG16 state dict; for perceptual vgg16")
    lpips_weights: str | None = Field(None, description="the linear layers of LPIPS for VGG16; for perceptual vgg16")
    learn_logvar: bool = Field(False, description="give the reconstruction's log-variance to the optimiser")
    logvar_lr: float = Field(1e-3, gt=0, description="its learning rate")
    ema: bool = Field(False, description="keep an average of the weights; evaluate and export it")
    ema_decay: float = Field(
        0.995, ge=0, lt=1, description="largest decay; it rises as 1 - (1 + n)^(-2/3) in the n steps after the copies"
    )
    ema_every: int = Field(10, ge=1, description="steps between updates of the average")
    ema_warmup: int = Field(100, ge=0, description="steps during which the average is a copy")
    eval_images: int | None = Field(512, ge=1, description="validation images of an epoch, evenly spaced; null = all")
    eval_batch: int = Field(8, ge=1)

    @model_validator(mode="after")
    def _files(self) -> Extra:
        if self.perceptual == "vgg16" and not (self.vgg_weights and self.lpips_weights):
            raise ValueError(
                "buttress.perceptual vgg16 needs two files, buttress.vgg_weights and buttress.lpips_weights"
            )
        return self


class Config(Section):
    """One trial of the radio family."""

    data: Data = Field(default_factory=Data)
    model: Model = Field(default_factory=Model)
    trainer: Trainer = Field(default_factory=Trainer)
    buttress: Extra = Field(default_factory=Extra)

    @model_validator(mode="before")
    @classmethod
    def _length(cls, given: Any) -> Any:
        """`buttress.epochs` becomes `trainer.train_num_steps`, so that an exported config holds the original's key."""
        if not isinstance(given, Mapping) or not isinstance(given.get("buttress"), Mapping):
            return given
        settings, trainer = given["buttress"], given.get("trainer", {})
        epochs, steps = settings.get("epochs"), settings.get("epoch_steps", Extra.model_fields["epoch_steps"].default)
        if type(epochs) is not int or type(steps) is not int or not isinstance(trainer, Mapping):
            return given
        return {**given, "trainer": {"train_num_steps": epochs * steps, **trainer}}

    @model_validator(mode="after")
    def _possible(self) -> Config:
        pixels = PIXELS[self.data.size] // self.data.shrink
        problem = self.model.refuses(pixels, pixels) if self.data.kind == "synthetic" else None
        if problem:
            raise ValueError(problem)
        steps, length = self.trainer.train_num_steps, self.buttress.epoch_steps
        if self.buttress.epochs is not None and self.buttress.epochs * length != steps:
            raise ValueError(
                f"buttress.epochs ({self.buttress.epochs} of {length} steps) and trainer.train_num_steps ({steps}) "
                "contradict each other"
            )
        if self.schedule().full_beta_epochs(self.schedule().epochs) < 1:
            raise ValueError(
                f"buttress.lr_warmup_steps ({self.buttress.lr_warmup_steps}) leaves no epoch of {length} steps "
                f"at the full learning rate, of {steps} steps in all"
            )
        return self

    @property
    def adversarial(self) -> bool:
        """Whether a discriminator judges the reconstruction at some step of the run."""
        loss = self.model.lossconfig
        return loss.disc_factor > 0 and loss.disc_start < self.trainer.train_num_steps

    def schedule(self) -> Schedule:
        """Epochs of `epoch_steps` steps. The KL weight is constant, so age counts from the end of the warm-up; phase 1
        begins with the first epoch that has a discriminator in it."""
        length = self.buttress.epoch_steps
        warmup = self.buttress.lr_warmup_steps
        return Schedule(
            epochs=ceil(self.trainer.train_num_steps / length),
            full_at_epoch=warmup / length,
            full_at_step=warmup,
            phases=(self.model.lossconfig.disc_start // length + 1,) if self.adversarial else (),
        )
