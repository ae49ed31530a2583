"""Ray Tune as a sweep uses it: it asks for trials, has them run by `SlotTrial` actors, and is told how they end.

In come the calls that decide everything (`draw`, `let_go`, `over`); `tune` returns when Tune has no trial left. Nothing
of what Tune writes is read again: it lies in the sweep's `.ray`, which goes with the sweep.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import ray.tune

from buttress.execution.searcher import StateSearcher
from buttress.execution.slot_trial import SlotTrial
from buttress.tune.scheduler import FullBetaHalving
from buttress.tune.stopper import SweepStopper

#: Trials that Tune may hold at once: more than there can be slots.
MOST_AT_ONCE = 10_000


def tune(
    metric: str,
    direction: Literal["min", "max"],
    folder: Path,
    *,
    draw: Callable[[], dict[str, Any] | str | None],
    let_go: Callable[[str, bool], None],
    over: Callable[[], bool],
) -> None:
    """Runs trials until `draw` has no more (see `StateSearcher` for it and `let_go`), or until the sweep is `over`."""
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(SlotTrial, {"cpu": 0.001}),
        tune_config=ray.tune.TuneConfig(
            search_alg=StateSearcher(draw, let_go),
            scheduler=FullBetaHalving(metric, direction),
            num_samples=-1,
            max_concurrent_trials=MOST_AT_ONCE,  # `draw` has the say: slots come and go
            reuse_actors=True,
        ),
        run_config=ray.tune.RunConfig(
            name="tune",
            storage_path=str(folder.absolute()),
            stop=SweepStopper(over),
            verbose=0,
            callbacks=[],
            checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False, checkpoint_frequency=0),
            failure_config=ray.tune.FailureConfig(max_failures=3),
        ),
    )
    tuner.fit()
