"""The journal: the one append-only record of a sweep.

A journal is a file of JSON lines, `journal.jsonl`, beside which the sweep's other files lie. One writer (the driver)
appends; everybody else reads. Three rules make the file trustworthy whatever happens to its writer:

- a line counts when its newline is there; what follows the last newline is torn, and cut off before the next append;
- durable events (`Event.durable`) are on the disk (fsync) before `write` returns;
- a trial's first outcome is its last word: whatever comes after it about that trial is ignored by the reader.
"""

from buttress.journal.events import SCHEMA, Best, Event, Header, Objective, Outcome, Report, read_event
from buttress.journal.fields import plain
from buttress.journal.lock import ORIGIN, Owner, lock_file, owner
from buttress.journal.reader import Found, events, find, lines, read
from buttress.journal.records import FILE, STATES, Journal, TrialRecord, fold
from buttress.journal.writer import JournalUnwritable, JournalWriter

__all__ = [
    "FILE", "ORIGIN", "SCHEMA", "STATES", "Best", "Event", "Found", "Header", "Journal", "JournalUnwritable",
    "JournalWriter", "Objective", "Outcome", "Owner", "Report", "TrialRecord", "events", "find", "fold", "lines",
    "lock_file", "owner", "plain", "read", "read_event",
]  # fmt: skip
