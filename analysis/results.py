"""A sweep as a Python object: what `buttress.run` and `buttress.load` return.

Everything is read from the sweep's journal when it is asked for: a sweep that still runs shows its newest state.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buttress import journal
from buttress.analysis import selection
from buttress.analysis import table as tables
from buttress.analysis.trials import MAX_ROWS_SHOWN, Trial, Trials
from buttress.errors import BadInput
from buttress.journal.requests import Ending, Request, Requests, asker
from buttress.storage import Storage, first_line
from buttress.wording import number, plural

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from buttress.analysis.explanation import Explanation
    from buttress.spec.spec import SweepSpec

#: Seconds that an answer of a sweep's driver is waited for.
ANSWER_TIMEOUT_S = 30.0


class Sweep:
    """One sweep, running or ended.

    Attributes:
        name: Its id, such as `lithology-k3x9qa`.
        folder: The local folder of its journal (of a sweep on remote storage: a copy).
        where: What a person calls it by: its folder as it was given, or its URL.
        note: Which sweep was chosen where several fit the name it was loaded by, else None.

    Example:
        >>> sweep = buttress.load("lithology")                                          # doctest: +SKIP
        >>> sweep.table()[["trial", "outcome", "metric.val/ari"]].head()                # doctest: +SKIP
        >>> sweep.best.params, sweep.best.metrics["val/ari"]                            # doctest: +SKIP
    """

    def __init__(self, folder: str | os.PathLike[str], *, where: str | None = None, note: str | None = None) -> None:
        self.folder = Path(folder).absolute()
        self.where, self.note = where or str(folder), note
        self._remote = "://" in self.where
        self._version: tuple[int, int, bool] | None = None
        self._journal: journal.Journal | None = None
        self.name: str = self.journal.header.sweep

    @property
    def journal(self) -> journal.Journal:
        """Everything that the journal holds; of a local sweep it is read again when it has changed."""
        if self._journal is None or not self._remote:
            path = self.folder / journal.FILE
            alive = journal.owner(path) is not None
            stat = path.stat() if path.is_file() else None
            version = (stat.st_size, stat.st_mtime_ns, alive) if stat is not None else None
            if self._journal is None or version != self._version:
                self._journal, self._version = journal.read(path, alive=alive), version
        return self._journal

    def refresh(self) -> Sweep:
        """Fetches the journal of a sweep on remote storage again; a local one is always current.

        Returns:
            This sweep.

        Example:
            >>> buttress.load("s3://bucket/sweeps/lithology-k3x9qa").refresh().counts   # doctest: +SKIP
        """
        if self._remote:
            self.folder, self._journal = journal.find(self.where).path.parent, None
        return self

    @property
    def status(self) -> str:
        """`running`; why it ended (`budget spent`, `interrupted`, ...); or `killed`, when its driver is gone."""
        read = self.journal
        if self._version is not None and self._version[2]:
            return "running"
        return read.ended.reason if read.ended is not None else "killed"

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C (or a kill) ended it before its budget was spent: `buttress.resume(sweep)` goes on with it."""
        return self.status in ("interrupted", "killed")

    @property
    def counts(self) -> dict[str, int]:
        """How many trials ended as what; `running`, `waiting` and `paused` count those that have not ended."""
        return self.journal.counts()

    @property
    def spec(self) -> SweepSpec:
        """The spec it was started with, profile and overrides applied."""
        from buttress.spec.spec import SweepSpec

        header = self.journal.header
        return SweepSpec.from_dict(header.spec, where=self.where, module_folders=header.module_folders)

    @property
    def objectives(self) -> dict[str, str]:
        """What it optimises: metric to direction (`min` or `max`), the one that decides first."""
        return {objective.metric: objective.direction for objective in self.journal.objectives}

    @property
    def trials(self) -> Trials:
        """Its trials, by number (`sweep.trials[7]`) or id (`sweep.trials["0007"]`); iterating gives all of them."""
        return Trials(self)

    @property
    def best(self) -> Trial | None:
        """The completed trial with the best valid epoch by the first objective; None without a healthy trial."""
        record = selection.best_trial(self.journal)
        return Trial(self, record.id) if record is not None else None

    @property
    def pareto(self) -> list[Trial]:
        """The healthy trials that no other healthy one beats in every objective, best by the first objective first."""
        return [Trial(self, record.id) for record in selection.pareto_front(self.journal)]

    def table(self, *, where: Iterable[str] | str = (), sort: str | None = None, all: bool = False) -> pd.DataFrame:
        """The trial table, one row a trial.

        Args:
            where: Conditions that rows must meet, such as `"outcome=collapsed"` or `"loss.beta>1"`.
            sort: A column to sort by (`"-margin"`: descending). By default the best completed trial comes first, and
                stopped ones follow by margin.
            all: Every value of the config, not only the searched ones.

        Returns:
            Columns `trial`, `outcome`, `kind`, `margin` (decades beyond the threshold; negative: healthy), `warnings`,
            `epoch`, `step`, `epochs_saved`, `seconds`, `seed`, then `config.<path>` (searched values),
            `metric.<name>` (at the best valid epoch) and `last.<name>` (newest values). Missing values are NaN or None.

        Raises:
            BadInput: For a condition or a column that does not exist.

        Example:
            >>> sweep.table(where=["outcome=collapsed", "loss.beta>1"])                 # doctest: +SKIP
        """
        everything = tables.rows(self.journal, all=all)
        columns = list(everything[0]) if everything else tables.FIXED_COLUMNS
        return tables.data_frame(self._selected(everything, where, sort), columns)

    def rows(
        self, *, where: Iterable[str] | str = (), sort: str | None = None, all: bool = False
    ) -> list[dict[str, Any]]:
        """`table` as JSON-able rows: what is missing is None."""
        return self._selected(tables.rows(self.journal, all=all), where, sort)

    def _selected(self, table: list[tables.Row], where: Iterable[str] | str, sort: str | None) -> list[tables.Row]:
        conditions = [where] if isinstance(where, str) else where
        return tables.sort_rows(tables.filter_rows(table, conditions), sort, self.journal)

    def explain(self, trial: int | str) -> Explanation:
        """Why a trial ended as it did: the rule, its values and thresholds, and what was saved.

        Args:
            trial: Its number or id.

        Returns:
            Text, which `print` and a notebook show; `.to_dict()` gives its sections.

        Raises:
            BadInput: For a trial that the sweep does not have.

        Example:
            >>> print(sweep.explain(7))                                                 # doctest: +SKIP
        """
        from buttress.analysis.explanation import explain

        return explain(self.journal, str(trial))

    def plot(self, name: str, *, trial: int | str | None = None) -> Figure:
        """Draws a figure of the sweep, or of one of its trials.

        Args:
            name: `history`, `slices`, `parallel`, `contour`, `importance`, `collapse`, `pareto`, `health`, `rungs` or
                `timeline`; `trial` or `kl` of one trial.
            trial: Number or id of the trial, for `trial` and `kl`.

        Returns:
            A Matplotlib figure, which a notebook shows; `figure.savefig("history.svg")` writes it.

        Raises:
            BadInput: For an unknown figure or trial, and for one that this sweep cannot have.

        Example:
            >>> sweep.plot("collapse")                                                  # doctest: +SKIP
        """
        from buttress.analysis.figures import figure

        return figure(self.journal, name, None if trial is None else str(trial))

    def report(self, output: str | os.PathLike[str] | None = None) -> Path:
        """Writes the whole sweep as one self-contained HTML page.

        Args:
            output: The file; `report.html` in the sweep's folder by default. Of a sweep that still runs the page loads
                itself again every minute (`run --report` writes it as often).

        Returns:
            The file.

        Raises:
            BadInput: For a file that cannot be written.

        Example:
            >>> sweep.report()                                                          # doctest: +SKIP
            PosixPath('runs/lithology-k3x9qa/report.html')
        """
        from buttress.analysis.report import report, write_page

        path = Path(output) if output is not None else self.folder / "report.html"
        return write_page(report(self.journal, running=self.status == "running"), path)

    def stop(self, trial: int | str | None = None, *, ending: Ending = "stopped") -> str:
        """Ends one trial, or the whole sweep as Ctrl-C does, wherever it runs.

        Args:
            trial: Its number or id; None: the sweep, which `buttress.resume` goes on with.
            ending: `stopped` (never the best), `completed` (its best epoch counts; it needs a valid one) or `failed`.

        Returns:
            What was done, in words; or that the request waits for the next driver, where nobody runs the sweep.

        Raises:
            BadInput: It makes no sense: the trial has ended, say.

        Example:
            >>> sweep.stop(7)                                                           # doctest: +SKIP
            'trial 0007 is stopped'
        """
        return self._ask(Request(verb="stop", trial=self._id(trial), ending=ending, by=asker()))

    def pause(self, trial: int | str | None = None) -> str:
        """A trial leaves its slot with its last checkpoint until `go`; None: all do, and none begins.

        Args:
            trial: Its number or id.

        Returns:
            As of `stop`; so are the errors.
        """
        return self._ask(Request(verb="pause", trial=self._id(trial), by=asker()))

    def go(self, trial: int | str | None = None) -> str:
        """A paused trial, or the paused sweep, goes on.

        Args:
            trial: Its number or id.

        Returns:
            As of `stop`; so are the errors.
        """
        return self._ask(Request(verb="go", trial=self._id(trial), by=asker()))

    def add(self, values: Mapping[str, Any] | None = None, *, trial: int | str | None = None) -> str:
        """Runs a configuration before the sampler's next draw; the sampler hears of it like of any other.

        Args:
            values: Searched parameters by path; those left out are drawn at random.
            trial: Begin from the values of this trial.

        Returns:
            As of `stop`; so are the errors.

        Example:
            >>> sweep.add({"loss.beta": 0.3}, trial=7)                                  # doctest: +SKIP
        """
        base = self.journal.trial(str(trial)).params if trial is not None else {}
        return self._ask(Request(verb="add", values={**base, **dict(values or {})}, by=asker()))

    def _id(self, trial: int | str | None) -> str | None:
        return self.journal.trial(str(trial)).id if trial is not None else None

    def _ask(self, request: Request) -> str:
        requests = Requests(Storage(self.where) if self._remote else self.folder)
        driven = journal.owner(self.folder / journal.FILE) is not None
        if request.of_a_running_sweep and not driven:
            raise BadInput("nobody runs this sweep now", where=self.where, accepted="a running one; or name a trial")
        try:
            requests.ask(request)
            answer = requests.wait(request.id, ANSWER_TIMEOUT_S if driven else 0.0)
        except OSError as error:
            raise BadInput(f"cannot be asked ({first_line(error)})", where=self.where) from None
        if answer is None:
            waits = "its driver has not answered yet" if driven else "nobody runs the sweep now"
            return f"{waits}: the request waits for {'it' if driven else '`buttress resume`'}"
        if answer.get("refused"):
            raise BadInput(str(answer.get("message")))
        return str(answer.get("message"))

    def export(
        self,
        output: str | os.PathLike[str] = "best.yaml",
        *,
        trial: int | str | None = None,
        weights: bool = False,
        force: bool = False,
    ) -> list[Path]:
        """Writes a trial's whole config, ready for `buttress train` or the original trainer.

        Args:
            output: The YAML file to write.
            trial: This trial instead of the best one.
            weights: Also write the best epoch's weights, as a plain state dict in a `.pt` file beside the config.
            force: Export a trial that did not complete; write over a file that is not an earlier export.

        Returns:
            The files that were written.

        Raises:
            NothingHealthy: When no trial is healthy and none was named.
            BadInput: For an unknown or stopped trial, and for a file that cannot be written.

        Example:
            >>> sweep.export("best.yaml", weights=True)                                 # doctest: +SKIP
            [PosixPath('best.yaml'), PosixPath('best.pt')]
        """
        from buttress.analysis.export import export_files

        name = None if trial is None else str(trial)
        return export_files(self.journal, Path(output), trial=name, weights=weights, force=force)

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {state}" for state, count in self.counts.items())
        best = self.best
        first = self.journal.objectives[0].metric
        found = f"; best {best.id} with {first} {number(best.metrics.get(first), 4)}" if best is not None else ""
        return f"<Sweep {self.name}, {self.status}: {counts or 'no trials'}{found}>"

    def _repr_html_(self) -> str:
        from buttress.analysis.render import render_summary

        lines = "<br>".join(escape(line) for line in str(render_summary(self.journal)).splitlines())
        return f"<p><b>{escape(self.name)}</b> ({escape(self.status)})<br>{lines}</p>{self.trials._repr_html_()}"


