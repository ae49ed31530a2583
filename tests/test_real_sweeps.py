"""Real sweeps of all arms are read from their lines alike, and judged by what the clock and the definitions say."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import journal_lines
import numpy as np
import pytest
from journal_lines import Line
from sweeps import Toy, ToyConfig, World, spec

from benchmarks.collapsebench.family import Family, load
from benchmarks.collapsebench.judge import once
from benchmarks.real_arms import (
    TOLD,
    StockState,
    best_completed,
    lines_in,
    space,
    spec_of,
    trials_of,
)
from benchmarks.real_figures import Ran, Run, Seen, compare, figures, last_told
from benchmarks.real_stock import LINES, REPORTS, Recorder, Space, loop
from benchmarks.real_sweeps import kept, planned, table
from benchmarks.real_target import CURVES, bench_target, could_draw, fallback
from benchmarks.stock_policies import StockTune
from benchmarks.watched import name_of
from buttress.analysis.curves import CurveSet, read_curves
from buttress.errors import BadInput
from buttress.journal import Event
from buttress.rules import RuleSet
from buttress.training.registry import load as load_trainable
from buttress.training.trainable import Reported

FAMILY = Family(
    "toy",
    min_steps=30,
    looks_dead=lambda metrics: None if metrics.get("latent/kl_total") is None else metrics["latent/kl_total"] < 0.5,  # type: ignore[operator]
    blind=lambda measured, last: False,
    validation_loss=lambda metrics: metrics.get("val/loss"),
)


def seen(t: float, value: float | None, dead: bool | None = False, **more: Any) -> Seen:
    given = {"epoch": int(t), "age": int(t), "told": value, "counts": True, "closing": False}
    return Seen(t=t, value=value, dead=dead, **{**given, **more})


def ran(name: str, *reports: Seen, until: float | None = None, begun: float = 0.0) -> Ran:
    return Ran(name, {}, begun, ((begun, until),), reports)


def run(*trials: Ran, winner: str | None = None, arm: str = "ours", seed: int = 0, **more: Any) -> Run:
    given = {"limit": 10.0, "direction": "max", "notes": {"told_direction": "max"}}
    return Run("toy", arm, seed, winner=winner, trials=trials, **{**given, **more})


# --- one run --------------------------------------------------------------------------------------------------------


def test_the_best_value_is_of_a_report_that_is_alive_at_full_beta_and_in_time() -> None:
    trial = ran(
        "0000",
        seen(1, 0.9, age=0),  # beta still grows
        seen(2, 0.8, dead=True),
        seen(3, 0.7, dead=None),  # nobody can tell
        seen(4, 0.2),
        seen(5, 0.3),
        seen(6, math.nan),
        seen(11, 0.6),  # too late
    )
    found = figures(run(trial, winner="0000"), target=0.25)
    assert (found["best"], found["winner_best"]) == (0.3, 0.3)
    assert found["to_target_s"] == 5
    assert figures(run(trial), target=0.5)["to_target_s"] is None
    assert figures(run(trial, direction="min"), target=0.25)["best"] == 0.2
    assert figures(run(trial, direction="min"), target=0.25)["to_target_s"] == 4


def test_a_trial_is_dead_by_its_last_report_that_can_tell() -> None:
    recovered = ran("0000", seen(1, 0.1, dead=True), seen(2, 0.1))
    died = ran("0001", seen(1, 0.1), seen(2, 0.1, dead=True), seen(3, None, dead=None))
    young = ran("0002", seen(1, 0.1, dead=True, counts=False))
    late = ran("0003", seen(1, 0.1), seen(11, 0.1, dead=True))
    unborn = ran("0004", seen(12, 0.1), begun=10.5)
    found = figures(run(recovered, died, young, late, unborn, winner="0001"), target=None)
    assert (found["begun"], found["dead"], found["too_young"]) == (4, 1, 1)
    assert found["winner_collapsed"] is True
    assert figures(run(young, winner="0002"), None)["winner_collapsed"] is None
    assert figures(run(recovered, winner="0000"), None)["winner_collapsed"] is False


def test_time_on_dead_trials_is_of_what_the_slots_were_held() -> None:
    died = ran("0000", seen(1, 0.1, dead=True), until=3.0)
    lives = ran("0001", seen(5, 0.1), begun=4.0)  # still runs when the clock stops: 6 s
    assert figures(run(died, lives), None)["dead_time_share"] == pytest.approx(3 / 9)
    twice = Ran("0002", {}, 0.0, ((0.0, 2.0), (8.0, 14.0)), (seen(1, 0.1, dead=True),))  # set aside, and back
    assert figures(run(twice, lives), None)["dead_time_share"] == pytest.approx(4 / 10)


def test_finished_is_who_has_made_the_closing_report_in_time() -> None:
    one, late = ran("0000", seen(9, 0.1, closing=True)), ran("0001", seen(11, 0.1, closing=True))
    assert figures(run(one, late), None)["finished"] == 1


def test_a_stock_tuner_calls_the_best_last_value_its_winner() -> None:
    """Also of a stopped trial; never of one whose last value is not finite."""
    peaked = ran("0000", seen(1, 0.9), seen(2, 0.1))
    stopped = ran("0001", seen(1, 0.5), until=2.0)
    broken = ran("0002", seen(1, 0.8), seen(2, None, told=math.inf))
    inside = ran("0003", seen(1, 0.4), seen(2, None), seen(11, 0.99))
    assert last_told(run(peaked, stopped, broken, inside)) == "0001"
    assert last_told(run(peaked, stopped, broken, inside, notes={"told_direction": "min"})) == "0000"
    assert last_told(run(broken)) is None


# --- arms against each other ----------------------------------------------------------------------------------------


def test_arms_are_paired_by_seed_and_who_never_gets_there_counts_the_whole_time() -> None:
    fast, slow, never = ran("0000", seen(2, 0.5)), ran("0000", seen(8, 0.5)), ran("0000", seen(2, 0.1))
    ours = [run(fast, seed=0), run(slow, seed=1), run(never, seed=2)]
    theirs = [run(slow, arm="a", seed=0), run(never, arm="a", seed=1), run(slow, arm="a", seed=2)]
    found = compare([*ours, *theirs], target=0.5)
    pairs = found["a"]["paired"]
    assert [pair["ratio"] for pair in pairs] == [8 / 2, 10 / 8, 8 / 10]
    assert [pair["they_never"] for pair in pairs] == [False, True, False]
    assert [pair["we_never"] for pair in pairs] == [False, False, True]
    assert found["a"]["ratio"] == pytest.approx((4 * 1.25 * 0.8) ** (1 / 3))
    assert found["ours"]["ratio"] is None and found["ours"]["paired"] == []
    assert (found["a"]["never"], found["a"]["median_to_target_s"]) == (1, 8)
    assert found["ours"]["median_to_target_s"] == 8  # of 2, 8 and the whole 10
    entry = {"objective": "val/score", "direction": "max", "minutes": 5.0, "target": 0.5, "target_from": "here"}
    rows = table("toy", {**entry, "arms": found}).splitlines()
    assert rows[-1].endswith("| 8 · - · 8 | at least 1.59 times |")
    assert rows[-2].endswith("| 2 · 8 · - |  |")


def test_without_a_bench_the_target_is_what_the_worst_arm_reaches_in_half_its_seeds() -> None:
    def of(arm: str, *bests: float | None) -> list[Run]:
        return [run(ran("0000", seen(1, best)), arm=arm, seed=seed) for seed, best in enumerate(bests)]

    runs = [*of("ours", 0.6, 0.7, 0.8), *of("a", 0.1, 0.4, 0.9), *of("b", None, None, 0.9)]
    target, source = fallback(runs)
    assert target == 0.4 and "(a)" in source  # b has none in half its seeds
    assert fallback([replace(each, direction="min") for each in runs])[0] == 0.7
    assert fallback(of("a", None, None, 0.2))[0] is None


def test_lithologys_target_is_of_the_bench_trials_that_its_quick_space_could_draw() -> None:
    held, values = read_curves(CURVES / "lithology-0.parquet"), []
    for curve in once(held.curves):
        params = curve.about["params"]
        if not params["model.batch_norm"] or params.get("loss.anneal_epochs", 2) > 6:
            continue
        assert curve.truth is not None
        lines = [line for line in curve.reports if line.epoch <= 18 and line.full_beta_epochs >= 1]
        known = [line.metrics["val/ari"] for line in lines if line.metrics.get("val/ari") is not None]
        if curve.truth.outcome == "healthy":
            values.append(max(known))
    found = bench_target(held, space("lithology"))
    assert found is not None and found[0] == pytest.approx(float(np.quantile(values, 0.95)))
    assert f" {len(values)} healthy" in found[1] and len(values) > 10


@pytest.mark.parametrize("family", ["rainfall", "occupancy"])
def test_a_bench_with_other_data_or_nets_gives_no_target(family: str) -> None:
    bench = load(family).spec()
    about = {"family": family, "spec": bench.to_dict(), "objective": bench.objectives[0].metric, "direction": "max"}
    assert bench_target(CurveSet((), about), space(family)) is None


def test_what_a_space_could_draw() -> None:
    quick, Config = space("lithology"), load_trainable("lithology").Config
    params = {"loss.beta": 1.0, "loss.anneal": "constant", "model.latent_dim": 8, "model.batch_norm": True}
    assert could_draw(quick, Config, params)
    assert not could_draw(quick, Config, {**params, "model.batch_norm": False})
    assert not could_draw(quick, Config, {**params, "model.latent_dim": 13})
    assert not could_draw(quick, Config, {**params, "loss.anneal": "sudden"})


# --- lines ----------------------------------------------------------------------------------------------------------


def reported(epoch: int, kl: float, score: float | None, **more: Any) -> Reported:
    metrics = {"latent/kl_total": kl} | ({} if score is None else {"val/score": score, "val/loss": 1 - score})
    return Reported(epoch, 20 * epoch, epoch, 20 * epoch, 0, metrics, **more)


def a_trial(trial: str, at: float) -> tuple[list[Line], list[Line]]:
    """What the driver and what a worker would write of it."""
    reports = [reported(1, 4.0, 0.2), reported(2, 0.1, None), reported(3, 4.0, math.nan, nonfinite=("val/score",))]
    driver = [
        journal_lines.trial(trial, ask=0, params={"loss.beta": at}, config={}, seed=1, budget_epochs=8),
        journal_lines.start(trial, 1, slot="slot-0"),
        journal_lines.outcome(trial, 1, "pruned"),
    ]
    worker = [journal_lines.report(trial, 1, seq, each) for seq, each in enumerate(reports)]
    for line, after in zip([*driver, *worker], [0.0, 0.5, 9.0, 2.0, 4.0, 6.0], strict=True):
        line["time"] = 1000.0 + at + after
    return driver, worker


def written(path: Path, lines: list[Line]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_journal_and_a_stock_runs_files_are_read_as_the_same_trials(tmp_path: Path) -> None:
    one, two = a_trial("0000", 1.0), a_trial("0001", 3.0)
    whole = [line for driver, worker in (one, two) for line in (*driver[:2], *worker, driver[2])]
    written(tmp_path / "ours" / "toy-abc123" / LINES, whole)
    written(tmp_path / "stock" / LINES, [*one[0], *two[0]])
    for name, lines in (("0000", one[1]), ("0001", two[1])):
        written(tmp_path / "stock" / REPORTS / f"{name}.jsonl", lines)
    ours, stock = (trials_of(lines_in(tmp_path / kind), FAMILY, spec(), "ours", 1000.0) for kind in ("ours", "stock"))
    assert ours == stock and [trial.trial for trial in ours] == ["0000", "0001"]
    first = ours[0]
    assert (first.begun, first.busy, first.params) == (1.5, ((1.5, 10.0),), {"loss.beta": 1.0})
    assert [each.t for each in first.seen] == [3.0, 5.0, 7.0]
    assert [each.dead for each in first.seen] == [False, True, True]  # the last one has diverged
    assert [each.counts for each in first.seen] == [False, True, True]  # 30 steps at least
    assert [each.value for each in first.seen] == [0.2, None, None]
    assert [each.told for each in first.seen] == [0.2, None, math.inf]
    told = trials_of(lines_in(tmp_path / "stock"), FAMILY, spec(), "a", 1000.0)[0].seen
    assert [each.told for each in told] == [0.8, None, pytest.approx(math.inf)]


def test_a_torn_line_of_a_worker_that_was_killed_is_left_out(tmp_path: Path) -> None:
    driver, worker = a_trial("0000", 1.0)
    written(tmp_path / LINES, driver)
    written(tmp_path / REPORTS / "0000.jsonl", worker)
    with (tmp_path / REPORTS / "0000.jsonl").open("a") as file:
        file.write('{"line": "report", "trial": "0000", "ti')
    assert len(trials_of(lines_in(tmp_path), FAMILY, spec(), "ours", 1000.0)[0].seen) == 3


def test_our_winner_is_the_best_that_has_completed_when_the_clock_stops() -> None:
    def ends(trial: str, outcome: str, score: float, time: float) -> Line:
        best = {"epoch": 8, "step": 80, "metrics": {"val/score": score}}
        return {**journal_lines.outcome(trial, 1, outcome, best=best), "time": time}

    lines = [ends("0000", "completed", 0.4, 5), ends("0001", "pruned", 0.9, 6), ends("0002", "completed", 0.5, 7),
             ends("0003", "collapsed", 0.95, 8), ends("0004", "completed", 0.8, 11)]  # fmt: skip
    assert best_completed(lines, 10.0, spec()) == "0002"
    assert best_completed(lines, 20.0, spec()) == "0004"
    assert best_completed(lines, 4.0, spec()) is None


def test_a_worker_notes_every_report_and_tells_an_epochs_value_once(tmp_path: Path) -> None:
    sink, told = Recorder(tmp_path / "0003.jsonl", "0003"), []
    made = [reported(1, 4.0, None), reported(1, 4.0, 0.3), reported(2, 4.0, 0.4), reported(2, 4.0, 0.4, closing=True)]
    for each in made:
        sink.send(each)
        told.append(sink.told(lambda metrics: metrics.get("val/score")))
    assert told == [None, 0.3, 0.4, None]
    lines = [json.loads(line) for line in (tmp_path / "0003.jsonl").read_text().splitlines()]
    assert [(line["trial"], line["seq"], line["epoch"]) for line in lines] == [
        ("0003", seq, each.epoch) for seq, each in enumerate(made)
    ]


def test_a_stock_trial_trains_the_family_and_tells_tune_its_validation_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the worker of a fresh TorchTrainer does, with `train.report` caught."""
    import ray.train

    told: list[dict[str, Any]] = []
    monkeypatch.setattr(ray.train, "report", told.append)
    tree = space("lithology").to_dict()
    tree["fixed"] |= {"train.epochs": 2, "buttress.ari_rows": 300, "buttress.report_every": 40}
    params = {"loss.beta": 0.5, "loss.anneal": "constant", "loss.mask_prob": 0.0, "model.semi_supervised": False,
              "model.hidden_dims": "32-16", "model.latent_dim": 4, "train.lr": 1e-3}  # fmt: skip
    common = {"family": "lithology", "here": str(Path.cwd()), "reports": str(tmp_path), "number": 4}
    loop({"spec": tree, "watch": "loss", "params": json.dumps(params), **common})
    lines = [json.loads(line) for line in (tmp_path / "0004.jsonl").read_text().splitlines()]
    ends = [line for line in lines if "val/kl" in line["metrics"]]
    assert len(lines) > 4 and [line["epoch"] for line in ends] == [1, 2] and ends[1]["closing"]
    losses = [line["metrics"]["val/recon"] + 0.5 * line["metrics"]["val/kl"] for line in ends]
    assert told == [{"epoch": index, "value": pytest.approx(loss, rel=1e-6)} for index, loss in enumerate(losses, 1)]
    with pytest.raises(BadInput, match="does not hold"):
        refused = {**params, "loss.anneal": "linear", "loss.anneal_epochs": 2}
        loop({"spec": tree, "watch": "loss", "params": json.dumps(refused), **common})


