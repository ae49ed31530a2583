"""Where this machine keeps what can be made again: prepared data, mirrors of remote journals, spools of sweeps."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$BUTTRESS_CACHE`; by default `.cache/buttress` in the working folder, or in the home folder (`$XDG_CACHE_HOME`)
    where the working folder cannot be written to. An absolute path; the folder need not be there."""
    if given := os.environ.get("BUTTRESS_CACHE"):
        return Path(given).absolute()
    here = Path(".cache/buttress").absolute()
    nearest = next(folder for folder in here.parents if folder.is_dir())
    if os.access(here if here.is_dir() else nearest, os.W_OK):
        return here
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "buttress"
