"""What is measured on held-out windows, against scikit-learn and by hand; what the monitor tells the rules."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from occupancy import config_of
from ranks import Ranks, pair  # noqa: F401
from sklearn.metrics import average_precision_score, f1_score, jaccard_score, precision_score, recall_score
from torch import nn

from buttress.monitors.summaries import merge_rows, pack_row
from buttress.trainables.occupancy import data as windows
from buttress.trainables.occupancy.config import Config
from buttress.trainables.occupancy.heldout import HeldOut, scores
from buttress.trainables.occupancy.model import Predicted
from buttress.trainables.occupancy.monitor import OccupancyMonitor, statistics
from buttress.training.world import World


class Fixed(nn.Module):
    """Logits that are a fixed function of the history: a blurred copy of the last frame, fainter with every step."""

    def __init__(self, config: Config, scale: float = 4.0) -> None:
        super().__init__()
        self.steps, self.scale = config.data.future_frames, scale

    def forward(self, history: torch.Tensor, poses: torch.Tensor) -> Predicted:
        last = history[:, -1:].float()
        near = nn.functional.avg_pool3d(last, 3, 1, 1)
        steps = [self.scale * (last + 2 * near - 0.1 * step) - 2 for step in range(self.steps)]
        ahead = poses[:, -1:].repeat(1, self.steps, 1)
        return Predicted(torch.cat(steps, 1), ahead)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUTTRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield config_of(data={"fractions": (0.4, 0.4, 0.2)}, buttress={"occ_threshold": 0.4})


def held_out(config: Config, world: World | None = None) -> HeldOut:
    world = world or World()
    return HeldOut(windows.load(config.data, world.cache), "val", config, world, torch.float32)


def everything(held: HeldOut, model: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """All targets and probabilities, [windows, steps, voxels]."""
    parts = [(truth, torch.sigmoid(model(past, poses[:, :4]).logits.double())) for past, truth, poses in held.batches()]
    truth, p = (torch.cat(one).flatten(2).numpy() for one in zip(*parts, strict=True))
    return truth, p


def test_metrics_are_what_scikit_learn_says(config: Config) -> None:
    held, model = held_out(config), Fixed(config)
    values = held.measure(model)
    truth, p = everything(held, model)
    t, q = truth.ravel(), p.ravel()
    assert values["val/average_precision"] == pytest.approx(average_precision_score(t, q), abs=2e-4)
    theirs = {"iou": jaccard_score, "precision": precision_score, "recall": recall_score, "f1": f1_score}
    for name, function in theirs.items():
        assert values[f"val/{name}"] == pytest.approx(function(t, q > 0.4), rel=1e-9)
        at_best = function(t, q > values["best_threshold"])
        assert values[f"val/best_{name}"] == pytest.approx(at_best, rel=1e-3)
    every = [jaccard_score(t, q > cut) for cut in np.quantile(np.unique(q), np.linspace(0, 1, 60))]
    assert values["val/best_iou"] >= max(every) - 1e-3
    by_step = [jaccard_score(truth[:, k].ravel(), p[:, k].ravel() > 0.4) for k in range(6)]
    assert values["val/iou_by_step"] == pytest.approx(by_step, rel=1e-9)
    assert values["val/best_iou_t1"] > values["val/best_iou"] > values["val/best_iou_t6"]


def test_copy_last_is_measured_on_the_same_windows(config: Config) -> None:
    held = held_out(config)
    both, either = np.zeros((2, 6))
    for history, future, _ in held.batches():
        last = history[:, -1:].bool()
        both += (last & future).sum((0, 2, 3, 4)).numpy()
        either += (last | future).sum((0, 2, 3, 4)).numpy()
    values = held.measure(Fixed(config))
    assert values["val/copy_last_iou"] == pytest.approx(both.sum() / either.sum(), rel=1e-12)
    assert values["val/copy_last_iou_by_step"] == pytest.approx((both / either).tolist(), rel=1e-12)
    assert values["val/iou_gain"] == pytest.approx(values["val/best_iou"] - values["val/copy_last_iou"], abs=1e-12)


def test_pose_errors_are_metres_and_degrees(config: Config) -> None:
    held = held_out(config)
    values = held.measure(Fixed(config))
    distance, angle = [], []
    for _, _, poses in held.batches():
        last, ahead = poses[:, 3:4].double(), poses[:, 4:].double()
        distance.append((ahead[..., :3] - last[..., :3]).norm(dim=-1))
        yaw = [2 * torch.atan2(one[..., 6], one[..., 3]) for one in (last, ahead)]  # flat arcs: yaw alone
        angle.append((yaw[1] - yaw[0]).abs())
    assert values["val/pos_error_m"] == pytest.approx(float(torch.cat(distance).mean()), rel=1e-5)
    assert values["val/orient_error_deg"] == pytest.approx(math.degrees(float(torch.cat(angle).mean())), rel=1e-3)


def test_average_precision_knows_no_threshold_and_no_scale(config: Config) -> None:
    held = held_out(config)
    values = [held.measure(Fixed(config, scale)) for scale in (4.0, 1.0)]
    assert values[1]["val/average_precision"] == pytest.approx(values[0]["val/average_precision"], abs=5e-3)
    assert values[1]["val/iou"] != pytest.approx(values[0]["val/iou"], rel=0.05)
    assert values[1]["val/best_iou"] == pytest.approx(values[0]["val/best_iou"], abs=5e-3)


def test_constant_predictions_score_the_occupied_share() -> None:
    histogram = torch.zeros(2, 2, 4096)
    histogram[:, 0, 2000], histogram[:, 1, 2000] = 990, 10
    found = scores(histogram)
    assert found["val/average_precision"] == pytest.approx(0.01) == found["val/best_iou"]
    assert found["best_threshold"] < 1 / (1 + math.exp(-((2000.5) / 4096 * 40 - 20)))
    empty = scores(torch.zeros(2, 2, 4096))
    assert math.isnan(empty["val/average_precision"]) and empty["val/best_iou"] == 0.0


def measured(world: World, config: Config) -> dict[str, Any]:
    return held_out(config, world).measure(Fixed(config))


def test_two_ranks_measure_what_one_does(pair: Ranks, config: Config) -> None:  # noqa: F811
    one = measured(World(), config)
    for values in pair.run(measured, config):
        for name, value in one.items():
            assert values[name] == pytest.approx(value, rel=1e-12), name


def test_a_part_of_the_split_is_evenly_chosen(config: Config) -> None:
    few = config.model_copy(update={"buttress": config.buttress.model_copy(update={"val_windows": 4})})
    whole, part = held_out(config), held_out(few)
    assert len(part.windows) == 4 < len(whole.windows) and set(part.windows) <= set(whole.windows)
    assert part.windows[0] == whole.windows[0] and part.windows[-1] == whole.windows[-1]


# ---- the monitor


def merged(*monitors: OccupancyMonitor) -> dict[str, float]:
    rows, layouts = zip(*(pack_row({"occ": one}) for one in monitors), strict=True)
    values, _, bad = merge_rows(layouts[0], torch.stack(rows))
    return values | {"bad": len(bad)}


def test_the_monitor_tells_fill_and_separation() -> None:
    random = torch.Generator().manual_seed(0)
    logits, future = torch.randn(2, 3, 8, 8, 8, generator=random), torch.rand(2, 3, 8, 8, 8, generator=random) < 0.1
    p = torch.sigmoid(logits).double()
    monitors = []
    for part in range(2):  # two ranks, two batches
        monitor = OccupancyMonitor()
        monitor.update(statistics(logits[part], future[part], 0.3))
        monitors.append(monitor)
    values = merged(*monitors)
    rate = float(future.double().mean())
    assert values["occ/rate"] == pytest.approx(rate, rel=1e-12)
    assert values["occ/fill"] == pytest.approx(int((p > 0.3).sum()) / int(future.sum()), rel=1e-12)
    assert values["occ/sep"] == pytest.approx(float(p[future].mean() / p[~future].mean()), rel=1e-6)
    assert values["occ/mean_ratio"] == pytest.approx(float(p.mean()) / rate, rel=1e-6)
    assert values["occ/recall"] == pytest.approx(float((p > 0.3)[future].double().mean()), rel=1e-12)
    assert values["occ/precision"] == pytest.approx(float(future[p > 0.3].double().mean()), rel=1e-12)
    assert values["occ/predicted"] == pytest.approx(float((p > 0.3).double().mean()), rel=1e-12)
    assert (values["occ/max"], values["occ/min"]) == pytest.approx((float(p.max()), float(p.min())), rel=1e-6)


def test_full_and_empty_predictions() -> None:
    future = torch.zeros(1, 1, 10, 10, 10, dtype=torch.bool)
    future[0, 0, 0, 0] = True
    for level, fill, recall in ((5.0, 100.0, 1.0), (-5.0, 0.0, 0.0)):
        monitor = OccupancyMonitor()
        monitor.update(statistics(torch.full((1, 1, 10, 10, 10), level), future, 0.3))
        values = merged(monitor)
        assert (values["occ/fill"], values["occ/recall"]) == (fill, recall)
        assert values["occ/sep"] == pytest.approx(1.0)


def test_without_an_occupied_voxel_nothing_is_said() -> None:
    monitor = OccupancyMonitor()
    monitor.update(statistics(torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4, dtype=torch.bool), 0.3))
    values = merged(monitor)
    assert math.isnan(values["occ/fill"]) and math.isnan(values["occ/sep"]) and values["bad"] == 0
    assert math.isnan(values["occ/mean_ratio"]) and math.isnan(values["occ/recall"]) and values["occ/mean"] == 0.5
    silent = merged(OccupancyMonitor())
    assert math.isnan(silent["occ/rate"]) and silent["bad"] == 0


def test_a_logit_that_is_not_finite_is_found() -> None:
    logits = torch.zeros(1, 1, 4, 4, 4)
    logits[0, 0, 0, 0, 0] = math.nan
    monitor = OccupancyMonitor()
    monitor.update(statistics(logits, torch.ones_like(logits, dtype=torch.bool), 0.3))
    assert merged(monitor)["bad"] == len(OccupancyMonitor.NAMES)


def test_many_batches_are_one_window(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    whole, parts = OccupancyMonitor(), OccupancyMonitor()
    logits = torch.randn(150, 1, 1, 4, 4, 4, generator=random)
    future = torch.rand(150, 1, 1, 4, 4, 4, generator=random) < 0.2
    whole.update(statistics(logits.flatten(0, 1), future.flatten(0, 1), 0.3))
    for one, two in zip(logits, future, strict=True):
        parts.update(statistics(one, two, 0.3))
    assert merged(parts.summary()) == pytest.approx(merged(whole), rel=1e-12)
    assert math.isnan(merged(parts)["occ/fill"])  # a new window