# --- arms -----------------------------------------------------------------------------------------------------------


def tuner(seed: int = 3) -> StockTune:
    return StockTune(spec(), ToyConfig, lambda metrics: metrics.get("val/score"), "max", 8, seed=seed)


def test_in_our_slots_a_stock_tuner_draws_and_stops_as_it_does_by_itself() -> None:
    """Trial for trial the same parameters and the same last epoch as of the tuner alone, and no rule has a say."""
    world, lines = World(), []
    made = spec(scheduler={"kind": "fifo"}, breaker=False, sampler={"repeats": True}, budget={"hours": 1.0})

    def write(event: Event) -> None:
        lines.append(json.loads(json.dumps(event.to_line())))

    state = StockState(made, Toy(), RuleSet(rules={}), write, tuner=tuner())
    alone, ended = tuner(), Counter[str]()
    for _ in range(12):
        live = state.next_trial()
        drawn = alone.draw()
        assert live is not None and drawn is not None and live.params == dict(drawn.params)
        state.started(live.id, "slot-0")
        stopped = False
        for each in world.reports(live.config):
            stop = alone.reported(drawn.trial, each)
            outcome = state.reported(live.id, live.attempt, each)
            assert (outcome is not None) == (stop and each.epoch < 8)
            if stop:
                stopped = True
                break
        if not stopped:
            alone.finished(drawn.trial)
        if live.id not in state.outcomes:
            state.finished(live.id, live.attempt)
        ended[state.outcomes[live.id].outcome] += 1
    assert ended["pruned"] >= 2 and ended["completed"] + ended["failed"] >= 2
    assert set(ended) <= {"pruned", "completed", "failed"}  # a third of the toy's space collapses
    assert not any(line["line"] in ("rung", "breaker") for line in lines)
    assert state.tuner.search._completed_trials == alone.search._completed_trials


