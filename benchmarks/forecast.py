"""How often a forecast is right: what was said of CollapseBench's configurations before training, and how they ended.

    python benchmarks/forecast.py                    # every family with curves and a forecast
    python benchmarks/forecast.py lithology --json   # and one JSON object as the last line

`right`: trials that end as foreseen, of those that are collapsed or healthy (one seed of each configuration);
`foreseen`: of the collapsed ones, those that were expected to be; `false_alarms`: of the healthy ones, those that were
not. `..._rank_correlation`, `..._median_ratio` (came / foreseen): of a number that was foreseen (a code's nats, a blind
network's fill) and the closing report's, healthy trials. Intervals are Wilson's, 95 %. No curve is used to make a
forecast: it takes the config and the training data.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks.collapsebench.family import Family, load  # noqa: E402
from benchmarks.collapsebench.judge import HERE, curves_of, families, once  # noqa: E402
from benchmarks.surrogate import spearman  # noqa: E402
from buttress.analysis.curves import CurveSet  # noqa: E402
from buttress.analysis.intervals import Share  # noqa: E402
from buttress.spec import trial_config  # noqa: E402
from buttress.training.cache import cached  # noqa: E402

#: Numbers of forecasts, and the metric that shows what became of them.
SHOWN = {"nats": "latent/kl_total", "blind_fill": "occ/fill"}


def judged(family: Family, curves: CurveSet) -> dict[str, Any]:
    spec, trainable = family.spec(), family.trainable()
    ended: list[tuple[bool, bool]] = []
    numbers: dict[str, list[tuple[float, float]]] = {}
    for curve in once(curves.curves):
        if curve.truth is None or curve.truth.outcome not in ("collapsed", "healthy"):
            continue
        about, dead = curve.about, curve.truth.outcome == "collapsed"
        config = trial_config.build(
            spec, about["params"], trainable.Config, seed=about["seed"], schedule=trainable.schedule
        )
        forecast = trainable.forecast(config, cached)
        if forecast.collapses is not None:
            ended.append((forecast.collapses, dead))
        for name, metric in SHOWN.items():
            came = curve.reports[-1].metrics.get(metric)
            if not dead and came is not None and name in forecast.numbers:
                numbers.setdefault(name, []).append((forecast.numbers[name], came))
    found: dict[str, Any] = {}
    if ended:
        found |= _verdicts(ended)
    for name, pairs in numbers.items():
        expected, came = np.array(pairs).T
        found[f"{name}_rank_correlation"] = spearman(expected, came)
        found[f"{name}_median_ratio"] = float(np.median(came / np.maximum(expected, 1e-6)))
    return found


def _verdicts(ended: list[tuple[bool, bool]]) -> dict[str, Any]:
    """ended: (said, is) of every trial."""
    dead = [said for said, is_ in ended if is_]
    alive = [said for said, is_ in ended if not is_]
    right = Share(sum(said == is_ for said, is_ in ended), len(ended))
    return {
        "trials": right.of,
        "right": right.count,
        "right_interval": list(right.interval),
        "foreseen": Share(sum(dead), len(dead)).to_dict(),
        "false_alarms": Share(sum(alive), len(alive)).to_dict(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    folder = HERE / "curves"
    found: dict[str, Any] = {"command": "python benchmarks/forecast.py --json"}
    for name in given.families or families(folder):
        family = load(name)
        if not hasattr(family.trainable(), "forecast"):
            continue
        found[name] = one = judged(family, curves_of(name, folder))
        print(f"{name}:")
        if "right" in one:
            print(f"  {one['right']} of {one['trials']} ended as foreseen")
        for key in ("foreseen", "false_alarms"):
            if key in one:
                print(f"  {key.replace('_', ' ')}: {Share(one[key]['count'], one[key]['of'])}")
        for key, value in one.items():
            if key.endswith(("_correlation", "_ratio")):
                print(f"  {key.replace('_', ' ')}: {value:.3f}")
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
