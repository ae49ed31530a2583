"""Monitors agree with float64 arithmetic on the same values, on one rank and on several, also near collapse."""

from __future__ import annotations

import doctest
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from buttress.monitors import (
    AblationMonitor,
    LatentMonitor,
    Maximum,
    Mean,
    Minimum,
    NonFinite,
    Total,
    kl_per_dim,
    moments,
)
from buttress.monitors import ablation as ablation_module
from buttress.monitors import latent as latent_module
from buttress.monitors.moments import HEADER, chunk_statistics, median_of_ranks, ranked_values
from buttress.monitors.summaries import merge_rows, pack_row

AGREE = 1e-5
Latents = tuple[Tensor, Tensor]


def draw(
    samples: int,
    dims: int = 10,
    *,
    seed: int = 0,
    mean: float = 0.0,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Latents:
    """Latents [samples, dims] of which half the dimensions are a thousand times weaker than the others."""
    generator = torch.Generator().manual_seed(seed)
    strength = torch.where(torch.arange(dims) % 2 == 0, 1.0, 1e-3).double() * scale
    mu = mean + strength * torch.randn(samples, dims, generator=generator, dtype=torch.float64)
    logvar = strength * (torch.randn(samples, dims, generator=generator, dtype=torch.float64) - 1.0)
    return mu.to(dtype), logvar.to(dtype)


def reference(latents: Iterable[Latents]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The same numbers by plain numpy in float64, from all samples at once. All entries are finite."""
    pairs = list(latents)
    mu = np.concatenate([pair[0].double().numpy() for pair in pairs])
    logvar = np.concatenate([pair[1].double().numpy() for pair in pairs])
    kl = 0.5 * (mu**2 + (np.expm1(logvar) - logvar))
    variance = np.mean((mu - mu.mean(0)) ** 2, axis=0)
    metrics = {
        "kl_total": kl.sum(1).mean(),
        "kl_per_dim": kl.mean(),
        "dims": mu.shape[1],
        "active_kl": (kl.mean(0) > 0.05).sum(),
        "active_var_1e2": (variance > 1e-2).sum(),
        "active_var_1e3": (variance > 1e-3).sum(),
        "kl_sample_median": np.median(kl.sum(1)),
        "kl_sample_below_1e3": (kl.sum(1) < 1e-3).mean(),
        "logvar_min": logvar.min(),
        "logvar_max": logvar.max(),
        "nonfinite": 0.0,
    }
    vectors = {"kl": kl.mean(0).tolist(), "var_mu": variance.tolist()}
    return {f"latent/{name}": float(value) for name, value in metrics.items()}, {
        f"latent/{name}": value for name, value in vectors.items()
    }


def monitored(batches: Iterable[Latents], dims: int = 10, **options: Any) -> LatentMonitor:
    monitor = LatentMonitor(dims, **options)
    for mu, logvar in batches:
        monitor.update(mu, logvar)
    return monitor


def merged(*shares: dict[str, Any]) -> tuple[dict[str, float], dict[str, list[float]], tuple[str, ...]]:
    """What rank 0 would get from these ranks' reports."""
    packed = [pack_row(share) for share in shares]
    return merge_rows(packed[0][1], torch.stack([row for row, _ in packed]))


def latent(*ranks: Iterable[Latents], **options: Any) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Metrics and vectors of ranks with these batches, all finite."""
    metrics, vectors, nonfinite = merged(*({"latent": monitored(batches, **options)} for batches in ranks))
    assert nonfinite == ()
    return metrics, vectors


def assert_agrees(
    found: tuple[dict[str, float], dict[str, list[float]]], batches: Iterable[Latents], within: float = AGREE
) -> None:
    metrics, vectors = reference(batches)
    assert set(found[0]) == set(metrics)
    assert found[0] == pytest.approx(metrics, rel=within, abs=0.0)
    assert set(found[1]) == {*vectors, "latent/nonfinite"}
    for name, values in vectors.items():
        assert found[1][name] == pytest.approx(values, rel=within, abs=0.0)


# --- one rank ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e-3], ids=["healthy", "near collapse"])
def test_agrees_with_float64_on_the_same_values(dtype: torch.dtype, scale: float) -> None:
    batches = [draw(256, seed=seed, scale=scale, dtype=dtype) for seed in range(20)]
    metrics, vectors = latent(batches)
    assert_agrees((metrics, vectors), batches)
    if scale < 1:  # the case is what it claims to be
        assert 1e-6 < metrics["latent/kl_total"] < 1e-5
        assert metrics["latent/active_kl"] == metrics["latent/active_var_1e3"] == 0
    else:
        assert metrics["latent/active_kl"] == metrics["latent/active_var_1e2"] == 5


def test_kl_keeps_its_accuracy_far_below_the_rounding_of_exp() -> None:
    """The leading terms of the series are exact enough there: 0.5 * (mu^2 + logvar^2 / 2 + logvar^3 / 6)."""
    mu, logvar = torch.tensor([0.0, 1e-7, 1e-5]), torch.tensor([1e-5, -1e-5, 1e-7])
    wide, log = mu.double(), logvar.double()
    series = 0.5 * (wide**2 + log**2 / 2 + log**3 / 6)
    assert kl_per_dim(mu, logvar).tolist() == pytest.approx(series.tolist(), rel=1e-9, abs=0.0)


def test_agrees_with_torch_distributions() -> None:
    mu, logvar = draw(64, dtype=torch.float64)
    prior = torch.distributions.Normal(torch.zeros(()).double(), 1.0)
    theirs = torch.distributions.kl_divergence(torch.distributions.Normal(mu, (logvar / 2).exp()), prior)
    assert torch.allclose(kl_per_dim(mu, logvar), theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("dtype", "spread"), [(torch.float32, 1e-2), (torch.float64, 1e-5)])
def test_tiny_variance_far_from_zero(dtype: torch.dtype, spread: float) -> None:
    """E[x^2] - E[x]^2 has no correct digit left here, not even in float64 for the second case."""
    batches = [draw(100, seed=seed, mean=1e4, scale=spread, dtype=dtype) for seed in range(9)]
    assert_agrees(latent(batches), batches)
    assert_agrees(latent(batches[:2], batches[2:]), batches)


def test_a_stream_in_uneven_chunks_is_one_shot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LatentMonitor, "HOLD_HOST", 700)  # folds often,
    monkeypatch.setattr(LatentMonitor, "PARTS", 3)  # and combines what it has folded
    mu, logvar = draw(3001, mean=30.0)
    sizes = [1, 2, 0, 500, 7, 1000, 1, 64, 1426]
    chunks = list(zip(mu.split(sizes), logvar.split(sizes), strict=True))
    assert_agrees(latent(chunks), [(mu, logvar)])
    streamed, at_once = latent(chunks), latent([(mu, logvar)])
    assert streamed[0] == pytest.approx(at_once[0], rel=1e-12)
    assert streamed[1]["latent/var_mu"] == pytest.approx(at_once[1]["latent/var_mu"], rel=1e-10)


def test_summary_hands_out_the_window_and_starts_the_next() -> None:
    first, second = [draw(20, seed=1)], [draw(30, seed=2)]
    monitor = monitored(first)
    window = monitor.summary()
    for mu, logvar in second:
        monitor.update(mu, logvar)
    for monitored_, batches in ((window, first), (monitor.summary(), second)):
        metrics, vectors, _ = merged({"latent": monitored_})
        assert_agrees((metrics, vectors), batches)
    assert math.isnan(merged({"latent": monitor.summary()})[0]["latent/kl_total"])


def test_packing_twice_gives_the_same_and_keeps_the_window_open() -> None:
    batches = [draw(20, seed=seed) for seed in range(3)]
    monitor = monitored(batches[:2])
    assert np.array_equal(monitor.pack().numpy(), monitor.pack().numpy(), equal_nan=True)
    monitor.update(*batches[2])
    metrics, vectors, _ = merged({"latent": monitor})
    assert_agrees((metrics, vectors), batches)


def test_every_fourth_batch_from_the_windows_first() -> None:
    batches = [draw(8, seed=seed) for seed in range(10)]
    monitor = monitored(batches[:6], every=4)
    monitor.summary()
    for mu, logvar in batches[1:]:
        monitor.update(mu, logvar)
    metrics, vectors, _ = merged({"latent": monitor})
    assert_agrees((metrics, vectors), [batches[1], batches[5], batches[9]])


def test_spatial_latents_count_every_entry_as_a_dimension() -> None:
    mu, logvar = draw(40, dims=12)
    monitor = monitored([(mu.reshape(40, 3, 2, 2), logvar.reshape(40, 3, 2, 2))], dims=12)
    metrics, vectors, _ = merged({"latent": monitor})
    assert_agrees((metrics, vectors), [(mu, logvar)])


def test_one_sample_cannot_show_that_a_unit_is_dead() -> None:
    mu, logvar = draw(1)
    metrics, vectors, nonfinite = merged({"latent": monitored([(mu, logvar)])})
    expected, _ = reference([(mu, logvar)])
    variance = {"latent/active_var_1e2", "latent/active_var_1e3"}
    assert {name for name, value in metrics.items() if math.isnan(value)} == variance
    rest = set(metrics) - variance
    assert {name: metrics[name] for name in rest} == pytest.approx({name: expected[name] for name in rest}, rel=AGREE)
    assert all(map(math.isnan, vectors["latent/var_mu"]))
    assert nonfinite == ()


def test_nothing_seen_is_nan_and_never_a_collapse() -> None:
    metrics, vectors, nonfinite = merged({"latent": LatentMonitor(10)}, {"latent": LatentMonitor(10)})
    assert metrics.pop("latent/dims") == 10
    assert all(map(math.isnan, metrics.values()))
    assert all(math.isnan(value) for vector in vectors.values() for value in vector)
    assert nonfinite == ()


# --- several ranks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e-3], ids=["healthy", "near collapse"])
def test_unequal_ranks_weigh_by_their_samples(dtype: torch.dtype, scale: float) -> None:
    ranks = [[draw(size, seed=size, scale=scale, dtype=dtype)] for size in (300, 17, 1)]
    assert_agrees(latent(*ranks), [batch for rank in ranks for batch in rank])


def test_variance_between_ranks_counts() -> None:
    """On every rank the code is nearly constant; over ranks it is not."""
    ranks = [[draw(100, seed=1, scale=1e-3, mean=-0.5)], [draw(300, seed=2, scale=1e-3, mean=0.5)]]
    metrics, vectors = latent(*ranks)
    assert_agrees((metrics, vectors), [batch for rank in ranks for batch in rank])
    assert metrics["latent/active_var_1e2"] == 10
    assert vectors["latent/var_mu"] == pytest.approx([3 / 16] * 10, rel=1e-2)


def test_an_empty_rank_changes_nothing() -> None:
    batches = [draw(50)]
    alone, beside = latent(batches), latent([], batches)
    assert beside[0] == alone[0]
    assert beside[1]["latent/var_mu"] == alone[1]["latent/var_mu"]
    assert beside[1]["latent/nonfinite"] == pytest.approx([math.nan, 0.0], nan_ok=True)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 1], ids=["mu", "logvar"])
def test_an_entry_that_is_not_finite_is_counted_and_its_sample_left_out(poison: float, where: int) -> None:
    clean, dirty = draw(30, seed=1), draw(60, seed=2, mean=2.0)
    dirty[where][10:30, 3] = poison
    dirty[where][10, 9] = poison
    kept = [*range(10), *range(30, 60)]
    metrics, vectors, nonfinite = merged({"latent": monitored([clean])}, {"latent": monitored([dirty])})
    assert metrics.pop("latent/nonfinite") == pytest.approx(21 / (60 * 20))
    assert vectors["latent/nonfinite"] == pytest.approx([0.0, 21 / (60 * 20)])
    metrics["latent/nonfinite"] = 0.0
    assert_agrees((metrics, vectors), [clean, (dirty[0][kept], dirty[1][kept])])
    assert nonfinite == ("latent",)


def test_a_rank_without_a_finite_sample_is_told_but_not_merged() -> None:
    clean, dirty = draw(40), draw(60)
    dirty[0][:] = math.nan
    metrics, vectors, nonfinite = merged({"latent": monitored([clean])}, {"latent": monitored([dirty])})
    assert metrics.pop("latent/nonfinite") == pytest.approx(0.5)
    assert_agrees(({**metrics, "latent/nonfinite": 0.0}, vectors), [clean])
    assert nonfinite == ("latent",)
    metrics, _, nonfinite = merged({"latent": monitored([dirty])})
    assert math.isnan(metrics["latent/kl_total"])
    assert math.isnan(metrics["latent/active_kl"])
    assert nonfinite == ("latent",)


def test_a_finite_logvar_that_overflows_the_kl_is_told() -> None:
    mu, logvar = draw(50)
    logvar[3, 2] = 1e5
    metrics, vectors, nonfinite = merged({"latent": monitored([(mu, logvar)])})
    assert nonfinite == ("latent/kl", "latent/kl_per_dim", "latent/kl_total")
    assert math.isnan(metrics["latent/kl_total"])
    assert metrics["latent/logvar_max"] == 1e5
    assert metrics["latent/nonfinite"] == 0
    assert math.isfinite(metrics["latent/kl_sample_median"])
    assert sum(map(math.isinf, vectors["latent/kl"])) == 1


# --- the median over ranks -----------------------------------------------------------------------------------------


def median(*ranks: np.ndarray, width: int = 64) -> float:
    rows = torch.stack([ranked_values(torch.from_numpy(values), width) for values in ranks])
    return median_of_ranks(rows, [1.0] * len(ranks))


def test_median_is_exact_whenever_all_samples_fit() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        ranks = [
            np.round(random.normal(shift, 1.0, size), int(random.integers(0, 4)))  # with ties
            for shift, size in zip(random.normal(0, 3, 3), random.integers(0, 65, 3), strict=True)
        ]
        every = np.concatenate(ranks)
        if every.size:
            assert median(*ranks) == pytest.approx(np.median(every), rel=1e-15)


def test_median_of_one_rank_is_exact_at_any_size() -> None:
    random = np.random.default_rng(1)
    for size in (64, 65, 66, 67, 100, 1001, 25_600):
        values = random.lognormal(0.0, 2.0, size)
        assert median(values) == np.median(values)


def test_median_of_ranks_that_draw_from_one_distribution_is_exact_at_any_size() -> None:
    random = np.random.default_rng(2)
    for sizes in ((5000, 5001), (20_000, 3000), (4001, 4000, 4000)):
        ranks = [random.lognormal(0.0, 2.0, size) for size in sizes]
        assert median(*ranks, width=1024) == np.median(np.concatenate(ranks))


def test_median_of_unlike_ranks_is_off_by_few_samples() -> None:
    random = np.random.default_rng(3)
    width = 512
    for shift in (0.5, 1.0, 3.0, 30.0):
        ranks = [random.normal(0.0, 1.0, 6000), random.normal(shift, 1.0, 9000)]
        every = np.sort(np.concatenate(ranks))
        rank = np.searchsorted(every, median(*ranks, width=width))
        assert abs(rank - every.size / 2) <= 4 * every.size / width


def test_median_ignores_nan_and_takes_infinities() -> None:
    assert median(np.array([math.nan, 3.0, 1.0, math.nan]), np.array([2.0, math.nan])) == 2.0
    assert median(np.array([1.0, math.inf, math.inf])) == math.inf
    assert math.isnan(median(np.array([math.nan]), np.array([math.nan])))


def test_beyond_the_cap_only_the_median_is_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LatentMonitor, "KEEP", 1000)
    batches = [draw(333, seed=seed) for seed in range(20)]
    short = [draw(333, seed=99)]
    monitor = monitored(batches)
    mu, logvar = (torch.cat([batch[i] for batch in batches]) for i in (0, 1))
    eighth = kl_per_dim(mu, logvar).sum(1)[::8].numpy()
    assert monitor.pack()[HEADER + 30] == eighth.size == 833
    assert merged({"latent": monitor})[0]["latent/kl_sample_median"] == pytest.approx(np.median(eighth), rel=1e-6)
    metrics, vectors, _ = merged({"latent": monitor}, {"latent": monitored(short)})
    expected, _ = reference([*batches, *short])
    close = metrics.pop("latent/kl_sample_median")
    assert close == pytest.approx(expected["latent/kl_sample_median"], rel=0.05)
    assert close != expected["latent/kl_sample_median"]
    metrics["latent/kl_sample_median"] = expected["latent/kl_sample_median"]
    assert_agrees((metrics, vectors), [*batches, *short])


def test_thinned_ranks_weigh_by_what_they_have_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 large values, thinned to 500, against 1,000 small ones: the median is among the large ones."""
    monkeypatch.setattr(LatentMonitor, "KEEP", 1000)
    large, small = [(torch.full((1100, 1), 2.0), torch.zeros(1100, 1))] * 2, [(torch.zeros(1000, 1),) * 2]
    shares = [{"latent": monitored(batches, dims=1)} for batches in (large, small)]
    assert merged(*shares)[0]["latent/kl_sample_median"] == 2.0


# --- what the training loop may count on ---------------------------------------------------------------------------


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LatentMonitor, "PARTS", 8)
    monitor = LatentMonitor(10)
    mu, logvar = (part.requires_grad_() for part in draw(256))
    for _ in range(300):
        monitor.update(mu * 1.0, logvar * 1.0)
        assert sum(mu.numel() for mu, *_ in monitor._held) < LatentMonitor.HOLD_HOST
        assert not any(mu.requires_grad or logvar.requires_grad for mu, logvar, *_ in monitor._held)
        assert len(monitor._parts) < 8


def test_a_change_in_place_after_update_is_refused() -> None:
    mu, logvar = draw(16)
    monitor = monitored([(mu, logvar)])
    logvar.clamp_(-1.0, 1.0)
    with pytest.raises(RuntimeError, match="changed in place"):
        monitor.pack()


def test_gradients_inference_mode_and_autocast_make_no_difference() -> None:
    mu, logvar = draw(64)
    plain = latent([(mu, logvar)])
    assert latent([(mu.clone().requires_grad_() * 1.0, logvar.requires_grad_() * 1.0)]) == plain
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert latent([(mu, logvar)]) == plain
    monitor = LatentMonitor(10)
    with torch.inference_mode():
        monitor.update(mu[:30] * 1.0, logvar[:30] * 1.0)
        monitor.pack()
    monitor.update(mu[30:], logvar[30:])
    metrics, vectors, _ = merged({"latent": monitor})
    assert_agrees((metrics, vectors), [(mu.detach(), logvar.detach())])


def test_shapes_that_do_not_fit_are_told() -> None:
    monitor = LatentMonitor(10)
    with pytest.raises(ValueError, match=r"\[batch, 10\], got \[4, 8\]"):
        monitor.update(torch.zeros(4, 8), torch.zeros(4, 8))
    with pytest.raises(ValueError, match=r"got \[4, 10\] and \[5, 10\]"):
        monitor.update(torch.zeros(4, 10), torch.zeros(5, 10))
    with pytest.raises(ValueError, match=r"\[batch\], got \[4\] and \[4, 1\]"):
        AblationMonitor().update(torch.zeros(4), torch.zeros(4, 1))


class NoLook(TorchDispatchMode):
    """Refuses what needs a value on the host; on an accelerator each of these would be a synchronisation."""

    WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique", "masked_select")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        masked = name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1])
        assert name not in self.WAITS, f"{name} waits for the device"
        assert not masked, "indexing by a mask waits for the device"
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of an accelerator, taken on the host: the same numbers, and no look at any of them on the way."""
    monkeypatch.setattr(moments, "on_host", lambda tensor: False)
    monkeypatch.setattr(latent_module, "on_host", lambda tensor: False)
    monkeypatch.setattr(LatentMonitor, "HOLD_DEVICE", 2000)
    batches = [draw(64, seed=seed, mean=1e3, dtype=torch.bfloat16) for seed in range(9)]
    loss, others = torch.tensor(3.0), [torch.tensor([1.0, math.inf]), torch.ones(4)]
    with NoLook():
        monitor, ablation = monitored(batches, ranked=256), AblationMonitor()
        ablation.update(others[1], others[1])
        shares = {"mean": Mean(loss, 2), "top": Maximum(loss), "bad": NonFinite.of(others[0]), "loss": loss}
        row, layout = pack_row({"latent": monitor.summary(), "ablation": ablation, **shares, "lr": 0.1})
        with pytest.raises(AssertionError, match="waits"):
            float(loss)
    metrics, vectors, nonfinite = merge_rows(layout, row.unsqueeze(0))
    assert vectors.pop("bad") == [0.5]
    ours = {key: value for key, value in metrics.items() if key.startswith("latent/")}
    assert_agrees((ours, vectors), batches)
    assert (metrics["mean"], metrics["top"], metrics["bad"], metrics["loss"], metrics["lr"]) == (1.5, 3, 0.5, 3, 0.1)
    assert nonfinite == ()


@pytest.mark.parametrize("spoilt", [0, 7])
def test_masks_change_nothing_for_the_other_samples(spoilt: int) -> None:
    mu, logvar = draw(100, mean=1e4, scale=1e-3, dtype=torch.float64)
    plain, plain_kl = chunk_statistics(mu, logvar)
    dirty = [torch.cat([part[:spoilt], torch.full((1, 10), math.nan), part[spoilt:]]) for part in (mu, logvar)]
    masked, masked_kl = chunk_statistics(*dirty)
    assert masked[2:].tolist() == pytest.approx(plain[2:].tolist(), rel=1e-6, abs=0.0)
    assert masked[:2].tolist() == [101, 20]
    assert torch.allclose(masked_kl[~masked_kl.isnan()], plain_kl, rtol=1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_and_does_not_synchronise() -> None:
    batches = [draw(256, seed=seed, dtype=torch.bfloat16) for seed in range(30)]
    on_device = [(mu.cuda(), logvar.cuda()) for mu, logvar in batches]
    monitored(on_device).pack()  # first use of every kernel
    torch.cuda.set_sync_debug_mode("error")
    try:
        row, layout = pack_row({"latent": monitored(on_device), "lr": 0.1})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    metrics, vectors, nonfinite = merge_rows(layout, row.cpu().unsqueeze(0))
    assert metrics.pop("lr") == 0.1
    assert_agrees((metrics, vectors), batches)
    assert nonfinite == ()


# --- ablation ------------------------------------------------------------------------------------------------------


def losses(samples: int, seed: int, gain: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    with_code = 100 * torch.rand(samples, generator=generator)
    return with_code, with_code * (1 + gain * torch.rand(samples, generator=generator))


@pytest.mark.parametrize("gain", [1.0, 1e-4, -0.1], ids=["healthy", "near collapse", "code harms"])
def test_ablation_agrees_with_float64(gain: float) -> None:
    ranks = [[losses(100, 0, gain), losses(3, 1, gain)], [losses(17, 2, gain)], []]
    monitors = [AblationMonitor() for _ in ranks]
    for monitor, batches in zip(monitors, ranks, strict=True):
        for with_code, without in batches:
            monitor.update(with_code, without)
    metrics, vectors, nonfinite = merged(*({"ablation": monitor.summary()} for monitor in monitors))
    coded, zeroed = (np.concatenate([b[i].double().numpy() for rank in ranks for b in rank]) for i in (0, 1))
    expected = {
        "ablation/loss_mu": coded.mean(),
        "ablation/loss_zero": zeroed.mean(),
        "ablation/delta": (zeroed - coded).mean(),
        "ablation/relative": (zeroed - coded).mean() / zeroed.mean(),
    }
    assert metrics == pytest.approx(expected, rel=AGREE, abs=0.0)
    assert vectors == {}
    assert nonfinite == ()
    assert all(map(math.isnan, merged({"ablation": monitors[0].summary()})[0].values()))


def test_an_ablation_loss_that_is_not_finite_is_told() -> None:
    good, bad = AblationMonitor(), AblationMonitor()
    good.update(*losses(10, 0, 1.0))
    bad.update(torch.tensor([1.0, math.inf]), torch.tensor([1.0, 2.0]))
    metrics, _, nonfinite = merged({"ablation": good}, {"ablation": bad})
    assert nonfinite == tuple(sorted(metrics))
    assert all(map(math.isnan, metrics.values()))


# --- small summaries and rows --------------------------------------------------------------------------------------


def test_small_summaries_merge_by_their_own_rule() -> None:
    ranks: list[dict[str, Any]] = [
        {"mean": Mean(6.0, 2), "top": Maximum(1.0), "low": Minimum(), "sum": Total(2), "bad": NonFinite(1, 4)},
        {
            "mean": Mean.of(torch.tensor([[1.0, 2.0]])),
            "top": Maximum(),
            "low": Minimum(-3.0),
            "sum": Total(torch.tensor(0.5)),
            "bad": NonFinite.of(torch.tensor([1.0, math.nan])),
        },
        {
            "mean": Mean(0.0, 0),
            "top": Maximum(torch.tensor(-1)),
            "low": Minimum(5),
            "sum": Total(0),
            "bad": NonFinite(0, 0),
        },
    ]
    ranks = [{**share, "none": Mean(0.0, 0), "no top": Maximum()} for share in ranks]
    metrics, vectors, nonfinite = merged(*ranks)
    assert math.isnan(metrics.pop("none"))
    assert math.isnan(metrics.pop("no top"))
    assert metrics == {"mean": 9 / 4, "top": 1.0, "low": -3.0, "sum": 2.5, "bad": 0.5}
    assert vectors == {"bad": pytest.approx([0.25, 0.5, math.nan], nan_ok=True)}
    assert nonfinite == ()


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [lambda x: Mean(x, 1), Total, Maximum, Minimum, float, torch.tensor])
def test_one_ranks_poison_is_told_and_makes_nan(poison: float, kind: Any) -> None:
    metrics, _, nonfinite = merged({"x": kind(1.0), "y": 2.0}, {"x": kind(poison), "y": 2.0})
    assert math.isnan(metrics["x"])
    assert metrics["y"] == 2.0
    assert nonfinite == ("x",)


def test_plain_values_are_merged_by_mean() -> None:
    ranks = [
        {"epoch": 3, "a": 1.0, "vector": [1.0, 2.0, math.inf], "t": torch.tensor(0.1), "flag": True},
        {
            "flag": True,
            "t": torch.tensor(0.1),
            "vector": torch.tensor([3.0, 2.0, 1.0]),
            "a": np.float32(2.0),
            "epoch": 3,
        },
    ]
    metrics, vectors, nonfinite = merged(*ranks)
    assert metrics == {"epoch": 3.0, "a": 1.5, "t": float(torch.tensor(0.1).double()), "flag": 1.0}
    assert vectors == {"vector": pytest.approx([2.0, 2.0, math.nan], nan_ok=True)}
    assert nonfinite == ("vector",)


def test_a_number_that_all_ranks_share_comes_out_as_it_went_in() -> None:
    assert merged(*[{"beta": 0.1}] * 3)[0]["beta"] == 0.1  # the mean of three is 0.10000000000000002


def test_ranks_with_other_keys_are_refused_even_at_the_same_width() -> None:
    with pytest.raises(ValueError, match="different keys"):
        merged({"a": 1.0, "b": 1.0}, {"a": 1.0, "c": 1.0})
    with pytest.raises(ValueError, match="different keys"):
        merged({"a": [1.0, 2.0]}, {"a": Mean(1.0, 2)})


@pytest.mark.parametrize("value", [None, "0.3", torch.zeros(2, 2), {"kl": 1.0}, [1.0, "2"]])
def test_what_cannot_be_reported_is_named(value: Any) -> None:
    with pytest.raises(TypeError, match="report: val/loss is"):
        pack_row({"val/loss": value})


def test_a_summary_needs_only_pack_and_merge() -> None:
    class Spread:
        def __init__(self, value: float) -> None:
            self.value = value

        def pack(self) -> Tensor:
            return torch.tensor([self.value], dtype=torch.float64)

        def merge(self, rows: Tensor) -> dict[str, float | list[float]]:
            return {"": float(rows.max() - rows.min()), "vector.each": rows[:, 0].tolist()}

    metrics, vectors, nonfinite = merged({"s": Spread(1.0)}, {"s": Spread(4.0)})
    assert (metrics, vectors, nonfinite) == ({"s": 3.0}, {"s/each": [1.0, 4.0]}, ())
    metrics, _, nonfinite = merged({"s": Spread(1.0)}, {"s": Spread(math.inf)})
    assert math.isnan(metrics["s"])
    assert nonfinite == ("s", "s/each")


def test_the_examples_in_the_docstrings_run() -> None:
    assert doctest.testmod(latent_module) == (0, 4)
    assert doctest.testmod(ablation_module) == (0, 3)


# --- real processes ------------------------------------------------------------------------------------------------

SCENES: dict[str, list[list[Latents]]] = {
    "unequal": [[draw(256, seed=seed) for seed in range(5)], [draw(100, seed=9, mean=0.3)]],
    "collapsed": [[draw(64, seed=s, scale=1e-3, dtype=torch.bfloat16)] for s in range(2)],
    "empty": [[], [draw(30, mean=1e4, scale=1e-2)]],
}


def _report(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    values: dict[str, Any] = {name: monitored(ranks[rank]) for name, ranks in SCENES.items()}
    ablation = AblationMonitor()
    ablation.update(*losses(10 + 90 * rank, rank, 0.5))
    mu, logvar = draw(20)
    if rank == 1:
        mu[0, 0] = math.nan
    values |= {"dirty": monitored([(mu, logvar)]), "ablation": ablation, "loss": Mean(3.0 * rank, rank), "lr": 0.1}
    row, layout = pack_row(values)
    rows = torch.zeros(2, layout.width, dtype=torch.float64)
    rows[rank] = row
    dist.all_reduce(rows)
    if rank == 0:
        Path(folder, "merged.json").write_text(json.dumps(merge_rows(layout, rows)))
    dist.destroy_process_group()


def test_two_real_ranks_agree_with_float64(tmp_path: Path) -> None:
    mp.spawn(_report, (str(tmp_path),), 2)
    metrics, vectors, nonfinite = json.loads((tmp_path / "merged.json").read_text())
    for name, ranks in SCENES.items():
        scene = {key.replace(name, "latent"): value for key, value in metrics.items() if key.startswith(f"{name}/")}
        lists = {key.replace(name, "latent"): value for key, value in vectors.items() if key.startswith(f"{name}/")}
        assert_agrees((scene, lists), [batch for rank in ranks for batch in rank])
    with_code, without = (torch.cat([losses(10, 0, 0.5)[i], losses(100, 1, 0.5)[i]]).double() for i in (0, 1))
    assert metrics["ablation/relative"] == pytest.approx(float(1 - with_code.sum() / without.sum()), rel=AGREE)
    assert (metrics["loss"], metrics["lr"]) == (3.0, 0.1)
    assert vectors["dirty/nonfinite"] == [0.0, 1 / 400]
    assert nonfinite == ["dirty"]
