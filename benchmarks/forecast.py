"""How often a forecast is right: what was said of CollapseBench's configurations before training, and how they ended.

    python benchmarks/forecast.py                    # every family with curves and a forecast
    python benchmarks/forecast.py lithology --json   # and one JSON object as the last line

`right`: trials that end as foreseen, of those that are collapsed or healthy (one seed of each configuration);
`foreseen`: of the collapsed ones, those that were expected to be; `false_alarms`: of the healthy ones, those that were
not; `nats_rank_correlation`: of the code's expected nats and those of the closing report, healthy trials. Intervals are
Wilson's, 95 %. No curve is used to make a forecast: it takes the config and the training data.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from analysis.curves import Curves  # noqa: E402
from analysis.intervals import Share  # noqa: E402
from benchmarks.collapsebench.family import Family, load  # noqa: E402
from benchmarks.collapsebench.judge import HERE, curves_of, families, once  # noqa: E402
from sweep.surrogate import spearman  # noqa: E402
from trainables.cache import cached  # noqa: E402


def judged(family: Family, curves: Curves) -> dict[str, Any]:
    import numpy as np

    spec, trainable = family.spec(), family.trainable()
    ended, nats = [], []
    for curve in once(curves.curves):
        if curve.truth is None or curve.truth.is_ not in ("collapsed", "healthy"):
            continue
        about = curve.about
        config = spec.config(about["params"], trainable.Config, seed=about["seed"], schedule=trainable.schedule)
        forecast = trainable.forecast(config, cached)
        ended.append((forecast.collapses, curve.truth.is_ == "collapsed"))
        held = curve.reports[-1]["metrics"].get("latent/kl_total")
        if not ended[-1][1] and held is not None and "nats" in forecast.numbers:
            nats.append((forecast.numbers["nats"], held))
    dead = [said for said, is_ in ended if is_]
    alive = [said for said, is_ in ended if not is_]
    pairs = np.array(nats).reshape(-1, 2)
    return {
        "trials": len(ended),
        "right": sum(said == is_ for said, is_ in ended),
        "foreseen": Share(sum(dead), len(dead)).to_dict(),
        "false_alarms": Share(sum(alive), len(alive)).to_dict(),
        "right_interval": list(Share(sum(said == is_ for said, is_ in ended), len(ended)).interval),
        "nats_rank_correlation": spearman(pairs[:, 0], pairs[:, 1]) if nats else None,
        "nats_median_ratio": float(np.median(pairs[:, 1] / np.maximum(pairs[:, 0], 1e-6))) if nats else None,
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
        print(f"{name}: {one['right']} of {one['trials']} ended as foreseen")
        for key in ("foreseen", "false_alarms"):
            share = Share(one[key]["count"], one[key]["of"])
            print(f"  {key.replace('_', ' ')}: {share}")
        if one["nats_rank_correlation"] is not None and math.isfinite(one["nats_rank_correlation"]):
            print(f"  nats: rank correlation {one['nats_rank_correlation']:.3f}, median held / expected "
                  f"{one['nats_median_ratio']:.2f}")  # fmt: skip
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
