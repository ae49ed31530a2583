"""What a sweep is worth: ours against stock tuners, and ours without each of its parts, in the simulator.

    python benchmarks/versus_stock.py                          # every family with CollapseBench curves; tables
    python benchmarks/versus_stock.py lithology --json         # the same, and one JSON object as the last line
    python benchmarks/versus_stock.py --json --keep runs.jsonl    # goes on where it was interrupted
    python benchmarks/versus_stock.py --seeds 5 --surrogate forest

Every arm gets the same space, the same slots and the same budget of core-seconds, once per seed and stand-in. The
target is the value that 5 % of the healthy trials of CollapseBench reach; an arm has reached it when a trial that is
healthy in truth reports such a value at full beta, whatever the arm itself thinks of that trial (which favours arms
that look at something else). An arm that never reaches it counts its full budget. Nothing is charged for starting a
trial but the turnaround of a warm slot, to anybody: stock Ray Train costs 12 to 29 seconds a trial more
(benchmarks/slots.py).

All of it twice: with stand-ins as they are, and with every recorded curve standing in *once* per sweep at most. As they
are, a sampler that tries again close to what was good gets the very same curve, noise and all: whoever draws at random
loses nothing by that. Once each, curves run out where a sampler is busy, which drives it on to others and so favours
those that search close by. The truth lies between; the first is the headline because it favours the others.
benchmarks/README.md says what the keys mean.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean, median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks.command import arguments, told  # noqa: E402
from benchmarks.simulated import SLOTS, Bench, Kept, Run, Task, family_of, processes, runs_of, stand_in  # noqa: E402
from benchmarks.surrogate import SURROGATES  # noqa: E402
from buttress.analysis.intervals import Share  # noqa: E402

DRAWN = 2000  # bootstrap samples


def summed(runs: Sequence[Run], budget: float) -> dict[str, Any]:
    costs = [budget if run.reached is None else run.reached for run in runs]
    bests = [run.best_healthy for run in runs if run.best_healthy is not None]
    winners = [run.winner_dead for run in runs if run.winner_dead is not None]
    return {
        "seeds": len(runs),
        "median_compute_s": median(costs),
        "geometric_mean_s": float(np.exp(np.log(costs).mean())),
        "quartiles_compute_s": [float(q) for q in np.quantile(costs, [0.25, 0.75])],
        "never": sum(run.reached is None for run in runs) / len(runs),
        "best_healthy": median(bests) if bests else None,
        "collapsed_share": sum(run.dead for run in runs) / max(1, sum(run.trials for run in runs)),
        "collapsed_winners": Share(sum(map(bool, winners)), len(winners)).to_dict(),
        "false_kills": Share(sum(run.killed for run in runs), sum(run.healthy for run in runs)).to_dict(),
        "audit": {
            "told": Share(sum(run.acquitted for run in runs), sum(run.audited for run in runs)).to_dict(),
            "true": Share(sum(run.wronged for run in runs), sum(run.audited for run in runs)).to_dict(),
            "compute_share": fmean(run.audit_s for run in runs) / budget,
        },
        "trials": fmean(run.trials for run in runs),
        "costs": costs,
    }


def ratio(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """Median of theirs over median of ours, with the middle 95 % of the bootstrap samples of the seeds; the same of
    geometric means (`geometric`), and of the seeds that both have (`paired`), which are drawn together."""
    rng = np.random.default_rng(seed)
    one, other = np.array(ours), np.array(theirs)
    ones, others = (rng.choice(costs, (DRAWN, len(costs))) for costs in (one, other))
    each = np.log(other[: len(one)] / one[: len(other)])
    return {
        "ratio": float(np.median(other) / np.median(one)),
        "interval": _middle(np.median(others, axis=1) / np.median(ones, axis=1)),
        "geometric": {
            "ratio": float(np.exp(np.log(other).mean() - np.log(one).mean())),
            "interval": _middle(np.exp(np.log(others).mean(axis=1) - np.log(ones).mean(axis=1))),
        },
        "paired": {
            "ratio": float(np.exp(each.mean())),
            "interval": _middle(np.exp(rng.choice(each, (DRAWN, len(each))).mean(axis=1))),
        },
    }


def _middle(drawn: np.ndarray) -> list[float]:
    return [float(end) for end in np.quantile(drawn, [0.025, 0.975])]


def compare(runs: Mapping[str, Callable[[], list[Run]]], budget: float, tell: Callable[[str], None]) -> dict[str, Any]:
    """Every arm on one kind of stand-in; `ours` comes first. Tells an arm's line of the table once it is known."""
    titles = "never | best healthy | collapsed | collapsed winners | false kills | ours saves | by geometric means |"
    tell(f"| arm | compute to target (s) | {titles}")
    tell("| --- | --: | --: | --: | --: | --: | --: | --: | --: |")
    arms: dict[str, dict[str, Any]] = {}
    for name, wait in runs.items():
        arms[name] = arm = summed(wait(), budget)
        against = arm["ratio"] = ratio(arms["ours"]["costs"], arm["costs"])
        if name.startswith("("):
            del against["paired"]  # a seed means the same draws to two arms of ours, but not to a stock tuner
        best = "-" if arm["best_healthy"] is None else f"{arm['best_healthy']:.3f}"
        kills, winners = arm["false_kills"], arm["collapsed_winners"]
        wrong = f"{kills['count']} of {kills['of']}" if kills["of"] else "-"
        saved = "- | -" if name == "ours" else f"{_saves(against)} | {_saves(against['geometric'])}"
        tell(
            f"| {name} | {arm['median_compute_s']:.0f} | {arm['never']:.0%} | {best} | {arm['collapsed_share']:.0%} "
            f"| {winners['count']} of {winners['of']} | {wrong} | {saved} |"
        )
    stock = {name: arm for name, arm in arms.items() if name.startswith("(")}
    ours = arms["ours"]
    return {
        **_best(stock, "median_compute_s", lambda arm: arm["ratio"]),
        "geometric": _best(stock, "geometric_mean_s", lambda arm: arm["ratio"]["geometric"]),
        "best_healthy": ours["best_healthy"],
        "collapsed_share": ours["collapsed_share"],
        "collapsed_winners": ours["collapsed_winners"]["count"],
        "arms": {name: {key: value for key, value in arm.items() if key != "costs"} for name, arm in arms.items()},
    }


