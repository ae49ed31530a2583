"""Renames the weights of the occupancy networks to the original's state-dict keys, and back.

The original is zitterbewegung/VeryLargeWeebModel at a75eb15: `train.py` (simple), `models/occworld_6dof.py` (6dof).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from buttress.errors import BadInput
from buttress.trainables.occupancy.config import Model
from buttress.trainables.occupancy.model import positions
from buttress.training.state_dicts import rename_prefix

TABLE = "temporal_encoder.pos_encoding.pe"  # the positional table, which the original saves
TABLE_ROWS = 128

#: Our prefix of a key: the original's.
SIMPLE = {
    "encoder": "encoder",
    "to_latent": "spatial_proj",
    "pose_encoder": "pose_encoder",
    "fusion": "fusion",
    "temporal": "temporal",
    "to_space": "to_spatial",
    "decoder": "decoder",
    "out": "decoder.6",
    "rollout": "pose_gru",
    "pose_out": "pose_out",
}
WORLD_MODEL = {
    "encoder": "spatial_encoder.encoder",
    "to_latent": "spatial_proj.0",
    "pose_encoder": "pose_encoder.encoder",
    "fusion": "fusion",
    "temporal.lstm": "temporal_encoder.lstm",
    "temporal.layers": "temporal_encoder.transformer",
    "to_space": "to_spatial.0",
    "film": "pose_film",
    "decoder": "spatial_decoder.decoder",
    "out": "spatial_decoder.decoder.9",
    "pose_in": "future_pose_rnn.input_proj",
    "rollout": "future_pose_rnn.gru_cell",
    "pose_out": "future_pose_rnn.pose_out",
    "uncertainty": "uncertainty_head.head",
    "relocalization": "relocalization_head.head",
    "place": "place_recognition_head.head",
}


def to_original(weights: Mapping[str, torch.Tensor], model: Model) -> dict[str, torch.Tensor]:
    """A state dict of ours under the original's keys, with the positional table that it saves.

    Args:
        weights: State dict of `model.build(...)`.
        model: The config that it was built with.

    Raises:
        BadInput: The network has a size that the original's class or its trainer cannot make.
    """
    size: dict[str, Any] = {"skip": 0, "channels": (64, 128, 256), "latent_dim": 256, "pose_dim": 128}
    size["pooled"] = Model(type=model.type).pooled
    for name, accepted in size.items():
        value = getattr(model, name)
        if value != accepted:
            key = f"model.{'pool' if name == 'pooled' else name}"
            raise BadInput("the original's network has another size", key=key, value=value, accepted=str(accepted))
    renamed = {rename_prefix(key, _names(model)): value for key, value in weights.items()}
    if model.use_transformer:
        renamed[TABLE] = positions(TABLE_ROWS, model.latent_dim)[None]
    return renamed


def from_original(weights: Mapping[str, torch.Tensor], model: Model) -> dict[str, torch.Tensor]:
    """The original's state dict under our keys; its positional table is left out, since ours is computed.

    Args:
        weights: The original's state dict.
        model: The config of the network that is to hold them.

    Raises:
        BadInput: A key is none of the original's.
    """
    names = {theirs: ours for ours, theirs in _names(model).items()}
    return {rename_prefix(key, names): value for key, value in weights.items() if key != TABLE}


def _names(model: Model) -> dict[str, str]:
    return SIMPLE if model.type == "simple" else WORLD_MODEL
