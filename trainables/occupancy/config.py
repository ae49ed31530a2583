"""The typed config of the occupancy family: grids, windows, networks, loss weights, and the original's losses by date.

The defaults are the original's full size (200 x 200 x 121 voxels, 4 -> 6 frames, batch 3, 77.3 M parameters) and the
weights of its last version. The last part of a path is the original's argument name where it has one; the README holds
the table. This module imports no torch, because the driver of a sweep reads configs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from buttress.training.trainable import Buttress, Section


def _numbers(value: Any) -> Any:
    """`"8-16-32"` as well as `[8, 16, 32]`: a search space chooses among layouts by one word."""
    if isinstance(value, str):
        try:
            return tuple(int(part) for part in value.split("-"))
        except ValueError:
            raise ValueError(f"sizes are written [8, 16, 32] or 8-16-32, not {value!r}") from None
    return value


Sizes = Annotated[
    tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]],
    BeforeValidator(_numbers),
]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


class Data(Section):
    kind: Literal["synthetic", "files"] = "synthetic"
    layout: Literal["sessions", "scenes"] = Field(
        "sessions", description="folders of npz grids and pose json, or of point clouds and 4x4 poses (synthetic: same)"
    )
    path: str | None = Field(None, description="the folder of kind `files`")
    scenes: tuple[str, ...] | None = Field(None, description="sessions or scenes to use, by a part of the name")
    size: Literal["full", "small", "sparse", "tiny"] = Field("full", description="of the synthetic scenes")
    target: Literal["boxes", "plane"] = Field(
        "boxes", description="what the synthetic scenes hold; `plane`: one filled layer that never changes"
    )
    seed: int = Field(0, ge=0, description="of the synthetic scenes")

    point_cloud_range: tuple[float, float, float, float, float, float] = Field(
        (-40.0, -40.0, -2.0, 40.0, 40.0, 150.0), description="x, y, z of the lower and of the upper corner, metres"
    )
    voxel_size: tuple[float, float, float] = Field((0.4, 0.4, 1.25), description="metres")
    history_frames: int = Field(4, ge=1)
    future_frames: int = Field(6, ge=1)
    frame_skip: int = Field(1, ge=1, description="frames between two of a window, and between windows")
    interval: int = Field(5, ge=1, description="recorded frames of 0.1 s between two on disk (without times.txt)")

    ego_frame: bool = Field(False, description="clouds are in world coordinates: transform each with its pose")
    fallback_to_lidar_center: bool = Field(True, description="ego_frame only: centre clouds out of range")
    min_in_range_ratio: Share = Field(0.01, description="ego_frame only: share of points that has to be in range")
    poses: Literal["auto", "lidar", "camera"] = Field(
        "auto",
        description="whose 12-number poses (rows of a 3x4 matrix) are: `camera` is KITTI's, turned into the LiDAR's "
        "with calib.txt; `auto`: camera for poses.txt beside a calib.txt, else lidar",
    )
    bin_columns: Literal[3, 4, 5] | None = Field(None, description="of float32 .bin clouds; null: guessed (4, 5, 3)")
    normalize_pose_to_first_frame: bool = Field(True, description="positions relative to the first history frame")
    max_linear_velocity: float = Field(20.0, gt=0, description="m/s, per axis; faster ones are clipped")
    max_angular_velocity: float = Field(6.28, gt=0, description="rad/s, per axis")
    static_filter: bool = Field(True, description="leave out windows that hardly move (sessions only)")
    min_motion: float = Field(0.1, ge=0, description="metres per frame below which (and half of which) nothing moves")
    mirror: bool = Field(False, description="mirror training windows along x and y at random; ours")
    bad_frames: Literal["refuse", "drop"] = Field(
        "refuse", description="frames without a usable cloud, grid or pose, and scenes too short: an error, or left out"
    )

    split: Literal["scene", "time"] = Field("scene", description="by scene, or each scene into three blocks of time")
    fractions: tuple[float, float, float] = Field((0.8, 0.1, 0.1), description="train, val, test")
    split_seed: int = Field(42, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _complete(self) -> Data:
        if self.kind == "files" and not self.path:
            raise ValueError("data of kind files needs data.path, the folder to read")
        if any(share < 0 for share in self.fractions) or not 0.999 < sum(self.fractions) < 1.001:
            raise ValueError(f"data.fractions must be three shares that sum to 1, not {list(self.fractions)}")
        low, high = self.point_cloud_range[:2], self.point_cloud_range[3:5]
        if self.mirror and any(abs(a + b) > 1e-6 for a, b in zip(low, high, strict=True)):
            raise ValueError("data.mirror needs a data.point_cloud_range that is symmetric in x and y")
        if min(self.voxel_size) <= 0 or min(self.grid) < 1:
            raise ValueError(
                f"data.point_cloud_range {list(self.point_cloud_range)} and data.voxel_size {list(self.voxel_size)} "
                "make no grid"
            )
        return self

    @property
    def grid(self) -> tuple[int, int, int]:
        """Cells along x, y, z: int((max - min) / size), as in the original (a remainder goes into the last cell)."""
        low, high = self.point_cloud_range[:3], self.point_cloud_range[3:]
        cells = [int((b - a) / size + 1e-9) for a, b, size in zip(low, high, self.voxel_size, strict=True)]
        return cells[0], cells[1], cells[2]

    @property
    def frames(self) -> int:
        """Frames of a window."""
        return self.history_frames + self.future_frames


class Model(Section):
    type: Literal["simple", "6dof"] = "6dof"
    channels: Sizes = Field((64, 128, 256), description="of the three encoder stages; the decoder mirrors them")
    latent_dim: int = Field(256, ge=1)
    pool: Sizes | None = Field(None, description="cells of the pooled encoding; null: 4 4 4 (simple), 8 8 8 (6dof)")
    pose_dim: int = Field(128, ge=1, description="width of the pose encoder; the simple one has half of it, then it")
    use_transformer: bool = Field(False, description="over the history's poses instead of an LSTM (6dof)")
    transformer_layers: int = Field(4, ge=1)
    transformer_heads: int = Field(8, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1, description="in the LSTM or transformer")
    skip: int = Field(
        0,
        ge=0,
        description="channels of a full-resolution path past the bottleneck; ours, 0 as in the original",
    )

    @property
    def pooled(self) -> tuple[int, int, int]:
        return self.pool or ((4, 4, 4) if self.type == "simple" else (8, 8, 8))

    @model_validator(mode="after")
    def _fits(self) -> Model:
        if self.use_transformer and self.type == "simple":
            raise ValueError("model.use_transformer: the simple model has no transformer")
        if self.use_transformer and self.latent_dim % self.transformer_heads:
            raise ValueError(
                f"model.latent_dim ({self.latent_dim}) is no multiple of model.transformer_heads "
                f"({self.transformer_heads})"
            )
        return self


class Loss(Section):
    """Weights of the terms of the loss; each is the one that acts, and a term with weight 0 is not computed."""

    occ_weight: Weight = Field(1.0, description="factor on all occupancy terms together (6dof)")
    focal_weight: Weight = 1.0
    focal_alpha: Literal["dynamic"] | Annotated[float, Field(ge=0, le=1)] = Field(
        "dynamic", description="of occupied voxels; `dynamic`: 1 - the batch's occupied share, in 0.5 to 0.999"
    )
    focal_gamma: Weight = 2.0
    bce_weight: Weight = 0.0
    pos_weight: float = Field(10.0, gt=0, description="factor on occupied voxels in the cross-entropy")
    dice_weight: Weight = 1.0
    mean_weight: Weight = Field(10.0, description="of the squared difference of mean prediction and mean target")
    lovasz_weight: Weight = 1.0
    lovasz_buckets: int = Field(1024, ge=2, description="of errors; the loss is 1 / buckets off at most")
    recall_weight: Weight = 2.0
    temporal_decay: Weight = Field(0.0, description="d: focal and cross-entropy of step t are weighted exp(-d t)")

    pose_weight: Weight | None = Field(None, description="null: 0.1 (simple), 0.5 (6dof)")
    pose_variance_weight: Weight = Field(1.0, description="inside the pose term: against poses that are all the same")
    uncertainty_weight: Weight = 0.1
    uncertainty_min: float = Field(0.001, gt=0, lt=1)
    uncertainty_max: float = Field(10.0, gt=1)
    relocalization_weight: Weight = 0.2
    place_weight: Weight = 0.1

    @model_validator(mode="after")
    def _something(self) -> Loss:
        terms = ("focal_weight", "bce_weight", "dice_weight", "mean_weight", "lovasz_weight", "recall_weight")
        if not any(getattr(self, name) > 0 for name in terms):
            raise ValueError(f"no term of the occupancy loss is left: one of {', '.join(terms)} has to be above 0")
        return self


class Train(Section):
    epochs: int = Field(50, ge=1)
    batch_size: int = Field(3, ge=1, description="windows, over all ranks; a last short batch is left out")
    steps_per_epoch: int | None = Field(None, ge=1, description="null: one pass over the training windows")
    max_steps: int | None = Field(None, ge=1, description="end after so many steps, whatever the epochs say")
    grad_accum: int = Field(1, ge=1)
    lr: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    clip: float | None = Field(10.0, gt=0, description="largest gradient norm")
    warmup_steps: int = Field(500, ge=0, description="steps from 0.01 times the learning rate to all of it")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="what follows the warm-up")
    min_lr: float = Field(1e-6, ge=0, description="at the end of the cosine")
    amp: bool = Field(False, description="the network in bf16; the loss is computed in float32 from its logits")


class Extra(Buttress):
    report_every: int = Field(25, ge=0, description="optimiser steps between health reports inside an epoch; 0 = none")
    occ_threshold: float = Field(
        0.3, gt=0, lt=1, description="probability above which a voxel counts as occupied; `export` writes the best one"
    )
    dtype: Literal["float32", "float64"] = "float32"
    val_windows: int | None = Field(None, ge=1, description="validate on so many windows, evenly chosen; null: on all")
    init_bias: float = Field(
        0.0, description="added to the last bias; 0 as in the original, whose predictions start at one half"
    )


class Config(Section):
    """One trial of the occupancy family."""

    data: Data = Field(default_factory=Data)
    model: Model = Field(default_factory=Model)
    loss: Loss = Field(default_factory=Loss)
    train: Train = Field(default_factory=Train)
    buttress: Extra = Field(default_factory=Extra)

    @classmethod
    def recipe(cls, name: str, **groups: Mapping[str, Any]) -> Config:
        """The config of a named loss of the original, its groups updated by `groups`.

        >>> Config.recipe("focal95_dice", train={"epochs": 3}).loss.focal_alpha
        0.95
        """
        return cls.of_groups({"loss": RECIPES[name]}, groups)


_OFF = {f"{term}_weight": 0.0 for term in ("focal", "bce", "dice", "mean", "lovasz", "recall")}

#: The original's occupancy losses by the day they were in force, and the facts' controls (README, "Controls").
RECIPES: dict[str, dict[str, Any]] = {
    "head": {},
    "bce": _OFF | {"bce_weight": 1.0, "pos_weight": 1.0},  # until 17 January
    "wbce10_dice": _OFF | {"bce_weight": 1.0, "pos_weight": 10.0, "dice_weight": 1.0},  # 17 January
    "focal95_dice": _OFF | {"focal_weight": 1.0, "focal_alpha": 0.95, "dice_weight": 1.0},  # 18 January, morning
    "focal99_dice": _OFF | {"focal_weight": 1.0, "focal_alpha": 0.99, "dice_weight": 1.0},
    "focal99_dice_mean": _OFF  # 18 January
    | {"focal_weight": 1.0, "focal_alpha": 0.99, "dice_weight": 1.0, "mean_weight": 10.0},
    "february_8": {"recall_weight": 0.0},
    "recall_tenth": {"recall_weight": 0.1},
    "bce_tenth": _OFF | {"bce_weight": 1.0, "pos_weight": 0.1},
    "focal25": _OFF | {"focal_weight": 1.0, "focal_alpha": 0.25},
    "dice_mean": _OFF | {"dice_weight": 1.0, "mean_weight": 10.0},
    "lovasz": _OFF | {"lovasz_weight": 1.0},
}
