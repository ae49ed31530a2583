"""The command line that benchmarks over CollapseBench's curves share: families and curves to choose from, tables as
they come, and on request one JSON object, by family, as the last line."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.collapsebench.judge import HERE, families
from buttress.errors import BadInput


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """FAMILY ..., --curves and --json."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="default: all that have curves")
    parser.add_argument("--curves", type=Path, default=HERE / "curves", help="the folder of CollapseBench files")
    parser.add_argument("--json", action="store_true", help="one object in the last line")
    return parser


def told(given: argparse.Namespace, study: Callable[[str], dict[str, Any]]) -> None:
    """Runs `study` for each family that is asked for; ends with a sentence where something is not as it has to be."""
    began, found, load = time.monotonic(), {}, os.getloadavg()
    try:
        for name in given.families or families(given.curves):
            found[name] = study(name)
    except BadInput as error:
        sys.exit(f"error: {error}")
    loads = " and ".join(f"{one:.1f}" for one in (load[0], os.getloadavg()[0]))
    print(f"\n{time.monotonic() - began:.0f} s; the machine's load before and after: {loads}")
    if given.json:
        print(json.dumps(found, allow_nan=False))
