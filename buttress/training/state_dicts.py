"""Renames the keys of state dicts, between a family's own and those of the project that it came from."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from buttress.errors import BadInput


def rename_prefix(key: str, names: Mapping[str, str]) -> str:
    """A key with its longest known prefix replaced.

    Args:
        key: `encoder.0.weight`.
        names: Prefix, of whole words between dots -> what it becomes.

    Raises:
        BadInput: No prefix of the key is known.
    """
    parts = key.split(".")
    for length in range(len(parts) - 1, 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in names:
            return ".".join([names[prefix], *parts[length:]])
    raise BadInput(f"the network has no weight {key}", key="weights", accepted=", ".join(f"{one}.*" for one in names))


def check_keys(weights: Collection[str], known: Collection[str], accepted: str) -> None:
    """Compares the keys of a state dict with those that a config's network has.

    Args:
        weights: Keys that were given.
        known: Keys that there have to be.
        accepted: For the error: what would have been accepted.

    Raises:
        BadInput: A key is not known, or one is missing; names the first.
    """
    for key in (*weights, *known):
        if key not in known or key not in weights:
            problem = f"has no weight {key}" if key in weights else f"needs a weight {key}"
            raise BadInput(f"the network of this config {problem}", key="weights", accepted=accepted)
