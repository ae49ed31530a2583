"""The private and undocumented parts of torch that Buttress uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


def inplace_version(tensor: Tensor) -> int:
    """A count of the in-place changes of a tensor (and of all that share its memory); -1 for an inference tensor."""
    return -1 if tensor.is_inference() else int(tensor._version)


def fused_adam_step(
    parameters: list[Tensor],
    gradients: list[Tensor],
    first_moments: list[Tensor],
    second_moments: list[Tensor],
    steps: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """One step of Adam on all parameters, in place, by the kernel behind `torch.optim.Adam(fused=True)`.

    Args:
        parameters: changed; all lists have the same length and order, all tensors are on one device.
        gradients: of the parameters.
        first_moments: `exp_avg` of the optimizer's state; changed.
        second_moments: `exp_avg_sq` of the optimizer's state; changed.
        steps: number of this step as a float tensor [] per parameter, already counted up; may be one tensor many times.
        lr: learning rate.
        betas: decay rates of the moments.
        eps: added to the denominator.
    """
    torch._fused_adam_(
        parameters, gradients, first_moments, second_moments, [], steps,
        lr=lr, beta1=betas[0], beta2=betas[1], weight_decay=0.0, eps=eps, amsgrad=False, maximize=False,
    )  # fmt: skip


def without_profiling(step: F) -> F:
    """Marks an optimizer's `step` method so that torch does not wrap every call of it for its profiler."""
    step.hooked = True  # type: ignore[attr-defined]
    return step
