"""What the occupancy rules see of each loss of the original, and whom they kill: the table in the family's README.

    python -m benchmarks.occupancy_controls                                  # every recipe, quick profile, two epochs
    python -m benchmarks.occupancy_controls --recipes head,lovasz --seed 7 --epochs 5 --set train.lr=3e-4
    python -m benchmarks.occupancy_controls --recipes wbce10_dice --set data.target=plane --set train.clip=null

Prints a Markdown table; with `--curve`, every reading too. Trials run to their end also when a rule would have killed
them, so that a wrong kill shows: its row says what the trial became.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import yaml

from buttress.rules import RuleEngine, RuleSet
from buttress.spec.config_paths import nested
from buttress.spec.spec import SweepSpec
from buttress.trainables.occupancy.config import RECIPES, Config
from buttress.trainables.occupancy.train import Occupancy
from buttress.training.registry import rules_file
from buttress.training.reporting import Reporter
from buttress.training.trainable import Reported
from buttress.training.world import World


class Kept:
    """A sink that keeps everything and stops nothing."""

    stop = False

    def __init__(self) -> None:
        self.reports: list[Reported] = []

    def send(self, reported: Reported) -> None:
        self.reports.append(reported)


def trial(config: Config) -> tuple[list[Reported], float]:
    """All reports of one trial, and the processor seconds of its steps and validations."""
    kept, family = Kept(), Occupancy()
    with tempfile.TemporaryDirectory() as folder:
        world = World.single(Path(folder), seed=config.buttress.seed)
        began = time.process_time()
        with Reporter(world, family.schedule(config), kept) as report:
            family.train(config, world, report, None)
    return kept.reports, time.process_time() - began


def judged(reports: list[Reported], epochs: int, rules: str) -> str:
    """`full at step 175, +0.24` of the kill, or the warnings, or `lives`."""
    path = rules_file(rules)
    assert path is not None
    engine = RuleEngine(RuleSet.load(path), budget_epochs=epochs)
    for one in reports:
        age = {"full_beta_epochs": one.full_beta_epochs, "full_beta_steps": one.full_beta_steps}
        verdict = engine.update(
            one.metrics, epoch=one.epoch, step=one.step, **age, nonfinite=one.nonfinite, closing=one.closing
        )
        if verdict.final:
            return f"{verdict.kind} at step {one.step}, {verdict.margin:+.2f}"
    warned = sorted({warning.rule for warning in engine.warnings})
    return "lives" + (f"; warned: {', '.join(warned)}" if warned else "")


def reading(one: Reported) -> str:
    m = one.metrics
    return f"{m['occ/mean_ratio']:.3g}, {m['occ/fill']:.3g}, {m['occ/sep']:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="config.<path>")
    parser.add_argument("--curve", action="store_true", help="print every reading")
    given = parser.parse_args()

    spec = SweepSpec.load(Path(__file__).parents[1] / "search_spaces/occupancy.yaml", profile="quick")
    groups = nested(dict(spec.fixed))
    groups["data"] = dict(spec.data)
    groups["train"] |= {"lr": 1e-3}
    groups["buttress"] |= {"seed": given.seed}
    for text in given.set:
        path, _, value = text.partition("=")
        group, _, name = path.partition(".")
        groups.setdefault(group, {})[name] = yaml.safe_load(value)
    groups["train"]["epochs"] = given.epochs
    heads = "step 50: mean / r, fill, sep | 100 | 225 | end: fill, sep | AP | best IoU | at a threshold | by ranking"
    print(f"| loss | {heads} | ms a step |")
    print("| --- | --- | --- | --- | --- | --: | --: | --- | --- | --: |")
    for recipe in given.recipes.split(","):
        config = Config.recipe(recipe, **groups)
        reports, seconds = trial(config)
        by_step = {one.step: one for one in reports}
        last = reports[-1]
        cells = [reading(by_step[step]) if step in by_step else "-" for step in (50, 100, 225)]
        end = f"{last.metrics['occ/fill']:.3g}, {last.metrics['occ/sep']:.3g}"
        scores = f"{last.metrics['val/average_precision']:.4f} | {last.metrics['val/best_iou']:.4f}"
        verdicts = [judged(reports, given.epochs, rules) for rules in ("occupancy/threshold", "occupancy")]
        verdict, cost = " | ".join(verdicts), 1000 * seconds / last.step
        print(f"| {recipe} | {' | '.join(cells)} | {end} | {scores} | {verdict} | {cost:.0f} |", flush=True)
        if given.curve:
            for one in reports:
                print(f"    {one.step:5d}  {reading(one)}  recall {one.metrics['occ/recall']:.3f}", flush=True)


if __name__ == "__main__":
    main()
