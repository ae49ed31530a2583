"""Tune's searcher on the sweep's state: a bare adapter that asks for the next trial and never decides anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher


class StateSearcher(Searcher):
    """`draw()` returns the Tune config of the next trial, None to wait, or `FINISHED` when there are no more.

    `ended(trial, error)` is called once per trial when Tune has let go of it; `error`: its actor was lost for good.
    """

    def __init__(self, draw: Callable[[], dict[str, Any] | str | None], ended: Callable[[str, bool], None]) -> None:
        super().__init__()
        self._draw, self._ended = draw, ended
        self._ours: dict[str, str] = {}  # Tune's trial id -> ours

    def set_search_properties(self, *args: Any, **kwargs: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        config = self._draw()
        if isinstance(config, dict):
            self._ours[trial_id] = config["trial"]
        return config

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if (trial := self._ours.pop(trial_id, None)) is not None:
            self._ended(trial, error)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher at the start, for a restore that no sweep uses."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is what lasts."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a sweep is resumed from its journal."""
