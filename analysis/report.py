"""Writes a sweep, or one trial, as a self-contained HTML page, for people who were not there."""

from __future__ import annotations

import base64
import io
import time
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from buttress.analysis.advice import advice
from buttress.analysis.audits import audit_summary
from buttress.analysis.collapse_regions import breaker_sentence, collapse_sentence
from buttress.analysis.explanation import Explanation, explain, stop_reason
from buttress.analysis.figures import FIGURES, figure
from buttress.analysis.figures.style import look, styled
from buttress.analysis.media import PICTURE_TYPES, pictures
from buttress.analysis.selection import best_epoch, healthy_trials, objective_value
from buttress.analysis.table import epoch_budget, epochs_of_sweep, epochs_run, rows, searched_paths, sort_rows
from buttress.errors import BadInput, printable
from buttress.journal import Journal, TrialRecord
from buttress.wording import abbreviated, duration, listing, number, percent, plural

#: Trials whose explanation is in the page; of more, the stopped ones first.
MAX_EXPLAINED = 200
#: Seconds after which the page of a running sweep loads itself again.
RELOAD_S = 60
#: Pictures of one trial that a page takes in, and how large each may be, in bytes.
MAX_MEDIA, MAX_MEDIA_BYTES = 12, 500_000
#: Lines of a trainer's output on its trial's page.
MAX_OUTPUT_LINES = 200


class Picture(NamedTuple):
    """One figure: its title, what it shows, and an SVG as a data URI."""

    title: str
    shows: str
    source: str


def report(journal: Journal, *, running: bool = False) -> str:
    """The page.

    Args:
        journal: The sweep.
        running: The sweep goes on: the page says so and loads itself again every minute.

    Returns:
        HTML that needs nothing beside it: styles and pictures are inside. Texts of trainers and files are escaped.
    """
    return _render("report.html.j2", _content(journal, running))


def trial_page(journal: Journal, trial: str) -> str:
    """The page of one trial: why it ended, its curves and pictures, its config, what its trainer printed.

    Args:
        journal: The sweep.
        trial: Number or id.

    Returns:
        HTML, as of `report`.

    Raises:
        BadInput: There is no such trial.
    """
    record = journal.trial(trial)
    told = explain(journal, record.id)
    names = ["trial", *(["kl"] if _has_kl(record) else []), *(["gan"] if _has_discriminator(record) else [])]
    return _render(
        "trial.html.j2",
        {
            "trial": record.id,
            "sweep": journal.header.sweep,
            "colour": look(record.state).colour,
            "headline": told.headline,
            "sections": _without_curves(told),
            "pictures": [_picture(journal, name, record.id) for name in names],
            "media": reported_pictures(journal, record),
            "config": _yaml(dict(record.config)),
            "output": _output(journal, record),
        },
    )


def _render(name: str, content: dict[str, Any]) -> str:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    folder = files("buttress.analysis")
    environment = Environment(
        loader=FunctionLoader(lambda each: (folder / each).read_text(encoding="utf-8")),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )  # fmt: skip
    return environment.get_template(name).render(content)


def write_page(text: str, output: Path) -> Path:
    """Writes a page to a file.

    Args:
        text: The page.
        output: The .html file; it is replaced at once, so that a reader never sees half of it.

    Returns:
        `output`.

    Raises:
        BadInput: The file cannot be written.
    """
    beside = output.with_name(f".{output.name}.part")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8")
        beside.replace(output)
    except OSError as error:
        raise BadInput(f"cannot be written ({error.strerror})", key="--output", value=str(output)) from None
    return output


def _content(journal: Journal, running: bool) -> dict[str, Any]:
    header, first = journal.header, journal.objectives[0]
    winner, second = [*healthy_trials(journal)[:2], None, None][:2]
    ended = journal.ended.time if journal.ended else max(
        (each.outcome.time for each in journal.trials.values() if each.outcome), default=header.time
    )  # fmt: skip
    return {
        "reload": RELOAD_S if running else None,
        "sweep": header.sweep,
        "trainable": header.trainable,
        "objective": first.metric,
        "direction": {"min": "smaller is better", "max": "larger is better"}[first.direction],
        "state": "running" if running else journal.ended.reason if journal.ended else "its driver is gone",
        "begun": time.strftime("%Y-%m-%d %H:%M", time.localtime(header.time)),
        "took": duration(max(0.0, ended - header.time)),
        "counts": [(state, count, look(state).colour) for state, count in journal.counts().items()],
        "trials": len(journal.trials),
        "headline": _headline(journal, winner, second),
        "saved": _saved(journal),
        "breaker": breaker_sentence(journal.breaker) if journal.breaker is not None else None,
        "parameters": _parameters(journal, winner),
        "winner": winner.id if winner is not None else None,
        "second": second.id if second is not None else None,
        "metrics": _metrics(journal, winner, second),
        "compared": _compared(winner, second),
        "deaths": _deaths(journal),
        "collapse": collapse_sentence(journal),
        "audit": found.sentence() if (found := audit_summary(journal)) is not None else None,
        "advice": [text[:1].upper() + text[1:] + ("" if text.endswith("?") else ".") for text in advice(journal)],
        "pictures": _pictures(journal, winner, second),
        "media": _media(journal, winner, second),
        "rows": [_row(journal, record) for record in _ordered(journal)],
        "explained": _explained(journal),
        "spec": _yaml(header.spec),
        "versions": header.versions,
        "commit": header.commit,
        "seed": header.seed,
        "data": {key: number(value) for key, value in header.data.items()},
    }


