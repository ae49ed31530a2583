"""The world of a trial: a clean start, noise keyed by sample, generators in a checkpoint, arrays built once a node."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import Ranks, pair  # noqa: F401
from scipy import stats

from buttress.cache_folder import cache_folder
from buttress.errors import BadInput
from buttress.training.randomness import forked_rng, keyed_normal, prepare, restore_rng_state, rng_state, seed_rank
from buttress.training.world import World

CPU = torch.device("cpu")


def draws() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), float(torch.rand(())), np.random.randn()]


def test_trial_starts_clean_whatever_the_one_before_left() -> None:
    prepare(3)
    expected = draws()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    torch.set_flush_denormal(True)
    torch.backends.cudnn.benchmark = True
    torch.use_deterministic_algorithms(False)
    torch.autograd.set_detect_anomaly(True)
    draws()
    prepare(3, threads=1)
    assert draws() == expected
    assert torch.get_default_dtype() == torch.float32 and torch.get_num_threads() == 1 and torch.is_grad_enabled()
    assert not torch.backends.cudnn.benchmark and torch.are_deterministic_algorithms_enabled()
    assert not torch.is_anomaly_enabled() and float(torch.tensor(1e-40) * 1) > 0


def test_generators_go_on_from_where_they_were_saved() -> None:
    prepare(7)
    draws()
    random.gauss(0, 1)  # leaves a second number for later, in Python and in numpy
    np.random.randn()
    state = rng_state(CPU)
    expected = [draws() for _ in range(3)]
    assert state.dtype == torch.uint8
    prepare(8)
    restore_rng_state(state, CPU)
    assert [draws() for _ in range(3)] == expected


def test_steady_draws_are_the_same_every_time_and_touch_nothing() -> None:
    prepare(7)
    expected = draws()
    prepare(7)
    with forked_rng(1, CPU):
        first = draws()
    assert draws() == expected
    with forked_rng(1, CPU):
        assert draws() == first
    with forked_rng(2, CPU):
        assert draws() != first


def test_ranks_part_and_rank_0_goes_on() -> None:
    prepare(7)
    expected = draws()
    prepare(7)
    seed_rank(7, 0)
    assert draws() == expected
    seed_rank(7, 1)
    first = draws()
    seed_rank(7, 2)
    assert draws() != first != expected


# Noise


def test_noise_depends_on_the_sample_and_not_on_who_draws_it() -> None:
    index = torch.randperm(1000)
    whole = keyed_normal(5, index, 7)
    parts = torch.cat([keyed_normal(5, part, 7) for part in index.split(33)])
    assert whole.shape == (1000, 7) and whole.dtype == torch.float32
    assert torch.equal(whole, parts)
    torch.testing.assert_close(keyed_normal(5, index, 7, dtype=torch.float64).float(), whole)
    assert torch.equal(keyed_normal(5, index.flip(0), 7), whole.flip(0))
    assert torch.equal(World(seed=5).noise(index, 7), whole)


def test_seed_stream_sample_and_column_each_give_other_noise() -> None:
    index = torch.arange(2000)
    base = keyed_normal(5, index, 2)
    for other in (keyed_normal(6, index, 2), keyed_normal(5, index, 2, stream=1), keyed_normal(5, index + 2000, 2)):
        assert not bool((base == other).any())
        assert abs(np.corrcoef(base.flatten(), other.flatten())[0, 1]) < 0.05
    assert abs(np.corrcoef(base.T)[0, 1]) < 0.06
    assert abs(np.corrcoef(base[1:, 0], base[:-1, 0])[0, 1]) < 0.06  # neighbours


def test_noise_is_standard_normal_to_the_tails() -> None:
    drawn = torch.cat([keyed_normal(seed, torch.arange(20_000), 5, dtype=torch.float64) for seed in range(4)]).flatten()
    assert stats.kstest(drawn.numpy(), "norm").pvalue > 0.01
    assert stats.kstest(drawn.square().reshape(-1, 4).sum(1).numpy(), "chi2", args=(4,)).pvalue > 0.01  # independence
    moments = [float(drawn.pow(k).mean()) for k in (1, 2, 3, 4)]
    errors = [abs(m - e) for m, e in zip(moments, (0.0, 1.0, 0.0, 3.0), strict=True)]
    scale = len(drawn) ** -0.5
    assert all(e < 4 * s * scale for e, s in zip(errors, (1.0, 2**0.5, 15**0.5, 96**0.5), strict=True))
    assert 4.0 < float(drawn.abs().max()) < 6.5
    assert len(drawn.unique()) == len(drawn)


def test_noise_is_the_splitmix64_stream_it_says_it_is() -> None:
    """Against a reference in plain Python integers."""
    import math

    word, golden = 2**64, 0x9E3779B97F4A7C15

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % word
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % word
        return x ^ (x >> 31)

    def seeded(x: int) -> int:
        return mix((x + golden) % word) % 2**63

    seed, stream, sample, width = 11, 3, 123_456, 4
    key = seeded(seeded(seed) ^ seeded(stream + golden))
    row = mix((sample * golden + key) % word)
    uniform = [((mix((row + k * golden) % word) >> 11) + 0.5) / 2**53 for k in range(1, 5)]
    radius = [math.sqrt(-2 * math.log(u)) for u in uniform[:2]]
    expected = [r * f(2 * math.pi * u) for f in (math.cos, math.sin) for r, u in zip(radius, uniform[2:], strict=True)]
    drawn = keyed_normal(seed, torch.tensor([sample]), width, stream, torch.float64)[0].tolist()
    assert drawn == pytest.approx(expected, rel=1e-12)


# Ranks


def together(world: World) -> Any:
    counts = torch.tensor([1.0, 2.0 * world.rank])
    return world.sum(counts) is counts, counts.tolist(), world.mean(world.rank), type(world.wrap(linear())).__name__


def linear() -> torch.nn.Module:
    return torch.nn.Linear(2, 2)


def test_sum_mean_and_wrap_work_on_one_rank_and_on_two(pair: Ranks) -> None:  # noqa: F811
    assert pair.run(together) == [(True, [2.0, 2.0], 0.5, "DistributedDataParallel")] * 2
    assert together(World()) == (True, [1.0, 0.0], 0.0, "Linear")


def starts(world: World) -> Any:
    torch.manual_seed(world.rank)
    wrapped = world.wrap(torch.nn.BatchNorm1d(3))
    inner = world.unwrap(wrapped)
    inner.running_mean.fill_(world.rank)
    wrapped(torch.ones(4, 3) * (1 + world.rank))
    return inner.running_mean[0].item()


def test_buffers_are_left_to_each_rank_during_steps(pair: Ranks) -> None:  # noqa: F811
    assert pair.run(starts) == [pytest.approx(0.1), pytest.approx(0.9 + 0.2)]


# Cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BUTTRESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entry(cache: Path) -> Path:
    (found,) = (path for path in cache.iterdir() if path.is_dir())
    return found


def test_arrays_are_built_once_and_memory_mapped(cache: Path) -> None:
    calls = []

    def build() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"x": np.arange(12.0).reshape(3, 4)[:, ::2], "names": np.array(["a", "bc"])}

    world = World()
    for key in ({"file": "t.csv", "size": 3}, {"size": 3, "file": "t.csv"}):
        arrays = world.cache(key, build)
        assert arrays["x"].tolist() == [[0, 2], [4, 6], [8, 10]] and arrays["names"].tolist() == ["a", "bc"]
        assert isinstance(arrays["x"], np.memmap)
        arrays["x"][:] = -1  # a private copy: the next trial does not see it
        torch.from_numpy(arrays["x"])
    assert len(calls) == 1
    world.cache({"file": "t.csv", "size": 4}, build)
    assert len(calls) == 2


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no manifest", "garbage manifest", "missing"])
def test_damaged_entry_is_built_anew(cache: Path, damage: str) -> None:
    World().cache("k", lambda: {"x": np.arange(1000)})
    array, manifest = entry(cache) / "x.npy", entry(cache) / "manifest.json"
    if damage == "truncated":
        array.write_bytes(array.read_bytes()[:-8])
    elif damage == "flipped":
        content = bytearray(array.read_bytes())
        content[-4] ^= 255
        array.write_bytes(content)
    elif damage == "missing":
        array.unlink()
    else:
        manifest.unlink() if damage == "no manifest" else manifest.write_text("{")
    assert World().cache("k", lambda: {"x": np.arange(1000)})["x"].tolist() == list(range(1000))
    assert World().cache("k", lambda: pytest.fail("built again"))["x"][7] == 7


def test_build_that_fails_leaves_nothing_and_may_be_tried_again(cache: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        World().cache("k", lambda: {"x": np.array([1 / 0])})
    assert World().cache("k", lambda: {"x": np.zeros(2)})["x"].tolist() == [0, 0]


def test_process_that_dies_while_building_does_not_leave_half_an_entry(cache: Path) -> None:
    def dies() -> dict[str, np.ndarray]:
        os._exit(9)

    process = multiprocessing.get_context("fork").Process(target=World().cache, args=("k", dies))
    process.start()
    process.join(20)
    assert process.exitcode == 9
    assert World().cache("k", lambda: {"x": np.ones(1)})["x"][0] == 1


def test_one_process_of_several_builds(cache: Path) -> None:
    def build() -> dict[str, np.ndarray]:
        with (cache / "built").open("a") as file:
            file.write("x")
        time.sleep(0.2)
        return {"x": np.arange(3)}

    threads = [threading.Thread(target=World().cache, args=("k", build)) for _ in range(3)]
    cache.mkdir()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (cache / "built").read_text() == "x"


def test_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BUTTRESS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(BadInput, match="BUTTRESS_CACHE: the cache folder is not writable"):
        World().cache("k", lambda: {"x": np.zeros(1)})


def test_the_cache_is_in_the_home_folder_where_the_working_folder_cannot_be_written_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("BUTTRESS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert cache_folder() == tmp_path / ".cache" / "buttress"
    refused, access = {tmp_path}, os.access  # a superuser may write anywhere but on a read-only file system
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) not in refused and access(path, mode))
    assert cache_folder() == tmp_path / "home" / "buttress"
    (tmp_path / ".cache" / "buttress").mkdir(parents=True)  # there already, and it can be written to
    assert cache_folder() == tmp_path / ".cache" / "buttress"
