"""What one training run leaves in its folder: `history.json` with every report, the last and the best checkpoint."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from buttress.training.trainable import Metric, Reported


class History:
    """The sink of a run outside a sweep. `objective` names the metric whose best valid epoch counts.

    A valid epoch ran at full beta and reported no value that is not finite on any rank. `tell` is called with each
    report (to print progress).
    """

    stop = False
    WRITE_EVERY = 5.0  # seconds

    def __init__(
        self,
        folder: Path,
        metrics: Mapping[str, Metric],
        objective: str = "",
        tell: Callable[[Reported, bool], None] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.metrics, self.objective, self.tell = folder, metrics, objective, tell
        self.about = dict(about or {})
        self.reports: list[dict[str, Any]] = []
        self.best: Reported | None = None
        self.last: Reported | None = None
        self._kept: set[str] = set()  # checkpoints
        self._written = 0.0
        folder.mkdir(parents=True, exist_ok=True)

    def send(self, reported: Reported) -> None:
        self.reports.append(asdict(reported))
        better = self._improves(reported)
        if better:
            self.best = reported
        self._keep_checkpoint(reported)
        self.last = reported
        if self.tell is not None:
            self.tell(reported, better)
        if time.monotonic() - self._written > self.WRITE_EVERY:
            self.write()

    def _improves(self, reported: Reported) -> bool:
        value = reported.metrics.get(self.objective, math.nan)
        if math.isnan(value) or reported.nonfinite or reported.full_beta_epochs < 1:
            return False
        if self.best is None:
            return True
        known = self.metrics.get(self.objective)
        before = self.best.metrics[self.objective]
        return value > before if known and known.direction == "max" else value < before

    def _keep_checkpoint(self, reported: Reported) -> None:
        if reported.checkpoint is None:
            return
        self._kept.add(reported.checkpoint)
        wanted = {reported.checkpoint, self.best.checkpoint if self.best else None}
        for name in self._kept - wanted:
            (self.folder / name).unlink(missing_ok=True)
        self._kept &= wanted

    def write(self) -> None:
        """`history.json`, whole or not at all; what is not a number stands as null."""
        path = self.folder / "history.json"
        part = path.with_suffix(".part")
        best = None if self.best is None else {"epoch": self.best.epoch, "checkpoint": self.best.checkpoint}
        content = {**self.about, "objective": self.objective, "best": best, "reports": self.reports}
        part.write_text(json.dumps(_plain(content), allow_nan=False))
        part.replace(path)
        self._written = time.monotonic()

    def summary(self) -> dict[str, Any]:
        """`metrics` of the best valid epoch (of the last report where no epoch counts), its `epoch`, `seconds`."""
        shown = self.best or self.last
        if shown is None:
            return {"metrics": {}, "epoch": None, "seconds": 0.0, "folder": str(self.folder)}
        seconds = self.last.seconds if self.last else 0.0
        metrics = _plain({name: value for name, value in shown.metrics.items() if name in self.metrics})
        return {"metrics": metrics, "epoch": shown.epoch, "seconds": seconds, "folder": str(self.folder)}


def progress(reported: Reported, better: bool, *, epochs: int, objective: str) -> str | None:
    """One line per epoch; None for a report from inside one."""
    if objective and objective not in reported.metrics and not reported.closing:
        return None
    shown = [objective, "train/loss", "latent/kl_total", "latent/active_kl", "train/beta"]
    values = [f"{name} {reported.metrics[name]:.4g}" for name in shown if name in reported.metrics]
    notes = [
        note
        for note in (reported.note, f"not finite: {', '.join(reported.nonfinite)}" if reported.nonfinite else "")
        if note
    ]
    parts = [f"epoch {reported.epoch}/{epochs}", f"step {reported.step}", *values, f"{reported.seconds:.1f} s", *notes]
    return "  ".join(parts) + ("  *" if better else "")


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, type(None))) else str(value)
