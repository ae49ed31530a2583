"""Computes how often a sweep's own rules were wrong, from the collapsed trials that ran on to their real end.

Such a trial ended healthy if it completed: no rule held any more at its end, and some epoch of it was valid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from buttress.analysis.intervals import Share
from buttress.journal import Journal
from buttress.wording import percent, plural


@dataclass(frozen=True)
class AuditSummary:
    """The false-kill rate of a sweep, and what it cost to know it.

    Attributes:
        share: Share of the condemned trials that the spec lets run on, 0 to 1.
        condemned: Trials that a collapse rule condemned, audited or not.
        false_kills: Of the audited trials that reached their own end, those that ended healthy.
        unfinished: Audited trials that did not (still running, or cut off by an error or a limit).
        epochs: Epochs run after the verdicts.
    """

    share: float
    condemned: int
    false_kills: Share
    unfinished: int
    epochs: int

    def sentence(self) -> str:
        """The audit in one sentence, for a summary of the sweep."""
        if not self.false_kills.of and not self.unfinished:
            return f"audit: none of {plural(self.condemned, 'condemned trial')} was drawn to run on"
        waiting = f" ({self.unfinished} did not get there)" if self.unfinished else ""
        if not self.false_kills.of:
            return f"audit: no condemned trial has run on to its end yet{waiting}"
        count, of = self.false_kills.count, self.false_kills.of
        low, high = self.false_kills.interval
        rate = f"false kills {percent(count / of)} ({100 * low:.0f} to {100 * high:.0f} %)"
        return f"audit: {count} of {plural(of, 'condemned trial')} that ran on ended healthy{waiting}: {rate}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "share": self.share,
            "condemned": self.condemned,
            "false_kills": self.false_kills.to_dict(),
            "unfinished": self.unfinished,
            "epochs": self.epochs,
        }


def audit_summary(journal: Journal) -> AuditSummary | None:
    """Summarises the audit of a sweep; None for a sweep without one, or in which no trial was condemned."""
    share = float((journal.header.spec.get("audit") or {}).get("share") or 0.0)
    records = list(journal.trials.values())
    audited = [record for record in records if record.audit is not None]
    condemned = sum(record.audit is not None or record.state == "collapsed" for record in records)
    if not condemned or not (share or audited):
        return None
    ended = [record for record in audited if record.outcome is not None and record.outcome.audited]
    healthy = sum(record.state == "completed" for record in ended)
    epochs = 0
    for record in audited:
        assert record.audit is not None
        now = record.outcome.epochs if record.outcome else record.reports[-1].epoch if record.reports else 0
        epochs += max(0, now - record.audit.epochs)
    return AuditSummary(share, condemned, Share(healthy, len(ended)), len(audited) - len(ended), epochs)
