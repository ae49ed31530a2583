"""Sweeps without Ray for the tests: a toy family, a spec, a state that writes to a list, and worlds to report from."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from journal_lines import Line

from buttress.journal import Event
from buttress.rules import RuleSet
from buttress.spec import validation
from buttress.spec.spec import SweepSpec
from buttress.sweep.state import SweepState
from buttress.training.trainable import Buttress, Metric, Reported, Schedule, Section


class Loss(Section):
    beta: float = 1.0
    warmup_epochs: int = 0


class Train(Section):
    epochs: int = 8
    lr: float = 0.1


class ToyConfig(Section):
    loss: Loss = Loss()
    train: Train = Train()
    buttress: Buttress = Buttress()


class Toy:
    name = "toy"
    Config = ToyConfig
    metrics = {"val/score": Metric("max"), "val/loss": Metric("min", weighted_by=("loss.beta",))}

    def schedule(self, config: ToyConfig) -> Schedule:
        return Schedule(epochs=config.train.epochs, full_at_epoch=config.loss.warmup_epochs)


RULES = RuleSet.from_dict(
    {
        "rules": {
            "posterior_collapse": {
                "action": "kill",
                "signs": [{"metric": "latent/kl_total", "below": 0.5}],
                "grace": {"epochs": 0, "steps": 1},
                "patience": 2,
            },
            "diverged": {
                "action": "kill",
                "kind": "diverged",
                "signs": [{"metric": "train/nonfinite", "above": 0.5}],
                "grace": {"before_full_beta": True},
                "patience": 1,
            },
        }
    }
)


def spec(checked: bool = True, **changes: Any) -> SweepSpec:
    tree: dict[str, Any] = {
        "name": "toy",
        "trainable": "toy",
        "seed": 3,
        "search": {"loss.beta": {"loguniform": [0.01, 100.0]}, "loss.warmup_epochs": {"int": [0, 2]}},
        "require": ["config.loss.beta * config.loss.warmup_epochs < 120"],
        "objectives": [{"metric": "val/score"}],
        "scheduler": {"kind": "asha", "first": 2, "factor": 2},
        "budget": {"trials": 16},
    }
    made = SweepSpec.from_dict({**tree, **changes})
    if checked:
        return validation.check(made, Toy())
    return made


def state(made: SweepSpec | None = None, lines: list[Line] | None = None, rules: RuleSet = RULES) -> SweepState:
    """A state that writes its lines, as JSON would have them, to the list `lines`."""
    written = lines if lines is not None else []

    def write(event: Event) -> None:
        written.append(json.loads(json.dumps(event.to_line())))

    return SweepState(made or spec(), Toy(), rules, write)


@dataclass
class World:
    """What a toy trial reports: a pure function of its parameters and the epoch, so that it can be run again."""

    health: int = 2  # health reports inside an epoch

    def reports(self, config: dict[str, Any], from_epoch: int = 0) -> Iterator[Reported]:
        beta, warmup, epochs = config["loss"]["beta"], config["loss"]["warmup_epochs"], config["train"]["epochs"]
        noise = random.Random(str((beta, warmup)))
        score = 1.0 / (1.0 + beta) + 0.05 * noise.random()
        for epoch in range(from_epoch, epochs):
            full = max(0, epoch + 1 - warmup)
            kl = 1.0 / beta if full else 5.0
            nonfinite = 1.0 if beta < 0.04 and epoch >= 1 else 0.0
            for part in range(1, self.health + 2):
                step = epoch * 10 * (self.health + 1) + part * 10
                ends = part == self.health + 1
                metrics = {"latent/kl_total": kl, "train/nonfinite": nonfinite}
                if ends:
                    metrics["val/score"] = score * (1 - 0.5 ** (epoch + 1))
                yield Reported(
                    epoch=epoch + ends,
                    step=step,
                    full_beta_epochs=full if ends else max(0, full - 1),
                    full_beta_steps=max(0, step - warmup * 10 * (self.health + 1)),
                    phase=0,
                    metrics=metrics,
                    checkpoint=f"checkpoints/{epoch + 1:06d}.pt" if ends else None,
                    seconds=step / 100,
                )


def drive(sweep: SweepState, world: World | None = None, reports: int | None = None) -> int:
    """Runs the sweep with one slot until its budget is spent, or until `reports` reports have been made."""
    world, made = world or World(), 0
    while (live := sweep.next_trial()) is not None:
        source = live.resume_point
        sweep.started(live.id, "slot-0")
        done = next(r.epoch for r in live.evaluation.reports if r.seq == source.seq) if source else 0
        for reported in world.reports(live.config, from_epoch=done):
            if reports is not None and made >= reports:
                return made
            made += 1
            if sweep.reported(live.id, live.attempt, reported) is not None:
                break
        else:
            sweep.finished(live.id, live.attempt)
    return made
