"""Converts gridded precipitation in NetCDF to the family's data set: days of rain and a block-mean predictor.

    python -m buttress.trainables.rainfall.prepare pr.nc --out data/fraser --factor 7
    python -m buttress.trainables.rainfall.prepare radar.nc --out data/radar --variable rain_rate --factor 8 \\
        --unit mm/h --pooled

One field per time step is one day of the data set (for `--unit mm/h` one frame of radar). The predictor is the mean
over factor x factor cells of the same field, as a coarse model would see it; the grid is cut to fit.
Cells that are NaN at every time are sea. Splits are chronological: the last `--test` share of the days, before it the
last `--val` share of the rest. A fault in a file is an error of one sentence; nothing is guessed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from buttress.errors import BadInput
from buttress.trainables.rainfall import store

#: What the units attribute may say -> (the data set's unit, factor).
UNITS: dict[str, tuple[str, float]] = {
    "mm/day": ("mm/day", 1.0), "mm/d": ("mm/day", 1.0), "mm day-1": ("mm/day", 1.0), "mm d-1": ("mm/day", 1.0),
    "kg m-2 day-1": ("mm/day", 1.0), "kg m-2 d-1": ("mm/day", 1.0), "kg m-2 s-1": ("mm/day", 86400.0),
    "mm/s": ("mm/day", 86400.0), "mm s-1": ("mm/day", 86400.0), "m/day": ("mm/day", 1e3), "m d-1": ("mm/day", 1e3),
    "mm/h": ("mm/h", 1.0), "mm/hr": ("mm/h", 1.0), "mm h-1": ("mm/h", 1.0), "mm hr-1": ("mm/h", 1.0),
    "kg m-2 h-1": ("mm/h", 1.0),
}  # fmt: skip
#: Amounts: their time step decides the unit.
AMOUNTS = ("mm", "kg m-2", "kg m^-2", "kg/m2", "kg m**-2")
_STEPS = {np.timedelta64(1, "D"): "mm/day", np.timedelta64(1, "h"): "mm/h"}


def prepare(
    source: Path,
    out: Path,
    *,
    variable: str | None = None,
    factor: int = 12,
    unit: str | None = None,
    val: float = 0.2,
    test: float = 0.2,
    cell_km: float = 4.0,
    heavy_pixels: int = 25,
    pooled: bool = False,
    allow_gaps: bool = False,
) -> Path:
    """Write the data set of the NetCDF file `source` to the folder `out` (which must not exist) and return it.

    `unit`: what the data set is to be in, mm/day or mm/h; a file that says another one is refused (None: as the file
    says). Raises `BadInput`.
    """
    if out.exists():
        raise BadInput("is there already", where="--out", value=str(out), accepted="a new folder")
    if factor < 2:
        raise BadInput("makes no coarser predictor", where="--factor", value=factor, accepted="2 or more")
    rain, found = read(source, variable, allow_gaps=allow_gaps)
    if unit is not None and unit != found:
        raise BadInput("is another unit than asked for", where=source, key="units", value=found, accepted=unit)
    rows, columns = rain.shape[1] // factor * factor, rain.shape[2] // factor * factor
    if not rows or not columns:
        raise BadInput("is more than the grid has cells", where="--factor", value=factor,
                       accepted=f"2 to {min(rain.shape[1:])}")  # fmt: skip
    rain = np.ascontiguousarray(rain[:, :rows, :columns])
    land = ~np.isnan(rain).all(0)
    _complain_of_cells(rain, land, source)
    rain[:, ~land] = 0.0
    predictors = block_mean(rain, land, factor)[:, None]
    splits = chronological(len(rain), val, test)
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    choices = store.Choices(found, cell_km, heavy_pixels, pooled, logged=(0,))
    try:
        store.write(part, rain, predictors, land, splits, choices, {"source": source.name, "factor": factor})
    except BadInput as error:
        shutil.rmtree(part, ignore_errors=True)
        raise error.at(source) from None
    return part.rename(out)


def read(source: Path, variable: str | None, *, allow_gaps: bool = False) -> tuple[np.ndarray, str]:
    """Rain [T, H, W] (float32, in the unit that is returned with it), and that unit: mm/day or mm/h."""
    try:
        import xarray
    except ModuleNotFoundError:
        problem = "reading NetCDF needs xarray, which is not installed"
        raise BadInput(problem, where=source, accepted="pip install 'buttress[rainfall]'") from None
    if not source.is_file():
        raise BadInput("there is no such file", where=source, accepted="a NetCDF file")
    try:
        with xarray.open_dataset(source) as opened:
            one = _variable(opened, variable, source)
            dims = one.dims
            if one.ndim != 3:
                raise BadInput("has not three dimensions", where=source, key=str(one.name), value=list(dims),
                               accepted="time (or sample), rows, columns")  # fmt: skip
            values = np.asarray(one.values, dtype=np.float32)
            times = one[dims[0]].values if dims[0] in one.coords else None
            said = one.attrs.get("units")
    except BadInput:
        raise
    except Exception as error:  # every backend has its own
        what = (str(error) or type(error).__name__).splitlines()[0][:100]
        raise BadInput(f"cannot be read as NetCDF ({what})", where=source) from None
    step = _step(times, source, allow_gaps)
    unit, scale = _unit(said, step, source, str(one.name))
    return values * np.float32(scale), unit


def _variable(opened: Any, name: str | None, source: Path) -> Any:
    if name is not None:
        if name not in opened.data_vars:
            accepted = ", ".join(map(str, opened.data_vars))
            raise BadInput("has no such variable", where=source, key=name, accepted=accepted)
        return opened[name]
    fields = [one for one in opened.data_vars if opened[one].ndim == 3]
    if len(fields) != 1:
        raise BadInput(f"has {len(fields)} variables with three dimensions", where=source,
                       accepted=f"--variable, one of {', '.join(map(str, opened.data_vars))}")  # fmt: skip
    return opened[fields[0]]


def _step(times: np.ndarray | None, source: Path, allow_gaps: bool) -> np.timedelta64 | None:
    """The time step, None without times; gaps, repetitions and disorder are errors."""
    if times is None or len(times) < 2 or times.dtype.kind != "M":
        return None
    steps = np.diff(times)
    if (steps <= np.timedelta64(0)).any():
        at = int((steps <= np.timedelta64(0)).argmax()) + 1
        raise BadInput(f"time does not rise at step {at}", where=source, key="time", value=str(times[at])[:16])
    smallest = steps.min()
    if not allow_gaps and (steps != smallest).any():
        at = int((steps != smallest).argmax())
        raise BadInput(
            f"{int((steps > smallest).sum())} gaps, the first after {str(times[at])[:16]}: a day is missing",
            where=source, key="time", accepted="an unbroken series, or --allow-gaps",
        )  # fmt: skip
    return np.timedelta64(smallest)


def _unit(said: Any, step: np.timedelta64 | None, source: Path, name: str) -> tuple[str, float]:
    accepted = ", ".join((*UNITS, *AMOUNTS[:2]))
    if said is None:
        raise BadInput("says no units", where=source, key=f"{name}.units", accepted=accepted)
    if said in UNITS:
        return UNITS[said]
    if said not in AMOUNTS:
        raise BadInput("is no unit of rain", where=source, key=f"{name}.units", value=said, accepted=accepted)
    for length, unit in _STEPS.items():
        if step is not None and step == length:
            return unit, 1.0
    raise BadInput("is an amount, and the time step is neither a day nor an hour", where=source, key=f"{name}.units",
                   value=said, accepted="a rate, such as mm/day or mm h-1")  # fmt: skip


def _complain_of_cells(rain: np.ndarray, land: np.ndarray, source: Path) -> None:
    if not land.any():
        raise BadInput("holds nothing but NaN", where=source)
    gaps = np.isnan(rain) & land
    if gaps.any():
        day, row, column = np.argwhere(gaps)[0]
        raise BadInput(
            f"{int(gaps.sum())} cells are NaN at some times only, the first at time {day}, row {row}, column {column}",
            where=source, accepted="NaN at every time (sea) or at none",
        )  # fmt: skip
    if (rain[:, land] < 0).any():
        raise BadInput("has negative rain", where=source, value=float(rain[:, land].min()))
    if not np.isfinite(rain[:, land]).all():
        raise BadInput("has infinite rain", where=source)


def block_mean(rain: np.ndarray, land: np.ndarray, factor: int) -> np.ndarray:
    """rain[T, H, W] -> mean over the land cells of each block [T, H / factor, W / factor]; 0 where a block has none."""
    days, rows, columns = rain.shape
    shape = (rows // factor, factor, columns // factor, factor)
    total = (rain * land).reshape(days, *shape).sum((2, 4))
    count = land.reshape(shape).sum((1, 3))
    return (total / np.maximum(count, 1)).astype(np.float32)


def chronological(days: int, val: float, test: float) -> dict[str, range]:
    """The last floor(test share) of the days, before them the last floor(val share) of the rest, as the original."""
    if not 0 < test < 1 or not 0 < val < 1:
        raise BadInput("are no shares", where="--val, --test", value=[val, test], accepted="numbers between 0 and 1")
    before = days - int(days * test)
    train = before - int(before * val)
    return {"train": range(train), "val": range(train, before), "test": range(before, days)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m buttress.trainables.rainfall.prepare",
        description="Make a rainfall data set from a NetCDF file.",
    )
    parser.add_argument("source", type=Path, metavar="FILE.nc")
    parser.add_argument("--out", type=Path, required=True, help="a new folder: the config's data.root")
    parser.add_argument("--variable", help="of three dimensions; needed where the file has several")
    parser.add_argument("--factor", type=int, default=12, help="cells per side of a predictor cell (default 12)")
    parser.add_argument("--unit", choices=("mm/day", "mm/h"), help="refuse a file in another unit")
    parser.add_argument("--val", type=float, default=0.2, help="share of the days before the test days (default 0.2)")
    parser.add_argument("--test", type=float, default=0.2, help="share of all days (default 0.2)")
    parser.add_argument("--cell-km", type=float, default=4.0, help="side of a cell (default 4)")
    parser.add_argument("--heavy-pixels", type=int, default=25, help="that make a day heavy (default 25)")
    parser.add_argument("--pooled", action="store_true", help="one mean and deviation for all pixels: for few days")
    parser.add_argument("--allow-gaps", action="store_true", help="take a series from which days are missing")
    given = vars(parser.parse_args(arguments))
    try:
        root = prepare(given.pop("source"), given.pop("out"), **given)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {root}; look at it with: buttress data check rainfall {root}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
