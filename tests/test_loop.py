"""The loop: exact resume, one rank against two, alternating passes, early stopping, accounting."""

from __future__ import annotations

import contextlib
import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ranks, pair  # noqa: F401
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from toy import ROWS, Collected, Config, GanTask, Toy, ToyTask, Train, Vae

from buttress.errors import BadInput
from buttress.training.checkpoints import load_checkpoint
from buttress.training.loop import (
    EarlyStopping,
    EarlyStoppingState,
    Pass,
    StepState,
    Task,
    fused_adam,
    metric_over_ranks,
    progress_counters,
    run,
)
from buttress.training.optimization import Meters, PassRunner, Sums, global_norm
from buttress.training.reporting import Reporter
from buttress.training.schedules import Constant, Linear, WarmUp
from buttress.training.trainable import Buttress, Reported, Schedule, TrialStopped
from buttress.training.world import World


def toy_config(report_every: int = 2, checkpoint_every: int = 1, **train: Any) -> Config:
    return Config(train=Train(**train), buttress=Buttress(report_every=report_every, checkpoint_every=checkpoint_every))


def trained(world: World, config: Config, resume: Path | None = None, stop_after: int = 10**9) -> Collected:
    """The toy on this rank; the reports, on rank 0. `stop_after`: the trial is stopped at the report after so many."""
    sink, toy = Collected(), Toy()
    made = itertools.count()

    with contextlib.suppress(TrialStopped), Reporter(world, toy.schedule(config), sink) as report:

        def stopping(*args: Any, **kwargs: Any) -> None:
            if next(made) >= stop_after:
                raise TrialStopped
            report(*args, **kwargs)

        toy.train(config, world, report if stop_after == 10**9 else stopping, resume)
    return sink


def values(reports: list[Reported]) -> list[Any]:
    """What must be equal of two runs: everything but times and memory."""
    return [replace(one, seconds=0.0, mem_mb=0.0) for one in reports]


def alone(folder: Path, config: Config, **other: Any) -> list[Reported]:
    return trained(World.single(folder, seed=5, device="cpu"), config, **other).reports


RESUMED = {"dropout": 0.3, "epochs": 4, "clip": 1.0, "cosine": True, "plateau": True, "batchnorm": True}


def stopped_and_resumed(world: World, folder: str, config: Config, stop_after: int) -> tuple[Any, Any, int]:
    """Final reports and weights of a run that was never stopped, and of one stopped after some reports."""
    whole = replace(world, folder=Path(folder, "whole"))
    parted = replace(world, folder=Path(folder, "parted"))
    restart(world)
    never = trained(whole, config).reports
    restart(world)
    first = trained(parted, config, stop_after=stop_after).reports
    world.mean(0.0)  # rank 0 has written when it gets here
    saved = sorted((parted.folder / "checkpoints").glob("*.pt"))
    restart(world, seed=world.seed + 999)  # another process has other generators
    rest = trained(parted, config, resume=saved[-1] if saved else None).reports
    return values(never), values(rest), len(first)


def restart(world: World, seed: int | None = None) -> None:
    from buttress.training.randomness import prepare

    prepare(world.seed if seed is None else seed)


@pytest.mark.parametrize("stop_after", [3, 5, 6, 7])
def test_resumed_run_ends_bit_identical_to_one_never_stopped(tmp_path: Path, stop_after: int) -> None:
    config = toy_config(**RESUMED)
    never, rest, first = stopped_and_resumed(World.single(seed=5), str(tmp_path), config, stop_after)
    assert first == stop_after
    assert rest == never[-len(rest) :] and len(rest) == len(never) - first // 2 * 2
    last = [load_checkpoint(tmp_path / part / "checkpoints/000004.pt") for part in ("whole", "parted")]
    assert same(*last)


