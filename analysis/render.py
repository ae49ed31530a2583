"""Renders sweeps, explanations and replays for a terminal: what `buttress table`, `run`, `status` and `why` print."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from buttress.analysis.audits import audit_summary
from buttress.analysis.collapse_regions import breaker_sentence, collapse_sentence
from buttress.analysis.explanation import Explanation, stop_reason
from buttress.analysis.header_rules import rule_coverage
from buttress.analysis.replay import summary_lines
from buttress.analysis.selection import best_trial, healthy_trials, objective_value, pareto_front, tied_trials
from buttress.analysis.table import (
    Row,
    epoch_budget,
    epochs_of_sweep,
    epochs_run,
    last_values,
    rows,
    searched_paths,
    sort_rows,
)
from buttress.journal import Journal, owner
from buttress.wording import abbreviated, clock, duration, number, percent, plural

STYLE = {
    "completed": "green", "running": "cyan", "waiting": "dim cyan", "paused": "dim cyan",
    "pruned": "yellow", "collapsed": "red",
    "diverged": "magenta", "failed": "bold red",
}
ARROW = {"min": "↓", "max": "↑"}
BEST, FRONT, AUDITED = "★", "◆", "†"
PADDING = 2  # spaces between two columns of the table
MAX_VALUE_WIDTH = 14  # characters of a parameter's value


class Column(NamedTuple):
    """A column of the table; `left`: aligned to the left."""

    title: str
    cells: list[Text]
    left: bool = False

    @property
    def width(self) -> int:
        return max([*map(len, self.title.split("\n")), *(cell.cell_len for cell in self.cells)])


def render_table(journal: Journal, selected: Sequence[Row] | None = None, *, width: int = 100) -> RenderableType:
    """The trial table, one line per row; as many searched parameters as fit.

    Args:
        journal: The sweep.
        selected: Rows of `analysis.table` in the order to show (default: all, by outcome, then objective).
        width: Characters per line.
    """
    lines = sort_rows(rows(journal), journal=journal) if selected is None else list(selected)
    marks = {record.id: FRONT for record in pareto_front(journal)} if len(journal.objectives) > 1 else {}
    winner = best_trial(journal)
    if winner is not None:
        marks[winner.id] = BEST
    columns = _fixed(journal, lines, marks)
    free = width - sum(column.width + PADDING for column in columns)
    shown: list[Column] = []
    hidden: list[str] = []
    for path in searched_paths(journal):
        parameter = _parameter(path, lines)
        if parameter.width + PADDING <= free:
            free -= parameter.width + PADDING
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
        notes.append("(value): of a trial that cannot be best")
    if any(row["warnings"] for row in lines):
        notes.append("!: has warnings, see `why`")
    if any(row.get("audited") for row in lines):
        notes.append(f"{AUDITED}: condemned, and ran on to its end")
    if hidden:
        notes.append(f"not shown: {', '.join(hidden)} (a wider terminal, or --json)")
    return Group(drawn, Text("  ".join(notes), style="dim"))


def render_stop_reasons(
    journal: Journal, selected: Sequence[Row] | None = None, *, width: int = 100
) -> RenderableType | None:
    """A sentence for every collapsed, diverged, pruned and failed trial, with the arguments of `render_table`.

    Returns:
        None where no trial was stopped.
    """
    lines = sort_rows(rows(journal), journal=journal) if selected is None else list(selected)
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
        budget = epoch_budget(record)
        saved = percent(row["epochs_saved"] / budget) if row["epochs_saved"] is not None and budget else "-"
        what = _outcome(row)
        drawn.add_row(record.id, what, Text(stop_reason(journal, record)), saved)
    return Group(drawn, Text(f"more of each: buttress why {journal.header.sweep} TRIAL", style="dim"))


def render_summary(journal: Journal) -> Text:
    """The sweep in a few lines: trials by outcome, the best one, epochs saved, audit, ranges of collapse, time.

    Rules that could not judge what was reported are named.
    """
    text = Text(f"{journal.header.sweep}: {plural(len(journal.trials), 'trial')}")
    for state, count in journal.counts().items():
        text.append(", ").append(f"{count} {state}", style=STYLE[state])
    winner = best_trial(journal)
    first = journal.objectives[0]
    if winner is not None:
        value = number(objective_value(winner, journal.objectives), 4)
        text.append(f"\nbest: trial {winner.id} with {first.metric} {value}", style="bold")
        if tied := [each.id for each in tied_trials(journal, winner)]:
            text.append(f"; {abbreviated(tied, 5)} {'has' if len(tied) == 1 else 'have'} the same value")
    else:
        text.append("\nno healthy trial", style="bold red")
    run, budget = epochs_of_sweep(journal)
    if budget:
        saved = percent((budget - run) / budget)
        text.append(f"; {run:,} of {budget:,} budgeted epochs were run, {saved} saved")
    if (found := audit_summary(journal)) is not None:
        text.append(f"\n{found.sentence()}")
    if journal.breaker is not None and not any(resume > journal.breaker.time for resume in journal.resumes):
        text.append(f"\n{breaker_sentence(journal.breaker)}", style="bold red")
    elif (sentence := collapse_sentence(journal)) is not None:
        text.append(f"\n{sentence}")
    for sentence in rule_coverage(journal):
        text.append(f"\nwarning: {sentence}", style="yellow")
    spent = _time(journal)
    return text.append(f"\n{spent}") if spent else text


class _FitsWidth:
    """A renderable that is laid out for the width that it is printed at."""

    def __init__(self, draw: Callable[[int], RenderableType]) -> None:
        self._draw = draw

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._draw(options.max_width)


def render_sweep(
    journal: Journal, selected: Sequence[Row] | None = None, *, width: int | None = None
) -> RenderableType:
    """What `buttress table` prints: the rows, why trials were stopped, and the summary.

    Args:
        journal: The sweep.
        selected: Rows of `analysis.table` in the order to show (default: all, by outcome, then objective).
        width: Characters per line (default: as wide as the console).
    """

    def draw(console_width: int) -> RenderableType:
        fitted = width or console_width
        blocks: list[RenderableType] = [render_table(journal, selected, width=fitted), Text()]
        why = render_stop_reasons(journal, selected, width=fitted)
        if why is not None:
            blocks += [why, Text()]
        return Group(*blocks, render_summary(journal))

    return _FitsWidth(draw)


def render_status(journal: Journal) -> RenderableType:
    """What `buttress status` prints: the summary, whether a driver runs the sweep, and the trials that are running."""
    who = owner(journal.path) if journal.path is not None else None
    if who is not None:
        state = f"run by a driver now ({who})"
    elif journal.ended is not None:
        state = f"ended: {journal.ended.reason}"
    else:
        state = "its driver is gone; `buttress resume` goes on with it"
    blocks: list[RenderableType] = [render_summary(journal), Text(state)]
    if journal.torn:
        blocks.append(Text(f"the last line of its journal is torn ({journal.torn} bytes are left out)", style="yellow"))
    blocks += [Text(problem, style="yellow") for problem in journal.problems]
    live = [row for row in rows(journal) if row["outcome"] in ("running", "waiting", "paused")]
    if live:
        blocks += [Text(), _FitsWidth(lambda width: render_table(journal, live, width=width))]
    return Group(*blocks)


def render_explanation(explanation: Explanation) -> RenderableType:
    """What `buttress why` prints."""
    blocks: list[RenderableType] = [Text(explanation.headline, style=f"bold {STYLE[explanation.outcome]}")]
    for section in explanation.sections:
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


def _fixed(journal: Journal, lines: Sequence[Row], marks: dict[str, str]) -> list[Column]:
    """Every column but the parameters, in order; the last two are for the right edge."""
    eligible = {record.id for record in healthy_trials(journal)}
    columns = [
        Column("trial", [Text(f"{row['trial']} {marks.get(row['trial'], ' ')}") for row in lines], left=True),
        Column("outcome", [_outcome(row) for row in lines], left=True),
        Column("margin", [Text("-" if row["margin"] is None else f"{row['margin']:+.1f}") for row in lines]),
    ]
    for objective in journal.objectives:
        title = f"{objective.metric.rsplit('/', 1)[-1]} {ARROW[objective.direction]}"
        cells = [_objective(row, objective.metric, row["trial"] in eligible) for row in lines]
        columns.append(Column(title, cells))
    columns += _monitors(journal, lines)
    columns.append(Column("epochs", [_epochs(journal, row) for row in lines]))
    columns.append(Column("time", [Text(clock(row["seconds"])) for row in lines]))
    return columns


def _outcome(row: Row) -> Text:
    """Outcome and kind in the outcome's colour, such as `collapsed: posterior`, with marks."""
    kind = (row["kind"] or "").replace("_collapse", "").replace("_", " ")
    text = f"{row['outcome']}: {kind}" if kind and kind != row["outcome"] else row["outcome"]
    text = text if len(text) <= 24 else text[:23] + "…"
    marks = [*(["!"] if row["warnings"] else []), *([AUDITED] if row.get("audited") else [])]
    return Text(" ".join([text, *marks]), style=STYLE[row["outcome"]])


