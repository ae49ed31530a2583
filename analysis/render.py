"""The trial table on a terminal: what `buttress table`, `run`, `status` and `why` print.

In goes a `Journal` (and rows of `analysis/table.py`, filtered and sorted), rich renderables out: the table, a second
one with a sentence for every trial that was stopped or failed, and a summary. Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from buttress.analysis.advice import breaker_sentence, collapse_sentence
from buttress.analysis.audits import audits
from buttress.analysis.explain import Explanation, reason
from buttress.analysis.replay import sentences
from buttress.analysis.selection import best, healthy, pareto, value_of
from buttress.analysis.table import Row, budget_of, epochs_run, last_values, rows, searched, sort
from buttress.journal import Journal, owner
from buttress.wording import clock, duration, number, percent, plural

STYLE = {
    "completed": "green", "running": "cyan", "waiting": "dim cyan", "paused": "dim cyan",
    "pruned": "yellow", "collapsed": "red",
    "diverged": "magenta", "failed": "bold red",
}
ARROW = {"min": "↓", "max": "↑"}
BEST, FRONT, AUDITED = "★", "◆", "†"
PADDING = 2  # columns that the table puts between two cells
WIDEST = 14  # a value of a parameter is cut to this


class Column(NamedTuple):
    title: str
    cells: list[Text]
    left: bool = False

    @property
    def width(self) -> int:
        return max([*map(len, self.title.split("\n")), *(cell.cell_len for cell in self.cells)])


def table(journal: Journal, chosen: Sequence[Row] | None = None, *, width: int = 100) -> RenderableType:
    """The trial table: one line per row, in the order given (default: by outcome, then objective).

    As many searched parameters are shown as fit into `width` columns; what was left out is said below the table.
    """
    lines = sort(rows(journal), journal=journal) if chosen is None else list(chosen)
    marks = {record.id: FRONT for record in pareto(journal)} if len(journal.objectives) > 1 else {}
    winner = best(journal)
    if winner is not None:
        marks[winner.id] = BEST
    columns = _fixed(journal, lines, marks)
    room = width - sum(column.width + PADDING for column in columns)
    shown: list[Column] = []
    hidden: list[str] = []
    for path in searched(journal):
        parameter = _parameter(path, lines)
        if parameter.width + PADDING <= room:
            room -= parameter.width + PADDING
            shown.append(parameter)
        else:
            hidden.append(path)
    drawn = Table(box=None, padding=(0, PADDING, 0, 0), pad_edge=False, header_style="bold", show_edge=False)
    ordered = [*columns[:-2], *shown, *columns[-2:]]
    for column in ordered:
        drawn.add_column(column.title, justify="left" if column.left else "right", no_wrap=True, vertical="bottom")
    for index in range(len(lines)):
        drawn.add_row(*(column.cells[index] for column in ordered))
    drawn_marks = {marks.get(row["trial"]) for row in lines}
    legend = {BEST: f"{BEST} best", FRONT: f"{FRONT} on the Pareto front"}
    notes = [text for mark, text in legend.items() if mark in drawn_marks]
    first = f"metric.{journal.objectives[0].metric}"
    if any(row["outcome"] != "completed" and row.get(first) is not None for row in lines):
        notes.append("(value): cannot be chosen")
    if any(row["warnings"] for row in lines):
        notes.append("!: warned of, see `why`")
    if any(row.get("audited") for row in lines):
        notes.append(f"{AUDITED}: condemned, and ran on to its end")
    if hidden:
        notes.append(f"not shown: {', '.join(hidden)} (a wider terminal, or --json)")
    return Group(drawn, Text("  ".join(notes), style="dim"))


def stops(journal: Journal, chosen: Sequence[Row] | None = None, *, width: int = 100) -> RenderableType | None:
    """Why trials were stopped: a sentence for every collapsed, diverged, pruned and failed one; None without any."""
    lines = sort(rows(journal), journal=journal) if chosen is None else list(chosen)
    stopped = [row for row in lines if row["outcome"] in ("collapsed", "diverged", "pruned", "failed")]
    if not stopped:
        return None
    drawn = Table(
        box=None, padding=(0, PADDING, 0, 0), pad_edge=False, header_style="bold", title="Why trials were stopped",
        title_justify="left", title_style="bold", width=width,
    )
    drawn.add_column("trial", no_wrap=True)
    drawn.add_column("outcome", no_wrap=True)
    drawn.add_column("reason", ratio=1)
    drawn.add_column("saved", justify="right", no_wrap=True)
    for row in stopped:
        record = journal.trials[row["trial"]]
        budget = budget_of(record)
        saved = percent(row["epochs_saved"] / budget) if row["epochs_saved"] is not None and budget else "-"
        what = _outcome(row)
        drawn.add_row(record.id, what, Text(reason(journal, record)), saved)
    return Group(drawn, Text(f"more of each: buttress why {journal.header.sweep} TRIAL", style="dim"))


def summary(journal: Journal) -> Text:
    """Two or three lines: how many trials of which outcome, the best one, what was saved, how long it took."""
    text = Text(f"{journal.header.sweep}: {plural(len(journal.trials), 'trial')}")
    for state, count in journal.counts().items():
        text.append(", ").append(f"{count} {state}", style=STYLE[state])
    winner = best(journal)
    first = journal.objectives[0]
    if winner is not None:
        value = number(value_of(winner, journal.objectives), 4)
        text.append(f"\nbest: trial {winner.id} with {first.metric} {value}", style="bold")
    else:
        text.append("\nno healthy trial", style="bold red")
    finished = [record for record in journal.trials.values() if record.outcome and budget_of(record)]
    budget = sum(budget_of(record) or 0 for record in finished)
    run = sum(record.outcome.epochs for record in finished if record.outcome)
    if budget:
        saved = percent(max(0, budget - run) / budget)
        text.append(f"; {run:,} of {budget:,} budgeted epochs were run, {saved} saved")
    if (found := audits(journal)) is not None:
        text.append(f"\n{found.sentence()}")
    if journal.breaker is not None and not any(resume > journal.breaker.time for resume in journal.resumes):
        text.append(f"\n{breaker_sentence(journal.breaker)}", style="bold red")
    elif (told := collapse_sentence(journal)) is not None:
        text.append(f"\n{told}")
    spent = _time(journal)
    return text.append(f"\n{spent}") if spent else text


# -------------------------------------------------------------------------------------------- what the verbs print


class _Fitted:
    """A renderable that is laid out for the width it is printed at."""

    def __init__(self, draw: Callable[[int], RenderableType]) -> None:
        self._draw = draw

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._draw(options.max_width)


def overview(journal: Journal, chosen: Sequence[Row] | None = None, *, width: int | None = None) -> RenderableType:
    """What `table` prints: rows, why trials were stopped, and a summary; as wide as the console unless told."""

    def draw(room: int) -> RenderableType:
        room = width or room
        blocks: list[RenderableType] = [table(journal, chosen, width=room), Text()]
        why = stops(journal, chosen, width=room)
        if why is not None:
            blocks += [why, Text()]
        return Group(*blocks, summary(journal))

    return _Fitted(draw)


def status_of(journal: Journal) -> RenderableType:
    """What `status` prints: who runs the sweep, how far it is, what is running, and what is best so far."""
    who = owner(journal.path) if journal.path is not None else None
    if who is not None:
        state = f"run by a driver now ({who})"
    elif journal.ended is not None:
        state = f"ended: {journal.ended.reason}"
    else:
        state = "its driver is gone; `buttress resume` goes on with it"
    blocks: list[RenderableType] = [summary(journal), Text(state)]
    if journal.torn:
        blocks.append(Text(f"the last line of its journal is torn ({journal.torn} bytes are left out)", style="yellow"))
    blocks += [Text(problem, style="yellow") for problem in journal.problems]
    live = [row for row in rows(journal) if row["outcome"] in ("running", "waiting", "paused")]
    if live:
        blocks += [Text(), _Fitted(lambda width: table(journal, live, width=width))]
    return Group(*blocks)


def explanation(told: Explanation) -> RenderableType:
    """What `why` prints."""
    blocks: list[RenderableType] = [Text(told.headline, style=f"bold {STYLE[told.outcome]}")]
    for section in told.sections:
        blocks += [Text(), Text(section.title, style="bold")]
        blocks += [Padding(Text(line), (0, 0, 0, 2)) for line in section.lines]
    return Group(*blocks)


def _time(journal: Journal) -> str:
    trials = sum(record.outcome.seconds or 0.0 for record in journal.trials.values() if record.outcome)
    spent = f"{duration(trials)} of training in {plural(len(journal.trials), 'trial')}" if trials else ""
    if journal.ended is None or journal.ended.seconds is None:
        return spent
    resumed = f" (since the last of {plural(len(journal.resumes), 'resume')})" if journal.resumes else ""
    return f"time: {duration(journal.ended.seconds)}{resumed}" + (f"; {spent}" if spent else "")


# ------------------------------------------------------------------------------------------------------------- columns


def _fixed(journal: Journal, lines: Sequence[Row], marks: dict[str, str]) -> list[Column]:
    """Every column but the parameters, in order; the last two stand at the right edge."""
    chosen = {record.id for record in healthy(journal)}
    columns = [
        Column("trial", [Text(f"{row['trial']} {marks.get(row['trial'], ' ')}") for row in lines], left=True),
        Column("outcome", [_outcome(row) for row in lines], left=True),
        Column("margin", [Text("-" if row["margin"] is None else f"{row['margin']:+.1f}") for row in lines]),
    ]
    for objective in journal.objectives:
        title = f"{objective.metric.rsplit('/', 1)[-1]} {ARROW[objective.direction]}"
        cells = [_objective(row, objective.metric, row["trial"] in chosen) for row in lines]
        columns.append(Column(title, cells))
    columns += _monitors(journal, lines)
    columns.append(Column("epochs", [_epochs(journal, row) for row in lines]))
    columns.append(Column("time", [Text(clock(row["seconds"])) for row in lines]))
    return columns


def _outcome(row: Row) -> Text:
    """`collapsed: posterior`, in the colour of the outcome; a kind that says no more than the outcome is left out."""
    kind = (row["kind"] or "").replace("_collapse", "").replace("_", " ")
    text = f"{row['outcome']}: {kind}" if kind and kind != row["outcome"] else row["outcome"]
    text = text if len(text) <= 24 else text[:23] + "…"
    marks = [*(["!"] if row["warnings"] else []), *([AUDITED] if row.get("audited") else [])]
    return Text(" ".join([text, *marks]), style=STYLE[row["outcome"]])


def _objective(row: Row, metric: str, chosen: bool) -> Text:
    """The value at the best valid epoch; in brackets where the trial cannot be chosen."""
    value = row.get(f"metric.{metric}")
    return Text(number(value, 4)) if chosen or value is None else Text(f"({number(value, 4)})", style="dim")


def _monitors(journal: Journal, lines: Sequence[Row]) -> list[Column]:
    """KL and active units at the end of the trial, for models that report them."""
    lasts = [last_values(journal.trials[row["trial"]]) for row in lines]
    names = {name for values in lasts for name in values}
    columns = []
    kl = _ending(names, "/kl_total")
    if kl:
        columns.append(Column("KL", [Text(number(values.get(kl))) for values in lasts]))
    active = _ending(names, "/active_kl") or _ending(names, "/active_var_1e2")
    if active:
        dims = active.rsplit("/", 1)[0] + "/dims"
        cells = [
            Text("-" if values.get(active) is None else f"{number(values[active])}/{number(values.get(dims))}")
            for values in lasts
        ]
        columns.append(Column("active", cells))
    return columns


def _ending(names: set[str], end: str) -> str | None:
    return next((name for name in sorted(names) if name.endswith(end)), None)


def _epochs(journal: Journal, row: Row) -> Text:
    record = journal.trials[row["trial"]]
    return Text(f"{number(epochs_run(record)[0])}/{number(budget_of(record))}")


def _parameter(path: str, lines: Sequence[Row]) -> Column:
    cells = []
    for row in lines:
        text = number(row.get(f"config.{path}"))
        cells.append(Text(text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"))
    *groups, leaf = path.split(".")
    above = f"{_folded(groups[-1])}.\n" if len(groups) > 1 else ""  # the `end` of a beta schedule is told as beta.end
    return Column(above + _folded(leaf), cells)


def _folded(name: str, widest: int = 10) -> str:
    """A parameter's name in lines of at most `widest` characters, broken after underscores where it can be."""
    lines = [""]
    for part in name.replace("_", "_\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) > widest:
            lines.append("")
        lines[-1] += part
    return "\n".join(line if len(line) <= widest + 2 else line[: widest + 1] + "…" for line in lines)


#: Curves shown one by one; of more, only the summary and those that were killed or warned of.
SHOWN = 40


def replayed(result: Mapping[str, Any]) -> RenderableType:
    """What rules would have done to recorded curves (`replay.result`): a line per curve, and the summary."""
    entries = result["curves"]
    if len(entries) > SHOWN:
        entries = [entry for entry in entries if entry["killed_at"] is not None or entry["warnings"]][:SHOWN]
    lines = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("curve", "killed at", "of what", "spent", "warned of (at)"):
        lines.add_column(title, overflow="fold", justify="right" if title in ("killed at", "spent") else "left")
    for entry in entries:
        warned = zip(entry["warnings"], entry["warned_at"], strict=True)
        lines.add_row(
            entry["curve"],
            Text(number(entry["killed_at"], 7), style="" if entry["kind"] is None else "red"),
            entry["kind"] or "-",
            percent(entry["spent"]),
            ", ".join(f"{kind} ({number(at, 7)})" for kind, at in warned) or "-",
        )
    summary = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for what, figure in sentences(result["summary"]):
        summary.add_row(Text(what, style="bold"), figure)
    left_out = len(result["curves"]) - len(entries)
    notes = [*result["notes"], *([f"{left_out:,} further curves are not shown"] if left_out else [])]
    return Group(lines, Text(), summary, *(Text(f"Note: {note}.", style="dim") for note in notes))
