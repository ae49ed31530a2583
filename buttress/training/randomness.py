"""Every random number of a trial: a clean start, generators that a checkpoint can hold, and noise keyed by sample.

`prepare` makes a trial independent of what ran before it in the same process; `generators` and `restore_generators`
carry the state of Python's, numpy's and torch's generators as one tensor (plain numbers: nothing is unpickled);
`keyed_normal` draws the same noise for a sample whichever rank, batch or device it is in.
"""

from __future__ import annotations

import math
import os
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def prepare(seed: int, threads: int = 1) -> None:
    """Make a trial start clean: nothing that an earlier trial in this process did to torch, numpy or random remains.

    Seeds every generator, and sets thread count, default dtype and device, grad mode, deterministic algorithms, cudnn
    and TF32 flags, and frees CUDA memory. Every rank gets the same seed, so that models are built alike; the loop lets
    the ranks' generators part (`part_ranks`) when training begins.
    """
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    torch.set_flush_denormal(False)
    torch.autograd.set_detect_anomaly(False)
    torch.set_float32_matmul_precision("highest")
    torch.clear_autocast_cache()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS at its first use
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a write per torch.empty
    torch.backends.cudnn.enabled = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seed_generators(seed)


def seed_generators(seed: int) -> None:
    """Seed Python's, numpy's and torch's (CPU and CUDA) global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def part_ranks(seed: int, rank: int) -> None:
    """Give each rank a generator stream of its own; rank 0 keeps the one it is in the middle of."""
    if rank:
        seed_generators(_mix(seed * 1_000_003 + rank))


_PYTHON = struct.Struct("<625I?d")
_NUMPY = struct.Struct("<624IIId")


def generators(device: torch.device) -> torch.Tensor:
    """The state of all global generators (Python, numpy, torch, and CUDA where `device` is one) as uint8 [n]."""
    _, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    raw = _PYTHON.pack(*words, gauss is not None, gauss or 0.0) + _NUMPY.pack(*keys, position, has_gauss, cached)
    parts = [torch.frombuffer(bytearray(raw), dtype=torch.uint8), torch.get_rng_state()]
    if device.type == "cuda":
        parts.append(torch.cuda.get_rng_state(device))
    return torch.cat(parts)


def restore_generators(state: torch.Tensor, device: torch.device) -> None:
    """Set all global generators to what `generators` returned."""
    raw = state.cpu().contiguous()
    python, rest = raw[: _PYTHON.size].numpy().tobytes(), raw[_PYTHON.size :]
    *words, has_gauss, gauss = _PYTHON.unpack(python)
    random.setstate((3, tuple(words), gauss if has_gauss else None))
    numpy_state, rest = rest[: _NUMPY.size].numpy().tobytes(), rest[_NUMPY.size :]
    *keys, position, has_gauss, cached = _NUMPY.unpack(numpy_state)
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    length = torch.get_rng_state().numel()
    torch.set_rng_state(rest[:length].clone())
    if device.type == "cuda" and rest.numel() > length:
        torch.cuda.set_rng_state(rest[length:].clone(), device)


@contextmanager
def steady(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, the global generators start from `seed`; after, they go on as if nothing had been drawn."""
    before = generators(device)
    seed_generators(_mix(seed))
    try:
        yield
    finally:
        restore_generators(before, device)


_GOLDEN = 0x9E3779B97F4A7C15  # splitmix64 (Steele, Lea, Flood 2014), with the finaliser's usual constants
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = 2**64


def _mix(x: int) -> int:
    """splitmix64's finaliser: a bijection of 64-bit words that leaves no pattern; used to derive seeds."""
    x = (x + _GOLDEN) % _WORD
    x = (x ^ (x >> 30)) * _FIRST % _WORD
    x = (x ^ (x >> 27)) * _SECOND % _WORD
    return (x ^ (x >> 31)) % 2**63


def keyed_normal(
    seed: int, index: torch.Tensor, width: int, stream: int = 0, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """index[n] (integers) -> standard normals [n, width] that depend on (seed, stream, index[i], column) only.

    Counter-based: each row is a splitmix64 stream seeded by a hash of its key, turned to normals in float64 by
    Box-Muller. The integers are the same on any device; logarithm and sine may differ in the last bit of float64.
    """
    pairs = (width + 1) // 2
    key = _signed(_mix(_mix(seed) ^ _mix(stream + _GOLDEN)))
    rows = _mix_tensor(index.to(torch.int64) * _signed(_GOLDEN) + key)  # [n]
    columns = torch.arange(1, 2 * pairs + 1, device=index.device, dtype=torch.int64) * _signed(_GOLDEN)
    words = _mix_tensor(rows[:, None] + columns)  # [n, 2 * pairs]
    uniform = (_shift(words, 11).double() + 0.5) * 2.0**-53  # in (0, 1)
    radius = (-2.0 * uniform[:, :pairs].log()).sqrt()
    angle = uniform[:, pairs:] * (2.0 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :width].to(dtype)


def _mix_tensor(x: torch.Tensor) -> torch.Tensor:
    """The finaliser of splitmix64 on int64 tensors, whose arithmetic wraps."""
    x = (x ^ _shift(x, 30)) * _signed(_FIRST)
    x = (x ^ _shift(x, 27)) * _signed(_SECOND)
    return x ^ _shift(x, 31)


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift: int64's own keeps the sign."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


def _signed(x: int) -> int:
    x %= _WORD
    return x - _WORD if x >= 2**63 else x
