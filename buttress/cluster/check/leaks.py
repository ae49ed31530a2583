"""Secrets that stand in a cluster file: in a value, in a command, or in a comment. Never prints one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from buttress.cluster.check.findings import Finding
from buttress.errors import BadInput

_ELSEWHERE = "the environment or a mounted file, and nothing of it in this one"
#: What a secret looks like wherever it stands.
_PATTERNS = {
    "an AWS access key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"),
    "a GitHub token": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{30,}"),
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}"),
    "a Google API key": re.compile(r"\bAIza[0-9A-Za-z_-]{35}"),
    "a Ray token": re.compile(r"(?<!sha256:)\b[0-9a-f]{64}\b"),
}
_NAME = r"[A-Za-z0-9_]*(?:SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|TOKEN|CREDENTIALS)"
#: `WANDB_API_KEY=0123`, not `WANDB_API_KEY=$WANDB_API_KEY`, nor a path, nor a placeholder.
_ASSIGNED = re.compile(rf"(?i)\b(?P<name>{_NAME}(?:_ID)?)=(?P<quote>[\"']?)(?P<value>[^\s\"'$~/<({{;]\S{{3,}})")
_SECRET_KEY = re.compile(rf"(?i)^(?:{_NAME}|aws_access_key_id|ssh_private_key_content)$")


def leaks(text: str, documents: list[Any]) -> list[Finding]:
    """One finding per secret: by key path where it stands in a value, else by line."""
    found: dict[str, Finding] = {}
    lines = set()
    for key, name, value in _texts(documents):
        if (what := _what(name, value)) is not None:
            found.setdefault(key, BadInput(f"{what} stands in the file", key=key, accepted=_ELSEWHERE))
            lines |= {number for number, line in enumerate(text.splitlines(), 1) if _same(line, value)}
    for number, line in enumerate(text.splitlines(), 1):
        if number not in lines and (what := _what("", line)) is not None:
            key = f"line {number}"
            found[key] = BadInput(f"{what} stands in the file", key=key, accepted=_ELSEWHERE)
    return list(found.values())


def _what(name: str, value: str) -> str | None:
    """What kind of secret the text of a value, or a line, holds; `name` is its key."""
    for what, pattern in _PATTERNS.items():
        if pattern.search(value):
            return what
    if given := _ASSIGNED.search(value):
        return f"a value for {given['name']}"
    literal = value and not re.match(r"[$~/<]", value) and "/" not in value
    if literal and _SECRET_KEY.match(name):
        return f"a value for {name}"
    return None


def _same(line: str, value: str) -> bool:
    """Whether a line of the file is (part of) the value that has been told of already."""
    return any(part.strip() and part.strip() in line for part in value.splitlines()) or (
        len(line.strip()) > 3 and line.strip() in value
    )


def _texts(tree: Any, path: tuple[str, ...] = (), name: str = "") -> Iterator[tuple[str, str, str]]:
    """Key path, name and text of every value. An entry `{name: X, value: Y}` of a container's `env` is X with Y."""
    if isinstance(tree, dict):
        entry = tree.get("name") if "value" in tree else None
        for key, value in tree.items():
            own = str(entry) if key == "value" and entry else str(key)
            yield from _texts(value, (*path, str(key)), own)
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from _texts(value, (*path, str(number)) if path else (), name)
    elif isinstance(tree, str):
        yield ".".join(path), name, tree
