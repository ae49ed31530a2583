"""The folder for what can be made again: prepared data, local copies of remote journals, sweeps before their upload."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Path of this machine's cache folder, which need not exist yet.

    Returns:
        An absolute path: `$BUTTRESS_CACHE` if set, else `.cache/buttress` in the working folder, or, where that cannot
        be written to, `buttress` in `$XDG_CACHE_HOME` (default: `~/.cache`).
    """
    if given := os.environ.get("BUTTRESS_CACHE"):
        return Path(given).absolute()
    here = Path(".cache/buttress").absolute()
    nearest = next(folder for folder in here.parents if folder.is_dir())
    if os.access(here if here.is_dir() else nearest, os.W_OK):
        return here
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "buttress"
