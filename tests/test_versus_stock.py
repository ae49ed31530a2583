"""Stock tuners on the simulator's clock behave as they do at home, and the comparison counts what it says it counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from journal_lines import recorded
from sweeps import ToyConfig
from test_simulator import bench, spec

from benchmarks.collapsebench.family import load
from benchmarks.collapsebench.judge import HERE
from benchmarks.simulated import SLOTS, Bench, Kept, Run, Task, Watch, as_today, family_of, processes, runs_of
from benchmarks.simulator import Event, play
from benchmarks.stock_policies import OptunaPruned, RandomSearch, Stock, StockTune
from benchmarks.surrogate import Nearest, bench_space
from benchmarks.versus_stock import ratio, summed
from buttress.analysis.curves import Curve, Truth
from buttress.execution.setup import resolve_rules
from buttress.spec.spec import SweepSpec

KINDS: dict[str, Any] = {
    "tune": lambda *given: StockTune(*given, seed=3),
    "median": lambda *given: OptunaPruned(*given, seed=3, pruner="median"),
    "hyperband": lambda *given: OptunaPruned(*given, seed=3, pruner="hyperband"),
    "random": lambda *given: RandomSearch(*given, seed=3),
}


def played(kind: str, seconds: float = 40.0) -> tuple[Stock, list[Event]]:
    policy: Stock = KINDS[kind](spec(), ToyConfig, lambda metrics: metrics.get("val/score"), "max", 8)
    seen: list[Event] = []
    play(policy, Nearest(bench()), slots=2, seconds=seconds, see=seen.append)
    return policy, seen


@pytest.mark.parametrize("kind", KINDS)
def test_a_stock_tuner_runs_trials_and_names_its_best_by_the_last_value(kind: str) -> None:
    policy, seen = played(kind)
    trials = {event.trial for event in seen}
    assert len(trials) > 10
    assert policy.best in trials
    assert policy.last[str(policy.best)] >= max(policy.last.values()) - (1e-12 if kind in ("tune", "random") else 1.0)
    stopped = {event.trial for event in seen if event.stopped}
    assert bool(stopped) == (kind != "random")


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_draws_the_same_trials(kind: str) -> None:
    one, two = (played(kind)[1] for _ in range(2))
    assert [event[:2] for event in one] == [event[:2] for event in two]


def test_tunes_asha_stops_as_the_class_itself_does() -> None:
    """Replayed by hand into a fresh scheduler: the same trials are stopped at the same epochs."""
    from ray.tune.schedulers import ASHAScheduler

    _, seen = played("tune")
    asha = ASHAScheduler(time_attr="training_iteration", max_t=8, metric="value", mode="max")

    class Trial:
        def __init__(self, name: str) -> None:
            self.trial_id = name

    known: set[str] = set()
    for event in seen:
        report = event.curve.reports[event.number]
        if event.trial not in known:
            known.add(event.trial)
            asha.on_trial_add(None, Trial(event.trial))
        if "val/score" not in report.metrics:
            assert not event.stopped
            continue
        result = {"training_iteration": report.epoch, "value": report.metrics["val/score"]}
        assert (asha.on_trial_result(None, Trial(event.trial), result) == "STOP") == event.stopped
        if event.stopped:
            asha.on_trial_complete(None, Trial(event.trial), result)


def curve(truth: str, values: list[float]) -> Curve:
    reports = tuple(
        recorded(
            epoch=i, step=i, full_beta_epochs=i - 1, full_beta_steps=i - 1, phase=0, metrics={"val/score": value}
        )
        for i, value in enumerate(values, 1)
    )  # fmt: skip
    times = tuple(float(index) for index in range(len(values)))
    return Curve(truth, reports, times, len(values), Truth(truth), times)


def test_the_target_is_reached_by_a_healthy_trial_at_full_beta_alone() -> None:
    watch = Watch("val/score", "max", target=0.5)
    watch(Event(1.0, "0", curve("collapsed", [0.9, 0.9]), 1, False))  # dead in truth
    watch(Event(2.0, "1", curve("healthy", [0.9, 0.4]), 0, False))  # inside the warm-up
    watch(Event(3.0, "1", curve("healthy", [0.9, 0.4]), 1, False))  # not good enough
    assert watch.reached is None and watch.best == 0.4
    watch(Event(4.0, "2", curve("healthy", [0.1, 0.6]), 1, False))
    watch(Event(5.0, "3", curve("healthy", [0.1, 0.8]), 1, False))
    assert watch.run("0") == Run(4.0 * SLOTS, 0.8, trials=4, dead=1, winner_dead=True)
    assert watch.run(None).winner_dead is None


def test_a_sweep_that_never_gets_there_counts_its_budget() -> None:
    runs = [Run(10.0, 0.7, 5, 1, False), Run(None, 0.4, 5, 2, True), Run(20.0, 0.6, 10, 1, False)]
    found = summed(runs, budget=100.0)
    assert (found["median_compute_s"], found["never"], found["best_healthy"]) == (20.0, pytest.approx(1 / 3), 0.6)
    assert found["collapsed_share"] == pytest.approx(4 / 20) and found["collapsed_winners"]["count"] == 1
    nothing = summed([*runs, Run(None, None, 1, 1, None)], budget=100.0)["collapsed_winners"]
    assert (nothing["count"], nothing["of"]) == (1, 3)  # a sweep without a winner has none that is dead or alive


def test_the_ratio_is_of_medians_and_its_interval_holds_it() -> None:
    found = ratio([10.0, 11.0, 12.0, 9.0], [20.0, 24.0, 22.0, 90.0])
    assert found["ratio"] == pytest.approx(23 / 10.5)
    assert found["interval"][0] < found["ratio"] < found["interval"][1]
    assert found["paired"]["ratio"] == pytest.approx(found["geometric"]["ratio"])  # as many seeds here and there


def test_geometric_means_are_of_all_seeds_and_pairs_of_those_that_both_have() -> None:
    found = ratio([1.0, 2.0, 4.0, 8.0], [2.0, 4.0])
    assert found["geometric"]["ratio"] == pytest.approx(8**0.5 / 8**0.5)
    assert found["paired"] == {"ratio": pytest.approx(2.0), "interval": [pytest.approx(2.0), pytest.approx(2.0)]}


BENCH = Bench("lithology", HERE / "curves")
TASKS = [Task(BENCH, "nearest", once, arm, 3) for once in (False, True) for arm in ("ours", "(d) random search")]


def test_a_line_that_a_killed_command_left_torn_is_cut_off(tmp_path: Path) -> None:
    path, run = tmp_path / "runs.jsonl", Run(1.0, 0.5, 2, 0, False)
    Kept(path).add(TASKS[0], run)
    with path.open("a") as handle:
        handle.write('{"key": "half')
    kept = Kept(path)
    assert kept.get(TASKS[0]) == run
    kept.add(TASKS[1], run)
    assert Kept(path).get(TASKS[1]) == run and len(path.read_text().splitlines()) == 2


def test_runs_do_not_depend_on_the_number_of_processes_and_are_kept(tmp_path: Path) -> None:
    found = []
    for jobs in (1, 2):
        with processes(jobs) as begin:
            found.append(list(runs_of(TASKS, begin, Kept(tmp_path / f"{jobs}.jsonl"))))
    assert found[0] == found[1] and len({run.trials for run in found[0]}) > 1

    def nobody(task: Task) -> Any:
        raise AssertionError("was run again")

    assert list(runs_of(TASKS, nobody, Kept(tmp_path / "2.jsonl"))) == found[0]
    with pytest.raises(AssertionError, match="run again"):
        list(runs_of([TASKS[0]._replace(seed=4)], nobody, Kept(tmp_path / "2.jsonl")))


def test_a_family_is_simulated_under_the_rules_and_rungs_that_its_bench_profile_names_today() -> None:
    family = family_of(BENCH)
    now, recorded = load("lithology").spec(), bench_space(family.curves)
    assert family.space.search == recorded.search and family.space.rules == now.rules
    changed = as_today(recorded, SweepSpec.from_dict(now.to_dict() | {"rules": {"diverged": {"action": "off"}}}))
    assert resolve_rules(changed).rules["diverged"].action == "off" != resolve_rules(recorded).rules["diverged"].action
