"""Reads the numbers and the full-beta age of a plain Tune run's results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.tune.utils import flatten_dict

from buttress.errors import BadInput


def flat_numbers(result: Mapping[str, Any]) -> dict[str, int | float]:
    """The numbers of a result by their flat key (`{"val": {"kl": x}}` is `val/kl`).

    NumPy's scalars and arrays or tensors of one element are numbers, too; all else is left out.
    """
    numbers = {}
    for key, value in flatten_dict(dict(result)).items():
        size = value.numel() if hasattr(value, "numel") else getattr(value, "size", None)
        if size == 1 and hasattr(value, "item"):
            value = value.item()
        if isinstance(value, int | float) and not isinstance(value, bool):
            numbers[key] = value
    return numbers


def epochs_and_steps(numbers: Mapping[str, int | float]) -> tuple[int, int]:
    """Completed epochs and steps of a result; `training_iteration` stands in for either."""
    count = numbers.get("training_iteration", 0)
    return int(numbers.get("epoch", count)), int(numbers.get("step", count))


def full_beta_epochs(numbers: Mapping[str, int | float], full_at: int | None, user: str) -> int:
    """Epochs that a result was trained at the final beta.

    Args:
        numbers: See `flat_numbers`.
        full_at: Number of epochs after which beta is final, where the results do not say how old they are.
        user: Who needs the age, for the error.

    Raises:
        BadInput: Neither the result nor `full_at` says it: an epoch of the warm-up would be taken for one after it.
    """
    if "full_beta_epochs" in numbers:
        return int(numbers["full_beta_epochs"])
    if full_at is None:
        raise BadInput(
            f"{user} needs the age at full beta, which the results do not hold",
            key="full_beta_epochs",
            accepted="`full_beta_epochs` in each result, or `full_at=` with the number of epochs after which beta is "
            "final (0 where none is annealed)",
        )
    return max(0, epochs_and_steps(numbers)[0] - full_at)