def test_resumed_run_ends_bit_identical_on_two_ranks(tmp_path: Path, pair: Ranks) -> None:  # noqa: F811
    (never, rest, first), _ = pair.run(stopped_and_resumed, str(tmp_path), toy_config(**RESUMED), 3)
    assert first == 3
    assert rest == never[-len(rest) :]
    last = [load_checkpoint(tmp_path / part / "checkpoints/000004.pt") for part in ("whole", "parted")]
    assert same(*last)
    generators = last[0]["generators"]
    assert generators.shape[0] == 2 and not torch.equal(generators[0], generators[1])


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_draining_node_leaves_a_checkpoint_inside_the_epoch_from_which_the_run_goes_on(tmp_path: Path) -> None:
    config = toy_config(report_every=1, checkpoint_every=99, **RESUMED)
    never = alone(tmp_path / "never", config)
    drained = trained(replace(World.single(tmp_path / "drained", seed=5), draining=lambda: True), config).reports
    saved = next(one for one in drained if one.checkpoint)
    assert saved.checkpoint is not None and saved.step % 4 and not saved.metrics
    World.single(seed=1)
    rest = alone(tmp_path / "drained", config, resume=tmp_path / "drained" / saved.checkpoint)
    assert rest[-1].step == 16
    assert values(rest)[-3:] == values(never)[-3:]
    seen = [one.metrics for one in drained if one.metrics]
    assert drained[-1] is saved and seen == [one.metrics for one in never][: len(seen)]  # it stops there, nothing lost


def test_evaluation_and_reports_leave_training_alone(tmp_path: Path) -> None:
    often = alone(tmp_path / "a", toy_config(report_every=1, dropout=0.3))
    never = alone(tmp_path / "b", toy_config(report_every=0, checkpoint_every=3, dropout=0.3))
    assert often[-1].metrics["val/recon"] == never[-1].metrics["val/recon"]
    assert often[-1].metrics["val/sampled"] == never[-1].metrics["val/sampled"]


def test_epochs_reports_and_checkpoints_come_where_they_should(tmp_path: Path) -> None:
    reports = alone(tmp_path, toy_config(epochs=3, checkpoint_every=2, beta=Linear(length=1)))
    assert [(one.epoch, one.step) for one in reports] == [(0, 2), (1, 4), (1, 6), (2, 8), (2, 10), (3, 12)]
    assert [one.checkpoint for one in reports if one.checkpoint] == ["checkpoints/000002.pt", "checkpoints/000003.pt"]
    assert [one.full_beta_epochs for one in reports] == [0, 0, 0, 1, 1, 2]
    assert [one.full_beta_steps for one in reports] == [0, 0, 2, 4, 6, 8]
    assert [one.closing for one in reports] == [False] * 5 + [True]
    assert [one.metrics.get("val/full") for one in reports] == [None, 0.0, None, 0.0, None, 1.0]
    assert all(("val/recon" in one.metrics) == (one.step % 4 == 0) for one in reports)
    assert [one.metrics["train/beta"] for one in reports] == [0.25, 0.75, 1, 1, 1, 1]


def test_run_by_steps_ends_at_that_step(tmp_path: Path) -> None:
    reports = alone(tmp_path, toy_config(epochs=5, max_steps=6))
    assert [(one.epoch, one.step, one.closing) for one in reports] == [(0, 2, False), (1, 4, False), (2, 6, True)]


def test_a_task_is_told_of_each_step_when_its_passes_are_done(tmp_path: Path) -> None:
    class Watching(GanTask):
        def stepped(self, state: StepState) -> None:
            weights = [float(next(net.parameters()).detach().sum()) for net in (self.net, self.critic)]
            seen.append((state.step, *weights))

    seen: list[tuple[float, ...]] = []
    world = World.single(tmp_path)
    with Reporter(world, Schedule(2)) as report:
        task = Watching(world, starts=4)
        run(task, Schedule(2), world, report)
    assert [int(step) for step, *_ in seen] == list(range(1, 2 * task.steps_per_epoch + 1))
    last = [float(next(net.parameters()).detach().sum()) for net in (task.net, task.critic)]
    assert list(seen[-1][1:]) == last and seen[-1][2] != seen[-2][2]  # the second pass has been made, too


def test_train_values_are_means_of_the_window_and_of_the_epoch(tmp_path: Path) -> None:
    reports = alone(tmp_path, toy_config(report_every=1, epochs=1, lr=0.0))
    windows = [one.metrics["train/loss"] for one in reports[:3]]
    whole = alone(tmp_path, toy_config(report_every=0, epochs=1, lr=0.0))[-1].metrics["train/loss"]
    assert reports[-1].metrics["train/loss"] == whole
    assert min(windows) < whole < max(windows)


