"""The typed config of the lithology family: one value per choice of the original trainers, and named recipes.

The defaults are the original's full-size standard run (64-32-10, BatchNorm, beta 1, 100 epochs). The last part of a
path is the original's argument name where it has one; the README holds the table. This module imports no torch, because
the driver of a sweep reads configs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from buttress.training.schedules import BetaSchedule, Constant, Cosine, Cyclical, Linear
from buttress.training.trainable import Buttress, Section

Transform = Literal["none", "slog", "log1p", "log10"]


class Feature(Section):
    """One input: a column of the table, and what is done to it before it is standardised."""

    column: str = Field(description="name in the table's header")
    name: str = Field(pattern=r"^[a-z0-9_]+$", description="short name, used in metrics")
    transform: Transform = "none"
    low: float | None = Field(None, description="smallest possible value; cells below it count as missing")
    high: float | None = Field(None, description="largest possible value; cells above it count as missing")


class Layout(Section):
    """Which columns of a table mean what."""

    groups: tuple[str, ...] = Field(description="columns whose values, joined by '-', name the borehole")
    label: str | None
    depth: str | None
    features: tuple[Feature, ...]
    all_features: bool = Field(True, description="False: of `features`, those the table has; True: all are needed")
    null_values: tuple[float, ...] = Field((), description="numbers that stand for an empty cell")


_CORE_FEATURES = (
    Feature(column="Bulk density (GRA)", name="gra", low=0.3, high=4.0),
    Feature(column="Magnetic susceptibility (instr. units)", name="ms", transform="slog"),
    Feature(column="NGR total counts (cps)", name="ngr", transform="slog"),
    Feature(column="R", name="r", transform="log1p", low=0, high=255),
    Feature(column="G", name="g", transform="log1p", low=0, high=255),
    Feature(column="B", name="b", transform="log1p", low=0, high=255),
)

LAYOUTS: dict[str, Layout] = {
    "lily20cm": Layout(groups=("Borehole_ID",), label="Principal", depth="Depth_Bin", features=_CORE_FEATURES),
    # one table per instrument; each holds one or a few of these
    "lily_datalith": Layout(
        groups=("Exp", "Site", "Hole"),
        label="Principal",
        depth="Depth CSF-A (m)",
        features=(
            *_CORE_FEATURES,
            Feature(column="Vane shear strength (kN/m^2)", name="avs_strength", transform="log1p", low=0),
            Feature(column="Max torque angle (deg)", name="avs_angle", transform="log1p", low=0),
        ),
        all_features=False,
    ),
    "force2020": Layout(
        groups=("WELL",),
        label="FORCE_2020_LITHOFACIES_LITHOLOGY",
        depth="DEPTH_MD",
        features=(
            Feature(column="GR", name="gr", transform="log1p", low=0),
            Feature(column="RHOB", name="rhob"),
            Feature(column="NPHI", name="nphi"),
            Feature(column="DTC", name="dtc"),
            Feature(column="RDEP", name="rdep", transform="log10"),
            Feature(column="RMED", name="rmed", transform="log10"),
        ),
        null_values=(-999.25,),
    ),
}


class Data(Section):
    kind: Literal["synthetic", "files"] = "synthetic"
    size: Literal["full", "small", "tiny"] = Field("full", description="of the synthetic table")
    seed: int = Field(2, ge=0, description="of the synthetic table; 2 gives the clusterings' real ARI of about 0.2")
    path: str | None = Field(None, description="the table (CSV) of kind `files`")
    layout: Literal["lily20cm", "lily_datalith", "force2020", "custom"] = Field(
        "lily20cm", description="preset for the five keys below, each of which overrides it"
    )
    groups: tuple[str, ...] | None = None
    label: str | None = None
    depth: str | None = None
    features: tuple[Feature, ...] | None = None
    null_values: tuple[float, ...] | None = None
    missing: Literal["drop", "median"] = Field(
        "drop", description="rows with an empty feature: dropped, or filled with the training split's median"
    )
    split: Literal["borehole", "rows_leaky"] = Field(
        "borehole", description="`rows_leaky` splits rows at random: neighbours in depth leak, as in the original's S5"
    )
    fractions: tuple[float, float, float] = Field((0.7, 0.15, 0.15), description="of boreholes: train, val, test")
    split_seed: int = Field(42, ge=0, lt=2**32)
    train_holes: tuple[str, ...] | None = Field(None, description="explicit split: boreholes by name, all three lists")
    val_holes: tuple[str, ...] | None = None
    test_holes: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Data:
        if self.kind == "files" and not self.path:
            raise ValueError("data of kind files needs data.path, the table to read")
        if self.layout == "custom" and not (self.features and self.groups):
            raise ValueError("layout custom needs data.features and data.groups")
        if any(share < 0 for share in self.fractions) or not 0.999 < sum(self.fractions) < 1.001:
            raise ValueError(f"data.fractions must be three shares that sum to 1, not {list(self.fractions)}")
        given = [lst is not None for lst in (self.train_holes, self.val_holes, self.test_holes)]
        if any(given) and not all(given):
            raise ValueError("an explicit split needs all of data.train_holes, data.val_holes and data.test_holes")
        if any(given) and self.split != "borehole":
            raise ValueError("lists of boreholes and data.split: rows_leaky exclude each other")
        return self

    def columns(self) -> Layout:
        """The layout in force: the preset with this section's overrides."""
        own: dict[str, Any] = {
            key: getattr(self, key)
            for key in ("groups", "label", "depth", "features", "null_values")
            if getattr(self, key) is not None
        }
        if self.layout == "custom":
            return Layout(**({"label": None, "depth": None} | own))
        return LAYOUTS[self.layout].model_copy(update=own | ({"all_features": True} if "features" in own else {}))


