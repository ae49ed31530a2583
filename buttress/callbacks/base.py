"""Sweep callbacks; an exception in one never reaches the sweep."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from buttress.journal.events import Event
from buttress.sweep.trial import ActiveTrial

log = logging.getLogger("buttress")
messages_log = logging.getLogger("buttress.messages")  # what callbacks are sent by `on_message`, where there are none


class Callback:
    """Base class of what is called while a sweep runs; override one or both methods.

    Calls come one at a time, in the journal's order, from the thread that wrote the event: return soon. A callback that
    raises is logged once and not called again.

    Example:
        >>> class Messages(Callback):
        ...     def on_message(self, text):
        ...         print(text)
        >>> buttress.run("lithology", profile="quick", callbacks=[Messages()])          # doctest: +SKIP
    """

    def on_event(self, event: Event, trial: ActiveTrial | None = None) -> None:
        """A journal event has been written.

        Args:
            event: The event, of whatever type.
            trial: The trial it belongs to; None for one of the sweep as a whole, and for a trial that it ended.
        """

    def on_message(self, text: str) -> None:
        """Something a person should know that is not an event: a slot waits for room, a checkpoint is missing.

        Args:
            text: One sentence.
        """


class CallbackList:
    """The callbacks of one sweep, called one after the other; one that raises is left out from there on."""

    def __init__(self, callbacks: Iterable[Callback] = ()) -> None:
        self._callbacks = tuple(callbacks)

    def add(self, *callbacks: Callback) -> None:
        """Appends callbacks; they see what happens from now on."""
        self._callbacks += callbacks

    def on_event(self, event: Event, trial: ActiveTrial | None) -> None:
        """Calls `on_event` of every callback."""
        self._call(lambda callback: callback.on_event(event, trial))

    def on_message(self, text: str) -> None:
        """Logs the sentence to `buttress.messages` and calls `on_message` of every callback."""
        messages_log.warning(text)
        self._call(lambda callback: callback.on_message(text))

    def _call(self, call: Callable[[Callback], None]) -> None:
        for callback in self._callbacks:
            try:
                call(callback)
            except Exception:
                log.exception("%s failed and is not called again", type(callback).__name__)
                self._callbacks = tuple(other for other in self._callbacks if other is not callback)