def test_stock_tune_draws_the_same_configurations_with_its_define_by_run_function(tmp_path: Path) -> None:
    from ray.tune.search.optuna import OptunaSearch

    made, policy = spec(), tuner(seed=5)
    search = OptunaSearch(space=Space(made, ToyConfig), metric="value", mode="max", seed=5)
    for number in range(6):
        drawn = search.suggest(f"trial-{number}")
        assert drawn is not None and drawn["number"] == number
        assert json.loads(drawn["params"]) == policy.suggest(f"{number:04d}")
    search.save(str(tmp_path / "search"))  # as Tune does all the time


@pytest.mark.parametrize("family", ["lithology", "rainfall", "occupancy"])
def test_all_arms_get_the_same_space_slots_and_clock(family: str) -> None:
    specs = {arm: spec_of(family, arm, 7, 0.05) for arm in TOLD}
    ours = specs["ours"]
    for arm, made in specs.items():
        assert (made.search, made.fixed, made.data, made.require) == (ours.search, ours.fixed, ours.data, ours.require)
        assert (made.seed, made.resources.concurrency, made.resources.workers) == (7, 2, 1)
        assert (made.budget.hours, made.budget.trials) == (0.05, None)
        assert made.trainable == (name_of(family) if TOLD[arm] == "loss" else family)
        assert load_trainable(made.trainable).Config is load_trainable(family).Config
    assert ours.scheduler.kind == "asha" and specs["slots"].scheduler.kind == "fifo"
    assert specs["slots"].breaker is None


