"""The place a trial runs in: rank, device, seed and folder, and the few things that ranks do together.

One process, `torchrun`, a process started by `local_run` and a worker of a sweep all pass the same object to
`Trainable.train`; a trainer needs nothing else to be distributed.
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

    Attributes:
        rank: This process's number, from 0; rank 0 writes files.
        size: Number of ranks.
        device: Where this rank computes.
        threads: Torch threads of this process.
        seed: The trial's seed, the same on every rank.
        folder: The trial's folder.
        group: The trial's process group for DDP and `sum`; None on one rank.
        reports: A gloo group that only the reporter uses; None on one rank.
        draining: `draining()` is true once this node is about to be taken away.

    Example:
        >>> world = World.single("runs/mine", seed=7)                                      # doctest: +SKIP
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
        """A world of one rank in this process; seeds it and resets torch's settings (`prepare`).

        Args:
            folder: The trial's folder.
            seed: Seed of all random numbers.
            threads: Torch threads.
            device: `cpu`, `cuda`, `cuda:1`; default: the first CUDA device, else the CPU.
        """
        prepare(seed, threads)
        return cls(device=_device(device, 0), threads=threads, seed=seed, folder=Path(folder))

    @classmethod
    def from_env(
        cls, folder: Path | str = ".", *, seed: int = 42, threads: int = 1, device: str | None = None
    ) -> World:
        """This rank of the world that `torchrun` describes in the environment; `single` without `WORLD_SIZE`."""
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
        init_method: str,
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
        """One of several ranks; starts the default process group and the reporter's, which `close` ends.

        Args:
            init_method: Where the ranks meet, as `torch.distributed.init_process_group` takes it.
            rank: This rank.
            size: Number of ranks.
            local: Rank and number of ranks on this node.
            folder: The trial's folder.
            seed: Seed of all random numbers, the same on every rank.
            threads: Torch threads.
            device: As in `single`; by default ranks of a node take its CUDA devices in turn.
            timeout: Of collectives.
        """
        prepare(seed, threads)
        place = _device(device, local[0])
        if place.type == "cuda":
            torch.cuda.set_device(place)
        # Ranks that share a GPU cannot use NCCL ("Duplicate GPU"); gloo serves them, with copies through the CPU.
        own_gpu = place.type == "cuda" and local[1] <= torch.cuda.device_count()
        backend = "cpu:gloo,cuda:nccl" if own_gpu else "gloo"
        dist.init_process_group(backend, init_method=init_method, rank=rank, world_size=size, timeout=timeout)
        reports = dist.new_group(backend="gloo", timeout=timeout)
        return cls(rank, size, place, threads, seed, Path(folder), dist.group.WORLD, reports)

    def close(self) -> None:
        """Leaves the process groups that `join` entered; a sweep's worker owns its groups and does not call this."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def wrap(self, module: nn.Module, **ddp: Any) -> nn.Module:
        """Moves a module to this rank's device and, on several ranks, wraps it in DDP.

        Call the result, never `module` itself: a loss computed around DDP skips the gradient all-reduce. Every rank
        starts with rank 0's parameters and buffers. Buffers are not broadcast at each step; the shared loop averages
        BatchNorm's statistics over ranks before every evaluation and checkpoint.

        Args:
            module: The module whose `forward` computes the loss.
            ddp: Further options of `DistributedDataParallel`.

        Returns:
            The DDP module, or `module` itself on one rank.
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
        """The module inside DDP, or the module itself: for `state_dict` and evaluation, not for a training step."""
        return module.module if isinstance(module, DistributedDataParallel) else module

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sums a tensor over the trial's ranks, in place, and returns it. Collective."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def mean(self, value: float | torch.Tensor) -> float:
        """Mean of a number over the ranks, the same on all: for decisions such as early stopping. Collective."""
        if self.size == 1:
            return float(value)
        return float(self.sum(torch.tensor(float(value), dtype=torch.float64, device=self.device))) / self.size

    def share(self, count: int) -> slice:
        """This rank's part of `count` rows: contiguous, in rank order, sizes differing by one at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def cache(self, key: Any, build: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Arrays built once per node and memory-mapped by every process, copy on write.

        Args:
            key: A string, or anything that JSON can write. Put into it all that `build` depends on (file sizes and
                times, transforms, seed).
            build: Returns name -> array; called by one process per node while the others wait.

        Returns:
            Name -> memory-mapped array. The files are in `$BUTTRESS_CACHE`, by default `.cache/buttress`.

        Raises:
            BadInput: The cache folder is not writable.
        """
        return cached(key, build)

    def noise(
        self, index: torch.Tensor, width: int, stream: int = 0, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Standard normal noise keyed by sample: row i depends on (seed, stream, index[i]) only.

        So any number of ranks draws the same noise for a sample.

        Args:
            index: Global sample indices, int64 [n].
            width: Numbers per sample.
            stream: Distinguishes what the noise is for and when, such as `2 * step`.
            dtype: Of the result.

        Returns:
            Standard normals [n, width] on the device of `index`.
        """
        return keyed_normal(self.seed, index, width, stream, dtype)


def _device(name: str | None, local: int) -> torch.device:
    if name is not None:
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda", local % torch.cuda.device_count())
    return CPU
