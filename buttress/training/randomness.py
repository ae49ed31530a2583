"""Random numbers of a trial: a reset process, generator states for checkpoints, and noise keyed by sample."""

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
    """Resets this process for a trial, whatever an earlier trial did to torch, numpy or random.

    Seeds every generator, sets thread count, default dtype and device, grad mode, deterministic algorithms, cudnn and
    TF32 flags, and frees CUDA memory. Every rank gets the same seed, so that all build the same model; the loop gives
    ranks their own streams (`seed_rank`) when training begins.

    Args:
        seed: The trial's seed.
        threads: Torch threads.
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
    seed_rng(seed)


def seed_rng(seed: int) -> None:
    """Seeds the global generators of Python, numpy and torch (CPU and CUDA)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_rank(seed: int, rank: int) -> None:
    """Gives each rank a random stream of its own; rank 0 continues its current one."""
    if rank:
        seed_rng(_mix(seed * 1_000_003 + rank))


_PYTHON = struct.Struct("<625I?d")
_NUMPY = struct.Struct("<624IIId")


def rng_state(device: torch.device) -> torch.Tensor:
    """The state of all global generators (Python, numpy, torch, and CUDA where `device` is one) as uint8 [n]."""
    _, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    raw = _PYTHON.pack(*words, gauss is not None, gauss or 0.0) + _NUMPY.pack(*keys, position, has_gauss, cached)
    parts = [torch.frombuffer(bytearray(raw), dtype=torch.uint8), torch.get_rng_state()]
    if device.type == "cuda":
        parts.append(torch.cuda.get_rng_state(device))
    return torch.cat(parts)


def restore_rng_state(state: torch.Tensor, device: torch.device) -> None:
    """Sets all global generators to a state from `rng_state`."""
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
def forked_rng(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds the global generators inside the block and restores them after it, as `torch.random.fork_rng`."""
    before = rng_state(device)
    seed_rng(_mix(seed))
    try:
        yield
    finally:
        restore_rng_state(before, device)


_GOLDEN = 0x9E3779B97F4A7C15  # splitmix64 (Steele, Lea, Flood 2014), with the finaliser's usual constants
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = 2**64


def _mix(x: int) -> int:
    """splitmix64's finaliser, a bijection of 64-bit words; used to derive seeds."""
    x = (x + _GOLDEN) % _WORD
    x = (x ^ (x >> 30)) * _FIRST % _WORD
    x = (x ^ (x >> 27)) * _SECOND % _WORD
    return (x ^ (x >> 31)) % 2**63


def keyed_normal(
    seed: int, index: torch.Tensor, width: int, stream: int = 0, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Standard normals that depend on (seed, stream, index[i], column) only.

    Each row is a splitmix64 stream (Steele, Lea & Flood 2014) seeded by a hash of its key, turned to normals in float64
    by Box-Muller. The integers are the same on any device; logarithm and sine may differ in the last bit of float64.

    Args:
        seed: The trial's seed.
        index: Global sample indices, integers [n].
        width: Numbers per sample.
        stream: Distinguishes draws for the same sample.
        dtype: Of the result.

    Returns:
        [n, width] on the device of `index`.
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
