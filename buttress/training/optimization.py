"""One optimizer step: the passes, the state that modules see, and the running sums for reports.

This part of the loop runs at every step and never waits for the device: losses, logs and gradient norms are kept as
tensors and summed when a report needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from math import nan
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Adam, AdamW, Optimizer

from buttress.training.schedules import LearningRate, Plateau, PlateauState


@dataclass
class StepState:
    """What a module's `forward` sees of the run. One object per run, updated before each step: do not keep it.

    Attributes:
        epoch: Epochs completed.
        step: Optimizer steps completed.
        progress: Epochs completed, with the fraction of the running one.
        numbers: What `Task.scheduled` returned: beta, alpha, ...
        running: Name of the running pass.
        shares: How many gradients are averaged into one step (ranks x accumulated batches); a loss that is a sum
            multiplies by it.
        autocast: `with state.autocast(): out = model(x)` runs in bfloat16 where the loop was told so.
    """

    epoch: int = 0
    step: int = 0
    progress: float = 0.0
    numbers: dict[str, float] = field(default_factory=dict)
    running: str = ""
    shares: int = 1
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext

    @property
    def beta(self) -> float:
        return self.numbers["beta"]


@dataclass
class Pass:
    """One optimizer and the module whose loss it minimizes. Passes run in turn on the same batch.

    During one of several passes only the parameters of its optimizer get gradients; a network of another pass (the
    discriminator inside the generator's loss) is held by a `ModuleReference`, so that this pass's DDP does not own it.
    Loss, gradient norm and share of non-finite steps of the first pass are reported as `train/loss`, `train/grad_norm`
    and `train/nonfinite`, those of the others as `train/<pass>/loss` and so on.

    Attributes:
        name: Of the pass; a checkpoint holds its module as `module.<name>`.
        module: What `world.wrap` returned. Its `forward(batch, state)` computes the whole loss and returns `(loss [],
            logs)`. The loss is a mean over the batch, or a sum times `state.shares`: ranks and accumulated batches are
            averaged. With bf16 the network runs inside `with state.autocast():` and the loss outside it, on `.float()`
            outputs. `logs` holds tensors that are not changed in place afterwards: 0-dim ones are averaged into
            `train/<name>`, all of them reach `Task.observe`.
        optimizer: Over the module's own parameters.
        lr: Factor on each parameter group's own learning rate, by epoch and step.
        plateau: A further factor, lowered when a metric stops improving.
        clip: Largest global gradient norm; None: no clipping.
        starts_at_step: The pass does not run before this step (a discriminator's start).
        summed: The loss is a sum over the batch, not a mean: in the mean of an epoch each step counts once, whatever
            its samples, so that this mean goes with the one over samples.
    """

    name: str
    module: nn.Module
    optimizer: Optimizer
    lr: LearningRate | None = None
    plateau: Plateau | None = None
    clip: float | None = None
    starts_at_step: int = 0
    summed: bool = False


class ModuleReference:
    """Calls a module from another module without registering it there: no parameters, no state, no DDP hooks.

    Args:
        module: The plain module, not its DDP wrapper.

    Example:
        >>> critic = ModuleReference(nn.Linear(2, 1))         # in the generator's loss module: self.critic = ...
        >>> critic(torch.zeros(3, 2)).shape
        torch.Size([3, 1])
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


class Meters:
    """Sums of losses, gradient norms and 0-dim logs over a window (since the last report) and over the epoch.

    Losses and logs are weighted by their batch's samples, gradient norms and non-finite steps count alike.
    """

    MAX_PENDING = 256  # tensors kept per name before they are summed: no kernel per step, bounded memory
    NORM_INTERVAL = 8  # steps; a NaN gradient between two of them shows in the next step's loss

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._kept: dict[str, list[torch.Tensor]] = {}
        self._weights: dict[str, list[float]] = {}  # of the kept ones
        self._normed: dict[str, list[int]] = {}  # which of the kept losses came with a gradient norm
        self._window: dict[str, torch.Tensor] = {}  # name -> [sum, count]
        self._epoch: dict[str, torch.Tensor] = {}

    def add(self, logs: Mapping[str, torch.Tensor], samples: float = 1) -> None:
        """Adds a batch's 0-dim logs."""
        for name, value in logs.items():
            if value.dim() == 0:
                self._keep(name, value.detach(), samples)

    def _keep(self, name: str, value: torch.Tensor, weight: float) -> None:
        self._kept.setdefault(name, []).append(value)
        self._weights.setdefault(name, []).append(weight)

    def norm_is_due(self, prefix: str) -> bool:
        """Whether to compute this step's gradient norm where nothing is clipped: every 8th step of a window."""
        return len(self._kept.get(prefix + "loss", ())) % self.NORM_INTERVAL == 0

    def add_step(self, prefix: str, loss: torch.Tensor, norm: torch.Tensor | None, samples: float = 1) -> None:
        """Adds a step's loss, and its gradient norm where it was computed."""
        steps = len(self._kept.get(prefix + "loss", ()))
        self._keep(prefix + "loss", loss, samples)
        if norm is not None:
            self._keep(prefix + "grad_norm", norm, 1)
            self._normed.setdefault(prefix, []).append(steps)
        if steps + 1 >= self.MAX_PENDING:
            self._fold()

    def window(self) -> Sums:
        """What was added since the last report; starts a new window."""
        self._fold()
        sums, self._window = self._window, {}
        return Sums(sums)

    def epoch(self) -> Sums:
        """What was added in the epoch, but with `nonfinite` of its last window; starts a new epoch."""
        last = self.window().sums
        sums, self._epoch = self._epoch, {}
        return Sums(sums | {name: value for name, value in last.items() if name.endswith("nonfinite")})

    def _fold(self) -> None:
        stacked = {name: torch.stack(kept) for name, kept in self._kept.items()}
        sums: dict[str, tuple[torch.Tensor, float]] = {}
        for name, values in stacked.items():
            weights = self._weights[name]
            if min(weights) != max(weights):
                sums[name] = (values.double() @ values.new_tensor(weights, dtype=torch.float64), sum(weights))
            else:
                sums[name] = (values.sum(dtype=torch.float64) * weights[0], len(values) * weights[0])
        for prefix, steps in self._normed.items():  # a window's first step always has a norm
            bad = ~stacked[prefix + "loss"].isfinite()
            bad[steps] |= ~stacked[prefix + "grad_norm"].isfinite()
            sums[prefix + "nonfinite"] = (bad.sum(dtype=torch.float64), len(bad))
        self._kept, self._weights, self._normed = {}, {}, {}
        for name, (total, count) in sums.items():
            added = torch.stack([total, total.new_full((), count)])
            for held in (self._window, self._epoch):
                held[name] = held[name] + added if name in held else added

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The epoch so far, for a checkpoint from inside it."""
        self._fold()
        return dict(self._epoch)

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        self._epoch = {name: sums.to(self.device) for name, sums in state.items()}


@dataclass(frozen=True)
class Sums:
    """A `Summary` of many means at once, name -> [sum, count].

    `nonfinite` (a share of steps) is merged as the largest over ranks, with each rank's as a vector; everything else as
    the mean over all that was added on any rank.
    """

    sums: dict[str, torch.Tensor]

    def pack(self) -> torch.Tensor:
        return torch.stack(list(self.sums.values())).reshape(-1) if self.sums else torch.zeros(0, dtype=torch.float64)

    def merge(self, rows: torch.Tensor) -> dict[str, float | list[float]]:
        merged: dict[str, float | list[float]] = {}
        for name, of_ranks in self._columns(rows):
            if name.endswith("nonfinite"):
                shares = (of_ranks[:, 0] / of_ranks[:, 1]).tolist()
                merged |= {name: max(shares), f"vector.{name}": shares}
            else:
                total, count = of_ranks.sum(0).tolist()
                merged[name] = total / count
        return merged

    def nonfinite(self, rows: torch.Tensor) -> tuple[str, ...]:
        return tuple(name for name, of_ranks in self._columns(rows) if not bool(of_ranks.isfinite().all()))

    def _columns(self, rows: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        return zip(self.sums, rows.reshape(len(rows), len(self.sums), 2).unbind(1), strict=True)


class PassRunner:
    """Runs one pass: calls its module, sets its learning rate and steps its optimizer."""

    def __init__(
        self,
        one: Pass,
        meters: Meters,
        observe: Callable[..., None],
        samples: Callable[[Any], float] = lambda _: 1,
        *,
        main: bool,
    ) -> None:
        self.name, self.module, self.optimizer, self.clip = one.name, one.module, one.optimizer, one.clip
        self.lr, self.starts_at_step, self.summed = one.lr, one.starts_at_step, one.summed
        self.plateau = PlateauState(one.plateau) if one.plateau else None
        self.prefix = "" if main else f"{one.name}/"
        every = (parameter for group in one.optimizer.param_groups for parameter in group["params"])
        self.parameters = [parameter for parameter in every if parameter.requires_grad]
        for group in one.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.factor = nan  # not known: a checkpoint may have brought another rate
        self.meters, self.observe, self.samples = meters, observe, samples

    def step(self, batches: Sequence[Any], state: StepState) -> None:
        """One optimizer step on the mean of the batches' gradients."""
        state.running = self.name
        self._set_rate(state)
        for parameter in self.parameters:
            parameter.grad = None
        losses = [self._backward(batch, state, 1 / len(batches), sync=False) for batch in batches[:-1]]
        losses.append(self._backward(batches[-1], state, 1 / len(batches), sync=True))
        norm = None
        if self.clip is not None or self.meters.norm_is_due(self.prefix):
            gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
            norm = global_norm(gradients)
            if self.clip is not None:
                clip_grads_with_norm_(self.parameters, self.clip, norm)
        self.optimizer.step()
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
        samples = len(batches) if self.summed else sum(map(self.samples, batches))
        self.meters.add_step(self.prefix, loss, norm, samples)

    def _backward(self, batch: Any, state: StepState, share: float, *, sync: bool) -> torch.Tensor:
        if not sync and isinstance(self.module, DistributedDataParallel):
            with self.module.no_sync():  # the ranks' gradients meet once per step
                return self._backward(batch, state, share, sync=True)
        loss, logs = self.module(batch, state)
        (loss if share == 1 else loss * share).backward()
        self.meters.add(logs, self.samples(batch))
        self.observe(logs, state)
        return loss.detach()

    def _set_rate(self, state: StepState) -> None:
        if self.lr is None and self.plateau is None:
            return
        factor = self.lr.factor(state.epoch, state.step) if self.lr is not None else 1.0
        if self.plateau is not None:
            factor *= self.plateau.scale
        if factor != self.factor:
            self.factor = factor
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    @property
    def rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])


def require_gradients_of(one: PassRunner, all_of_them: Iterable[PassRunner]) -> None:
    """Lets only the parameters of one pass take gradients, so that its backward stops at a referenced network."""
    for runner in all_of_them:
        for parameter in runner.parameters:
            parameter.requires_grad_(runner is one)


def global_norm(gradients: list[torch.Tensor]) -> torch.Tensor:
    """The 2-norm of all gradients together, 0-dim, without waiting for the device."""
    if not gradients:
        return torch.zeros(())
    if sum(gradient.numel() for gradient in gradients) < 2**18:  # copying is cheaper than a kernel per tensor
        return torch.linalg.vector_norm(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    return get_total_norm(gradients)


def fused_adam(
    params: Any, lr: float, *, weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999)
) -> Optimizer:
    """Adam with all parameters in one kernel.

    Args:
        params: Parameters or parameter groups.
        lr: Learning rate.
        weight_decay: Decoupled (AdamW) when it is not 0.
        betas: Decay rates of the moments.
    """
    if weight_decay:
        return AdamW(params, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
    return Adam(params, lr=lr, betas=betas, fused=True)
