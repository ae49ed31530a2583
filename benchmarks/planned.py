"""How well `buttress plan` foretells a sweep: each sweep is planned from its timed epochs, then run, and compared.

    python -m benchmarks.planned [--json] [--only NAME ...]

`estimate_s` is what `plan` says before anything has started, `sweep_s` what `run` then took (its own `seconds`, from
the start of Ray to the last outcome), `ratio` the one over the other. `longest_s` is the plan's upper end, without any
early stop. The plan cannot know how many trials will collapse, so it tends to be high where many do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

#: Sweeps of different kinds: short epochs in one process; two DDP workers; few long epochs of the full table.
SWEEPS: dict[str, list[str]] = {
    "lithology quick": ["search_spaces/lithology.yaml", "--profile", "quick"],
    "lithology, 2 workers": [
        "search_spaces/lithology.yaml", "--profile", "quick",
        "--set", "resources.workers=2", "--set", "budget.trials=12",
    ],
    "lithology, full table": [
        "search_spaces/lithology.yaml", "--profile", "quick", "--set", "config.data.size=full",
        "--set", "config.train.epochs=4", "--set", "config.loss.anneal=constant", "--set", "scheduler.first=1",
        "--set", "budget.trials=12",
    ],
}  # fmt: skip


def last_json(verb: str, arguments: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "buttress", verb, *arguments, "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def compared(arguments: list[str]) -> dict[str, Any]:
    before = os.getloadavg()[0]
    planned = last_json("plan", arguments)
    with tempfile.TemporaryDirectory() as folder:
        ran = last_json("run", [*arguments, "--out", str(Path(folder)), "--quiet"])
    return {
        "estimate_s": round(planned["seconds"], 1),
        "longest_s": round(planned["longest_seconds"], 1),
        "sweep_s": round(ran["seconds"], 1),
        "ratio": round(planned["seconds"] / ran["seconds"], 2),
        "step_ms": round(planned["timing"]["step_s"] * 1e3, 2),
        "counts": ran["counts"],
        "load": round(before, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SWEEPS), default=list(SWEEPS))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found: dict[str, Any] = {"command": "python -m benchmarks.planned --json"}
    for name in given.only:
        found[name] = compared(SWEEPS[name])
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in found[name].items()), flush=True)
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