def _objective(row: Row, metric: str, eligible: bool) -> Text:
    """The value at the best valid epoch; in brackets where the trial cannot be chosen."""
    value = row.get(f"metric.{metric}")
    return Text(number(value, 4)) if eligible or value is None else Text(f"({number(value, 4)})", style="dim")


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
    return Text(f"{number(epochs_run(record)[0])}/{number(epoch_budget(record))}")


def _parameter(path: str, lines: Sequence[Row]) -> Column:
    cells = []
    for row in lines:
        text = number(row.get(f"config.{path}"))
        cells.append(Text(text if len(text) <= MAX_VALUE_WIDTH else text[: MAX_VALUE_WIDTH - 1] + "…"))
    *groups, leaf = path.split(".")
    above = f"{_folded(groups[-1])}.\n" if len(groups) > 1 else ""  # `beta.end` rather than `end`
    return Column(above + _folded(leaf), cells)


def _folded(name: str, width: int = 10) -> str:
    """A parameter's name in lines of at most `width` characters, broken after underscores where possible."""
    lines = [""]
    for part in name.replace("_", "_\0").split("\0"):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line if len(line) <= width + 2 else line[: width + 1] + "…" for line in lines)


#: Curves shown one by one; of more, only those with a kill or a warning.
MAX_CURVES_SHOWN = 40


def render_replay(result: Mapping[str, Any]) -> RenderableType:
    """What `buttress replay` prints: a line per curve, and the summary.

    Args:
        result: As `replay_result` returns it.
    """
    entries = result["curves"]
    if len(entries) > MAX_CURVES_SHOWN:
        entries = [entry for entry in entries if entry["killed_at"] is not None or entry["warnings"]][:MAX_CURVES_SHOWN]
    lines = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("curve", "killed at", "kind", "run", "warnings (at)"):
        lines.add_column(title, overflow="fold", justify="right" if title in ("killed at", "run") else "left")
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
    for what, figure in summary_lines(result["summary"]):
        summary.add_row(Text(what, style="bold"), figure)
    left_out = len(result["curves"]) - len(entries)
    notes = [*result["notes"], *([f"{left_out:,} further curves are not shown"] if left_out else [])]
    return Group(lines, Text(), summary, *(Text(f"Note: {note}.", style="dim") for note in notes))
