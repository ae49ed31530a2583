"""The place a trial runs in: its rank, device, seed and folder, and the few things that ranks do together.

A trainer gets one `World` and needs nothing else to be distributed: it wraps its module, sums its counts, shares its
arrays and draws its noise here. One process, `torchrun`, a process started by `local_run.py` and a warm slot of a
sweep all hand the same object to `Trainable.train`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from buttress.training.cache import cached
from buttress.training.randomness import keyed_normal, prepare

__all__ = ["World", "prepare"]

CPU = torch.device("cpu")


def _never() -> bool:
    return False


@dataclass(frozen=True)
class World:
    """Where one rank of a trial runs.

    `group` is the trial's own process group (None on one rank), used for DDP and `sum`; `reports` is a gloo group that
    only the reporter uses (None on one rank). `draining()` says that this node is about to be taken away. `seed` is the
    trial's, the same on every rank.

        world = World.single("runs/mine", seed=7)
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    threads: int = 1
    seed: int = 42
    folder: Path = Path()
    group: dist.ProcessGroup | None = None
    reports: dist.ProcessGroup | None = None
    draining: Callable[[], bool] = _never

    @classmethod
    def single(cls, folder: Path | str = ".", *, seed: int = 42, threads: int = 1, device: str | None = None) -> World:
        """One rank in this process, on `device` (default: the first CUDA device, else the CPU). Calls `prepare`."""
        prepare(seed, threads)
        return cls(device=_device(device, 0), threads=threads, seed=seed, folder=Path(folder))

    @classmethod
    def from_env(
        cls, folder: Path | str = ".", *, seed: int = 42, threads: int = 1, device: str | None = None
    ) -> World:
        """This rank of the world that `torchrun` describes in the environment; without `WORLD_SIZE`: `single`."""
        env = os.environ
        size = int(env.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls.single(folder, seed=seed, threads=threads, device=device)
        rank = int(env["RANK"])
        local = int(env.get("LOCAL_RANK", rank)), int(env.get("LOCAL_WORLD_SIZE", size))
        return cls.join("env://", rank, size, local, folder, seed=seed, threads=threads, device=device)

    @classmethod
    def join(
        cls,
        meeting: str,
        rank: int,
        size: int,
        local: tuple[int, int],
        folder: Path | str = ".",
        *,
        seed: int = 42,
        threads: int = 1,
        device: str | None = None,
        timeout: timedelta = timedelta(minutes=30),
    ) -> World:
        """One of `size` ranks that meet at `meeting` (torch's `init_method`); `local`: rank and size on this node.

        Starts the default process group and the reporter's; `close()` ends them. Calls `prepare`.
        """
        prepare(seed, threads)
        place = _device(device, local[0])
        if place.type == "cuda":
            torch.cuda.set_device(place)
        # Ranks that share a GPU cannot use NCCL ("Duplicate GPU"); gloo serves them, with copies through the CPU.
        own_gpu = place.type == "cuda" and local[1] <= torch.cuda.device_count()
        backend = "cpu:gloo,cuda:nccl" if own_gpu else "gloo"
        dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=size, timeout=timeout)
        reports = dist.new_group(backend="gloo", timeout=timeout)
        return cls(rank, size, place, threads, seed, Path(folder), dist.group.WORLD, reports)

    def close(self) -> None:
        """Leave the process groups that `join` entered (a slot owns its groups and does not call this)."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def wrap(self, module: nn.Module, **ddp: Any) -> nn.Module:
        """`module` on this rank's device, in DDP on the trial's own group; on one rank the module itself.

        Call the result, never `module` itself: a loss computed around DDP skips the gradient all-reduce. Rank 0's
        parameters and buffers are what every rank starts with. Buffers are not broadcast at each step: the loop
        averages BatchNorm's statistics over ranks before every evaluation and checkpoint.
        """
        module = module.to(self.device)
        if self.size == 1:
            return module
        options: dict[str, Any] = {"forward_sync_buffers": False, "gradient_as_bucket_view": True, **ddp}
        if self.device.type == "cuda":
            options.setdefault("device_ids", [self.device.index])
        return DistributedDataParallel(module, process_group=self.group, **options)

    @staticmethod
    def unwrap(module: nn.Module) -> nn.Module:
        """The module inside DDP, or the module itself; for `state_dict` and evaluation, not for a training step."""
        return module.module if isinstance(module, DistributedDataParallel) else module

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """All-reduce SUM over the trial's ranks, in place; returns `tensor`. Nothing to do on one rank."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def mean(self, value: float | torch.Tensor) -> float:
        """The mean of a number over the ranks, the same on all of them: for decisions (stop, lower the rate)."""
        if self.size == 1:
            return float(value)
        return float(self.sum(torch.tensor(float(value), dtype=torch.float64, device=self.device))) / self.size

    def cache(self, key: Any, build: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Arrays that `build()` makes, built once per node and memory-mapped by every process (copy on write).

        `key` is a string or anything JSON can write; put into it all that `build` depends on (file sizes and times,
        transforms, seed). The folder is `buttress.cache_folder`.
        """
        return cached(key, build)

    def noise(
        self, index: torch.Tensor, width: int, stream: int = 0, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Standard normals [n, width] for the global sample indices `index` [n]: the same whoever draws them.

        Row i depends on (seed, stream, index[i]) only, so 1 and 2 ranks can draw the same. Use `stream` to tell apart
        what the noise is for and when (`stream=2 * step`, say). See `randomness.keyed_normal`.
        """
        return keyed_normal(self.seed, index, width, stream, dtype)


def _device(name: str | None, local: int) -> torch.device:
    if name is not None:
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda", local % torch.cuda.device_count())
    return CPU
