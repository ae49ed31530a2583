"""What importing a package of Buttress brings with it, seen in a fresh interpreter.

Which package may import which is held by import-linter (`make check`).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FAMILIES = sorted(path.parent.name for path in ROOT.glob("trainables/*/__init__.py"))

ORCHESTRATION = ("ray", "optuna", "wandb")
HEAVY = ("torch", *ORCHESTRATION)


def modules(package: str) -> list[str]:
    """Dotted names of all modules of a package of Buttress; `__main__` is run, not imported."""
    files = (path.relative_to(ROOT).with_suffix("") for path in sorted((ROOT / "buttress" / package).rglob("*.py")))
    return [".".join(file.parts).removesuffix(".__init__") for file in files if file.name != "__main__"]


#: What is imported, and what must not have come with it.
FRESH: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "buttress": (["buttress"], (*HEAVY, "pandas", "pydantic", "typer", "rich", "numpy")),
    "Python API": (["buttress.api", "buttress.analysis.results"], (*HEAVY, "pandas", "matplotlib", "sklearn", "scipy")),
    "spec": (modules("spec"), (*HEAVY, "pandas", "sklearn", "matplotlib")),
    "rules": (modules("rules"), (*HEAVY, "pandas")),
    "journal": (modules("journal"), (*HEAVY, "pandas")),
    "analysis": (modules("analysis"), HEAVY),
    "monitors": (["buttress.monitors"], (*HEAVY, "pandas")),
    "trainables": (["buttress.trainables", "buttress.training.registry"], (*HEAVY, "pandas")),
    "the trainer's contract": (["buttress.training.trainable"], (*HEAVY, "pandas")),
    **{f"family {name}": ([f"buttress.trainables.{name}"], HEAVY) for name in FAMILIES},
    "command line": (["buttress.cli.main"], (*HEAVY, "pandas", "pyarrow", "sklearn", "scipy", "matplotlib", "numpy")),
    "mailbox": (["buttress.execution.mailbox"], (*HEAVY, "pydantic", "numpy", "pandas")),  # a process per sweep
    "Tune's trial actor": (["buttress.execution.tune_adapter"], ("torch", "optuna", "wandb")),  # a process per slot
    "callbacks": (["buttress.callbacks.wandb", "buttress.callbacks.progress"], (*HEAVY, "pandas")),
}


@pytest.mark.parametrize("package", FRESH)
def test_a_fresh_import_brings_nothing_heavy(package: str) -> None:
    names, forbidden = FRESH[package]
    code = f"import sys, {', '.join(names)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(set(forbidden) & set(done.stdout.split())) == []


def test_every_family_is_there() -> None:
    assert {"lithology", "occupancy", "radio", "rainfall"} <= set(FAMILIES)
