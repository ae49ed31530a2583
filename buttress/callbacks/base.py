"""Sweep callbacks; an exception in one never reaches the sweep."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from buttress.sweep.evaluation import Line
from buttress.sweep.trial import LiveTrial

log = logging.getLogger("buttress")
notes = logging.getLogger("buttress.notes")  # what callbacks are told, for those who have none


class Callback(Protocol):
    """Called while a sweep runs, with every journal line in order.

    A class needs no base class; these two methods are enough. Calls come from the thread that wrote the line, one at a
    time: return soon. A callback that raises is logged once and not called again.

    Example:
        >>> class Outcomes:
        ...     def line(self, line, live=None):
        ...         if line["line"] == "outcome":
        ...             print(line["trial"], line["outcome"])
        ...
        ...     def note(self, text):
        ...         print(text)
        >>> buttress.run("lithology", profile="quick", callbacks=[Outcomes()])          # doctest: +SKIP
    """

    def line(self, line: Line, live: LiveTrial | None = None) -> None:
        """A journal line has been written.

        Args:
            line: The line as a mapping; `line["line"]` is its type (`start`, `report`, `outcome`, ...).
            live: Its trial, unless the line ended it.
        """

    def note(self, text: str) -> None:
        """Something a person should know that is not a line: a worker restarted, a checkpoint missing."""


class Callbacks:
    """All callbacks of one sweep. One that raises is logged once and not called again."""

    def __init__(self, callbacks: Iterable[Callback] = ()) -> None:
        self._callbacks = tuple(callbacks)

    def add(self, *callbacks: Callback) -> None:
        self._callbacks += callbacks

    def line(self, line: Line, live: LiveTrial | None) -> None:
        self._call(lambda callback: callback.line(line, live))

    def note(self, text: str) -> None:
        notes.warning(text)
        self._call(lambda callback: callback.note(text))

    def _call(self, call: Callable[[Callback], None]) -> None:
        for callback in self._callbacks:
            try:
                call(callback)
            except Exception:
                log.exception("%s failed and is left out from here on", type(callback).__name__)
                self._callbacks = tuple(other for other in self._callbacks if other is not callback)