def _headline(journal: Journal, winner: TrialRecord | None, second: TrialRecord | None) -> str:
    first = journal.objectives[0]
    if winner is None:
        return f"No trial is healthy: nothing of {plural(len(journal.trials), 'trial')} can be recommended."
    best = objective_value(winner, journal.objectives)
    text = f"Trial {winner.id} is best: {first.metric} {number(best, 4)}"
    other = objective_value(second, journal.objectives) if second is not None else None
    if second is not None and other is not None and best is not None:
        text += f", by {number(abs(best - other), 2)} before trial {second.id} ({number(other, 4)})"
    return f"{text}. One run each: how much of this is luck of the seed is not known."


def _saved(journal: Journal) -> str | None:
    run, budget = epochs_of_sweep(journal)
    if not budget:
        return None
    saved = percent((budget - run) / budget)
    return f"{run:,} of {budget:,} budgeted epochs were run; stopping early saved {saved}."


def _parameters(journal: Journal, winner: TrialRecord | None) -> list[dict[str, str]]:
    search = journal.header.spec.get("search") or {}
    rows = []
    for path in searched_paths(journal):
        parameter = dict(search.get(path) or {})
        kind = next((each for each in ("uniform", "loguniform", "int", "logint", "choice") if each in parameter), None)
        values = parameter.get(kind) if kind else None
        ways = {"uniform": "", "loguniform": ", log scale", "int": ", whole numbers", "logint": ", whole, log scale"}
        span = "-" if not values else (
            abbreviated(values) if kind == "choice"
            else f"{number(values[0])} to {number(values[1])}{ways[kind or 'uniform']}"
        )  # fmt: skip
        best = number(winner.params[path], 4) if winner is not None and path in winner.params else "-"
        rows.append({"path": path, "range": span, "when": str(parameter.get("when") or ""), "best": best})
    return rows


def _metrics(journal: Journal, winner: TrialRecord | None, second: TrialRecord | None) -> list[tuple[str, str, str]]:
    """Every metric of the two best trials at their best valid epochs: objectives, then `val/`, then the rest."""
    found = [best_epoch(each, journal.objectives) if each is not None else None for each in (winner, second)]
    values = [each.metrics if each is not None else {} for each in found]
    first = [objective.metric for objective in journal.objectives]
    names = sorted({*values[0], *values[1]}, key=lambda name: (name not in first, not name.startswith("val/"), name))
    return [(name, number(values[0].get(name), 4), number(values[1].get(name), 4)) for name in names]


def _compared(winner: TrialRecord | None, second: TrialRecord | None) -> list[tuple[str, str, str]]:
    """Parameters in which the two best differ."""
    if winner is None or second is None:
        return []
    paths = dict.fromkeys([*winner.params, *second.params])
    return [
        (path, number(winner.params.get(path), 4), number(second.params.get(path), 4))
        for path in paths
        if winner.params.get(path) != second.params.get(path)
    ]


def _deaths(journal: Journal) -> list[dict[str, Any]]:
    """Trials that were stopped, by outcome and kind, each with an example in words."""
    groups: dict[tuple[str, str], list[TrialRecord]] = {}
    for record in journal.trials.values():
        if record.outcome is not None and record.state != "completed":
            groups.setdefault((record.state, record.outcome.kind or ""), []).append(record)
    return [
        {"state": state, "colour": look(state).colour, "kind": "" if kind == state else kind, "count": len(records),
         "trial": records[0].id, "why": stop_reason(journal, records[0])}
        for (state, kind), records in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]  # fmt: skip


def _pictures(journal: Journal, winner: TrialRecord | None, second: TrialRecord | None) -> dict[str, list[Picture]]:
    """Pictures by part of the page."""
    dead = _first_dead(journal)
    parts: dict[str, list[Picture]] = {
        "best": [_picture(journal, "history")],
        "deaths": [_picture(journal, name) for name in ("collapse", "health")] if dead is not None else [],
        "search": [_picture(journal, name) for name in ("importance", "parallel", "slices", "contour")],
        "course": [_picture(journal, name) for name in ("rungs", "timeline")],
        "trials": [],
    }
    if len(journal.objectives) > 1:
        parts["best"].append(_picture(journal, "pareto"))
    for record, what in ((winner, "the best trial"), (second, "the runner-up"), (dead, "one that died")):
        if record is not None:
            parts["trials"].append(_picture(journal, "trial", record.id, f"{what}, {record.id}"))
            if _has_kl(record):
                parts["trials"].append(_picture(journal, "kl", record.id, f"{what}, {record.id}"))
    return parts