def test_only_occupancy_needs_a_trainable_that_reports_its_loss() -> None:
    assert name_of("lithology") == "lithology" and name_of("rainfall") == "rainfall"
    assert name_of("occupancy") == "benchmarks.watched:occupancy"
    with pytest.raises(BadInput, match="has no rainfall"):
        load_trainable("benchmarks.watched:rainfall")


# --- the study ------------------------------------------------------------------------------------------------------


def test_every_arm_is_first_and_last_in_turn_and_arms_of_a_seed_run_in_a_row() -> None:
    plans = list(planned(["x", "y"], ["ours", "a", "b", "slots"], 4))
    assert len(set(plans)) == 32
    blocks = [plans[start : start + 4] for start in range(0, 32, 4)]
    assert all(len({(plan.family, plan.seed) for plan in block}) == 1 for block in blocks)
    assert sorted(block[0].arm for block in blocks if block[0].family == "x") == ["a", "b", "ours", "slots"]
    assert sorted(block[3].arm for block in blocks if block[0].family == "y") == ["a", "b", "ours", "slots"]


def test_a_kept_run_is_what_it_was_and_of_its_own_clock(tmp_path: Path) -> None:
    plan = next(planned(["toy"], ["ours"], 1))
    assert kept(plan, tmp_path, 5.0) is None
    made = run(ran("0000", seen(1, 0.5, told=math.inf), until=2.0), winner="0000", limit=300.0)
    plan.record(tmp_path).write_text(json.dumps(made.to_dict()))
    assert kept(plan, tmp_path, 5.0) == made
    with pytest.raises(BadInput, match="another --work"):
        kept(plan, tmp_path, 4.0)
    elsewhere = replace(made, family="lithology", notes={**made.notes, "space": "0123"})
    other = plan._replace(family="lithology")
    other.record(tmp_path).write_text(json.dumps(elsewhere.to_dict()))
    with pytest.raises(BadInput, match="another search space"):
        kept(other, tmp_path, 5.0)
