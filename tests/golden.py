"""Reads golden files: inputs, weights and outputs of the original projects, and the rule that large weights follow.

The files lie in `../shared/golden` (fixture `shared` of conftest.py), whose README says what each entry means and to
which tolerance a file is to be met. The rule needs no file, so that tests without `../shared` can use it as well.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

_CHUNK = 1 << 22  # elements that the rule computes at a time
_PLACE, _KEY, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def by_rule(key: str, shape: Sequence[int], centre: float, spread: float, seed: int) -> np.ndarray:
    """float64 of `shape`, uniform in centre +- spread: splitmix64 of the element's place, the key and the seed."""
    values = np.empty(int(np.prod(shape, dtype=np.int64)))
    offset = np.uint64((zlib.crc32(key.encode()) * _KEY + seed) % 2**64)
    for start in range(0, len(values), _CHUNK):
        x = np.arange(start + 1, min(start + _CHUNK, len(values)) + 1, dtype=np.uint64)
        x *= np.uint64(_PLACE)
        x += offset
        for shift, factor in ((30, _FIRST), (27, _SECOND)):
            x ^= x >> np.uint64(shift)
            x *= np.uint64(factor)
        x ^= x >> np.uint64(31)
        u = (x >> np.uint64(11)).astype(np.float64) / 2**53
        values[start : start + len(x)] = centre + spread * (2 * u - 1)
    return values.reshape(shape)


class Golden:
    """One golden file.

    >>> file = Golden(shared, "occupancy_simple")
    >>> history, poses, weights = file.inputs("history"), file.out("poses"), file.weights()
    """

    def __init__(self, shared: Path, name: str) -> None:
        self.arrays = np.load(shared / "golden" / f"{name}.npz")
        self.config: dict[str, Any] = json.loads(str(self.arrays["config"]))

    def inputs(self, name: str) -> torch.Tensor:
        """`in/<name>`, floats widened to float64."""
        return _wide(self.arrays[f"in/{name}"])

    def out(self, name: str) -> torch.Tensor:
        """`out/<name>`."""
        return _wide(self.arrays[f"out/{name}"])

    def weights(self, prefix: str = "w/") -> dict[str, torch.Tensor]:
        """The weights under the original's keys, float64: stored under `prefix`, or by the rule; with given buffers."""
        stored = [key for key in self.arrays.files if key.startswith(prefix)]
        found = {key.removeprefix(prefix): _wide(self.arrays[key]) for key in stored}
        if "formula" in self.arrays.files:
            formula = json.loads(str(self.arrays["formula"]))
            for key, one in formula["tensors"].items():
                value = by_rule(key, one["shape"], one["centre"], one["spread"], formula["seed"])
                found[key] = torch.from_numpy(value)
        given = "in/buffer/"
        return found | {key.removeprefix(given): _wide(self.arrays[key]) for key in self.arrays.files if given in key}


def key_list(shared: Path, name: str) -> dict[str, Any]:
    """`keys_<name>.json`: `keys` (state-dict key: shape), `parameters`, `buffers`, `integer_keys`."""
    content: dict[str, Any] = json.loads((shared / "golden" / f"keys_{name}.json").read_text())
    return content


def rule_weights(model: torch.nn.Module, seed: int) -> None:
    """Fills a module's parameters by the rule, under its own keys: spread 1.5 / sqrt(fan in), norms around 1."""
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            fan = parameter[0].numel() if parameter.dim() > 1 else 0
            norm = not fan and key.endswith("weight")
            spread = 1.5 / fan**0.5 if fan else 0.5 if norm else 0.2
            parameter.copy_(torch.from_numpy(by_rule(key, parameter.shape, float(norm), spread, seed)))


def gradient_norms(model: torch.nn.Module, rename: Callable[[dict[str, Any]], Mapping[str, Any]]) -> dict[str, float]:
    """Euclidean norms of the gradients, under the keys that `rename` gives to a state dict of ours."""
    gradients = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
    return {key: float(value.norm()) for key, value in rename(gradients).items()}


def deviation(ours: torch.Tensor | float, golden: torch.Tensor | float) -> float:
    """Largest absolute difference over the largest absolute golden value; infinite where shapes differ."""
    a, b = (torch.as_tensor(one, dtype=torch.float64).detach() for one in (ours, golden))
    if a.shape != b.shape:
        return float("inf")
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-300))


def agree(ours: Mapping[str, torch.Tensor | float], golden: Mapping[str, torch.Tensor | float], within: float) -> None:
    """Fails with a line for every entry of `golden` that ours does not meet to `within` (relative)."""
    far = {key: deviation(ours[key], value) for key, value in golden.items()}
    lines = [f"{key}: {value:.2e}" for key, value in far.items() if not value <= within]
    assert not lines, f"further than {within:g} from the original: " + ", ".join(lines)


def _wide(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float64) if array.dtype.kind == "f" else np.asarray(array))