def _first_dead(journal: Journal) -> TrialRecord | None:
    return next((each for each in journal.trials.values() if each.state in ("collapsed", "diverged")), None)


def _has_kl(record: TrialRecord) -> bool:
    return any("latent/kl" in report.vectors for report in record.reports)


def _has_discriminator(record: TrialRecord) -> bool:
    return any("train/disc_loss" in report.metrics for report in record.reports)


def _media(journal: Journal, winner: TrialRecord | None, second: TrialRecord | None) -> list[tuple[str, list[Picture]]]:
    """What the trainer drew of the winner, the runner-up and a trial that died."""
    of = ((winner, "the best trial"), (second, "the runner-up"), (_first_dead(journal), "a trial that died"))
    found = [(f"{what}, {each.id},", reported_pictures(journal, each)) for each, what in of if each is not None]
    return [(what, pictures) for what, pictures in found if pictures]


def reported_pictures(journal: Journal, record: TrialRecord) -> list[Picture]:
    """The pictures of a trial's best epoch, else of its last report that has some, as far as they are files here.

    Args:
        journal: The sweep.
        record: The trial.

    Returns:
        At most `MAX_MEDIA`, none larger than `MAX_MEDIA_BYTES`.
    """
    best = best_epoch(record, journal.objectives)
    having = [each for each in record.reports if each.media]
    reports = [each for each in having if best is not None and each.epoch == best.epoch] or having
    if not reports or journal.path is None:
        return []
    chosen, folder = reports[-1], journal.path.parent / "trials" / record.id
    shows = f"trial {record.id}, epoch {number(chosen.epoch)}"
    return [
        Picture(key, shows, _data_uri(PICTURE_TYPES[path.suffix.lower()], path.read_bytes()))
        for key, path in pictures(folder, chosen.media, MAX_MEDIA, MAX_MEDIA_BYTES)
    ]


def _output(journal: Journal, record: TrialRecord) -> str:
    """The end of what a trial's first rank printed; empty where it is not here."""
    if journal.path is None:
        return ""
    path = journal.path.parent / "trials" / record.id / "output.txt"
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-MAX_OUTPUT_LINES:])


def _data_uri(kind: str, content: bytes) -> str:
    """A picture as an address; it is letters and digits, so that nothing has to be escaped in its megabytes."""
    from markupsafe import Markup

    return Markup(f"data:{kind};base64,{base64.b64encode(content).decode()}")


def _picture(journal: Journal, name: str, trial: str | None = None, of: str = "") -> Picture:
    drawn = figure(journal, name, trial)
    held = io.BytesIO()
    with styled():
        drawn.savefig(held, format="svg", metadata={"Date": None})
    shows = FIGURES[name].shows
    title = f"{name}: {of}" if of else name
    return Picture(title[:1].upper() + title[1:], shows, _data_uri("image/svg+xml", held.getvalue()))


def _ordered(journal: Journal) -> list[TrialRecord]:
    return [journal.trials[row["trial"]] for row in sort_rows(rows(journal), journal=journal)]


def _row(journal: Journal, record: TrialRecord) -> dict[str, Any]:
    done, (epochs, _) = record.outcome, epochs_run(record)
    kind = f": {done.kind}" if done is not None and done.kind and done.kind != done.outcome else ""
    return {
        "id": record.id,
        "state": f"{record.state}{kind}",
        "colour": look(record.state).colour,
        "value": number(objective_value(record, journal.objectives), 4),
        "margin": "-" if done is None or done.margin is None else f"{done.margin:+.2f}",
        "epochs": f"{number(epochs)}/{number(epoch_budget(record))}",
        "time": duration(done.seconds) if done is not None else "-",
        "params": [number(record.params[path]) if path in record.params else "" for path in searched_paths(journal)],
        "warnings": listing(list(record.warnings)),
    }


def _explained(journal: Journal) -> dict[str, list[tuple[str, list[str]]]]:
    """Trial -> titled lines of its explanation."""
    order = sorted(journal.trials.values(), key=lambda record: (record.state == "completed", record.id))
    found = {}
    for record in order[:MAX_EXPLAINED]:
        told = explain(journal, record.id)
        found[record.id] = [("", [told.headline]), *_without_curves(told)]
    return found


def _without_curves(told: Explanation) -> list[tuple[str, list[str]]]:
    """Its sections, but for the curves drawn in characters."""
    return [(each.title, list(each.lines)) for each in told.sections if not each.title.startswith("curves")]


def _yaml(spec: dict[str, Any]) -> str:
    import yaml

    text: str = yaml.safe_dump(spec, sort_keys=False, allow_unicode=True, width=100)
    return text