def test_early_stopping_counts_no_epoch_before_full_beta(tmp_path: Path) -> None:
    beta = Linear(start=0.0, end=0.1, length=4)
    reports = alone(tmp_path, toy_config(epochs=20, patience=3, beta=beta, report_every=0))
    # Epoch 5 is the first at full beta and becomes the best; 6, 7 and 8 do not improve on it by 1e9.
    assert [one.epoch for one in reports] == [1, 2, 3, 4, 5, 6, 7, 8, 8]
    closing = reports[-1]
    assert closing.closing and closing.metrics["val/full"] == 1.0
    assert "val/recon" not in closing.metrics and "latent/kl_total" in closing.metrics
    assert not any(one.closing for one in reports[:-1])


def test_run_resumed_after_its_early_stop_only_closes(tmp_path: Path) -> None:
    config = toy_config(epochs=20, patience=1, beta=Constant(end=0.1), report_every=0)
    reports = alone(tmp_path, config)
    again = alone(tmp_path, config, resume=tmp_path / (reports[-2].checkpoint or ""))
    assert values(again) == values(reports[-1:])


def test_stopper_takes_nan_for_no_improvement_and_the_first_full_epoch_for_the_best() -> None:
    stopper = EarlyStoppingState(EarlyStopping("x", patience=2, direction="max"))
    for epoch, value in enumerate([9.0, math.nan, 1.0, 2.0, 2.0], start=1):
        stopper.update(value, {"epoch": epoch, "full_beta_epochs": epoch - 1})
    assert (stopper.best, stopper.best_epoch, stopper.waited, stopper.stopped) == (2.0, 4, 1, False)


def test_full_beta_counts_from_when_epochs_and_steps_are_both_done() -> None:
    by_epoch, by_step, never = Schedule(9, 2.5, 0), Schedule(9, 0.0, 7), Schedule(9, math.inf)
    state = StepState(epoch=4, step=17)
    assert [progress_counters(state, one, 4)["full_beta_epochs"] for one in (by_epoch, by_step, never)] == [1, 2, 0]
    assert [progress_counters(state, one, 4)["full_beta_steps"] for one in (by_epoch, by_step, never)] == [7, 10, 0]


def test_accumulated_batches_give_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    whole = alone(tmp_path, toy_config(double=True, keyed_noise=True, epochs=2))
    parts = alone(tmp_path, toy_config(double=True, keyed_noise=True, epochs=2, accumulate=4))
    for one, other in zip(whole, parts, strict=True):
        assert other.metrics == pytest.approx(one.metrics, rel=1e-9)


def test_bf16_runs_the_network_and_leaves_loss_and_weights_in_float32(tmp_path: Path) -> None:
    world, seen = World.single(tmp_path), []
    task = ToyTask(toy_config(amp=True), world)
    task.model.decoder.register_forward_hook(lambda *args: seen.append(args[-1].dtype))
    loss, _ = task.model({"x": task.data, "index": torch.arange(ROWS)}, StepState(numbers={"beta": 0.1}))
    with Reporter(world, Schedule(1), None) as report:
        run(task, Schedule(1), world, report, amp=True)
    assert torch.bfloat16 in seen[1:] and seen[0] == torch.float32
    assert loss.dtype == torch.float32 and all(p.dtype == torch.float32 for p in task.model.parameters())


def test_gradients_are_clipped_to_the_norm_that_is_reported_before_clipping(tmp_path: Path) -> None:
    world = World.single(tmp_path)
    task = ToyTask(toy_config(), world)
    task.passes[0] = Pass("vae", task.model, torch.optim.SGD(task.model.parameters(), lr=1.0), clip=0.01)
    before = [p.detach().clone() for p in task.model.parameters()]
    sink = Collected()
    with Reporter(world, Schedule(1), sink) as report:
        run(task, Schedule(1), world, report, max_steps=1)
    moved = global_norm([p.detach() - old for p, old in zip(task.model.parameters(), before, strict=True)])
    assert float(moved) == pytest.approx(0.01, rel=1e-3)
    assert sink.reports[0].metrics["train/grad_norm"] > 0.1


