"""Builds terminal trial events. Nothing is changed here: the state of the sweep applies them."""

from __future__ import annotations

from typing import Any

from buttress.journal.events import Audited, Best, Condemned, Outcome, Report, RungDecision
from buttress.journal.fields import plain
from buttress.rules import Verdict
from buttress.rules.engine import MIN_MARGIN
from buttress.spec.spec import SweepSpec
from buttress.sweep.trial import ActiveTrial
from buttress.wording import plural


def finished(trial: ActiveTrial) -> Outcome:
    """The trainer returned by itself: `completed` with at least one valid epoch, else `failed`.

    A trial that ran on although it was condemned has collapsed if it still looks so.
    """
    evaluation = trial.evaluation
    if evaluation.verdict is not None and evaluation.verdict.final:
        return condemned_for_good(trial, evaluation.verdict, audited=trial.audited)
    if evaluation.best is not None:
        return outcome(trial, "completed", audited=trial.audited)
    why = f"no epoch was valid: {evaluation.why_none_is_valid()}"
    return outcome(trial, "failed", kind="no valid epoch", message=why, audited=trial.audited)


def out_of_time(trial: ActiveTrial, minutes: float) -> Outcome:
    """The trial's time limit has passed: what it reached counts as for a pruned trial; nothing valid: `failed`."""
    evaluation = trial.evaluation
    if evaluation.verdict is not None and evaluation.verdict.final:
        return condemned_for_good(trial, evaluation.verdict)
    end = "pruned" if evaluation.best else "failed"
    message = f"over its time limit of {minutes:g} minutes"
    return outcome(trial, end, kind="time limit", message=message)


def pruned(trial: ActiveTrial, rung: RungDecision) -> Outcome:
    """The rung's decision was to stop the trial."""
    cutoff = "none" if rung.cutoff is None else f"{rung.cutoff:.4g}"
    peers = plural(rung.peers, "trial")
    if rung.value is None:
        invalid = trial.evaluation.why_none_is_valid()
        why = f"at full-beta age {rung.age}, no epoch was valid ({invalid}); the cut-off of {peers} was {cutoff}"
    else:
        why = f"at full-beta age {rung.age}, {rung.value:.4g} was worse than the cut-off {cutoff} of {peers}"
    return outcome(trial, "pruned", kind=f"rung {rung.age}", message=why)


def condemned(spec: SweepSpec, trial: ActiveTrial, verdict: Verdict, report: Report) -> Outcome | Audited:
    """The rules condemned the trial at `report`: its end, unless it was drawn to run on for the audit.

    Only a first verdict of collapse has such a choice, and none that the closing check reached.
    """
    first = verdict.state == "collapsed" and not report.closing and trial.condemned is None
    if first and spec.audits(int(trial.id)):
        return Audited.by(
            verdict,
            trial=trial.id,
            attempt=trial.attempt,
            epochs=report.epoch,
            step=report.step,
            epochs_budget=trial.epochs,
            seconds=trial.seconds + report.seconds,
        )
    return condemned_for_good(trial, verdict, audited=trial.audited)


def condemned_for_good(trial: ActiveTrial, verdict: Verdict | Condemned, *, audited: bool = False) -> Outcome:
    """The trial's end under a verdict: the rules', or one that was written when the trial was condemned."""
    if isinstance(verdict, Condemned):
        state, evidence = "collapsed", verdict.evidence
    else:
        state, evidence = verdict.state, tuple(plain(each.to_dict()) for each in verdict.evidence)
    return outcome(
        trial, state, kind=verdict.kind, margin=plain(verdict.margin), rule=verdict.rule, evidence=evidence,
        message=verdict.message, audited=audited,
    )  # fmt: skip


def outcome(trial: ActiveTrial, outcome: str, *, audited: bool = False, **details: Any) -> Outcome:
    """The trial's outcome with what it reached.

    Args:
        trial: The trial that ends.
        outcome: One of `journal.events.OUTCOMES`.
        audited: Whether this is the real end of a trial that was condemned on the way.
        details: Further fields of `Outcome`; `margin` is the evaluation's by default, below 0 as for every trial that
            no rule has ended: one that was suspect in its last reports has not collapsed.
    """
    last, best, margin = trial.evaluation.last, trial.evaluation.best, trial.evaluation.margin
    details.setdefault("margin", min(margin, -MIN_MARGIN) if margin is not None else None)
    return Outcome(
        trial=trial.id,
        attempt=trial.attempt,
        outcome=outcome,
        warnings=last.warnings if last else (),
        best=Best.of(best) if best else None,
        last=last.metrics if last else {},
        epochs=last.epoch if last else 0,
        epochs_budget=trial.epochs,
        step=last.step if last else 0,
        seconds=trial.seconds + (last.seconds if last else 0.0),
        audited=audited,
        **details,
    )
