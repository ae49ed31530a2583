"""What the lithology family's rules see at each canonical beta, and whom they kill: the table in the family's README.

    python -m benchmarks.lithology_thresholds                                # small synthetic table, 18 epochs
    python -m benchmarks.lithology_thresholds --size full --epochs 4
    python -m benchmarks.lithology_thresholds --force ../shared/data/lithology/force2020_wells.csv --epochs 40
    python -m benchmarks.lithology_thresholds --lr 3e-4 --set model.batch_norm=false --set loss.anneal=linear

Prints a Markdown table; with `--json`, a list of rows as the last line. Trials run to their end also when a rule would
have killed them, so that a wrong kill shows: its row says what the trial became.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import yaml

from buttress.rules import RuleEngine, RuleSet
from buttress.trainables.lithology.config import Config
from buttress.trainables.lithology.train import Lithology
from buttress.training.registry import rules_file
from buttress.training.reporting import Reporter
from buttress.training.trainable import Reported
from buttress.training.world import World

BETAS = (0.05, 0.5, 1, 2, 3, 4, 5, 6, 7, 8, 12, 30)


class Kept:
    """A sink that keeps everything and stops nothing."""

    stop = False

    def __init__(self) -> None:
        self.reports: list[Reported] = []

    def send(self, reported: Reported) -> None:
        self.reports.append(reported)


def trial(groups: dict[str, dict[str, Any]]) -> list[Reported]:
    """All reports of one trial."""
    config, kept, family = Config.model_validate(groups), Kept(), Lithology()
    with tempfile.TemporaryDirectory() as folder:
        world = World.single(Path(folder), seed=config.buttress.seed)
        with Reporter(world, family.schedule(config), kept) as report:
            family.train(config, world, report, None)
    return kept.reports


def judged(reports: list[Reported], epochs: int) -> str:
    """`step 400, 0.62 decades` of the kill, or `-`."""
    path = rules_file("lithology")
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
            return f"{verdict.rule} at step {one.step} (epoch {one.epoch}), {verdict.margin:.2f}"
    return "-" if not engine.warnings else "warned: " + ", ".join(sorted({warning.rule for warning in engine.warnings}))


def row(beta: float, reports: list[Reported], epochs: int) -> dict[str, Any]:
    last = reports[-1]
    early = next(one for one in reports if "latent/kl_total" in one.metrics and one.step >= min(300, last.step))
    return {
        "beta_canonical": beta,
        "kl_early": early.metrics["latent/kl_total"],
        "kl": last.metrics["latent/kl_total"],
        "active_kl": int(last.metrics["latent/active_kl"]),
        "recon": last.metrics["val/recon"],
        "ablation": last.metrics["ablation/relative"],
        "ari": last.metrics.get("val/ari"),
        "steps": last.step,
        "verdict": judged(reports, epochs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", help="of the synthetic table")
    parser.add_argument("--force", help="the FORCE 2020 table instead")
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--betas", default=",".join(map(str, BETAS)))
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="config.<path>")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()

    rows = []
    print("| canonical beta | KL at step 300 | KL | active | recon | relative ablation | ARI | verdict |")
    print("| " + "--: | " * 7 + "-- |")
    for beta in map(float, given.betas.split(",")):
        groups: dict[str, dict[str, Any]] = {
            "data": {"size": given.size},
            "loss": {"beta": beta, "units": "canonical", "reduction": "sample"},
            "train": {"epochs": given.epochs, "lr": given.lr},
            "buttress": {"ari_every": 10_000, "ari_rows": 3000, "report_every": 50},
        }
        if given.force:
            groups["data"] = {"kind": "files", "path": given.force, "layout": "force2020"}
        for text in given.set:
            path, _, value = text.partition("=")
            group, _, name = path.partition(".")
            groups.setdefault(group, {})[name] = yaml.safe_load(value)
        one = row(beta, trial(groups), given.epochs)
        rows.append(one)
        ari = "-" if one["ari"] is None else f"{one['ari']:.3f}"
        print(
            f"| {beta:g} | {one['kl_early']:.3f} | {one['kl']:.4f} | {one['active_kl']} | {one['recon']:.3f} "
            f"| {one['ablation']:.3f} | {ari} | {one['verdict']} |",
            flush=True,
        )
    if given.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
