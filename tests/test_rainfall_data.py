"""Rainfall data: what is written is read again, real NetCDF becomes a data set, and whatever is wrong is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from scipy.ndimage import distance_transform_edt
from typer.testing import CliRunner

from buttress.errors import BadInput
from buttress.trainables.rainfall import data as files
from buttress.trainables.rainfall import prepare, store, synthetic
from buttress.trainables.rainfall.config import Config, Data

pytestmark = pytest.mark.usefixtures("own_cache")

TINY = synthetic.SIZES["tiny"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write(tmp_path_factory.mktemp("data") / "tiny", "tiny", 1)


def read(root: Path, **data: Any) -> files.Dataset:
    return files.read(root, Data(kind="files", root=str(root), **data))


# ---- the layout


def test_the_layout_is_the_originals(tiny: Path) -> None:
    days, (rows, columns) = sum(TINY.days), TINY.high
    assert len(list((tiny / "data/X_lr").glob("day_*.npy"))) == days == len(list((tiny / "data/Y_hr").iterdir()))
    x, y = (np.load(tiny / f"data/{name}/day_000003.npy") for name in ("X_lr", "Y_hr"))
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((6, *TINY.low), np.float32, (1, rows, columns), np.float32)
    names = {path.name for path in (tiny / "data/metadata").iterdir()}
    assert {"split.json", "categories.json", "thresholds.json", "H_W.json", "ERA5_mean_train.npy",
            "ERA5_std_train.npy", "p95_mmday.npy", "p99_mmday.npy", "units.json"} <= names  # fmt: skip
    split = json.loads((tiny / "data/metadata/split.json").read_text())
    assert [len(split[name]) for name in ("train", "val", "test")] == list(TINY.days)
    assert split["train"] + split["val"] + split["test"] == list(range(days))


def test_full_size_is_the_originals() -> None:
    full = synthetic.SIZES["full"]
    assert (full.days, full.low, full.high) == ((9928, 2482, 1825), (13, 11), (156, 132))
    assert (full.heavy_pixels, full.cell_km) == (25, 4.0)


def test_standardised_fields_turn_back_into_the_rain_that_was_written(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rain = random.gamma(0.4, 9.0, (60, 8, 6)).astype(np.float32)
    land = np.zeros((8, 6), bool)
    land[:, 2:] = True
    low = random.gamma(0.4, 9.0, (60, 1, 4, 3)).astype(np.float32)
    splits = {"train": range(40), "val": range(40, 50), "test": range(50, 60)}
    choices = store.Choices(heavy_pixels=4, logged=(0,))
    store.write(tmp_path / "d", rain.copy(), low.copy(), land, splits, choices)
    found = read(tmp_path / "d")
    np.testing.assert_allclose(files.rain_mm(found, np.arange(60))[:, land], rain[:, land], rtol=2e-4, atol=1e-4)
    z = found.y[:40, 0][:, land].astype(np.float64)
    assert np.abs(z.mean(0)).max() < 1e-5 and z.std(0, ddof=1) == pytest.approx(1, abs=1e-4)
    assert (found.y[:, 0][:, ~land] == 0).all() and (found.std[~land] == np.float32(1e-8)).all()
    logged = np.log1p(low[:40])
    expected = (np.log1p(low) - logged.mean(0)) / logged.std(0, ddof=1)
    np.testing.assert_allclose(found.x, expected.clip(-10, 10), atol=2e-4)
    assert found.thresholds[1:] == pytest.approx(np.percentile(rain[:40][:, land], [95, 99]), rel=1e-5)
    assert found.thresholds[0] == pytest.approx(np.percentile(z.max(1), 95), rel=1e-3)
    assert found.statics[1].max() == 1 and (found.land == land).all()


def test_categories_follow_the_newest_rule() -> None:
    land = np.ones((10, 10), bool)
    land[:, 0] = False
    coast = store.coast_distance(land, 4.0)
    assert coast[:, 1:] == pytest.approx(distance_transform_edt(land)[:, 1:] * 4.0) and (coast[:, 0] == 0).all()
    z = np.full((6, 10, 10), -0.5)
    z[1, 5, 5] = 3.1  # reaches P95 in a pixel
    z[2, 2, 1] = 4.5  # reaches P99 at the coast
    z[3, 2, 8] = 4.5
    z[4, :, 7:] = 2.6  # 30 pixels above P90
    z[5] = 0.2  # a land mean above 0.1
    found = store.categorise(z, land, coast, {"P90": 2.5, "P95": 3.0, "P99": 4.0}, heavy_pixels=25)
    assert found == ["dry", "moderate", "heavy_coast", "heavy_interior", "heavy_interior", "moderate"]


# ---- synthetic rain


def test_rain_has_the_originals_marginal() -> None:
    from scipy.special import ndtri

    shares = np.array([0.90, 0.95, 0.99, 0.999, 1 - 1e-5])
    assert synthetic.rain_of(ndtri(shares)) == pytest.approx([11.7, 20.1, 43.6, 90, 253], rel=0.02)
    mm = synthetic.rain_of(np.linspace(-6, 8, 10_001))
    assert (np.diff(mm) >= 0).all() and mm.min() == 0 and mm.max() <= 500
    assert synthetic.rain_of(np.array([-3.0, 0.0, 0.25])) == pytest.approx([0, 0, 0.0], abs=0.2)


def test_synthetic_days_are_organised_and_leave_something_to_the_code(tmp_path: Path) -> None:
    found = files.load(Data(size="small"), lambda key, build: build())
    land, train = found.land > 0.5, found.rows("train")
    mm = files.rain_mm(found, train)[:, land]
    assert 0.35 < land.mean() < 0.6
    assert np.percentile(mm, [95, 99]) == pytest.approx([20.1, 43.6], rel=0.2)
    largest = mm.max(1)
    heavy = mm[largest >= np.percentile(largest, 99)]
    assert 0.5 < (heavy > 0.1).mean() < 0.985 and 8 < heavy.mean() < 33 and 100 < heavy.max(1).mean() < 260
    assert found.heavy[train].mean() < 0.2
    val = files.rain_mm(found, found.rows("val"))[:, land]
    assert (val >= found.thresholds[1]).any()
    # the predictor's rain tells much of the day's mean, but not all
    pr = np.expm1(found.x[train, 1]).reshape(len(train), -1).mean(1)
    assert 0.4 < np.corrcoef(found.x[train, 1].mean((1, 2)), found.y[train, 0][:, land].mean(1))[0, 1] < 0.95
    assert np.isfinite(pr).all()


def test_the_same_seed_writes_the_same_days(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        synthetic.write(tmp_path / name, "tiny", seed)
    days = [np.load(tmp_path / name / "data/Y_hr/day_000007.npy") for name in "abc"]
    assert np.array_equal(days[0], days[1]) and not np.array_equal(days[0], days[2])


# ---- bad input


def spoil_json(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def without(key: str) -> Callable[[dict], dict]:
    return lambda held: {name: value for name, value in held.items() if name != key}


def put(**changes: Any) -> Callable[[dict], dict]:
    return lambda held: held | changes


def nan_cell(root: Path) -> None:
    path = root / "data/Y_hr/day_000005.npy"
    array = np.load(path)
    array[0, 3, 2] = np.nan
    np.save(path, array)


def overlap(held: dict) -> dict:
    return held | {"val": [*held["val"], held["train"][4]]}


META = "data/metadata"
SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "there is no such folder"),
    "no metadata": (lambda root: shutil.rmtree(root / META), "has no data/metadata folder"),
    "no mean": (lambda root: (root / META / "ERA5_mean_train.npy").unlink(),
                "ERA5_mean_train.npy: there is no such file"),
    "no std": (lambda root: (root / META / "ERA5_std_train.npy").unlink(), "ERA5_std_train.npy: there is no such file"),
    "no p95": (lambda root: (root / META / "p95_mmday.npy").unlink(), "p95_mmday.npy: there is no such file"),
    "no p99": (lambda root: (root / META / "p99_mmday.npy").unlink(), "p99_mmday.npy: there is no such file"),
    "P95 unset": (lambda root: spoil_json(root / META / "thresholds.json", without("P95")), "P95: is not set"),
    "P95 null": (lambda root: spoil_json(root / META / "thresholds.json", put(P95=None)), "P95: is not set"),
    "P95 in mm": (lambda root: spoil_json(root / META / "thresholds.json", put(P95=60.0)),
                  r"P95: does not fit the data: 0.00% of training days.*a threshold in z"),
    "p95 in z": (lambda root: np.save(root / META / "p95_mmday.npy", 1.8),
                 "p95_mmday.npy: does not fit.*threshold in mm"),
    "p99 in z": (lambda root: np.save(root / META / "p99_mmday.npy", 4.26),
                 "p99_mmday.npy: does not fit.*threshold in mm"),
    "p99 in m": (lambda root: np.save(root / META / "p99_mmday.npy", 0.0436), "p99_mmday.npy: does not fit the data"),
    "other unit": (lambda root: spoil_json(root / META / "units.json", put(rain="mm/h")),
                   r"rain: is in another unit than the config says \(got .mm/h.\); accepted: mm/day"),
    "thresholds said in mm": (lambda root: spoil_json(root / META / "units.json", put(**{"thresholds.json": "mm/day"})),
                              r"thresholds.json: is in another unit.*accepted: z"),
    "no units": (lambda root: (root / META / "units.json").unlink(), "units.json: there is no such file"),
    "unit left out": (lambda root: spoil_json(root / META / "units.json", without("rain")), "rain: is missing"),
    "overlap": (lambda root: spoil_json(root / META / "split.json", overlap),
                "train: overlaps with val: 1 days are in both, the first is 4"),
    "empty split": (lambda root: spoil_json(root / META / "split.json", put(val=[])), "val: is not a list of days"),
    "day twice": (lambda root: spoil_json(root / META / "split.json", put(test=[70, 70])), "names day 70 twice"),
    "torn json": (lambda root: (root / META / "split.json").write_text('{"train": [1, 2'), "is not whole JSON"),
    "missing day": (lambda root: (root / "data/Y_hr/day_000009.npy").unlink(),
                    r"1 days of split.json have no file \(got .day_000009.npy.\)"),
    "missing predictor": (lambda root: (root / "data/X_lr/day_000002.npy").unlink(), "day_000002.npy"),
    "no category": (lambda root: spoil_json(root / META / "categories.json", without("12")), "12: has no category"),
    "other category": (lambda root: spoil_json(root / META / "categories.json", put(**{"12": "wet"})),
                       "is no category"),
    "nan": (nan_cell, r"day_000005.npy: has 1 cells that are not finite, the first at \[0, 3, 2\]"),
    "shape": (lambda root: np.save(root / "data/Y_hr/day_000001.npy", np.zeros((1, 3, 3), np.float32)),
              r"is of another shape \(got \[1, 3, 3\]\); accepted: \[1, 20, 16\]"),
    "predictor's shape": (lambda root: np.save(root / "data/X_lr/day_000001.npy", np.zeros((5, 5, 4), np.float32)),
                          "is of another shape"),
    "dtype": (lambda root: np.save(root / "data/Y_hr/day_000001.npy", np.zeros((1, 20, 16))),
              r"is of another type \(got .float64.\); accepted: float32"),
    "whole numbers": (lambda root: np.save(root / META / "ERA5_mean_train.npy", np.zeros((20, 16), int)),
                      "another type"),
    "objects": (lambda root: np.save(root / "data/Y_hr/day_000001.npy", np.array([{}]), allow_pickle=True),
                "is not a whole .npy file"),
    "truncated": (lambda root: (root / "data/Y_hr/day_000001.npy").write_bytes(
        (root / "data/Y_hr/day_000001.npy").read_bytes()[:300]), "is not a whole .npy file"),
    "empty": (lambda root: (root / "data/X_lr/day_000001.npy").write_bytes(b""), "is not a whole .npy file"),
    "zero deviation": (lambda root: np.save(root / META / "ERA5_std_train.npy", np.zeros((20, 16), np.float32)),
                       "deviations that are not positive"),
    "mask of fractions": (lambda root: np.save(root / "data/statics/land_sea_mask.npy",
                                               np.full((1, 20, 16), 0.5, np.float32)), "is not a mask with land"),
    "grid": (lambda root: spoil_json(root / META / "H_W.json", put(H=21)), "is of another shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_data_are_refused_in_one_sentence(name: str, tiny: Path, tmp_path: Path) -> None:
    root = tmp_path / "spoilt"
    shutil.copytree(tiny, root)
    spoil, match = SPOILT[name]
    spoil(root)
    with pytest.raises(BadInput, match=match) as told:
        read(root)
    assert "\n" not in str(told.value) and str(root) in str(told.value)


def test_untouched_data_are_read(tiny: Path) -> None:
    found = read(tiny)
    assert len(found.day) == sum(TINY.days) and found.x.dtype == np.float32
    with pytest.raises(BadInput, match=r"elevation_m.npy: there is no such file"):
        read(tiny, elevation=True)
    with pytest.raises(BadInput, match=r"accepted: mm/h \(data.unit\)"):
        read(tiny, unit="mm/h")


def test_a_changed_file_is_read_again(tiny: Path, tmp_path: Path) -> None:
    from buttress.training.world import World

    root = tmp_path / "changing"
    shutil.copytree(tiny, root)
    data, world = Data(kind="files", root=str(root)), World.single(tmp_path)
    before = files.load(data, world.cache).y[5].copy()
    path = root / "data/Y_hr/day_000005.npy"
    np.save(path, np.load(path) + np.float32(0.25))
    assert np.allclose(files.load(data, world.cache).y[5], before + 0.25)


# ---- data check


def test_data_check_tells_what_is_there(tiny: Path) -> None:
    from buttress.cli.main import app

    result = CliRunner().invoke(app, ["data", "check", "rainfall", str(tiny)])
    assert result.exit_code == 0, result.output
    assert "20 x 16" in result.output and "48 days" in result.output and "P95 of daily maxima" in result.output
    rows = dict(files.check(tiny, Config()))
    assert rows["predictor"].startswith("6 channels of 5 x 4") and "in the tail" in rows["split val"]


# ---- prepare


def grid(path: Path, values: np.ndarray, units: str | None = "mm/day", times: Any = None, name: str = "pr") -> Path:
    coords = {"time": times if times is not None else np.datetime64("2000-01-01") + np.arange(len(values))}
    attrs = {} if units is None else {"units": units}
    values = values.astype(np.float32)
    xarray.DataArray(values, dims=("time", "lat", "lon"), coords=coords, attrs=attrs, name=name).to_netcdf(path)
    return path


def rain_of(days: int = 50, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(0.5, 8.0, (days, 9, 13))


def test_netcdf_becomes_a_data_set(tmp_path: Path) -> None:
    rain = rain_of()
    rain[:, 0, 0] = np.nan  # sea
    out = prepare.prepare(grid(tmp_path / "pr.nc", rain), tmp_path / "out", factor=4, heavy_pixels=6)
    found = read(out)
    assert found.x.shape == (50, 1, 2, 3) and found.y.shape == (50, 1, 8, 12)
    assert [len(found.rows(name)) for name in files.SPLITS] == [32, 8, 10]  # the last fifth; a fifth of what is before
    land = found.land > 0.5
    assert not land[0, 0] and land.sum() == 95
    cut = rain[:, :8, :12]
    np.testing.assert_allclose(files.rain_mm(found, np.arange(50))[:, land], cut[:, land], rtol=1e-3, atol=1e-3)
    blocks = np.nanmean(cut.reshape(50, 2, 4, 3, 4), axis=(2, 4))
    logged = np.log1p(blocks)
    expected = (logged - logged[:32].mean(0)) / logged[:32].std(0, ddof=1)
    np.testing.assert_allclose(found.x[:, 0], expected, atol=1e-3)
    units = json.loads((out / META / "units.json").read_text())
    assert units["rain"] == "mm/day" and units["source"] == "pr.nc" and units["definition"]["heavy_pixels"] == 6


@pytest.mark.parametrize(
    ("said", "step", "unit", "scale"),
    [("kg m-2 s-1", "D", "mm/day", 86400.0), ("mm", "D", "mm/day", 1.0), ("kg m^-2", "h", "mm/h", 1.0),
     ("mm h-1", "D", "mm/h", 1.0), ("m/day", "D", "mm/day", 1000.0)],
)  # fmt: skip
def test_units_are_read_from_the_file(said: str, step: str, unit: str, scale: float, tmp_path: Path) -> None:
    times = np.datetime64("2000-01-01", step) + np.arange(12)
    rain, found = prepare.read(grid(tmp_path / "pr.nc", rain_of(12), said, times.astype("datetime64[ns]")), None)
    assert found == unit
    np.testing.assert_allclose(rain, rain_of(12) * scale, rtol=1e-5)


def spoilt_grid(name: str, folder: Path) -> Path:
    path, rain = folder / "pr.nc", rain_of()
    if name == "nan":
        rain[7, 2, 3] = np.nan
    elif name == "negative":
        rain[3, 1, 1] = -0.5
    elif name == "all nan":
        rain[:] = np.nan
    elif name == "dry":
        rain[:, 1, 1] = 0.0
    times = np.datetime64("2000-01-01") + np.arange(50)
    if name == "missing day":
        times = np.delete(np.datetime64("2000-01-01") + np.arange(51), 20)
    elif name == "disorder":
        times[5], times[6] = times[6], times[5]
    units = {"no units": None, "temperature": "K", "amount": "mm"}.get(name, "mm/day")
    if name == "amount":
        times = np.datetime64("2000-01-01") + 5 * np.arange(50)
    grid(path, rain, units, times.astype("datetime64[ns]"))
    if name == "truncated":
        path.write_bytes(path.read_bytes()[:2000])
    elif name == "not netcdf":
        path.write_text("day,rain\n1,2\n")
    elif name == "no file":
        path.unlink()
    elif name == "two":
        both = xarray.open_dataset(path).load()
        both.close()
        path.unlink()
        both.assign(other=both.pr * 2).to_netcdf(path)
    return path


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("nan", "1 cells are NaN at some times only, the first at time 7, row 2, column 3"),
        ("negative", r"has negative rain \(got -0.5\)"),
        ("all nan", "holds nothing but NaN"),
        ("dry", "1 land pixels never change in the training split, the first at row 1, column 1"),
        ("missing day", "1 gaps, the first after 2000-01-20T00:00: a day is missing"),
        ("disorder", "time does not rise at step 6"),
        ("no units", "says no units"),
        ("temperature", r"is no unit of rain \(got .K.\)"),
        ("amount", "the time step is neither a day nor an hour"),
        ("truncated", "cannot be read as NetCDF"),
        ("not netcdf", "cannot be read as NetCDF"),
        ("no file", "there is no such file"),
        ("two", "has 2 variables with three dimensions.*pr, other"),
    ],
)
def test_spoilt_grids_are_refused_and_leave_nothing(name: str, match: str, tmp_path: Path) -> None:
    source, allow = spoilt_grid(name, tmp_path), name == "amount"
    with pytest.raises(BadInput, match=match):
        prepare.prepare(source, tmp_path / "out", factor=4, allow_gaps=allow)
    assert not list(tmp_path.glob("out*"))


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = grid(tmp_path / "pr.nc", rain_of(), "mm h-1")
    assert prepare.main([str(source), "--out", str(tmp_path / "out"), "--unit", "mm/day"]) == 2
    assert "is another unit than asked for (got 'mm/h'); accepted: mm/day" in capsys.readouterr().err
    assert prepare.main([str(source), "--out", str(tmp_path / "out"), "--factor", "99", "--unit", "mm/h"]) == 2
    assert prepare.main([str(source), "--out", str(tmp_path / "out"), "--factor", "4", "--heavy-pixels", "9"]) == 0
    assert prepare.main([str(source), "--out", str(tmp_path / "out")]) == 2  # is there already


# ---- real data


REAL: dict[str, tuple[dict[str, Any], str, tuple[int, ...]]] = {
    "fraser_daily_1996_2012.nc": ({"factor": 7, "heavy_pixels": 6}, "mm/day", (6210, 1, 14, 28)),
    "stageiv_florence_20180913.nc": ({"factor": 12, "pooled": True}, "mm/h", (23, 1, 108, 84)),
    "mrms_tiles_20190610.nc": ({"factor": 16, "pooled": True, "variable": "rain_rate"}, "mm/h", (54, 1, 256, 256)),
}


@pytest.mark.parametrize("name", REAL)
def test_real_grids_are_prepared(name: str, shared: Path, tmp_path: Path) -> None:
    options, unit, shape = REAL[name]
    out = prepare.prepare(shared / "data/rainfall" / name, tmp_path / "out", **options)
    found = read(out, unit=unit)
    assert found.y.shape == shape
    land = found.land > 0.5
    over = (files.rain_mm(found, found.rows("train"))[:, land] >= found.thresholds[1] - 1e-3).mean()
    assert over == pytest.approx(0.05, abs=0.002)
