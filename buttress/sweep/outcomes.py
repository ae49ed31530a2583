"""How a trial ends, as the journal line that says so.

In goes a live trial and what has happened to it: its trainer returned, its time is over, a rung stopped it, the rules
condemned or suspect it. Out comes its `outcome` line; for a condemned trial that goes on, the `audit` or `suspended`
line. Nothing is changed here: the state of the sweep applies the line.
"""

from __future__ import annotations

from typing import Any

from buttress import journal
from buttress.rules import Verdict
from buttress.spec.spec import SweepSpec
from buttress.sweep.evaluation import Line
from buttress.sweep.trial import LiveTrial


def finished(live: LiveTrial) -> Line:
    """The trainer returned by itself: `completed` with at least one valid epoch, else `failed`.

    A trial that ran on although it was condemned has collapsed if it still looks so.
    """
    last, verdict = live.judged.last, live.judged.verdict
    if verdict is not None and verdict.final:
        return outcome(live, verdict.state, verdict=verdict, audited=live.audited)
    if live.judged.best is not None:
        return outcome(live, "completed", audited=live.audited)
    suspects = ", ".join(last["suspects"]) if last else ""
    why = f"no epoch was valid (still suspect of {suspects})" if suspects else "no epoch was valid"
    return outcome(live, "failed", kind="no valid epoch", message=why, audited=live.audited)


def out_of_time(live: LiveTrial, minutes: float) -> Line:
    """The trial's time limit has passed: what it reached counts as for a pruned trial; nothing valid: `failed`."""
    verdict, message = live.judged.verdict, f"over its time limit of {minutes:g} minutes"
    if verdict is not None and verdict.final:
        return outcome(live, verdict.state, verdict=verdict)
    return outcome(live, "pruned" if live.judged.best else "failed", kind="time limit", message=message)


def pruned(live: LiveTrial, rung: Line) -> Line:
    """The rung's decision `rung` was to stop the trial."""
    value = "no valid value" if rung["value"] is None else f"{rung['value']:.4g}"
    cutoff = "none" if rung["cutoff"] is None else f"{rung['cutoff']:.4g}"
    why = f"at full-beta age {rung['age']}, {value} was worse than the cut-off {cutoff} of {rung['peers']} trials"
    return outcome(live, "pruned", kind=f"rung {rung['age']}", message=why)


def condemned(spec: SweepSpec, live: LiveTrial, verdict: Verdict, report: Line) -> Line:
    """The rules condemned the trial at `report`: its end, unless it is to run on (`audit`) or to be set aside.

    Only a first verdict of collapse has such a choice, and none that the closing check reached.
    """
    fresh = verdict.state == "collapsed" and not report["closing"] and not live.audited and not live.told
    if fresh and spec.audits(int(live.id)):
        return journal.audit(live.id, live.attempt, **_so_far(live, verdict, report))
    if fresh and spec.probation.epochs:
        return _set_aside(spec.probation.epochs, live, verdict, report)
    return outcome(live, verdict.state, verdict=verdict, audited=live.audited)


def suspected(spec: SweepSpec, live: LiveTrial, report: Line) -> Line | None:
    """The rules suspect the trial at `report`: it is set aside if the spec does not wait for a verdict; else None.

    One that would be audited, has had its second chance, or is at the end of its budget waits for its verdict.
    """
    if spec.probation.when != "suspect" or not spec.probation.epochs or live.audited or live.told:
        return None
    if report["closing"] or report["epoch"] >= live.epochs or spec.audits(int(live.id)):
        return None
    verdict = live.judged.engine.verdict_ignoring_patience()
    return _set_aside(spec.probation.epochs, live, verdict, report) if verdict is not None else None


def _set_aside(epochs: int, live: LiveTrial, verdict: Verdict, report: Line) -> Line:
    details = _so_far(live, verdict, report)
    return journal.suspended(live.id, live.attempt, until=report["epoch"] + epochs, **details)


def _so_far(live: LiveTrial, verdict: Verdict, report: Line) -> dict[str, Any]:
    return journal.condemned(
        verdict.to_dict(),
        epochs=report["epoch"],
        step=report["step"],
        epochs_budget=live.epochs,
        seconds=live.seconds + report["seconds"],
    )


def outcome(
    live: LiveTrial,
    outcome: str,
    *,
    verdict: Verdict | None = None,
    kind: str | None = None,
    message: str | None = None,
    error: str | None = None,
    audited: bool = False,
) -> Line:
    """The trial's outcome with what it reached; kind, margin and message are the verdict's where there is one."""
    last, best = live.judged.last, live.judged.best
    margin = live.judged.margin
    if verdict is not None:
        kind, margin, message = verdict.kind, verdict.margin, verdict.message
    kept = ("epoch", "step", "metrics", "seq", "attempt", "checkpoint")
    return journal.outcome(
        live.id,
        live.attempt,
        outcome,
        kind=kind,
        margin=margin,
        rule=verdict.rule if verdict else None,
        evidence=[evidence.to_dict() for evidence in verdict.evidence] if verdict else [],
        message=message,
        warnings=last["warnings"] if last else [],
        best={key: best[key] for key in kept} if best else None,
        last=last["metrics"] if last else {},
        epochs=last["epoch"] if last else 0,
        epochs_budget=live.epochs,
        step=last["step"] if last else 0,
        seconds=live.seconds + (last["seconds"] if last else 0.0),
        error=error,
        audited=audited,
    )
