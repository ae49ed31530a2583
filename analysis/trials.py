"""The trials of a sweep as Python objects, read from its journal when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buttress import journal
from buttress.analysis import selection
from buttress.analysis import table as tables
from buttress.errors import BadInput
from buttress.wording import number, plural

if TYPE_CHECKING:
    import pandas as pd

    from buttress.analysis.explanation import Explanation
    from buttress.analysis.results import Sweep

#: Rows of a trial table that a notebook shows.
MAX_ROWS_SHOWN = 60


class Trials:
    """The trials of a sweep in the order of their numbers.

    Example:
        >>> sweep.trials[7].outcome, sweep.trials["0007"].kind                          # doctest: +SKIP
        >>> [trial.id for trial in sweep.trials if trial.outcome == "collapsed"]        # doctest: +SKIP
    """

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep

    def __getitem__(self, trial: int | str) -> Trial:
        return Trial(self._sweep, self._sweep.journal.trial(str(trial)).id)

    def __iter__(self) -> Iterator[Trial]:
        return (Trial(self._sweep, id) for id in sorted(self._sweep.journal.trials))

    def __len__(self) -> int:
        return len(self._sweep.journal.trials)

    def __contains__(self, trial: object) -> bool:
        try:
            self._sweep.journal.trial(str(trial))
        except BadInput:
            return False
        return True

    def __repr__(self) -> str:
        return f"<{plural(len(self), 'trial')} of {self._sweep.name}>"

    def _repr_html_(self) -> str:
        """Outcome, margin, objectives at the best valid epoch and searched values, the best trial first."""
        read = self._sweep.journal
        frame = self._sweep.table()
        paths = [f"config.{path}" for path in tables.searched_paths(read)]
        objectives = [f"metric.{objective.metric}" for objective in read.objectives]
        shown = ["trial", "outcome", "kind", "margin", *objectives, *paths, "epoch", "seconds"]
        drawn = frame[[column for column in shown if column in frame]]
        short = {column: str(column).removeprefix("metric.").removeprefix("config.") for column in drawn}
        left_out = f"<p>{len(frame) - MAX_ROWS_SHOWN} more</p>" if len(frame) > MAX_ROWS_SHOWN else ""
        html: str = (
            drawn.rename(columns=short)
            .head(MAX_ROWS_SHOWN)
            .to_html(index=False, na_rep="", float_format=lambda value: number(value, 4), border=0)
        )
        return html + left_out


class Trial:
    """One trial of a sweep.

    Attributes:
        id: `0007`.

    Example:
        >>> trial = sweep.trials[7]                                                     # doctest: +SKIP
        >>> trial.outcome, trial.kind, trial.margin                                     # doctest: +SKIP
        ('collapsed', 'posterior_collapse', 1.6)
    """

    def __init__(self, sweep: Sweep, id: str) -> None:
        self._sweep, self.id = sweep, id

    @property
    def record(self) -> journal.TrialRecord:
        """Everything that the journal holds of it."""
        return self._sweep.journal.trials[self.id]

    def page(self, output: str | os.PathLike[str] | None = None) -> Path:
        """Writes a page of this trial: why it ended, curves, pictures, config and output.

        Args:
            output: The file; `trial.html` in the trial's folder by default.

        Returns:
            The file.

        Raises:
            BadInput: For a file that cannot be written.

        Example:
            >>> sweep.trials[7].page()                                                  # doctest: +SKIP
            PosixPath('runs/lithology-k3x9qa/trials/0007/trial.html')
        """
        from buttress.analysis.report import trial_page, write_page

        path = Path(output) if output is not None else self._sweep.folder / "trials" / self.id / "trial.html"
        return write_page(trial_page(self._sweep.journal, self.id), path)

    @property
    def number(self) -> int:
        """Its number, 0 for the first."""
        return int(self.id)

    @property
    def outcome(self) -> str:
        """`completed`, `collapsed`, `diverged`, `pruned`, `failed`; `running`, `waiting` or `paused` before its end."""
        return self.record.state

    @property
    def kind(self) -> str | None:
        """What kind of collapse or failure, such as `posterior_collapse`; None for a healthy trial."""
        done = self.record.outcome
        return done.kind if done is not None else None

    @property
    def margin(self) -> float | None:
        """Distance to collapse in decades: negative for a healthy trial, positive beyond the threshold."""
        done = self.record.outcome
        return done.margin if done is not None else None

    @property
    def warnings(self) -> list[str]:
        """Names of the rules that warned of it."""
        return list(self.record.warnings)

    @property
    def params(self) -> dict[str, Any]:
        """The values that were drawn for it, by config path."""
        return dict(self.record.params)

    @property
    def config(self) -> dict[str, Any]:
        """Its whole config, as `export` writes it."""
        from buttress.analysis.export import config_of

        return config_of(self._sweep.journal, self.record)

    @property
    def seed(self) -> int | None:
        return self.record.seed

    @property
    def metrics(self) -> dict[str, float | None]:
        """All metrics at its best valid epoch; empty without one."""
        found = selection.best_epoch(self.record, self._sweep.journal.objectives)
        return dict(found.metrics) if found is not None else {}

    @property
    def best_epoch(self) -> int | None:
        """The epoch of `metrics`; None where no epoch was valid."""
        found = selection.best_epoch(self.record, self._sweep.journal.objectives)
        return found.epoch if found is not None else None

    @property
    def last(self) -> dict[str, float | None]:
        """The newest value of every metric, also of a trial that was stopped."""
        return dict(tables.last_values(self.record))

    @property
    def epochs(self) -> int:
        """Epochs that it has completed."""
        return tables.epochs_run(self.record)[0] or 0

    @property
    def seconds(self) -> float | None:
        """How long it trained; None before its first report."""
        record = self.record
        if record.outcome is not None:
            return record.outcome.seconds
        return record.reports[-1].seconds if record.reports else None

    @property
    def checkpoint(self) -> Path | None:
        """The file of its best valid epoch's checkpoint (fetched from remote storage); None where none was kept."""
        from buttress.analysis.export import find_checkpoint

        return find_checkpoint(self._sweep.journal, self.record)

    def history(self) -> pd.DataFrame:
        """Its reports, one row each, in order.

        Returns:
            Columns `epoch`, `step`, `full_beta_epochs`, `seconds` (since training began), `state` (by the rules),
            `valid` (whether the epoch may be the best one), then every reported metric; NaN where it is missing.

        Example:
            >>> sweep.trials[7].history().plot(x="step", y="latent/kl_total")           # doctest: +SKIP
        """
        import pandas as pd

        fixed = ("epoch", "step", "full_beta_epochs", "seconds", "state", "valid")
        reports = self.record.reports
        rows = [{**{name: getattr(report, name) for name in fixed}, **report.metrics} for report in reports]
        metrics = sorted({name for report in reports for name in report.metrics})
        frame = pd.DataFrame(rows, columns=[*fixed, *metrics])
        return frame.astype(dict.fromkeys(metrics, "float64"))

    def explain(self) -> Explanation:
        """Why it ended as it did; see `Sweep.explain`."""
        return self._sweep.explain(self.id)

    def __repr__(self) -> str:
        first = self._sweep.journal.objectives[0].metric
        value = self.metrics.get(first)
        kind = f" ({self.kind})" if self.kind and self.kind != self.outcome else ""
        return f"<Trial {self.id}: {self.outcome}{kind}{'' if value is None else f', {first} {number(value, 4)}'}>"

    def _repr_html_(self) -> str:
        rows = {"outcome": self.outcome, "kind": self.kind, "margin": number(self.margin), "epochs": self.epochs}
        rows |= {path: number(value, 4) for path, value in self.params.items()}
        rows |= {
            objective.metric: number(self.metrics.get(objective.metric), 4)
            for objective in self._sweep.journal.objectives
        }
        cells = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th><td>{escape(str(value))}</td></tr>"
            for name, value in rows.items() if value is not None
        )  # fmt: skip
        return f"<b>Trial {self.id}</b> of {escape(self._sweep.name)}<table>{cells}</table>"
