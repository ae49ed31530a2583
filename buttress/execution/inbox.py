"""Takes up what people ask of a running sweep, in a thread of its own: the storage may be slow or away."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from buttress.errors import BadInput
from buttress.journal.requests import Request, Requests

log = logging.getLogger("buttress")

#: Seconds between two looks at a sweep's folder, and at one on remote storage.
LOCAL_INTERVAL_S, REMOTE_INTERVAL_S = 0.5, 4.0


class Inbox:
    """The requests of one sweep while a driver runs it.

    Args:
        requests: Where they lie.
        handle: Called with each request and a function that answers it; not called again for the same request.
        interval_s: Seconds between two looks.
    """

    def __init__(
        self,
        requests: Requests,
        handle: Callable[[Request, Callable[[str, bool], None]], None],
        interval_s: float,
    ) -> None:
        self._requests, self._handle, self._interval_s = requests, handle, interval_s
        self._seen: set[str] = set()
        self._first = True  # what lies there was asked of an earlier driver, or of nobody
        self._over = threading.Event()
        self._answers: list[tuple[str, str, bool]] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="inbox", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Sends the answers that are due; what comes from now on waits for the next driver."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(10.0)

    def _run(self) -> None:
        while not self._over.is_set():
            self._look()
            self._over.wait(self._interval_s)
        self._send()

    def _look(self) -> None:
        try:
            self._send()
            for id in self._requests.pending():
                if id not in self._seen:
                    self._take(id)
            self._first = False
            self._send()
        except OSError as error:
            log.debug("requests cannot be read now: %s", error)

    def _take(self, id: str) -> None:
        try:
            request = self._requests.read(id)
        except FileNotFoundError:
            return
        except BadInput as error:
            self._seen.add(id)
            self._answer(id, str(error), True)
            return
        self._seen.add(id)
        if self._first and request.of_a_running_sweep:
            self._answer(id, "it came before this driver, when nobody ran the sweep", True)
            return
        self._handle(request, lambda message, refused: self._answer(id, message, refused))

    def _answer(self, id: str, message: str, refused: bool) -> None:
        with self._lock:
            self._answers.append((id, message, refused))

    def _send(self) -> None:
        """Sends the answers; those that cannot be sent now are sent later."""
        with self._lock:
            due, self._answers = self._answers, []
        for place, (id, message, refused) in enumerate(due):
            try:
                self._requests.answer(id, message, refused=refused)
            except OSError:
                with self._lock:
                    self._answers = due[place:] + self._answers
                raise
