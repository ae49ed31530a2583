"""What the rainfall family's rules see at each beta, and whom they kill: the table in the family's README.

    python -m benchmarks.rainfall_thresholds                                  # quick model, small synthetic data
    python -m benchmarks.rainfall_thresholds --variants intensity --betas 1,10 --seeds 1,2,3,4,5
    python -m benchmarks.rainfall_thresholds --set loss.warmup_epochs=1 --set train.epochs=20

Prints a Markdown table; with `--json`, a list of rows as the last line. Trials run to their end also when a rule would
have killed them, so that a wrong kill shows: its row says what the trial became. `kill` counts epochs past full beta.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import yaml

from buttress.rules import RuleEngine, RuleSet
from buttress.trainables.rainfall.config import Config
from buttress.trainables.rainfall.train import Rainfall
from buttress.training.registry import rules_file
from buttress.training.reporting import Reporter
from buttress.training.trainable import Reported
from buttress.training.world import World

#: The quick profile's model and budget, without early stopping.
QUICK: dict[str, dict[str, Any]] = {
    "data": {"size": "small"},
    "model": {"d_x": 32, "d_y": 64, "d_z": 16, "base_filters": 8, "fc": 128, "head": 64, "pool": 4, "dropout": 0.0,
              "inject": "all"},
    "loss": {"warmup_epochs": 4, "lambda_ext": 2.0},
    "train": {"epochs": 16, "batch_size": 16, "lr": 1e-3, "early_stopping_patience": None},
    "buttress": {"eval_days": 120, "report_every": 20},
}  # fmt: skip
SHOWN = {
    "KL": "latent/kl_total",
    "ablation": "ablation/relative",
    "diversity": "prior/diversity",
    "MAE_tail": "prior/mae_tail",
    "CRPS": "prior/crps",
    "correlation": "prior/correlation",
    "dry ratio": "prior/dry_ratio",
    "posterior MAE_all": "posterior/mae_all",
}


class Kept:
    """A sink that keeps everything and stops nothing."""

    stop = False

    def __init__(self) -> None:
        self.reports: list[Reported] = []

    def send(self, reported: Reported) -> None:
        self.reports.append(reported)


def trial(groups: dict[str, dict[str, Any]]) -> tuple[Config, list[Reported]]:
    """All reports of one trial: QUICK, changed by `groups`."""
    merged = {name: {**QUICK.get(name, {}), **groups.get(name, {})} for name in {*QUICK, *groups}}
    config, kept, family = Config.model_validate(merged), Kept(), Rainfall()
    with tempfile.TemporaryDirectory() as folder:
        world = World.single(Path(folder), seed=config.buttress.seed)
        with Reporter(world, family.schedule(config), kept) as report:
            family.train(config, world, report, None)
    return config, kept.reports


def judged(reports: list[Reported], epochs: int) -> dict[str, Any]:
    """What the family's rules say: `kind`, `margin`, `epoch` and `age` (past full beta) of the kill; warnings."""
    path = rules_file("rainfall")
    assert path is not None
    engine = RuleEngine(RuleSet.load(path), budget_epochs=epochs)
    for one in reports:
        verdict = engine.update(
            one.metrics,
            epoch=one.epoch,
            step=one.step,
            full_beta_epochs=one.full_beta_epochs,
            full_beta_steps=one.full_beta_steps,
            nonfinite=one.nonfinite,
            closing=one.closing,
        )
        if verdict.final:
            break
    found: dict[str, Any] = {"kind": None, "warnings": sorted({warning.rule for warning in engine.warnings})}
    if verdict.final:
        found |= {"kind": verdict.kind, "margin": verdict.margin, "epoch": one.epoch, "age": one.full_beta_epochs}
        found |= {"share": one.epoch / epochs, "message": verdict.message}
    return found


def words(found: dict[str, Any], epochs: int) -> str:
    if found["kind"]:
        return f"{found['kind']}, {found['age']} past full beta ({found['epoch']} of {epochs}), {found['margin']:.2f}"
    return "warned: " + ", ".join(found["warnings"]) if found["warnings"] else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default="per_sample,intensity")
    parser.add_argument("--betas", default="0.01,0.1,0.3,1,3,10,30")
    parser.add_argument("--seeds", default="42")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="config.<path>")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()

    rows = []
    print("| loss | beta | seed | " + " | ".join(SHOWN) + " | verdict |")
    print("| -- |" + " --: |" * (2 + len(SHOWN)) + " -- |")
    for variant in given.variants.split(","):
        for beta in map(float, given.betas.split(",")):
            for seed in map(int, given.seeds.split(",")):
                groups: dict[str, dict[str, Any]] = {name: dict(values) for name, values in QUICK.items()}
                groups["loss"] |= {"reconstruction": variant, "beta_kl": beta}
                groups["buttress"]["seed"] = seed
                for text in given.set:
                    path, _, value = text.partition("=")
                    group, _, name = path.partition(".")
                    groups.setdefault(group, {})[name] = yaml.safe_load(value)
                config, reports = trial(groups)
                found, last = judged(reports, config.train.epochs), reports[-1].metrics
                values = {name: last.get(key, float("nan")) for name, key in SHOWN.items()}
                rows.append({"loss": variant, "beta": beta, "seed": seed, **values, "verdict": found})
                cells = " | ".join(f"{value:.3g}" for value in values.values())
                print(f"| {variant} | {beta:g} | {seed} | {cells} | {words(found, config.train.epochs)} |", flush=True)
    if given.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
