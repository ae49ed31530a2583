"""Explains in words why a trial ended as it did, from what the journal holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from buttress.analysis.collapse_regions import region_sentence
from buttress.analysis.header_rules import rules_of, signs_of
from buttress.analysis.selection import best_epoch, best_trial, pareto_front
from buttress.analysis.table import epoch_budget, epochs_run, epochs_saved, searched_paths
from buttress.errors import BadInput
from buttress.journal import Journal, TrialRecord
from buttress.journal.events import Condemned, RungDecision
from buttress.rules import Evidence
from buttress.wording import duration, listing, number, percent, plural, sparkline, times

CURVES = ("kl_total", "active_kl", "active_var_1e2", "ablation/relative", "train/loss")

MAX_PRINTED_LINES = 8


class Section(NamedTuple):
    """A titled part of an explanation."""

    title: str
    lines: tuple[str, ...]


class Explanation(NamedTuple):
    """Why a trial ended as it did: text by `str()`, JSON-able by `to_dict()`."""

    trial: str
    outcome: str
    headline: str
    sections: tuple[Section, ...]

    def __str__(self) -> str:
        blocks = [self.headline]
        blocks += ["\n".join([section.title, *(f"  {line}" for line in section.lines)]) for section in self.sections]
        return "\n\n".join(blocks)

    def __repr__(self) -> str:
        return str(self)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """As a notebook shows it."""
        from html import escape

        return {"text/plain": str(self), "text/html": f"<pre>{escape(str(self))}</pre>"}

    def to_dict(self) -> dict[str, Any]:
        sections = {section.title: list(section.lines) for section in self.sections}
        return {"trial": self.trial, "outcome": self.outcome, "headline": self.headline, "sections": sections}


def explain(journal: Journal, name: str) -> Explanation:
    """Explains one trial.

    Args:
        journal: The sweep.
        name: Number or id of the trial.

    Raises:
        BadInput: The sweep has no such trial.
    """
    record = journal.trial(name)
    parts = {
        "why": _why(journal, record),
        "audit": _audit(journal, record),
        "saved": _saved(record),
        "best valid epoch": _best(journal, record),
        "parameters": [*([f"added by {record.added_by}"] if record.added_by else []), *_parameters(journal, record)],
        "rungs": [f"at {_age(rung)}: {_rung(rung, journal)}" for rung in record.rungs if rung.decision != "stop"],
        "warnings": [_rule_text(journal, record, rule) for rule in record.warnings],
        "attempts": _attempts(record),
        "curves, by epoch": _curves(journal, record),
        "printed": _printed(journal, record),
        "error": (record.outcome.error or "").rstrip().splitlines() if record.outcome else [],
    }
    sections = tuple(Section(title, tuple(lines)) for title, lines in parts.items() if lines)
    return Explanation(record.id, record.state, _headline(journal, record), sections)


def stop_reason(journal: Journal, record: TrialRecord) -> str:
    """One sentence on why the trial was stopped or failed; for any other trial, how far it came."""
    done = record.outcome
    epoch, _ = epochs_run(record)
    if done is None:
        return f"{record.state} at epoch {number(epoch)} of {number(epoch_budget(record))}"
    if done.outcome in ("collapsed", "diverged"):
        text = done.message or f"the rule {done.rule or done.kind} held"
        if done.evidence:
            text = evidence_sentence(decisive_evidence(done.evidence))
        return text[:1].upper() + text[1:]
    if done.outcome == "pruned":
        stops = [rung for rung in record.rungs if rung.decision == "stop"]
        if stops and (stops[-1].value is not None or not done.message):
            return f"At {_age(stops[-1])} {_rung(stops[-1], journal)}"
        text = done.message or "Stopped by a rung"
        return text[:1].upper() + text[1:]
    if done.kind == "by hand":
        text = done.message or "Stopped by hand"
        return text[:1].upper() + text[1:]
    if done.outcome == "failed":
        lines = [line.strip() for line in (done.error or "").splitlines() if line.strip()]
        return lines[-1] if lines else done.message or done.kind or "It ended without a valid epoch"
    return f"Ran {_of(record)}"


def evidence_sentence(entry: Mapping[str, Any]) -> str:
    """One observation of a verdict in words: an entry of the outcome line's `evidence`."""
    return Evidence.from_dict(entry).sentence()