def test_non_finite_steps_are_counted_as_a_share_of_the_window(tmp_path: Path) -> None:
    reports = alone(tmp_path, toy_config(epochs=2).model_copy(update={"nan_at": 3}))
    assert [one.metrics["train/nonfinite"] for one in reports] == [0.0, 0.5, 1.0, 1.0]
    assert "train/loss" in reports[1].nonfinite and "train/nonfinite" not in reports[1].nonfinite
    assert math.isnan(reports[1].metrics["train/loss"])


def test_infinite_gradient_under_a_finite_loss_is_counted() -> None:
    meters = Meters(torch.device("cpu"))
    for step in range(300):  # more than are kept before summing
        norm = torch.tensor(math.inf if step == 296 else 1.0) if meters.norm_is_due("") else None
        meters.add_step("", torch.tensor(math.nan if step < 2 else 1.0), norm)
    window = meters.window()
    merged = window.merge(window.pack()[None])
    assert merged["nonfinite"] == pytest.approx(3 / 300)
    assert merged["vector.nonfinite"] == [pytest.approx(3 / 300)]
    assert window.nonfinite(window.pack()[None]) == ("loss", "grad_norm")


def test_means_of_losses_and_logs_are_weighted_by_samples_and_those_of_norms_are_not() -> None:
    meters = Meters(torch.device("cpu"))
    for loss, samples in ((1.0, 16), (4.0, 2)):
        meters.add({"recon": torch.tensor(2 * loss)}, samples)
        meters.add_step("", torch.tensor(loss), torch.tensor(loss), samples)
    window = meters.window()
    merged = window.merge(window.pack()[None])
    assert merged["loss"] == pytest.approx(24 / 18) and merged["recon"] == pytest.approx(48 / 18)
    assert merged["grad_norm"] == 2.5 and merged["nonfinite"] == 0


def test_sums_of_ranks_are_weighted_by_their_counts() -> None:
    ranks = [Sums({"loss": torch.tensor([6.0, 3.0]).double()}), Sums({"loss": torch.tensor([8.0, 1.0]).double()})]
    assert ranks[0].merge(torch.stack([one.pack() for one in ranks])) == {"loss": 3.5}


def gradients(world: World, config: Config) -> Any:
    """The first step's gradients, and the reports of twenty steps."""
    task = ToyTask(config, world)
    batch = next(task.batches(0))
    loss, _ = task.passes[0].module(batch, StepState(numbers={"beta": 0.1}))
    loss.backward()
    first = [p.grad.clone() for p in task.model.parameters()]
    return first, values(trained(world, config).reports)


def test_one_and_two_ranks_agree_in_gradients_metrics_and_monitors(tmp_path: Path, pair: Ranks) -> None:  # noqa: F811
    config = toy_config(double=True, keyed_noise=True, epochs=5, beta=Constant(end=0.1))
    world = World.single(tmp_path)
    one, reports = gradients(world, config)
    (two, reports_of_two), (other, nothing) = pair.run(gradients, config)
    assert nothing == []
    for a, b, c in zip(one, two, other, strict=True):
        assert torch.equal(b, c)
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert reports[-1].step == 20
    for a, b in zip(reports, reports_of_two, strict=True):
        assert b.metrics == pytest.approx(a.metrics, rel=1e-9)
        for name in set(a.vectors) - {"latent/nonfinite", "train/nonfinite"}:  # those have an entry per rank
            assert b.vectors[name] == pytest.approx(a.vectors[name], rel=1e-9)


def nan_on_one_rank(world: World, config: Config) -> Any:
    return values(trained(world, config).reports)


def test_nan_on_one_rank_is_seen_with_its_rank(pair: Ranks) -> None:  # noqa: F811
    config = toy_config(epochs=1, batchnorm=True).model_copy(update={"nan_at": 1, "fail_rank": 1})
    reports, _ = pair.run(nan_on_one_rank, config)
    assert reports[0].vectors["train/nonfinite"] == [0.0, 0.5]
    assert reports[0].metrics["train/nonfinite"] == 0.5 and "train/loss" in reports[0].nonfinite
    assert reports[1].vectors["train/nonfinite"] == [1.0, 1.0]  # the gradient was everyone's


def batchnorm_of(world: World, config: Config) -> Any:
    task = ToyTask(config, world)
    with Reporter(world, Schedule(1), Collected()) as report:
        run(task, Schedule(1), world, report)
    return [buffer.clone() for buffer in task.model.buffers()]


