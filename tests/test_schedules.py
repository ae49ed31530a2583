"""Beta and learning-rate schedules against their formulas, and when each is final."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from golden import Golden, agree
from pydantic import TypeAdapter, ValidationError

from buttress.training.schedules import (
    BetaSchedule,
    Constant,
    Cosine,
    CosineLR,
    Cyclical,
    LearningRate,
    Linear,
    Plateau,
    PlateauState,
    PolynomialLR,
    StepLR,
    WarmUp,
    latest_full_at,
)

SCHEDULES = [
    Constant(end=0.3),
    Linear(start=1e-10, end=0.5, length=50),
    Linear(end=0.5, length=0),
    Linear(start=0.5, end=0.5, length=7),
    Cosine(start=0.1, end=2.0, length=12.5),
    Cyclical(end=1.0, period=10, ratio=0.5, cycles=2),
    Cyclical(end=1.0, period=10, ratio=1.0, cycles=3),
    Cyclical(start=0.2, end=1.0, period=7, ratio=0.0, cycles=2),
    Cyclical(end=1.0, period=1, ratio=0.5, cycles=3),
    Cyclical(end=2.5, period=7, ratio=0.4, cycles=3),
    Cyclical(end=1.0, period=2.5, ratio=0.5, cycles=2, continuous=True),
    Cyclical(end=1.0, period=10, ratio=0.5, cycles=None),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_full_at_is_the_first_moment_from_which_beta_never_moves_again(schedule: Linear) -> None:
    grid = [step / 8 for step in range(8 * 60)]
    moving = [moment for moment in grid if schedule.value(moment) != schedule.end]
    if schedule.full_at == math.inf:
        assert moving[-1] > 50
    else:
        assert all(schedule.value(moment) == schedule.end for moment in grid if moment >= schedule.full_at)
        assert (moving[-1] if moving else -1 / 8) + 1 / 8 == pytest.approx(schedule.full_at, abs=1 / 8)


def test_linear_and_cosine_rise_as_their_formulas_say() -> None:
    assert [Linear(start=0.1, end=0.5, length=4).value(epoch) for epoch in range(6)] == pytest.approx(
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.5]
    )
    cosine = Cosine(end=2.0, length=10)
    assert [cosine.value(moment) for moment in (0, 2.5, 5, 10, 11)] == pytest.approx([0, 1 - math.sqrt(0.5), 1, 2, 2])


def test_cyclical_is_that_of_fu_et_al() -> None:
    schedule = Cyclical(end=1.0, period=10, ratio=0.5, cycles=2)
    cycle = [0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1]
    assert [schedule.value(epoch) for epoch in range(22)] == pytest.approx([*cycle, *cycle, 1, 1])
    assert schedule.full_at == 15  # the plateau of the first cycle, 5 to 9, does not count


def test_cyclical_counts_its_rise_as_the_original_does() -> None:
    """Of its golden data: beta 2.5, three cycles of 7 and a ratio of 0.5; two cycles of 10 that are all rise."""
    odd = Cyclical(end=2.5, period=7, cycles=3)
    assert [odd.value(epoch) for epoch in range(9)] == pytest.approx(
        [0, 2.5 / 3, 5 / 3, 2.5, 2.5, 2.5, 2.5, 0, 2.5 / 3]
    )
    assert odd.full_at == 17
    whole = Cyclical(end=1.0, period=10, cycles=2, ratio=1.0)
    assert whole.value(8) == pytest.approx(8 / 9) and whole.value(9) == 1 and whole.full_at == 19
    assert Cyclical(period=1).value(0) == 1 and Cyclical(period=1).full_at == 0
    steps = Cyclical(period=1, cycles=2, continuous=True)
    assert [steps.value(moment) for moment in (0, 0.25, 0.5, 1.25)] == [0, 0.5, 1, 0.5] and steps.full_at == 1.5


def test_cyclical_is_the_originals(shared: Path) -> None:
    file = Golden(shared, "floodmaps_beta")
    for name, (beta, period, cycles, ratio, epochs) in file.config["cases"].items():
        schedule = Cyclical(end=beta, period=period, cycles=cycles, ratio=ratio)
        found = [schedule.value(epoch) for epoch in range(epochs)]
        agree({name: torch.tensor(found, dtype=torch.float64)}, {name: file.out(name)}, 1e-12)


def test_config_names_the_kind_and_refuses_what_belongs_to_another() -> None:
    read = TypeAdapter(BetaSchedule).validate_python
    assert read({"kind": "linear", "end": 0.5, "length": 30}) == Linear(end=0.5, length=30)
    assert read({"kind": "cyclical", "cycles": None}).full_at == math.inf
    for wrong in ({"kind": "sigmoid"}, {"kind": "linear", "period": 3}, {"kind": "constant", "end": -1}, {"end": 1}):
        with pytest.raises(ValidationError):
            read(wrong)


def test_several_schedules_have_settled_when_the_last_has() -> None:
    beta, alpha = Linear(length=2.5), Linear(length=4)
    assert latest_full_at([beta, alpha], "epochs", 10) == (4, 40)
    assert latest_full_at([beta], "epochs", 10) == (2.5, 25)
    assert latest_full_at([Linear(length=45)], "steps", 10) == (4.5, 45)
    assert latest_full_at([beta, Cyclical(cycles=None)], "epochs", 10) == (math.inf, 0)
    assert latest_full_at([], "epochs", 10) == (0.0, 0)


def torch_rates(make: object, epochs: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = make(optimizer)  # type: ignore[operator]
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def rates(schedule: LearningRate, epochs: int) -> list[float]:
    return [schedule.factor(epoch, 7 * epoch) for epoch in range(epochs)]


def test_cosine_and_step_rates_are_torchs() -> None:
    lr = torch.optim.lr_scheduler
    assert rates(CosineLR(20, final=0.1), 20) == pytest.approx(
        torch_rates(lambda o: lr.CosineAnnealingLR(o, 20, eta_min=0.1), 20)
    )
    assert rates(StepLR(3, 0.5), 20) == pytest.approx(torch_rates(lambda o: lr.StepLR(o, 3, 0.5), 20))
    assert rates(CosineLR(20, final=0.1), 50)[20:] == [0.1] * 30  # it does not climb again
    assert CosineLR(700, unit="steps").factor(50, 350) == pytest.approx(0.5)


def test_warm_up_is_torchs_linear_rate_followed_by_the_cosine() -> None:
    lr = torch.optim.lr_scheduler

    def chained(optimizer: torch.optim.Optimizer) -> object:
        warm = lr.LinearLR(optimizer, 0.01, total_iters=5)
        return lr.SequentialLR(optimizer, [warm, lr.CosineAnnealingLR(optimizer, 30)], [5])

    ours = WarmUp(5, start=0.01, then=CosineLR(30), restart=True)
    assert rates(ours, 30) == pytest.approx(torch_rates(chained, 30))
    assert rates(WarmUp(2, then=CosineLR(30)), 30)[2:] == rates(CosineLR(30), 30)[2:]
    steps = WarmUp(100, unit="steps", then=PolynomialLR(1000), restart=True)
    assert [steps.factor(0, step) for step in (0, 50, 100, 600, 5000)] == [0, 0.5, 1, 0.5, 0]


def test_polynomial_rate_never_takes_the_root_of_a_negative_number() -> None:
    rate = PolynomialLR(150_000, power=0.95, final=5e-7)
    assert rate.factor(0, 50_000) * 5e-6 == pytest.approx(3.402e-6, rel=1e-3)
    assert rate.factor(0, 150_001) == 5e-7


@pytest.mark.parametrize("direction", ["min", "max"])
def test_plateau_lowers_the_rate_where_torchs_does(direction: str) -> None:
    generator = torch.Generator().manual_seed(0)
    losses = (torch.randn(80, generator=generator) * 0.1 + torch.linspace(2, 1, 80).exp()).tolist()
    if direction == "max":
        losses = [30 - loss for loss in losses]
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, direction, 0.5, 2, threshold=1e-2, min_lr=1e-3)
    ours = PlateauState(Plateau("x", 0.5, 2, 1e-2, 1e-3, direction))  # type: ignore[arg-type]
    seen = set()
    for epoch, loss in enumerate(losses, start=1):
        theirs.step(loss)
        ours.update(loss, epoch)
        assert ours.scale == pytest.approx(optimizer.param_groups[0]["lr"])
        seen.add(ours.scale)
    assert len(seen) > 3


def test_plateau_waits_for_its_epoch_counts_nan_as_stalling_and_survives_a_checkpoint() -> None:
    plateau = Plateau("x", 0.1, patience=1, starts_at_epoch=3)
    state = PlateauState(plateau)
    for epoch in range(1, 6):
        state.update(1.0, epoch)
    assert (state.scale, state.waited) == (1.0, 1)
    again = PlateauState(plateau)
    again.load_state_dict(state.state_dict())
    again.update(math.nan, 6)
    assert again.scale == pytest.approx(0.1)
