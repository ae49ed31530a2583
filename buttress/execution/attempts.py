"""What the workers of a slot are given for the next attempt of a trial.

In comes a live trial; out comes its work for the mailbox: the config, the folder, and the newest checkpoint that is
there. Checkpoints that are gone are forgotten, and a note says so.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from buttress.callbacks.checkpoint_retention import Files
from buttress.storage import Storage
from buttress.sweep.state import SweepState
from buttress.sweep.trial import ActiveTrial


class Attempts:
    """Of one sweep, whose trials have their folders below `folder` and, on remote storage, below that of `store`."""

    def __init__(
        self, state: SweepState, folder: Path, files: Files, store: Storage | None, note: Callable[[str], None]
    ) -> None:
        self._state, self._files, self._store, self._note = state, files, store, note
        self._folder = folder.absolute() / "trials"

    def work(self, live: ActiveTrial, problem: str = "") -> dict[str, Any]:
        """What the workers need for the trial's next attempt; `problem`: of the checkpoint it would have gone on from.

        Makes the trial's folder.
        """
        folder = self._folder / live.id
        folder.mkdir(parents=True, exist_ok=True)
        while (source := live.resume_point) and not self._files.exists(live.id, source.checkpoint):
            problem = problem or f"checkpoint {source.checkpoint} is missing"
            self._state.forget_checkpoint(live.id, source.checkpoint)
        if problem:
            now = f"goes on from {source.checkpoint}" if source else "starts afresh"
            self._note(f"trial {live.id}: {problem}, so the trial {now}")
        return {
            "trial": live.id,
            "attempt": live.attempt + 1,
            "trainable": self._state.spec.trainable,
            "config": live.config,
            "seed": live.seed,
            "folder": str(folder),
            "resume": str(folder / source.checkpoint) if source else None,
            "store": self._store.folder(f"trials/{live.id}").url if self._store is not None else None,
        }
