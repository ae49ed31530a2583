"""Draws the README's picture of a sweep: what every trial's latent code carried, and where the rules stepped in.

    python benchmarks/picture.py SWEEP docs/sweep.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from buttress.analysis.selection import best_trial
from buttress.journal import find, read

COLOURS = {
    "completed": "#2a7f4f",
    "pruned": "#c9a227",
    "collapsed": "#b3261e",
    "diverged": "#7b3fa0",
    "failed": "black",
}


def draw(sweep: str, target: Path) -> None:
    journal = read(find(sweep).path)
    winner = best_trial(journal)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=[3, 2], layout="constrained")
    labelled: set[str] = set()
    for record in journal.trials.values():
        points = [(r.step, r.metrics.get("latent/kl_total")) for r in record.reports]
        steps = [step for step, value in points if value]
        values = [value for _, value in points if value]
        if not steps:
            continue
        chosen = winner is not None and record.id == winner.id
        label = "best" if chosen else record.state if record.state not in labelled else None
        labelled.add(record.state)
        look = {"lw": 2.6, "zorder": 3} if chosen else {"lw": 1, "zorder": 2, "alpha": 0.75}
        left.plot(steps, values, color=COLOURS[record.state], label=label, **look)
        if record.state == "collapsed":
            left.plot(steps[-1], values[-1], "X", color=COLOURS["collapsed"], ms=8, zorder=4)
        beta = record.params.get("loss.beta")
        metric = journal.objectives[0].metric
        found = [r.metrics[metric] for r in record.reports if r.metrics.get(metric) is not None]
        if beta and found:
            marker, size = ("*", 240) if chosen else ("X", 60) if record.state == "collapsed" else ("o", 42)
            right.scatter(beta, max(found), color=COLOURS[record.state], marker=marker, s=size, zorder=3)
    left.axhline(0.05, color="0.4", ls="--", lw=1)
    where = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
    left.annotate("rule: total KL < 0.05 nats", (0.99, 0.05), fontsize=8, color="0.3", **where)
    left.set(yscale="log", xlabel="optimiser step", ylabel="total KL (nats)", title="what the latent code carries")
    left.legend(fontsize=8, loc="lower right")
    seen = f"{journal.objectives[0].metric}, best seen"
    right.set(xscale="log", xlabel="beta (canonical)", ylabel=seen, title="objective")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    seconds = journal.ended.seconds if journal.ended and journal.ended.seconds else 0.0
    what = f"{len(journal.trials)} trials of {journal.header.trainable} in {seconds:.0f} s; X: killed as collapsed"
    figure.suptitle(what, fontsize=10)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    draw(sys.argv[1], Path(sys.argv[2]))
