"""The integration that Ray itself offers: a Tune function that builds a fresh `TorchTrainer` per trial and passes its
reports on by `TuneReportCallback`. Everything as it comes: helpers, callbacks, poll interval, loggers. It runs the
trainables of benchmarks/timed.py; benchmarks/slots.py compares it with warm slots.

Reports carry their values only: the checkpoints that a slot writes at every epoch are spared here.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def run(trainable: str, configs: list[dict[str, Any]], workers: int, folder: Path) -> None:
    """Runs one trial after the other, each in `folder/<number>`, on a Ray of its own."""
    import ray
    from ray import train, tune
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    def trial(config: dict[str, Any]) -> None:
        settings = config["trial"]
        TorchTrainer(
            loop,
            train_loop_config=settings,
            scaling_config=train.ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 0.9}),
            run_config=train.RunConfig(
                name=f"train-{settings['number']}",
                storage_path=settings["storage"],
                callbacks=[TuneReportCallback()],  # type: ignore[list-item]
            ),
        ).fit()

    ray.init(address="local", log_to_driver=False, logging_level=logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as storage:
            common = {"trainable": trainable, "folder": str(folder), "storage": storage, "here": str(Path.cwd())}
            settings = [{**common, "number": number, "config": config} for number, config in enumerate(configs)]
            tuner = tune.Tuner(
                tune.with_resources(trial, {"cpu": 0.1}),
                param_space={"trial": tune.grid_search(settings)},
                tune_config=tune.TuneConfig(max_concurrent_trials=1),
                run_config=tune.RunConfig(name="stock", storage_path=storage, verbose=0),
            )
            results = tuner.fit()
            if results.errors:
                raise results.errors[0]
    finally:
        ray.shutdown()


def loop(settings: dict[str, Any]) -> None:
    """One rank of one trial: the trainable as a user would bring it to `ray.train`."""
    import os

    os.chdir(settings["here"])
    import torch
    import torch.distributed as dist
    from ray import train

    from buttress.monitors.summaries import merge_rows, pack_row
    from buttress.training import registry
    from buttress.training.randomness import prepare
    from buttress.training.world import World

    context = train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()

    def report(
        metrics: Mapping[str, Any],
        *,
        checkpoint: Callable[[], dict[str, Any]] | None = None,
        media: Mapping[str, Path] | None = None,
    ) -> None:
        row, layout = pack_row({key: value for key, value in metrics.items() if key not in ("epoch", "step")})
        values, _, _ = merge_rows(layout, row[None])
        train.report({"epoch": metrics["epoch"], "step": metrics["step"], **values})

    trainable = registry.load(settings["trainable"])
    config: Any = trainable.Config.model_validate(settings["config"])
    prepare(config.buttress.seed, config.buttress.threads)
    world = World(
        rank=rank, size=size, device=torch.device("cpu"), seed=config.buttress.seed,
        folder=Path(settings["folder"]) / str(settings["number"]),
        group=dist.group.WORLD if size > 1 else None,
    )  # fmt: skip
    trainable.train(config, world, report, None)
