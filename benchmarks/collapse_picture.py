"""Draws what collapse looks like in a family, from CollapseBench's curves, and when the family's rules see it.

    python benchmarks/collapse_picture.py lithology docs/collapse_lithology.png

Left: the decisive health metric of every trial over its budget. Middle: for each dead trial, from its onset (by the
bench's written definition) to the kill. Right: the objective over the parameter that decides, kills marked.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import matplotlib  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from benchmarks.collapsebench.judge import HERE, curves_of, once  # noqa: E402
from buttress.analysis.curves import Curve  # noqa: E402
from buttress.analysis.replay import CurveReplay, replay  # noqa: E402
from buttress.execution.setup import family_rules  # noqa: E402

LOOKS = {"healthy": ("#2a7f4f", 0.35), "collapsed": ("#b3261e", 0.55), "diverged": ("#7b3fa0", 0.8),
         "ambiguous": ("0.4", 0.8)}  # fmt: skip


@dataclass(frozen=True)
class View:
    """What is drawn of a family: `health` with its label, lowest value drawn and the thresholds of its definition;
    `decides`: the parameter on the right, both on log scales."""

    health: str
    label: str
    least: float
    thresholds: tuple[float, ...]
    decides: str


VIEWS = {
    "lithology": View("latent/kl_total", "total KL (nats)", 1e-4, (0.05,), "loss.beta"),
    "rainfall": View("latent/kl_total", "total KL (nats)", 1e-4, (0.05,), "loss.beta_kl"),
    "occupancy": View("occ/sep", "mean probability: occupied over empty voxels", 0.5, (1.1,), "train.lr"),
}


def draw(family: str, target: Path) -> None:
    curves = curves_of(family, HERE / "curves")
    view, rules = VIEWS[family], family_rules(family)
    judged = [(curve, replay(curve, rules)) for curve in once(curves.curves) if curve.truth is not None]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.3), width_ratios=[5, 3, 4], layout="constrained")
    _health(left, view, judged)
    _delays(middle, judged)
    _objective(right, view, judged, str(curves.about["objective"]))
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    figure.suptitle(f"{family}: {len(judged)} configurations, run to their full budget; X: where the rules kill")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=90)


def _health(axes: Axes, view: View, judged: list[tuple[Curve, CurveReplay]]) -> None:
    named: set[str] = set()
    for curve, found in judged:
        assert curve.truth is not None
        colour, alpha = LOOKS[curve.truth.outcome]
        values = [report.metrics.get(view.health) for report in curve.reports]
        reported = [(i, value) for i, value in enumerate(values) if value is not None]
        points = [(curve.fraction_run(i), max(value, view.least)) for i, value in reported]
        label = None if curve.truth.outcome in named else curve.truth.outcome
        named.add(curve.truth.outcome)
        axes.plot(*zip(*points, strict=True), color=colour, alpha=alpha, lw=0.8, label=label)
        at = None if found.killed is None else values[found.killed]
        if at is not None:
            axes.plot(found.spent, max(at, view.least), "X", color=colour, ms=5, mec="white", mew=0.4, zorder=4)
    for threshold in view.thresholds:
        axes.axhline(threshold, color="0.3", ls="--", lw=1)
    axes.set(yscale="log", xlabel="share of the budget", ylabel=view.label, title="the health metric")
    for line in axes.legend(fontsize=8, loc="lower left").get_lines():
        line.set(alpha=1, lw=2)


def _delays(axes: Axes, judged: list[tuple[Curve, CurveReplay]]) -> None:
    dead = [(curve, found) for curve, found in judged if curve.truth is not None and curve.truth.dead]
    rows = sorted(((_onset(curve), found) for curve, found in dead), key=lambda row: (row[0], row[1].spent))
    for height, (onset, found) in enumerate(rows):
        axes.plot([onset, found.spent], [height, height], color="#b3261e", lw=1)
        axes.plot(onset, height, ".", color="0.4", ms=3)
        if found.killed is not None:
            axes.plot(found.spent, height, "X", color="#b3261e", ms=4, mec="white", mew=0.3)
    caught = sum(found.killed is not None for _, found in rows)
    title = f"onset to kill: {caught} of {len(rows)} caught"
    axes.set(xlim=(0, 1), xlabel="share of the budget", yticks=[], title=title)


def _onset(curve: Curve) -> float:
    assert curve.truth is not None
    return 0.0 if curve.truth.onset is None else curve.fraction_run(curve.truth.onset)


def _objective(axes: Axes, view: View, judged: list[tuple[Curve, CurveReplay]], objective: str) -> None:
    wrongly = 0
    for curve, found in judged:
        truth = curve.truth
        assert truth is not None
        values = [report.metrics.get(objective) for report in curve.reports]
        value = truth.value if truth.value is not None else next((v for v in reversed(values) if v is not None), None)
        where = curve.about["params"].get(view.decides)
        if value is None or where is None:
            continue
        wrong = found.killed is not None and truth.outcome == "healthy"
        wrongly += wrong
        colour = LOOKS[truth.outcome][0]
        axes.scatter(where, value, color=colour, marker="X" if found.killed is not None else "o", s=34 if wrong else 16,
                     edgecolors="black" if wrong else "none", linewidths=0.8, zorder=4 if wrong else 3)  # fmt: skip
    title = f"framed: {wrongly} healthy ones killed"
    axes.set(xscale="log", xlabel=view.decides, ylabel=objective, title=title)


if __name__ == "__main__":
    draw(sys.argv[1], Path(sys.argv[2]))