def _dims(value: Any) -> Any:
    """`"64-32"` as well as `[64, 32]`: a search space chooses among layouts by one word."""
    if isinstance(value, str):
        try:
            return tuple(int(part) for part in value.split("-"))
        except ValueError:
            raise ValueError(f"layer sizes are written [64, 32] or 64-32, not {value!r}") from None
    return value


Dims = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_dims)]


class Model(Section):
    hidden_dims: Dims = Field((64, 32), description="encoder layers; the decoder mirrors them")
    latent_dim: int = Field(10, ge=1)
    batch_norm: bool = Field(True, description="Linear-ReLU-BatchNorm in both halves")
    dropout: float = Field(0.0, ge=0, lt=1, description="last in each block of encoder and decoder")
    separate_decoders: bool = Field(False, description="one small decoder per feature, concatenated (v2.13)")
    decoder_dims: Dims = Field((16, 32), description="layers of each separate decoder")
    semi_supervised: bool = Field(False, description="add the classifier head (SemiSupervisedVAE)")
    head_dim: int = Field(64, ge=1)
    head_dropout: float = Field(0.3, ge=0, lt=1)
    classifier_on: Literal["mu", "sample"] = Field("mu", description="what the head reads in training; then mu")


class Loss(Section):
    reduction: Literal["sum", "sample", "mean"] = Field(
        "sum",
        description="sum over batch and features (standard); that over the rows (v2.x); means over rows x features, "
        "rows x latents and rows (hybrid)",
    )
    units: Literal["original", "canonical"] = Field(
        "original", description="of beta and alpha: those of `reduction`, or per squared error summed over features"
    )
    beta: float = Field(1.0, ge=0, description="the final beta (beta, beta_end)")
    beta_start: float = Field(1e-10, ge=0)
    anneal: Literal["constant", "linear", "cosine", "cyclical"] = "constant"
    anneal_epochs: float = Field(50, ge=0, description="length of the rise, or of all cycles; ignored when constant")
    anneal_cycles: int = Field(4, ge=1)
    anneal_by: Literal["epoch", "step"] = Field("epoch", description="how often beta and alpha move (original: epoch)")
    anneal_first: Literal[0, 1] = Field(0, description="number of the first epoch in the schedule (v2.14: 1)")
    alpha: float = Field(0.1, ge=0, description="final weight of the head's cross-entropy")
    alpha_start: float = Field(0.0, ge=0)
    alpha_anneal_epochs: int = Field(0, ge=0, description="linear rise of alpha; 0 = constant")
    mask_prob: float = Field(0.0, ge=0, lt=1, description="share of input entries set to their mean, redrawn per batch")
    mask_weight: float = Field(0.0, ge=0, description="weight of the extra term over masked entries (hybrid: 0.5)")
    masked_only: bool = Field(False, description="reconstruct masked entries only, if mask_prob > 0 (v2.14.2)")
    feature_weights: tuple[Annotated[float, Field(ge=0)], ...] | None = Field(
        None, description="factor on each feature's squared error in the training loss (v2.13: 1 2 2 1 1 1)"
    )

    @model_validator(mode="after")
    def _sensible(self) -> Loss:
        if self.anneal != "constant" and self.beta_start > self.beta:
            raise ValueError(f"loss.beta_start ({self.beta_start:g}) lies above loss.beta ({self.beta:g})")
        return self

    def beta_schedule(self) -> BetaSchedule:
        """Beta in this section's units, by completed epochs."""
        end, start = self.beta, self.beta_start
        if self.anneal == "constant":
            return Constant(end=end)
        if self.anneal == "linear":
            return Linear(start=start, end=end, length=self.anneal_epochs)
        if self.anneal == "cosine":
            return Cosine(start=start, end=end, length=self.anneal_epochs)
        period = max(self.anneal_epochs, 1e-9) / self.anneal_cycles
        by_step = self.anneal_by == "step"
        return Cyclical(start=start, end=end, period=period, cycles=self.anneal_cycles, continuous=by_step)

    def alpha_at(self, epoch: float) -> float:
        if self.alpha_anneal_epochs == 0:
            return self.alpha
        rise = min(1.0, (epoch + self.anneal_first) / self.alpha_anneal_epochs)
        return self.alpha_start + (self.alpha - self.alpha_start) * rise

    def full_at(self) -> float:
        """Completed epochs after which beta and alpha have their final values for good."""
        beta = max(0.0, self.beta_schedule().full_at - self.anneal_first)
        alpha = max(0, self.alpha_anneal_epochs - self.anneal_first)
        return max(beta, alpha)

    def beta_scale(self, dx: int, dz: int) -> float:
        """Canonical beta of a beta of 1 under `reduction`: a mean over rows x latents counts dx / dz."""
        return dx / dz if self.reduction == "mean" else 1.0

    def alpha_scale(self, dx: int) -> float:
        return float(dx) if self.reduction == "mean" else 1.0


