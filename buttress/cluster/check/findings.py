"""What the checks hand on: faults as `BadInput` (file, key path, value, what is accepted), the whole as `Checked`."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from buttress.errors import BadInput

#: One fault. Its file is filled in by `check.check`.
Finding = BadInput


@dataclass(frozen=True)
class Checked:
    """One file, judged. `summary`: what the cluster is, where nothing was found; `todo`: left to do before a start."""

    file: Path
    findings: tuple[Finding, ...]
    summary: str = ""
    todo: tuple[str, ...] = field(default_factory=tuple)

    def line(self) -> str:
        """One line for a file without findings."""
        return f"{self.file}: {self.summary}" + (f"; before a start: {', '.join(self.todo)}" if self.todo else "")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: file, ok, summary (null where there are findings), findings, todo."""
        return {
            "file": str(self.file),
            "ok": not self.findings,
            "summary": self.summary or None,
            "findings": [_plain(finding) for finding in self.findings],
            "todo": list(self.todo),
        }


def _plain(finding: Finding) -> dict[str, Any]:
    value = None if finding.value is ... else json.loads(json.dumps(finding.value, default=str))
    return {"key": finding.key, "problem": finding.problem, "value": value, "accepted": finding.accepted}


def path_of(*parts: Any) -> str:
    """A key path: `path_of("head_start_ray_commands", 1)` is `head_start_ray_commands.1`."""
    return ".".join(str(part) for part in parts)


def misspelt(key: str, given: Iterable[str], known: Iterable[str]) -> bool:
    """Whether a missing key is there with another spelling, which `unknown` tells of."""
    known = set(known)
    return any(difflib.get_close_matches(str(name), known, 1) == [key] for name in given if name not in known)


def unknown(name: str, known: Iterable[str], *under: Any) -> Finding:
    """The finding for a key that nothing reads, with the key that was probably meant."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, 1)
    problem = f"unknown key; did you mean {close[0]}?" if close else "unknown key"
    return BadInput(problem, key=path_of(*under, name), accepted=None if close else ", ".join(known))
