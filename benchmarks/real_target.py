"""What a real sweep has to reach (benchmarks/real_sweeps.py): a value of the objective, and where it comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.collapsebench.judge import HERE, curves_of, families, once
from benchmarks.real_figures import Run, figures
from buttress.analysis.curves import Curve, CurveSet
from buttress.spec import trial_config
from buttress.spec.parameters import Parameter
from buttress.spec.spec import SweepSpec
from buttress.training import registry

TOP = 0.95  # quantile of the healthy values of CollapseBench
CURVES = HERE / "curves"


def target_of(family: str, spec: SweepSpec, runs: Sequence[Run], curves: Path = CURVES) -> tuple[float | None, str]:
    """What a sweep of `spec` has to reach, and where that number comes from."""
    found = bench_target(curves_of(family, curves), spec) if family in families(curves) else None
    return found if found is not None else fallback(runs)


def bench_target(held: CurveSet, spec: SweepSpec) -> tuple[float, str] | None:
    """The value that the best 5 % of the healthy CollapseBench trials reach, where the bench is comparable: the same
    data, and all that is fixed but the number of epochs. Then the trials count that the spec's space could have drawn,
    and of them the epochs that its budget has. None where the bench is another task."""
    bench = SweepSpec.from_dict(held.about["spec"])
    trainable = registry.load(str(held.about["family"]))
    path = str(getattr(trainable, "epochs_path", "train.epochs"))
    apart = {key for key in bench.fixed.keys() | spec.fixed.keys() if bench.fixed.get(key) != spec.fixed.get(key)}
    metric = spec.objectives[0].metric
    if apart - {path} or bench.data != spec.data or held.about["objective"] != metric:
        return None
    direction, epochs = str(held.about["direction"]), int(spec.fixed[path])
    healthy = [curve for curve in once(held.curves) if curve.truth and curve.truth.outcome == "healthy"]
    kept = [curve for curve in healthy if could_draw(spec, trainable.Config, curve.about["params"])]
    values = [value for curve in kept if (value := _best_by(curve, metric, direction, epochs)) is not None]
    if not values:
        return None
    target = float(np.quantile(values, TOP if direction == "max" else 1 - TOP))
    return target, f"the best 5 % of {len(values)} healthy CollapseBench trials of this space, by epoch {epochs}"


def could_draw(spec: SweepSpec, Config: Any, params: Mapping[str, Any]) -> bool:
    """Whether a draw of `spec` can be these parameters: in range where they are searched, at the default elsewhere."""
    given = {path: value for path, value in params.items() if path in spec.search}
    if any(not _within(spec.search[path], value) for path, value in given.items()):
        return False
    config = trial_config.build(spec, given, Config)
    others = {path: value for path, value in params.items() if path not in spec.search}
    return all(reduce(getattr, path.split("."), config) == value for path, value in others.items())


def _within(parameter: Parameter, value: Any) -> bool:
    if parameter.choices is not None:
        return value in parameter.choices
    assert parameter.low is not None and parameter.high is not None
    return parameter.low <= value <= parameter.high


def _best_by(curve: Curve, metric: str, direction: str, epochs: int) -> float | None:
    in_time = [line for line in curve.reports if line.full_beta_epochs >= 1 and line.epoch <= epochs]
    values = [line.metrics.get(metric) for line in in_time]
    known = [value for value in values if value is not None and math.isfinite(value)]
    return (max if direction == "max" else min)(known, default=None)


def fallback(runs: Sequence[Run]) -> tuple[float | None, str]:
    """Of every arm the median over seeds of its best; the worst of these: what each arm reaches in half its seeds."""
    middles: dict[str, float] = {}
    for arm in dict.fromkeys(run.arm for run in runs):
        sign = 1.0 if runs[0].direction == "max" else -1.0
        bests = [figures(run, None)["best"] for run in runs if run.arm == arm]
        middle = median(-math.inf if best is None else sign * best for best in bests)
        if math.isfinite(middle):
            middles[arm] = sign * middle
    if not middles:
        return None, "no arm has a living trial at full beta in half its seeds"
    direction = runs[0].direction
    worst = (min if direction == "max" else max)(middles, key=lambda arm: middles[arm])
    return middles[worst], f"the median over seeds of the best of the worst arm that has one ({worst})"
