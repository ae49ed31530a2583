"""The W&B run of a sweep as a whole: counts of outcomes as trials end, then the table of trials and the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

#: Rows of the table of trials, and bytes of the report, that are logged at most.
MAX_ROWS, MAX_REPORT_BYTES = 10_000, 10_000_000


class SweepRun:
    """Writes the run of one sweep; its step is the number of trials that have ended.

    Args:
        wandb: The module.
        run: The open run.
        folder: The sweep's folder.
        objective: Metric and direction (`min` or `max`) by which a best trial is named.
        earlier: `outcome` lines of the journal that an earlier process of the sweep has logged.
    """

    def __init__(
        self, wandb: Any, run: Any, folder: Path, objective: tuple[str, str], earlier: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        self._wandb, self._run, self._folder = wandb, run, folder
        self._metric, self._sign = objective[0], 1 if objective[1] == "max" else -1
        self._counts: Counter[str] = Counter()
        self._best: float | None = None
        for outcome in earlier:
            self._count(outcome)

    def outcome(self, outcome: Mapping[str, Any]) -> None:
        """A trial has ended, as the journal's `outcome` line says."""
        self._count(outcome)
        row: dict[str, Any] = {f"trials/{name}": count for name, count in self._counts.items()}
        if self._best is not None:
            row[f"best/{self._metric}"] = self._best
        self._run.log(row, step=sum(self._counts.values()))

    def close(self) -> None:
        """Logs the table of trials and the report, if there is one, and finishes the run."""
        from buttress.analysis.results import Sweep

        ended = sum(self._counts.values())
        if rows := Sweep(self._folder).rows()[:MAX_ROWS]:
            data = [[_cell(value) for value in row.values()] for row in rows]
            table = self._wandb.Table(columns=[*rows[0]], data=data, allow_mixed_types=True)
            self._run.log({"trials/table": table}, step=ended)
        report = self._folder / "report.html"
        if report.is_file() and report.stat().st_size <= MAX_REPORT_BYTES:
            self._run.log({"report": self._wandb.Html(str(report))}, step=ended)
        self._run.summary.update({f"trials/{name}": count for name, count in self._counts.items()})
        if self._best is not None:
            self._run.summary.update({f"best/{self._metric}": self._best})
        self._run.finish(exit_code=0)

    def _count(self, outcome: Mapping[str, Any]) -> None:
        self._counts[outcome["outcome"]] += 1
        value = ((outcome.get("best") or {}).get("metrics") or {}).get(self._metric)
        better = value is not None and (self._best is None or self._sign * value > self._sign * self._best)
        if outcome["outcome"] == "completed" and better:
            self._best = value


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
