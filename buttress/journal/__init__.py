"""The journal: the one append-only record of a sweep, its schema, its writer and its reader.

A journal is a file of JSON lines, `journal.jsonl`, beside which the sweep's other files lie. One writer (the driver)
appends; everybody else reads. In goes one dictionary per event, made by the builders of `kinds` (`header`, `trial`,
`report`, ...), so that no other module spells a key. Out comes a `Journal`: the header and one `TrialRecord` per trial
with the reports that count. Standard library only: the driver, every table and the tests import this package.

Three rules make the file trustworthy whatever happens to its writer:
  - a line counts when its newline is there; what follows the last newline is torn, and cut off before the next append;
  - header, trial, outcome and end lines are on the disk (fsync) before `write` returns;
  - a trial's first outcome line is its last word: whatever comes after it about that trial is ignored by the reader.
"""

from buttress.journal.events import (
    DURABLE,
    Line,
    ReportedLike,
    audit,
    breaker,
    condemned,
    end,
    header,
    lost,
    outcome,
    plain,
    refused,
    report,
    resume,
    rung,
    start,
    suspended,
    trial,
    warm,
)
from buttress.journal.lock import ORIGIN, Owner, lock_file, owner
from buttress.journal.reader import Found, find, lines, read
from buttress.journal.records import (
    FILE,
    FINAL,
    SCHEMA,
    STATES,
    Best,
    Condemned,
    End,
    Header,
    Journal,
    Loss,
    Objective,
    Outcome,
    Refused,
    Report,
    Rung,
    Start,
    TrialRecord,
    fold,
)
from buttress.journal.writer import JournalUnwritable, JournalWriter

__all__ = [
    "DURABLE", "FILE", "FINAL", "ORIGIN", "SCHEMA", "STATES", "Best", "Condemned", "End", "Found", "Header", "Journal",
    "JournalUnwritable", "JournalWriter", "Line", "Loss", "Objective", "Outcome", "Owner", "Refused", "Report",
    "ReportedLike", "Rung", "Start", "TrialRecord", "audit", "breaker", "condemned", "end", "find", "fold", "header",
    "lines", "lock_file", "lost", "outcome", "owner", "plain", "read", "refused", "report", "resume", "rung", "start",
    "suspended", "trial", "warm",
]  # fmt: skip
