"""Those that look on at a sweep: every journal line and every note goes to each of them, and none can disturb it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from buttress.journal.events import Event
from buttress.sweep.trial import ActiveTrial

log = logging.getLogger("buttress")
notes = logging.getLogger("buttress.notes")  # what watchers are told, for those who have none


class Watcher(Protocol):
    """What looks on at a sweep: called with every journal line, in order, from the thread that wrote it."""

    def line(self, event: Event, active: ActiveTrial | None = None) -> None:
        """A line has been written; `live` is its trial, unless the line ended it."""

    def note(self, text: str) -> None:
        """Something a person should know that is no line: a slot restarted, a checkpoint missing."""


class Watchers:
    """All watchers of one sweep. One that raises is told of once and not called again."""

    def __init__(self, watchers: Iterable[Watcher] = ()) -> None:
        self._watchers = tuple(watchers)

    def add(self, *watchers: Watcher) -> None:
        self._watchers += watchers

    def line(self, event: Event, active: ActiveTrial | None) -> None:
        self._tell(lambda watcher: watcher.line(event, active))

    def note(self, text: str) -> None:
        notes.warning(text)
        self._tell(lambda watcher: watcher.note(text))

    def _tell(self, call: Callable[[Watcher], None]) -> None:
        for watcher in self._watchers:
            try:
                call(watcher)
            except Exception:
                log.exception("%s failed and is left out from here on", type(watcher).__name__)
                self._watchers = tuple(other for other in self._watchers if other is not watcher)
