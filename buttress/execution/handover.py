"""Trains one config under its family's rules.

`train_config` runs a config as a sweep would (same seeds, threads and worker count, same rules), so that an exported
config gives its trial's figures again, bit for bit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from buttress import journal
from buttress.callbacks.checkpoint_retention import Checkpoints, LocalFiles
from buttress.errors import BadInput
from buttress.execution.setup import family_rules
from buttress.rules.schema import RuleSet
from buttress.sweep.evaluation import Judged, Line
from buttress.training.checkpoints import weights_of
from buttress.training.trainable import Reported, Trainable
from buttress.wording import number


def train_config(path: Path, folder: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Trains the config in `path` to its end, under its family's rules; writes model.pt, history.json, checkpoints.

    Returns `{"metrics", "epoch", "seconds", "folder"}` of the best valid epoch. A run that collapses is stopped, and
    raises `Collapsed` with the reason.
    """
    import torch

    from buttress.training.local_run import read_config, train

    trainable, config = read_config(path, overrides)
    began = time.monotonic()
    objective = config.buttress.objective or next(iter(trainable.metrics))
    if objective not in trainable.metrics:
        accepted = ", ".join(trainable.metrics)
        raise BadInput("no such metric", where=path, key="buttress.objective", value=objective, accepted=accepted)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"the folder cannot be made ({error.strerror})", where=folder, key="--out") from None
    sink = Solo(folder, family_rules(config.buttress.trainable), trainable, config, objective)
    train(config, trainable, folder, sink=sink)
    result = sink.result(time.monotonic() - began)
    if (best := sink.judged.best) is not None and best["checkpoint"]:
        torch.save(weights_of(trainable, folder / best["checkpoint"]), folder / "model.pt")
    if sink.stop:
        verdict = sink.judged.verdict
        why = "; ".join(evidence.sentence() for evidence in verdict.evidence) if verdict else ""
        raise Collapsed(f"the run {verdict.state if verdict else 'collapsed'} and was stopped: {why}")
    return result


class Collapsed(Exception):
    """A single training run collapsed (exit code 1)."""

    exit_code = 1


class Solo:
    """The sink of a single training: judges every report as a sweep would, keeps what a sweep would keep."""

    def __init__(
        self, folder: Path, rules: RuleSet, trainable: Trainable[Any], config: Any, objective: str
    ) -> None:
        self.stop = False
        direction = trainable.metrics[objective].direction
        epochs = trainable.schedule(config).epochs
        self.judged = Judged(rules, [objective], direction, epochs)
        self._folder, self._objective, self._epochs = folder, objective, epochs
        self._about = {"trainable": trainable.name, "config": config.model_dump(mode="json"), "objective": objective}
        self._checkpoints = Checkpoints(LocalFiles(folder.parent), objective, direction)

    def send(self, reported: Reported) -> None:
        line = journal.report("train", 1, len(self.judged.reports), reported)
        verdict = self.judged.take_in(line)
        if reported.checkpoint:
            self._checkpoints.reported(self._folder.name, self.judged.reports, self.judged.best)
        self.stop = verdict.state in ("collapsed", "diverged")
        if self.stop or self._objective in reported.metrics:
            self._show(line)

    def _show(self, line: Line) -> None:
        metrics = line["metrics"]
        parts = [f"epoch {line['epoch']}/{self._epochs}"]
        names = (self._objective, "train/loss", "latent/kl_total", "latent/active_kl")
        parts += [f"{name} {number(metrics[name])}" for name in names if metrics.get(name) is not None]
        parts += ["best so far"] if self.judged.best is line else []
        parts += [line["state"]] if line["state"] != "healthy" else []
        print("  ".join(parts), flush=True)

    def result(self, seconds: float) -> dict[str, Any]:
        """Writes history.json; what `buttress train --json` prints."""
        best = self.judged.best
        found = {
            "metrics": journal.plain(best["metrics"]) if best else {},
            "epoch": best["epoch"] if best else None,
            "seconds": round(seconds, 3),
            "folder": str(self._folder),
        }
        content = {**self._about, "best": found, "reports": self.judged.reports}
        (self._folder / "history.json").write_text(json.dumps(journal.plain(content)))
        return found