def _best(stock: Mapping[str, Any], by: str, against: Callable[[Any], Mapping[str, Any]]) -> dict[str, Any]:
    """The stock arm that spends least, and what ours saves of that."""
    name = min(stock, key=lambda name: float(stock[name][by]), default=None)
    found = against(stock[name]) if name is not None else {}
    return {"best_baseline": name, "time_to_target_ratio": found.get("ratio"), "interval": found.get("interval")}


def _saves(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['ratio']:.2f} ({low:.2f} to {high:.2f})"


def study(bench: Bench, given: Namespace, begin: Callable[[Task], Callable[[], Run]], kept: Kept) -> dict[str, Any]:
    """One family: all arms on all stand-ins that are asked for, first as they are, then with each curve once."""
    family, modes = family_of(bench), {"not": [False], "also": [False, True], "only": [True]}[given.once]
    kinds = [given.surrogate] if given.surrogate else list(SURROGATES)
    kinds.sort(key=lambda kind: -stand_in(bench, kind).trust.rank_correlation)
    arms = sorted(family.arms(), key=lambda arm: arm != "ours" and not arm.startswith("("))
    arms = [arm for arm in arms if arm == "ours" or not given.only or any(word in arm for word in given.only)]
    whole = [arm for arm in arms if not arm.startswith("ours ")]
    shown = {False: arms, True: arms if given.once == "only" else whole}
    seeds = {arm: given.seeds if arm in whole else given.ablation_seeds for arm in arms}
    tasks = [
        Task(bench, kind, once, arm, given.first_seed + seed)
        for once in modes
        for kind in kinds
        for arm in shown[once]
        for seed in range(seeds[arm])
    ]
    runs = runs_of(tasks, begin, kept)
    found: dict[bool, dict[str, Any]] = {}
    for once in modes:
        results = {}
        for kind in kinds:
            trust = stand_in(bench, kind).trust
            print(f"\n{bench.name}, stand-ins by `{kind}`{', each curve once' * once}: over curves left out, rank")
            print(f"correlation {trust.rank_correlation:.2f} ({trust.pairs} healthy pairs), same end")
            print(f"{trust.same_end:.0%}; target {family.target:.4g}, {SLOTS} slots, {family.budget:.0f} core-s\n")
            waits = {arm: lambda arm=arm: list(islice(runs, seeds[arm])) for arm in shown[once]}
            results[kind] = {"trust": trust.to_dict(), **compare(waits, family.budget, _tell)}
        first = {key: value for key, value in results[kinds[0]].items() if key not in ("arms", "trust")}
        found[once] = {**first, "surrogates": results}
    about = {"target": family.target, "budget_core_s": family.budget, "slots": SLOTS, "seeds": given.seeds}
    return {**found[modes[0]], **about, **({"once": found[True]} if len(modes) > 1 else {})}


def _tell(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seeds", type=int, default=60, help="of ours and of the stock arms")
    parser.add_argument("--ablation-seeds", type=int, default=20, help="of ours without its parts; once each: no")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--surrogate", choices=sorted(SURROGATES), help="default: both, the more trusted first")
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="arms with this word, beside ours")
    parser.add_argument("--once", choices=("not", "also", "only"), default="also",
                        help="curves that stand in once per sweep at most: not, also (default), only")  # fmt: skip
    parser.add_argument("--rules", type=Path, help="this rules file instead of those that the bench's space names")
    parser.add_argument("--jobs", type=int, default=2, help="processes; they change nothing but the time")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="where runs are kept, and taken from next time")
    given = parser.parse_args()
    kept = Kept(given.keep)
    with processes(given.jobs) as begin:
        told(given, lambda name: study(Bench(name, given.curves.absolute(), given.rules), given, begin, kept))


if __name__ == "__main__":
    main()