def test_ranks_evaluate_with_the_same_batchnorm_statistics(pair: Ranks) -> None:  # noqa: F811
    first, second = pair.run(batchnorm_of, toy_config(batchnorm=True))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def accumulated(world: World, config: Config) -> Any:
    """Reports, and how often the ranks' gradients met."""
    met = []

    def counting(state, bucket):  # type: ignore[no-untyped-def]  # DDP reads the annotations, as text it refuses them
        met.append(bucket.index())
        return allreduce_hook(None, bucket)

    task, sink = ToyTask(config, world), Collected()
    if world.size > 1:
        task.passes[0].module.register_comm_hook(None, counting)
    with Reporter(world, Schedule(1), sink) as report:
        run(task, Schedule(1), world, report, accumulate=config.train.accumulate)
    return values(sink.reports), len(met)


def test_ranks_exchange_gradients_once_a_step_however_many_batches_it_takes(tmp_path: Path, pair: Ranks) -> None:  # noqa: F811
    config = toy_config(double=True, keyed_noise=True, accumulate=2, beta=Constant(end=0.1))
    (one,), _ = accumulated(World.single(tmp_path), config)
    ((two,), met), _ = pair.run(accumulated, config)
    assert met == 4  # steps of two batches each
    assert two.metrics == pytest.approx(one.metrics, rel=1e-9)


# Alternating passes


def gan(world: World, starts: int = 4) -> Any:
    torch.manual_seed(3)
    task = GanTask(world, starts=starts)
    before = {name: value.clone() for name, value in task.critic.state_dict().items()}
    sink = Collected()
    with Reporter(world, Schedule(2), sink) as report:
        ended = run(task, Schedule(2), world, report, report_every=2)
    if starts > ended.step:  # the generator's loss goes through the critic and asks nothing of its weights
        assert all(p.grad is None for p in task.critic.parameters())
    moved = any(not torch.equal(before[name], value) for name, value in task.critic.state_dict().items())
    weights = [p.detach().clone() for net in (task.net, task.critic) for p in net.parameters()]
    return weights, values(sink.reports), moved, ended.step


def test_alternating_passes_agree_on_one_and_two_ranks(tmp_path: Path, pair: Ranks) -> None:  # noqa: F811
    # The weight of the critic's word is a ratio of local gradients: from the start it is 0, so that ranks may agree.
    one, reports, moved, steps = gan(World.single(tmp_path), starts=99)
    (two, reports_of_two, *_), (other, *_) = pair.run(gan, 99)
    assert steps == 8 and not moved
    for a, b, c in zip(one, two, other, strict=True):
        assert torch.equal(b, c)
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert reports_of_two[-1].metrics == pytest.approx(reports[-1].metrics, rel=1e-9)


def test_second_pass_starts_at_its_step_and_reports_under_its_name(tmp_path: Path, pair: Ranks) -> None:  # noqa: F811
    (_, reports, moved, _), (_, _, moved_there, _) = pair.run(gan, 4)
    assert moved and moved_there
    named = [sorted(name for name in one.metrics if "discriminator" in name) for one in reports]
    assert named[0] == named[1] == ["train/discriminator/lr"]
    every = [f"train/discriminator/{name}" for name in ("grad_norm", "loss", "lr", "nonfinite")]
    assert named[2] == named[3] == every
    assert "train/logits_real" in reports[-1].metrics and "train/recon" in reports[-1].metrics


def test_passes_give_the_gradients_of_a_hand_written_loop(tmp_path: Path) -> None:
    ours = gan(World.single(tmp_path), starts=0)[0]
    World.single(tmp_path)
    torch.manual_seed(3)
    task = GanTask(World.single(tmp_path), starts=0)
    torch.manual_seed(3)
    task = GanTask(World(folder=tmp_path), starts=0)
    optimizers = [torch.optim.Adam(net.parameters(), lr) for net, lr in ((task.net, 1e-2), (task.critic, 1e-3))]
    for epoch in range(2):
        for batch in task.batches(epoch):
            for one, optimizer in zip(task.passes, optimizers, strict=True):
                task.net.zero_grad()
                task.critic.zero_grad()
                one.module(batch, StepState(numbers={"adversarial": 0.5}))[0].backward()
                optimizer.step()
    theirs = [p.detach() for net in (task.net, task.critic) for p in net.parameters()]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_rate_is_right_in_the_first_step_after_a_resume(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(1, 1))
    module = _Plain(nn.Linear(1, 1))
    module.net.weight = weight

    def runner() -> PassRunner:
        one = Pass("p", module, torch.optim.SGD([weight], lr=0.5), lr=WarmUp(2))
        return PassRunner(one, Meters(torch.device("cpu")), lambda *_: None, main=True)

    before = runner()
    before.step([torch.ones(1, 1)], StepState(epoch=1))
    assert before.rate == 0.25
    after = runner()
    after.optimizer.load_state_dict(before.optimizer.state_dict())
    after.step([torch.ones(1, 1)], StepState(epoch=2))
    assert after.rate == 0.5