def decisive_evidence(evidence: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The observation to show where only one is shown: the first that held.

    The one that the margin is computed from comes first, but need not be a sign that held.
    """
    return next((entry for entry in evidence if Evidence.from_dict(entry).holds), evidence[0])


def margin_sentence(record: TrialRecord) -> str | None:
    """The margin in words; None for a trial without one."""
    done = record.outcome
    if done is None or done.margin is None:
        return None
    margin = done.margin
    decades = f"{abs(margin):.1f} decades" if abs(margin) < 10 else f"{abs(margin):.0f} decades"
    if done.outcome == "diverged" and margin >= 12:
        return f"margin {margin:+.2f}: diverged trials get 12 plus the share of the budget that was left"
    if margin <= 0:
        return f"margin {margin:+.2f}: {decades} ({times(10**-margin)}) away from the nearest rule"
    if not done.dead:  # journals of earlier versions
        return f"margin {margin:+.2f}: {decades} beyond a rule, which had not held for its patience"
    text = f"margin {margin:+.2f}: {decades} beyond the threshold"
    if not done.evidence:
        return text
    graded = Evidence.from_dict(done.evidence[0])  # the verdict puts the one that the margin was computed from first
    what, limit = _transformed(done.evidence[0]), graded.threshold
    if limit is None or not graded.holds:
        return f"margin {margin:+.2f}: just beyond, because the rule held; {what} by itself had not come so far"
    if 10**margin < 1.05:  # hysteresis: in the median it was not beyond at all, or hardly
        return f"margin {margin:+.2f}: just beyond the threshold"
    size = "beyond" if limit < 0 else "larger than" if graded.comparison == "above" else "smaller than"
    middle = f" in the median of {len(graded.values)} reports" if len(graded.values) > 1 else ""
    return f"{text}: {what} was {times(10**margin)} {size} {number(limit)}{middle}"


def _headline(journal: Journal, record: TrialRecord) -> str:
    done, (epoch, step) = record.outcome, epochs_run(record)
    name = f"Trial {record.id} of {journal.header.sweep}"
    if done is None:
        return f"{name} is {record.state}: {_of(record)} (step {number(step)})."
    if done.outcome == "completed":
        chosen = best_trial(journal)
        rank = "; it is the best of the sweep" if chosen is not None and chosen.id == record.id else ""
        if not rank and len(journal.objectives) > 1 and record.id in {each.id for each in pareto_front(journal)}:
            rank = "; it is on the Pareto front"
        early = "" if not epochs_saved(record) else ", ended by its own early stopping"
        return f"{name} completed: {_of(record)} in {duration(done.seconds)}{early}{rank}."
    how = "was pruned" if done.outcome == "pruned" else done.outcome
    kind = f" ({done.kind})" if done.kind and done.kind != done.outcome else ""
    at = f"at epoch {number(epoch)} of {number(epoch_budget(record))}, step {number(step)}"
    return f"{name} {how}{kind} {at}."


def _why(journal: Journal, record: TrialRecord) -> list[str]:
    done = record.outcome
    if done is None:
        return []
    lines = []
    if done.outcome in ("collapsed", "diverged"):
        if done.rule:
            lines.append(f"the rule {_rule_text(journal, record, done.rule)} held")
        lines += _sentences(done.evidence)
        if done.message and (not done.evidence or (rules_of(journal).get(done.rule or "") or {}).get("message")):
            lines.append(done.message)
    elif done.outcome != "completed":
        lines.append(stop_reason(journal, record))
    beside = [margin_sentence(record), region_sentence(journal, record)]
    return [*lines, *(sentence for sentence in beside if sentence)]


def _audit(journal: Journal, record: TrialRecord) -> list[str]:
    """The verdict that did not end the trial, and whether it was right."""
    if record.audit is None:
        return []
    lines = _condemned(journal, record, record.audit)
    lines.append("it was drawn to run on nevertheless, so that the rules are checked")
    if record.outcome is None:
        return lines
    if not record.outcome.audited:
        return [*lines, "it did not reach its own end, so this says nothing about the rules"]
    wrong = record.outcome.outcome == "completed"
    return [*lines, "at its end it was healthy: a false kill" if wrong else "at its end it was not healthy"]


def _condemned(journal: Journal, record: TrialRecord, verdict: Condemned) -> list[str]:
    at = f"at epoch {verdict.epochs} of {number(verdict.epochs_budget)}, step {number(verdict.step)}"
    lines = [f"{at}, the rule {_rule_text(journal, record, verdict.rule or '')} held"]
    return [*lines, *_sentences(verdict.evidence)]


def _printed(journal: Journal, record: TrialRecord) -> list[str]:
    """The end of what the trainer printed, and the file that holds all of it."""
    from buttress.analysis.export import find_output

    try:
        path = find_output(journal, record)
    except BadInput:  # the storage is away
        path = None
    if path is None:
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 100 * MAX_PRINTED_LINES))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    shown = ["".join(mark if mark.isprintable() else " " for mark in line).rstrip() for line in lines]
    return [*[line for line in shown if line][-MAX_PRINTED_LINES:], f"(all of it: {path})"]


def _sentences(evidence: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every observation in words; the first says so where it was only what the margin is computed from."""
    sentences = [evidence_sentence(entry) for entry in evidence]
    if evidence and not Evidence.from_dict(evidence[0]).holds:
        sentences[0] += " (only the margin is computed from it)"
    return sentences


def _saved(record: TrialRecord) -> list[str]:
    saved, budget, done = epochs_saved(record), epoch_budget(record), record.outcome
    if not saved or not budget or done is None:
        return []
    text = f"{saved:,} of its {plural(budget, 'epoch')} ({percent(saved / budget)}) were not spent"
    if done.seconds and done.epochs:
        text += f", about {duration(done.seconds / done.epochs * saved)} at its pace"
    return [text]


def _best(journal: Journal, record: TrialRecord) -> list[str]:
    found = best_epoch(record, journal.objectives)
    if found is None:
        return [] if record.outcome is None else ["none: no epoch was valid"]
    lines = [f"epoch {found.epoch}, step {number(found.step)}"]
    for objective in journal.objectives:
        value = found.metrics.get(objective.metric)
        lines.append(f"{objective.metric} = {number(value, 5)} ({objective.direction})")
    first = journal.objectives[0].metric
    ends = [report for report in record.reports if first in report.metrics]
    if missing := sum((value := report.metrics[first]) is None or not math.isfinite(value) for report in ends):
        lines.append(f"{missing} of {plural(len(ends), 'epoch')} had no finite {first} and cannot be the best")
    if record.finished and record.state != "completed":
        lines.append("it cannot be chosen: only a completed trial can be best")
    return lines


def _parameters(journal: Journal, record: TrialRecord) -> list[str]:
    paths = searched_paths(journal)
    width = max(map(len, paths), default=0)
    values = [number(record.params[path], 5) if path in record.params else "not used" for path in paths]
    lines = [f"{path:<{width}}  {value}" for path, value in zip(paths, values, strict=True)]
    return [*lines, f"{'seed':<{width}}  {record.seed}"]


def _attempts(record: TrialRecord) -> list[str]:
    if len(record.attempts) < 2 and not record.losses:
        return []
    events = [(loss.time, f"attempt {loss.attempt} was lost: {loss.reason}") for loss in record.losses]
    for start in record.attempts:
        place = f" on {start.host}" if start.host else ""
        after = "from the beginning" if start.resumed_from is None else f"from report {start.resumed_from}"
        events.append((start.time, f"attempt {start.attempt}: slot {start.slot}{place}, {after}"))
    return [text for _, text in sorted(events, key=lambda event: event[0])]


def _curves(journal: Journal, record: TrialRecord) -> list[str]:
    names = [objective.metric for objective in journal.objectives]
    names += [name for name in _metrics(record) if any(name.endswith(end) for end in CURVES) and name not in names]
    lines = []
    for name in names:
        series = [report.metrics[name] for report in record.reports if name in report.metrics]
        if len(series) > 1:
            ends = f"{number(series[0])} to {number(series[-1])}"
            lines.append((name, sparkline(series), ends))
    width = max((len(name) for name, _, _ in lines), default=0)
    return [f"{name:<{width}}  {bars}  {ends}" for name, bars, ends in lines]


def _metrics(record: TrialRecord) -> list[str]:
    names: dict[str, None] = {}
    for report in record.reports:
        names |= dict.fromkeys(report.metrics)
    return sorted(names)


def _of(record: TrialRecord) -> str:
    epoch, _ = epochs_run(record)
    return f"{number(epoch or 0)} of {number(epoch_budget(record))} epochs"


def _age(rung: RungDecision) -> str:
    phase = f" of phase {rung.phase}" if rung.phase else ""
    return f"rung {rung.age}{phase}"


def _rung(rung: RungDecision, journal: Journal) -> str:
    first = journal.objectives[0]
    others = plural(rung.peers, "trial")
    if rung.cutoff is None:
        return f"went on with {number(rung.value, 4)}: no cut-off yet among {others}"
    if rung.value is None:
        return f"it had no valid epoch; the cut-off of {others} was {number(rung.cutoff, 4)}"
    verb = "worse than" if rung.decision == "stop" else "no worse than"
    return f"{first.metric} {number(rung.value, 4)} was {verb} the cut-off {number(rung.cutoff, 4)} of {others}"


def _rule_text(journal: Journal, record: TrialRecord, name: str) -> str:
    """A rule by its name and, where the header has it, what it asks for; signs without a metric apart."""
    rule = rules_of(journal).get(name) or {}
    found = list(signs_of(rule))
    seen = {metric for report in record.reports for metric in (*report.metrics, *report.nonfinite)}
    aliases = journal.header.rules.get("aliases") or {}
    known = [each for each in found if not seen or each.get("transform") == "absent"
             or not seen.isdisjoint((each["metric"], *aliases.get(each["metric"], ())))]  # fmt: skip
    signs, votes = [_sign(sign) for sign in known], rule.get("votes")
    if not signs:
        return name
    asks = f"{votes} of: {', '.join(signs)}" if votes and votes < len(signs) else listing(signs)
    patience = rule.get("patience") or 1
    unseen = listing(list(dict.fromkeys(each["metric"] for each in found if each not in known)))
    left_out = f"; {unseen} was never reported and is left out" if unseen else ""
    return f"{name} ({asks}{f'; {patience} reports in a row' if patience > 1 else ''}{left_out})"


def _sign(sign: Mapping[str, Any]) -> str:
    flag = {"absent": "absent", "lost": "lost", "nonfinite": "not finite"}.get(sign.get("transform") or "value")
    if flag:
        return f"{sign['metric']} {flag}"
    limits = [f"{key} {_threshold(sign[key])}" for key in ("below", "above") if sign.get(key) is not None]
    return " ".join([_transformed(sign), *limits])


def _transformed(sign: Mapping[str, Any]) -> str:
    """`latent/kl_total`, `slope of latent/kl_total`: what a sign or a piece of evidence compares."""
    transform = sign.get("transform") or "value"
    return str(sign["metric"]) if transform == "value" else f"{transform.replace('_', ' ')} of {sign['metric']}"


def _threshold(value: Any) -> str:
    if not isinstance(value, Mapping):
        return number(value)
    if "per_dim" in value:
        return f"{number(value['per_dim'])} per dimension"
    factor = value.get("factor", 1)
    return f"{f'{number(factor)} times ' if factor != 1 else ''}{value.get('relative_to')}"
