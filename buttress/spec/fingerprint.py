"""Describes the data files that a spec names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from buttress.spec.spec import SweepSpec


def data_fingerprint(spec: SweepSpec) -> dict[str, Any]:
    """The spec's data section, and size (bytes) and time (seconds since 1970) of every file that it names."""
    files = {}
    for key, value in spec.data.items():
        if isinstance(value, str) and (path := Path(value)).exists():
            info = path.stat()
            files[key] = {"path": str(path), "bytes": info.st_size, "modified": int(info.st_mtime)}
    return {"section": dict(spec.data), "files": files}