@dataclass(frozen=True)
class Replay:
    """What rules would have done to recorded curves.

    Attributes:
        result: Everything as plain data, as `buttress replay --json` prints it.

    Example:
        >>> found = buttress.replay("curves.csv", "lithology")                          # doctest: +SKIP
        >>> found.table().query("killed_at.notna()")                                    # doctest: +SKIP
    """

    result: Mapping[str, Any]

    @property
    def summary(self) -> dict[str, Any]:
        """`curves`, `killed`, `warned`; where the curves' end is known also shares of right and wrong kills."""
        return dict(self.result["summary"])

    @property
    def notes(self) -> list[str]:
        """What could not be judged, and why."""
        return list(self.result["notes"])

    def table(self) -> pd.DataFrame:
        """One row a curve: `curve`, `killed_at` (step or epoch), `kind`, `rule`, `margin`, `warnings`, `spent`, ..."""
        import pandas as pd

        return pd.DataFrame(self.result["curves"])

    def __repr__(self) -> str:
        return f"<Replay of {plural(self.summary['curves'], 'curve')}: {self.summary['killed']} killed>"

    def _repr_html_(self) -> str:
        from buttress.analysis.replay import summary_lines

        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(what)}</th><td>{escape(figure)}</td></tr>"
            for what, figure in summary_lines(self.summary)
        )
        notes = "".join(f"<p>Note: {escape(note)}.</p>" for note in self.notes)
        html: str = self.table().head(MAX_ROWS_SHOWN).to_html(index=False, na_rep="", border=0)
        return f"<table>{rows}</table>{html}{notes}"