class Train(Section):
    epochs: int = Field(100, ge=1)
    batch_size: int = Field(256, ge=1, description="over all ranks")
    lr: float = Field(1e-3, gt=0)
    clip: float | None = Field(None, gt=0, description="largest gradient norm (hybrid: 1.0)")
    scheduler: Literal["none", "plateau"] = "none"
    plateau_metric: Literal["train/loss", "val/elbo_1"] = Field(
        "val/elbo_1",
        description="the hybrid watches train/loss, which rises with beta and so halves the learning rate; val/elbo_1 "
        "is watched from full beta on",
    )
    plateau_patience: int = Field(10, ge=0)
    plateau_factor: float = Field(0.5, gt=0, lt=1)
    patience: int | None = Field(
        None, ge=1, description="epochs at full beta without a better val/elbo_1 before early stopping; null = never"
    )


class Extra(Buttress):
    noise: Literal["stream", "index"] = Field(
        "stream", description="latent noise from each rank's stream, or by sample index: the same on 1 and 2 ranks"
    )
    dtype: Literal["float32", "float64"] = "float32"
    ari_rows: int = Field(10_000, ge=100, description="validation rows that are clustered for val/ari")
    ari_components: int = Field(12, ge=2, description="of the Gaussian mixture")
    ari_every: int = Field(4, ge=1, description="full-beta epochs between two val/ari; the last epoch has it too")


class Config(Section):
    """One trial of the lithology family."""

    data: Data = Field(default_factory=Data)
    model: Model = Field(default_factory=Model)
    loss: Loss = Field(default_factory=Loss)
    train: Train = Field(default_factory=Train)
    buttress: Extra = Field(default_factory=Extra)

    @classmethod
    def recipe(cls, name: str, **groups: Mapping[str, Any]) -> Config:
        """The config of a named recipe of the original, its groups updated by `groups`.

        >>> Config.recipe("hybrid", train={"epochs": 3}).loss.mask_prob
        0.1
        """
        return cls.of_groups(RECIPES[name], groups)


_PLAIN = {"hidden_dims": (32, 16), "batch_norm": False}

#: The originals' recipes, as differences from the defaults (README, "Recipes").
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "standard": {},
    "standard_semi": {"model": {"semi_supervised": True, "classifier_on": "sample"}},
    "hybrid": {
        "loss": {"reduction": "mean", "beta": 0.5, "beta_start": 1e-6, "anneal": "linear", "anneal_epochs": 30,
                 "alpha": 0.5, "mask_prob": 0.1, "mask_weight": 0.5},
        "train": {"clip": 1.0, "scheduler": "plateau", "plateau_metric": "train/loss"},
    },
    "notebook": {
        "model": {"hidden_dims": (32, 16)},
        "loss": {"beta": 0.075, "anneal": "linear", "alpha": 0.01, "alpha_anneal_epochs": 50},
        "train": {"clip": 1.0},
    },
    "v2.6": {
        "model": {"hidden_dims": (32, 16), "dropout": 0.1},
        "loss": {"reduction": "sample"},
        "train": {"patience": 15},
    },
    "v2.6.7": {
        "model": _PLAIN,
        "loss": {"reduction": "sample", "beta": 0.75, "anneal": "linear"},
        "train": {"patience": 10},
    },
    "v2.13": {
        "model": _PLAIN | {"separate_decoders": True},
        "loss": {"reduction": "sample", "beta": 0.75, "anneal": "linear", "feature_weights": (1, 2, 2, 1, 1, 1)},
        "train": {"patience": 15},
    },
    "v2.14": {
        "model": _PLAIN | {"semi_supervised": True, "head_dim": 32, "head_dropout": 0.2},
        "loss": {"reduction": "mean", "beta": 0.75, "anneal": "linear", "anneal_first": 1},
        "train": {"batch_size": 1024},
    },
    "v2.14.2": {
        "model": _PLAIN | {"semi_supervised": True, "head_dim": 32, "head_dropout": 0.2},
        "loss": {"reduction": "mean", "beta": 0.75, "anneal": "linear", "anneal_epochs": 100, "anneal_first": 1,
                 "mask_prob": 0.3, "masked_only": True},
        "buttress": {"ari_components": 18, "ari_every": 2},
    },
}  # fmt: skip
for _name in ("hybrid", "notebook"):
    RECIPES[f"{_name}_semi"] = RECIPES[_name] | {
        "model": RECIPES[_name].get("model", {}) | {"semi_supervised": True, "classifier_on": "sample"}
    }
