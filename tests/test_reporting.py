"""Reports: merged once, in order, off the training thread; stops and errors reach every rank; checkpoints are whole."""

from __future__ import annotations

import errno
import gc
import math
import os
import threading
import time
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Failed, Ranks, pair  # noqa: F401
from toy import Collected

from buttress.errors import BadInput
from buttress.monitors import LatentMonitor, Mean
from buttress.training import checkpoints, reporting
from buttress.training.checkpoints import load_checkpoint
from buttress.training.reporting import Reporter, ReportError
from buttress.training.trainable import Reported, Schedule, TrialStopped
from buttress.training.world import World


class Asking(Collected):
    """Asks to stop once it has been sent `after` reports; `noticed` is when it has."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after
        self.noticed = threading.Event()

    @property
    def stop(self) -> bool:  # type: ignore[override]
        return self.noticed.is_set()

    def send(self, reported: Reported) -> None:
        super().send(reported)
        if len(self.reports) >= self.after:
            self.noticed.set()


class Broken(Collected):
    def send(self, reported: Reported) -> None:
        raise OSError("the mailbox is gone")


def at(step: int, **values: Any) -> dict[str, Any]:
    return {"epoch": step // 10, "step": step, **values}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(folder=tmp_path)


def test_values_of_all_kinds_arrive_as_plain_numbers(world: World) -> None:
    monitor = LatentMonitor(2)
    monitor.update(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.zeros(2, 2))
    sink = Collected()
    with Reporter(world, Schedule(9, full_at_epoch=1, full_at_step=10, phases=(2,)), sink) as report:
        values = {"a": 1, "b.c": torch.tensor(2.5), "list": [1.0, 2.0], "mean": Mean(6.0, 4), "latent": monitor}
        report(at(20, **values, bad=math.nan, media_free=True), media={"panel": world.folder / "media/p.png"})
    (one,) = sink.reports
    assert (one.epoch, one.step, one.full_beta_epochs, one.full_beta_steps, one.phase) == (2, 20, 1, 10, 1)
    assert one.metrics["a"] == 1.0 and one.metrics["b.c"] == 2.5 and one.metrics["mean"] == 1.5
    assert one.metrics["latent/kl_total"] == 0.5 and one.vectors["list"] == [1.0, 2.0]
    assert one.nonfinite == ("bad",) and math.isnan(one.metrics["bad"])
    assert one.media == {"panel": "media/p.png"}
    assert one.mem_mb > 50 and 0 < one.seconds < 60 and not one.closing and one.checkpoint is None
    assert not {"epoch", "step"} & one.metrics.keys()


def test_moment_that_the_trainer_gives_stands(world: World) -> None:
    sink = Collected()
    with Reporter(world, Schedule(9), sink) as report:
        report(at(20, full_beta_epochs=1, full_beta_steps=7, phase=3, closing=1.0, mem_mb=5.0))
    (one,) = sink.reports
    assert (one.full_beta_epochs, one.full_beta_steps, one.phase, one.closing, one.mem_mb) == (1, 7, 3, True, 5.0)


def test_full_beta_steps_of_a_schedule_told_in_epochs_or_never_settling(world: World) -> None:
    for schedule, steps in ((Schedule(9, 1.0), 10), (Schedule(9, math.inf), 0), (Schedule(9, 0.0, 15), 5)):
        sink = Collected()
        with Reporter(world, schedule, sink) as report:
            report(at(20))
        assert sink.reports[0].full_beta_steps == steps


@pytest.mark.parametrize(
    ("schedule", "ages"),
    [
        (Schedule(9, full_at_step=15), [(0, 0), (0, 0), (0, 1), (0, 5), (1, 15)]),
        (Schedule(9, full_at_step=10), [(0, 0), (0, 0), (0, 6), (1, 10), (2, 20)]),
        (Schedule(9, full_at_epoch=1, full_at_step=15), [(0, 0), (0, 0), (0, 1), (0, 5), (1, 15)]),
        (Schedule(9, full_at_epoch=2, full_at_step=5), [(0, 0), (0, 0), (0, 0), (0, 0), (1, 10)]),
    ],
)
def test_a_warm_up_given_in_steps_counts_in_epochs_too(
    world: World, schedule: Schedule, ages: list[tuple[int, int]]
) -> None:
    sink = Collected()
    with Reporter(world, schedule, sink) as report:
        for step in (6, 10, 16, 20, 30):
            report(at(step))
    assert [(one.full_beta_epochs, one.full_beta_steps) for one in sink.reports] == ages


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        ({"step": 1}, "needs epoch"),
        ({"epoch": 1}, "needs step"),
        (at(1, **{"val:loss": 1.0}), r"'val:loss' is not a valid key; accepted: letters, digits"),
        (at(1, **{" loss": 1.0}), r"' loss' is not a valid key"),
    ],
)
def test_report_that_lacks_its_moment_or_has_a_foreign_key_is_refused(
    world: World, metrics: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says), Reporter(world, Schedule(1)) as report:
        report(metrics)


@pytest.mark.parametrize("value", [{}, "0.5", None, [1.0, "x"], torch.zeros(2, 2)])
def test_value_of_a_wrong_type_is_named_at_once(world: World, value: Any) -> None:
    says = r"report: oops is .*; accepted: number"
    with pytest.raises(TypeError, match=says), Reporter(world, Schedule(1)) as report:
        report(at(1, oops=value))


def test_what_happens_to_a_tensor_after_the_report_is_not_reported(world: World) -> None:
    value, many, sink = torch.tensor(1.0), [1.0], Collected()
    with Reporter(world, Schedule(1), sink) as report:
        for step in range(50):
            value.fill_(step)
            many[0] = float(step)
            report(at(step, value=value, many=many))
            value.fill_(-1)
            many[0] = -1.0
    assert [one.metrics["value"] for one in sink.reports] == list(range(50))
    assert [one.vectors["many"] for one in sink.reports] == [[float(step)] for step in range(50)]


def test_closing_delivers_every_report_in_order_before_it_returns(world: World) -> None:
    class Slow(Collected):
        def send(self, reported: Reported) -> None:
            time.sleep(0.01)
            super().send(reported)

    sink = Slow()
    with Reporter(world, Schedule(1), sink) as report:
        for step in range(10):
            report(at(step))
    assert [one.step for one in sink.reports] == list(range(10))


def test_stop_ends_a_trial_of_one_rank_at_the_next_report(world: World) -> None:
    sink = Asking(after=2)
    with pytest.raises(TrialStopped), Reporter(world, Schedule(1), sink) as report:
        for step in range(10):
            report(at(step))
            if step == 1:
                assert sink.noticed.wait(5)
    assert [one.step for one in sink.reports] == [0, 1, 2]


def test_failing_sink_fails_the_trial_and_says_why(world: World) -> None:
    with (
        pytest.raises(ReportError, match=r"could not be delivered: OSError: the mailbox is gone"),
        Reporter(world, Schedule(1), Broken()) as report,
    ):
        for step in range(1000):
            report(at(step))
            time.sleep(0.002)


def test_failing_sink_is_told_at_the_end_too(world: World) -> None:
    with pytest.raises(ReportError, match="mailbox"), Reporter(world, Schedule(1), Broken()) as report:
        report(at(1))


def test_failure_of_the_trainer_delivers_what_was_reported_and_leaves_no_thread(world: World) -> None:
    sink, before = Collected(), threading.active_count()
    with pytest.raises(ArithmeticError), Reporter(world, Schedule(1), sink) as report:
        report(at(1))
        raise ArithmeticError
    assert [one.step for one in sink.reports] == [1]
    assert threading.active_count() == before


def test_nothing_of_a_trial_outlives_it(world: World) -> None:
    before = threading.active_count()
    report = Reporter(world, Schedule(1), Collected())
    report(at(1), checkpoint=lambda: {"x": torch.ones(3)})
    gone = weakref.ref(report)
    report.close()
    del report
    gc.collect()
    assert gone() is None and threading.active_count() == before


# Checkpoints


def test_checkpoint_is_written_before_its_report_is_sent_and_holds_what_was_then(world: World) -> None:
    there: list[Any] = []

    class Looking(Collected):
        def send(self, reported: Reported) -> None:
            if reported.checkpoint:
                there.append(load_checkpoint(world.folder / reported.checkpoint))
            super().send(reported)

    weight, sink = torch.zeros(3), Looking()
    with Reporter(world, Schedule(9), sink) as report:
        for epoch in range(1, 4):
            state = {"weight": weight, "nested": {"list": [weight, 1, "a"]}}
            report(at(10 * epoch), checkpoint=partial(dict, state))
            weight += 1
    assert [one.checkpoint for one in sink.reports] == [f"checkpoints/{epoch:06d}.pt" for epoch in (1, 2, 3)]
    assert [float(one["weight"][0]) for one in there] == [0.0, 1.0, 2.0]
    assert [float(one["nested"]["list"][0][0]) for one in there] == [0.0, 1.0, 2.0]
    assert not list(world.folder.glob("checkpoints/*.part"))


def test_full_disk_costs_the_checkpoint_and_not_the_trial(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    sink = Collected()
    with Reporter(world, Schedule(9), sink) as report:
        report(at(10, a=1.0), checkpoint=lambda: {"x": torch.ones(3)})
        report(at(11))
    assert [one.step for one in sink.reports] == [10, 11]
    assert sink.reports[0].checkpoint is None and sink.reports[0].metrics == {"a": 1.0}
    assert sink.reports[0].note == "checkpoint not written: [Errno 28] No space left on device"
    assert not list((world.folder / "checkpoints").iterdir())


def test_truncated_and_missing_checkpoints_are_one_sentence(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.pt", tmp_path / "cut.pt"
    checkpoints.save_checkpoint(whole, {"x": torch.arange(10_000)})
    assert torch.equal(load_checkpoint(whole)["x"], torch.arange(10_000))
    for size in (0, 100, whole.stat().st_size - 10):
        cut.write_bytes(whole.read_bytes()[:size])
        with pytest.raises(BadInput, match=r"cut\.pt: not a whole checkpoint"):
            load_checkpoint(cut)
    with pytest.raises(BadInput, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.pt")


def test_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(BadInput):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "harm").exists()


# Two ranks


def merging(world: World) -> Any:
    sink = Collected()
    with Reporter(world, Schedule(1), sink) as report:
        for step in range(3):
            wide = {f"k{i}": float(world.rank) for i in range(400 * step)}  # outgrows the exchange's first matrix
            report(at(step, mean=Mean(float(world.rank), 1 + world.rank), plain=2.0 * world.rank, **wide))
    return sink.reports


def test_shares_of_ranks_are_merged_on_rank_0_only(pair: Ranks) -> None:  # noqa: F811
    reports, nothing = pair.run(merging)
    assert nothing == [] and [one.step for one in reports] == [0, 1, 2]
    assert [one.metrics["mean"] for one in reports] == [1 / 3] * 3
    assert [one.metrics["plain"] for one in reports] == [1.0] * 3
    assert len(reports[2].metrics) == 802 and reports[2].metrics["k799"] == 0.5


def nan_on_rank_1(world: World) -> Any:
    sink = Collected()
    with Reporter(world, Schedule(1), sink) as report:
        report(at(1, a=math.nan if world.rank else 1.0, b=1.0))
    return sink.reports


def test_nan_on_one_rank_is_named_and_spoils_nothing_else(pair: Ranks) -> None:  # noqa: F811
    (one,), _ = pair.run(nan_on_rank_1)
    assert one.nonfinite == ("a",) and math.isnan(one.metrics["a"]) and one.metrics["b"] == 1.0


def stopping(world: World) -> Any:
    sink, made = Asking(after=2), 0
    try:
        with Reporter(world, Schedule(1), sink) as report:
            for step in range(1000):
                report(at(step))
                made += 1
                time.sleep(0.005 * (1 + world.rank))  # ranks of different speed
    except TrialStopped:
        return made, [one.step for one in sink.reports]
    return made, None


def test_stop_reaches_all_ranks_at_the_same_report(pair: Ranks) -> None:  # noqa: F811
    (made, sent), (made_there, _) = pair.run(stopping)
    assert made == made_there < 900
    assert sent == list(range(made))


def different_keys(world: World) -> Any:
    with Reporter(world, Schedule(1), Collected()) as report:
        report(at(1, **{"a": 1.0, "b" if world.rank else "c": 1.0}))
        report(at(2))


def different_width(world: World) -> Any:
    with Reporter(world, Schedule(1), Collected()) as report:
        report(at(1, a=[0.0] * (10 + 1000 * world.rank)))
        report(at(2))


def different_steps(world: World) -> Any:
    with Reporter(world, Schedule(1), Collected()) as report:
        report(at(1 + world.rank, a=1.0))
        report(at(9))


@pytest.mark.parametrize("function", [different_keys, different_width, different_steps])
def test_ranks_that_report_different_things_are_told_on_every_rank(pair: Ranks, function: Any) -> None:  # noqa: F811
    for outcome in pair.outcomes(function):
        assert isinstance(outcome, Failed)
        assert "ReportError" in str(outcome) and "keys, kinds or widths, or in epoch/step" in str(outcome)


def broken_sink(world: World) -> Any:
    made = 0
    try:
        with Reporter(world, Schedule(1), Broken()) as report:
            for step in range(1000):
                report(at(step))
                made += 1
                time.sleep(0.01)
    except ReportError as error:
        return made, str(error)
    return made, None


def test_failing_sink_fails_all_ranks_at_the_same_report(pair: Ranks) -> None:  # noqa: F811
    (made, said), (made_there, said_there) = pair.run(broken_sink)
    assert made == made_there < 900
    assert "the mailbox is gone" in said and "rank 0" in said_there


def draining(world: World) -> Any:
    seen = []
    world = replace(world, draining=lambda: world.rank == 1)
    with Reporter(world, Schedule(1), Collected()) as report:
        for step in range(3):
            report(at(step))
            seen.append(report.draining)
    return seen


def test_draining_node_of_one_rank_is_known_to_all_at_the_same_report(pair: Ranks) -> None:  # noqa: F811
    assert pair.run(draining) == [[False, True, True]] * 2


def one_raises(world: World) -> Any:
    with Reporter(world, Schedule(1), Collected()) as report:
        report(at(1))
        if world.rank == 1:
            raise ArithmeticError("only here")
        for step in range(2, 1000):
            report(at(step))
            time.sleep(0.01)


def test_rank_that_fails_alone_does_not_leave_its_peer_waiting(pair: Ranks) -> None:  # noqa: F811
    began = time.monotonic()
    kept, failed = pair.outcomes(one_raises)
    assert "only here" in str(failed) and "could not be packed or exchanged" in str(kept)
    assert time.monotonic() - began < 30  # not the minute after which the group gives up
    assert pair.run(merging)[0]  # the ranks serve on


def test_reporter_is_a_report() -> None:
    assert reporting.COUNTERS[:2] == ("epoch", "step")
    assert callable(Reporter.__call__)
