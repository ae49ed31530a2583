"""How long a sweep's collapsed trials went on after they had collapsed, and what share of their budget they cost.

    python -m benchmarks.kill_latency runs/occupancy-abc123

Onset is the first report from which on all signs of the rule that killed held in every report, also while the rule
could not speak yet (grace). Steps are optimiser steps from there to the report that condemned; seconds run until the
journal has the outcome and until the next trial has begun on the freed slot. The share is steps over the budget.
"""

from __future__ import annotations

import argparse
from statistics import median
from typing import Any

from buttress import journal
from buttress.journal.records import Journal, TrialRecord
from buttress.rules import RuleEngine, RuleSet


def onset(rules: RuleSet, record: TrialRecord) -> Any:
    """The report at which the rule that killed began to hold for good; None if it never does on the reports."""
    engine, began = RuleEngine(rules, budget_epochs=record.budget_epochs), None
    for one in record.reports:
        age = {"full_beta_epochs": one.full_beta_epochs, "full_beta_steps": one.full_beta_steps, "phase": one.phase}
        engine.update(one.metrics, epoch=one.epoch, step=one.step, **age, nonfinite=one.nonfinite, closing=one.closing)
        rule = record.outcome.rule if record.outcome else None
        began = (began or one) if rule in engine.holding or engine.verdict.final else None
    return began


def freed(found: Journal, record: TrialRecord) -> float | None:
    """Seconds from the outcome to the next start on the slot; None for a slot that got no other trial."""
    assert record.outcome is not None
    slot = record.attempts[-1].slot
    starts = [start.time for other in found.trials.values() for start in other.attempts if start.slot == slot]
    later = [time for time in starts if time > record.outcome.time]
    return min(later) - record.outcome.time if later else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep")
    given = parser.parse_args()
    found = journal.read(journal.find(given.sweep).path)
    rules = RuleSet.from_dict(found.header.rules)
    rows = []
    print("| trial | kind | onset, step | killed, step | s to the outcome | s to the next trial | share of budget |")
    print("| --- | --- | --: | --: | --: | --: | --: |")
    for record in found.trials.values():
        done = record.outcome
        if done is None or done.outcome != "collapsed":
            continue
        began, last = onset(rules, record), record.reports[-1]
        steps_per_epoch = last.step / last.epoch if last.epoch else record.config["train"].get("steps_per_epoch")
        share = last.step / (steps_per_epoch * record.budget_epochs) if steps_per_epoch else float("nan")
        seconds, after = done.time - (began or last).time, freed(found, record)
        rows.append((last.step - (began or last).step, seconds, after, share))
        shown = "-" if after is None else f"{after:.2f}"
        steps = f"{(began or last).step} | {last.step}"
        print(f"| {record.id} | {done.kind} | {steps} | {seconds:.1f} | {shown} | {share:.1%} |")
    if rows:
        waits = [row[2] for row in rows if row[2] is not None]
        print(
            f"\nmedian of {len(rows)}: {median(row[0] for row in rows):.0f} steps and "
            f"{median(row[1] for row in rows):.1f} s from onset to the outcome, "
            f"{median(waits) if waits else float('nan'):.2f} s more to the next trial, "
            f"{median(row[3] for row in rows):.1%} of the budget"
        )


if __name__ == "__main__":
    main()