# Where a CUDA device is

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.gpu
@cuda
def test_resumed_run_on_cuda_ends_bit_identical_to_one_never_stopped(tmp_path: Path) -> None:
    world = World.single(seed=5, device="cuda")
    never, rest, first = stopped_and_resumed(world, str(tmp_path), toy_config(**RESUMED), 3)
    assert first == 3 and rest == never[-len(rest) :]
    assert never[-1].mem_mb == 0.0 and never[-1].metrics["val/recon"] > 0


@pytest.mark.gpu
@cuda
def test_noise_and_the_first_reports_are_the_same_on_cuda_and_on_the_cpu(tmp_path: Path) -> None:
    index = torch.arange(1000)
    drawn = [World(seed=3).noise(index.to(device), 5, dtype=torch.float64).cpu() for device in ("cpu", "cuda")]
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-12, atol=1e-12)
    config = toy_config(double=True, keyed_noise=True, epochs=2)
    here = trained(World.single(tmp_path / "cpu", device="cpu"), config).reports
    there = trained(World.single(tmp_path / "cuda", device="cuda"), config).reports
    for a, b in zip(here, there, strict=True):
        assert b.metrics == pytest.approx(a.metrics, rel=1e-6)


# Errors


class Short(Task):
    steps_per_epoch = 5

    def __init__(self) -> None:
        net = nn.Linear(1, 1)
        self.passes = [Pass("p", _Plain(net), fused_adam(net.parameters(), 0.1))]

    def batches(self, epoch: int) -> Any:
        return iter([torch.ones(1, 1)] * 3)

    def evaluate(self, state: StepState, *, full: bool, objectives: bool) -> dict[str, Any]:
        return {"val": 1.0}


class _Plain(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: torch.Tensor, state: StepState) -> Any:
        return self.net(batch).sum(), {}


def test_too_few_batches_are_an_error_that_says_where(tmp_path: Path) -> None:
    world = World.single(tmp_path)
    with (
        pytest.raises(RuntimeError, match=r"batches\(0\) ended after 3 steps, steps_per_epoch is 5"),
        Reporter(world, Schedule(1)) as report,
    ):
        run(Short(), Schedule(1), world, report)


def test_unknown_metric_to_stop_by_names_those_there_are() -> None:
    with pytest.raises(BadInput, match=r"val/elbo.*accepted: val/mae"):
        metric_over_ranks("val/elbo", {"val/mae": 1.0}, World())


def test_checkpoint_of_another_config_is_refused(tmp_path: Path) -> None:
    reports = alone(tmp_path, toy_config(epochs=1))
    saved = tmp_path / (reports[-1].checkpoint or "")
    with pytest.raises(BadInput, match="of another config"):
        alone(tmp_path, toy_config(epochs=1, batchnorm=True), resume=saved)
    with pytest.raises(BadInput, match=r"lacks plateau\.vae"):
        alone(tmp_path, toy_config(epochs=1, plateau=True), resume=saved)


def test_modules_are_called_through_their_wrapper_only(tmp_path: Path) -> None:
    assert Vae.forward is not None  # the toy's loss is inside forward, which is what the loop calls
    calls = []

    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *args: Any) -> Any:
            calls.append(1)
            return self.inner(*args)

    world = World.single(tmp_path)
    task = ToyTask(toy_config(), world)
    task.passes[0].module = Wrapper(task.model)
    with Reporter(world, Schedule(1)) as report:
        run(task, Schedule(1), world, report)
    assert len(calls) == task.steps_per_epoch
