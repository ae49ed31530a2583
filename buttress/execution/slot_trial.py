"""The Tune trial: a thin actor that hands its work to a warm slot and waits for the results.

It trains nothing and imports neither torch nor a trainable. Tune keeps it from trial to trial (`reuse_actors=True`); if
Tune starts more of them than it needs, that costs a light process and no slot. If the actor dies, its successor submits
the same trial again, which changes nothing for the workers, and goes on waiting.
"""

from __future__ import annotations

import json
from typing import Any

import ray
from ray import tune


class SlotTrial(tune.Trainable):
    """Tune config: `trial` (our id), `work` (what the slot's workers need, JSON), `mailbox` (its name), `namespace`."""

    def setup(self, config: dict[str, Any]) -> None:
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._seen = 0
        self._trial = config["trial"]
        self._mailbox = ray.get_actor(config["mailbox"], namespace=config["namespace"])
        ray.get(self._mailbox.submit.remote(json.loads(config["work"])))

    def step(self) -> dict[str, Any]:
        """The next epoch's result of this trial, or its end."""
        while True:
            try:
                result: Any = ray.get(self._mailbox.next_result.remote(self._trial, self._seen))
            except ray.exceptions.RayError:
                return {"done": True, "outcome": "interrupted", "trial": self._trial}
            if result is not None:
                self._seen += 1
                return {**result, "trial": self._trial}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a trial's state is in its own folder and in the journal."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: see `save_checkpoint`."""
