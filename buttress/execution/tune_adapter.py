"""Ray Tune as the executor of a sweep: it asks for trials, runs a light actor for each, and is told how they ended.

Tune decides nothing here. The searcher asks the driver for the next trial, the trial actor submits it to the mailbox
and passes its results on, scheduler and stopper read the decision that stands in the result. Nothing that Tune writes
is read again; it lies in the sweep's `.ray`, which is deleted with the sweep's end.

The module imports no torch, because the process of every trial actor loads it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import ray.tune
from ray.tune.search import Searcher

from buttress.compat.ray import credentials_kept_in_the_driver
from buttress.execution.messages import Assignment
from buttress.tune.scheduler import FullBetaHalving

#: Trials that Tune may hold at once: more than there can be slots.
MAX_CONCURRENT_TRIALS = 10_000


class SlotTrial(ray.tune.Trainable):
    """A Tune trial that has a warm slot do the work and waits for the results.

    Tune keeps the actor from trial to trial (`reuse_actors=True`); if Tune starts more of them than it needs, that
    costs a light process and no slot. If the actor dies, its successor submits the same attempt again, which changes
    nothing for the workers, and goes on waiting.

    Tune config: `trial` (its name in the sweep), `assignment` (JSON, see `Assignment.to_json`), `mailbox` (the actor's
    name), `namespace`.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Submits the first trial of this actor."""
        self._submit(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Submits another trial."""
        self._submit(new_config)
        return True

    def _submit(self, config: dict[str, Any]) -> None:
        self._seen = 0
        self._trial = config["trial"]
        self._mailbox = ray.get_actor(config["mailbox"], namespace=config["namespace"])
        ray.get(self._mailbox.submit.remote(Assignment.from_json(config["assignment"])))

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


class DriverSearcher(Searcher):
    """Tune's searcher: asks the driver for the next trial and tells it when Tune has let go of one.

    Args:
        next_trial: Returns the Tune config of the next trial, None to wait, or `Searcher.FINISHED` after the last one.
        release: Called once per trial when Tune has let go of it: its name in the sweep, and whether its actor was
            lost for good.
    """

    def __init__(
        self, next_trial: Callable[[], dict[str, Any] | str | None], release: Callable[[str, bool], None]
    ) -> None:
        super().__init__()
        self._next_trial, self._release = next_trial, release
        self._names: dict[str, str] = {}  # Tune's trial id -> the trial's name in the sweep

    def set_search_properties(self, *args: Any, **kwargs: Any) -> bool:
        """Accepts whatever Tune's configuration says."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next trial's config."""
        config = self._next_trial()
        if isinstance(config, dict):
            self._names[trial_id] = config["trial"]
        return config

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tune has let go of a trial."""
        if (trial := self._names.pop(trial_id, None)) is not None:
            self._release(trial, error)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher at the start, for a restore that no sweep uses."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a sweep is resumed from its journal."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""


class SweepStopper(ray.tune.Stopper):
    """Tune's stopper: stops a trial whose result holds a verdict, and all trials once the sweep is over.

    Args:
        is_over: Whether the sweep has failed, or its circuit breaker stops it.
    """

    def __init__(self, is_over: Callable[[], bool]) -> None:
        self._is_over = is_over

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether the trial has collapsed or diverged."""
        return result.get("outcome") in ("collapsed", "diverged")

    def stop_all(self) -> bool:
        """Whether every trial is to stop."""
        return self._is_over()

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its stopper at the start, for a restore that no sweep uses."""
        return {}


def run_tune(
    metric: str,
    direction: Literal["min", "max"],
    folder: Path,
    *,
    next_trial: Callable[[], dict[str, Any] | str | None],
    release: Callable[[str, bool], None],
    is_over: Callable[[], bool],
) -> None:
    """Runs Tune until there are no more trials, or until the sweep is over.

    Args:
        metric: The first objective.
        direction: Of the first objective.
        folder: Where Tune writes.
        next_trial: See `DriverSearcher`.
        release: See `DriverSearcher`.
        is_over: See `SweepStopper`.
    """
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(SlotTrial, {"cpu": 0.001}),
        tune_config=ray.tune.TuneConfig(
            search_alg=DriverSearcher(next_trial, release),
            scheduler=FullBetaHalving(metric, direction),
            num_samples=-1,
            max_concurrent_trials=MAX_CONCURRENT_TRIALS,  # the driver decides: slots come and go
            reuse_actors=True,
        ),
        run_config=ray.tune.RunConfig(
            name="tune",
            storage_path=str(folder.absolute()),
            stop=SweepStopper(is_over),
            verbose=0,
            callbacks=[],
            checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False, checkpoint_frequency=0),
            failure_config=ray.tune.FailureConfig(max_failures=3),
        ),
    )
    with credentials_kept_in_the_driver():
        tuner.fit()
