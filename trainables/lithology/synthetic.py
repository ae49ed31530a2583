"""Writes a synthetic lithology table in the real CSV layout, so that the real loader reads it.

`write(path, size, seed)` writes `vae_training_data_v2_20cm.csv` as the original project builds it: nine columns in
their order, one row per 20 cm bin, 238,506 rows, 139 labels and 296 boreholes at `full` size. Class counts and hole
sizes are met exactly and do not depend on the seed; everything else is drawn from it. The figures are facts of the
LILY / IODP table (README, "Synthetic data").
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

COLUMNS = (
    "Borehole_ID",
    "Depth_Bin",
    "Bulk density (GRA)",
    "Principal",
    "Magnetic susceptibility (instr. units)",
    "NGR total counts (cps)",
    "R",
    "G",
    "B",
)
FEATURES = (2, 4, 5, 6, 7, 8)  # positions of the six features among COLUMNS, in the order the models see them

#: Raw-space correlation of the six features (figure S2 of the original); R, G and B are nearly one direction, which is
#: what leaves about four usable directions and four active units.
_CORRELATION = np.array(
    [
        [1.00, 0.13, 0.24, 0.09, 0.10, 0.11],
        [0.13, 1.00, -0.18, -0.20, -0.19, -0.16],
        [0.24, -0.18, 1.00, -0.42, -0.42, -0.39],
        [0.09, -0.20, -0.42, 1.00, 0.998, 0.98],
        [0.10, -0.19, -0.42, 0.998, 1.00, 0.99],
        [0.11, -0.16, -0.39, 0.98, 0.99, 1.00],
    ]
)
_TRANSFORM = ("none", "slog", "slog", "log1p", "log1p", "log1p")
_MEAN = np.array([1.69628, 2.49919, 3.07651, 4.13014, 4.09874, 3.98220])  # after the transform
_SD = np.array([0.24660, 1.98466, 0.89553, 0.59300, 0.59891, 0.60065])
_LOW = np.array([0.300, -476.5, -0.437, 4.335, 3.518, 2.885])  # raw
_HIGH = np.array([3.948, 6770.9, 292.5, 253.5, 247.7, 239.0])
#: Sinh-arcsinh (skew, tail) per feature, fitted to the raw quartiles: heavy tails of density, NGR's long left side,
#: the colours' long right side. (0, 1) is a Gaussian.
_SKEW_TAIL = np.array([(-0.127, 0.714), (-0.056, 1.08), (-0.507, 0.785), (0.9, 2.05), (0.9, 2.05), (0.9, 2.05)])

#: rank -> rows of that class in the full table; ranks between two entries follow a geometric line.
_CLASS_COUNTS = {
    1: 49778, 2: 37237, 3: 18048, 4: 14230, 5: 12548, 6: 9952, 7: 9470, 8: 7894, 9: 6095, 10: 5406, 11: 5395,
    12: 4894, 13: 3798, 14: 3487, 15: 3410, 16: 2570, 17: 2522, 18: 2448, 19: 2409, 20: 2401, 30: 1086, 31: 1000,
    32: 950, 40: 582, 50: 379, 60: 253, 70: 147, 73: 100, 74: 95, 80: 76, 90: 38, 100: 24, 109: 10, 110: 9, 120: 5,
    130: 2, 131: 2, 132: 2, 133: 2, 134: 2, 135: 1, 139: 1,
}  # fmt: skip
_COMMON_LABELS = (
    "nannofossil ooze", "clay", "silty clay", "wackestone", "packstone", "mudstone", "claystone", "nannofossil chalk",
    "diatom ooze", "clayey silt", "sand", "mud", "silty claystone", "nannofossil clay", "chalk",
    "interbedded silt and clay", "gabbro", "sandstone", "calcareous ooze", "basalt",
)  # fmt: skip
#: share of holes -> rows of such a hole
_HOLE_QUANTILES = ((0.0, 2.0), (0.05, 18.0), (0.25, 144.0), (0.5, 688.0), (0.75, 1227.0), (0.95, 2190.0), (1.0, 3469.0))
_HOLE_CURVE = 1.365


@dataclass(frozen=True)
class Size:
    """How large a table to write: rows, boreholes and distinct labels (the commonest ones)."""

    rows: int
    holes: int
    labels: int


#: `full` is the original's; the others keep the shares of the classes and the spread of the hole sizes.
SIZES = {"full": Size(238_506, 296, 139), "small": Size(60_000, 96, 100), "tiny": Size(3_000, 16, 24)}

#: The table's default seed. How separable the largest classes are is the luck of the draw (K-means with 12 clusters on
#: the features agrees with the labels by 0.2 to 0.3); with this one it is the real table's 0.2.
SEED = 2

#: Share of the feature variance that the label explains; 0.7 gives the clusterings' real ARI of about 0.2.
_LABEL_SHARE = 0.7
_MEAN_RUN = 20  # rows (4 m) of one label in a row of bins, on average
_CONCENTRATION = 3.0  # of the Dirichlet that mixes the labels of a hole: few labels make up most of a hole


def write(path: Path, size: str = "full", seed: int = SEED) -> Path:
    """Write the table of `size` (a key of `SIZES`) to `path`, atomically; the same bytes for the same size and seed."""
    import pyarrow as pa
    from pyarrow import csv

    columns = table(SIZES[size], seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("wb") as file:
        file.write((",".join(COLUMNS) + "\n").encode())
        options = csv.WriteOptions(include_header=False, quoting_style="none")
        csv.write_csv(pa.table([pa.array(columns[name]) for name in COLUMNS], names=list(COLUMNS)), file, options)
    partial.replace(path)
    return path


def table(size: Size, seed: int) -> dict[str, np.ndarray]:
    """The nine columns, rows ordered by hole and depth; features rounded to six decimals."""
    random = np.random.default_rng([seed, size.rows, size.holes, size.labels])
    centres = np.random.default_rng([seed]).standard_normal((SIZES["full"].labels, 6))[: size.labels]  # at any size
    holes = hole_sizes(size)[random.permutation(size.holes)]
    counts = class_counts(size)
    labels = _labels_by_depth(_labels_per_hole(holes, counts, random), random)
    hole = np.repeat(np.arange(size.holes), holes)
    features = _features(labels, counts, centres, random)
    names = np.array(label_names(size.labels), dtype=object)
    columns: dict[str, np.ndarray] = {
        "Borehole_ID": np.array(hole_ids(size.holes), dtype=object)[hole],
        "Depth_Bin": _depths(holes, random),
        "Principal": names[labels],
    }
    columns |= {COLUMNS[at]: features[:, i] for i, at in enumerate(FEATURES)}
    return columns


def class_counts(size: Size) -> np.ndarray:
    """Rows per class, int64[labels], largest first; sums to exactly `size.rows`, every class has a row."""
    ranks = np.arange(1, SIZES["full"].labels + 1)
    known = np.array(sorted(_CLASS_COUNTS))
    full = np.exp(np.interp(ranks, known, np.log([_CLASS_COUNTS[rank] for rank in known])))
    full[known - 1] = counts = np.array([_CLASS_COUNTS[rank] for rank in known])
    between = np.setdiff1d(ranks, known) - 1
    full[between] = _whole(full[between], SIZES["full"].rows - counts.sum(), least=1)
    full = np.sort(full)[::-1]
    return _whole(full[: size.labels], size.rows, least=1)


def hole_sizes(size: Size) -> np.ndarray:
    """Rows per borehole, int64[holes], smallest first; sums to exactly `size.rows`, every hole has two rows or more."""
    share, rows = np.array(_HOLE_QUANTILES).T
    place = np.arange(size.holes) / (size.holes - 1)
    segment = np.clip(np.searchsorted(share, place, side="right") - 1, 0, share.size - 2)
    along = (place - share[segment]) / (share[segment + 1] - share[segment])
    # the quantiles leave the curve between them open; this power makes 296 holes hold 238,506 rows
    drawn = rows[segment] + (rows[segment + 1] - rows[segment]) * along**_HOLE_CURVE
    return _whole(drawn, size.rows, least=2)


def label_names(labels: int) -> list[str]:
    """The common labels by name, then plausible compounds of them."""
    bases = ("silt", "sand", "mud", "ooze", "sandstone", "siltstone", "limestone", "tuff", "breccia", "conglomerate")
    kinds = ("sandy", "muddy", "pebbly", "fine", "coarse", "foraminifera", "radiolarian", "volcaniclastic", "dolomitic",
             "glauconitic", "carbonate", "laminated")  # fmt: skip
    names = [*_COMMON_LABELS, *(f"{kind} {base}" for base in bases for kind in kinds)]
    return names[:labels]


def hole_ids(holes: int) -> list[str]:
    """Exp-Site-Hole identifiers, at most 25 expedition codes (368 and 368X count apart), one to four holes a site."""
    expeditions = [str(number) for number in range(339, 363)] + ["368", "368X"]
    expeditions.remove("348")
    ids: list[str] = []
    site = 1330
    while len(ids) < holes:
        expedition = expeditions[len(ids) * len(expeditions) // holes]
        for letter in "ABCD"[: 1 + site % 4]:
            ids.append(f"{expedition}-U{site}-{letter}")
        site += 1
    return ids[:holes]


def _whole(values: np.ndarray, total: int, least: int) -> np.ndarray:
    """`values` scaled and rounded to whole numbers of at least `least` that sum to `total`, order kept."""
    low, high = 0.0, 2.0 * total / values.sum()
    best = np.full(values.size, least)
    while values.size * least < total:
        middle = (low + high) / 2
        whole = np.maximum(least, np.floor(values * middle)).astype(np.int64)
        if whole.sum() <= total:
            low, best = middle, whole
        else:
            high = middle
        if high - low < 1e-12:
            break
    short = total - int(best.sum())
    best[np.argsort(-values, kind="stable")[: short % values.size]] += 1
    return best + short // values.size


def _labels_per_hole(holes: np.ndarray, counts: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Rows per hole and class, int64[holes, labels], with exactly `holes` and `counts` as margins.

    Every hole mixes few labels (a Dirichlet around the global shares), so that splits by hole miss classes, as the real
    ones do. The Dirichlet weights are fitted to both margins by iterative proportional scaling and then rounded.
    """
    share = _CONCENTRATION * counts / counts.sum()
    # Gamma(share) = Gamma(share + 1) * U^(1/share), taken as logarithm: rare classes have shapes of 1e-5
    log_weight = np.log(random.gamma(share + 1, size=(holes.size, counts.size)))
    log_weight += np.log(random.random((holes.size, counts.size))) / share
    weight = np.exp(np.maximum(log_weight - log_weight.max(axis=0), -60.0))
    for _ in range(300):
        weight *= (holes / weight.sum(axis=1))[:, None]
        weight *= counts / weight.sum(axis=0)
    # columns: systematic rounding of the running sum keeps every class count exact
    order = random.permutation(holes.size)
    running = np.floor(np.cumsum(weight[order], axis=0) + random.random(counts.size) * (1 - 1e-9))
    running[-1] = counts
    cells = np.empty(weight.shape, dtype=np.int64)
    cells[order] = np.diff(running, axis=0, prepend=0).astype(np.int64)
    # rows: move what a hole has too much to holes that lack rows, within a class
    excess = cells.sum(axis=1) - holes
    for giver in np.flatnonzero(excess > 0):
        for taker in np.argsort(excess):
            if excess[giver] == 0:
                break
            if excess[taker] >= 0:
                break
            spare = np.minimum(cells[giver], cells[taker] + (cells[taker] > 0) * excess[giver])
            label = int(np.argmax(spare)) if spare.max() > 0 else int(np.argmax(cells[giver]))
            moved = int(min(excess[giver], -excess[taker], cells[giver, label]))
            cells[giver, label] -= moved
            cells[taker, label] += moved
            excess[giver] -= moved
            excess[taker] += moved
    assert (cells.sum(axis=1) == holes).all() and (cells.sum(axis=0) == counts).all() and cells.min() >= 0
    return cells


def _labels_by_depth(cells: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Class of every row, int64[rows], hole after hole, in runs of depth (geometric lengths of mean `_MEAN_RUN`)."""
    hole, label = np.nonzero(cells)
    rows = cells[hole, label]
    hole_of, label_of = np.repeat(hole, rows), np.repeat(label, rows)
    begins = random.random(hole_of.size) < 1 / _MEAN_RUN
    begins[np.cumsum(rows) - rows] = True
    run = np.cumsum(begins) - 1
    place = random.random(run[-1] + 1)[run]
    return label_of[np.lexsort((np.arange(run.size), place, hole_of))]


def _depths(holes: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Bin depths in metres, float64[rows]: multiples of 0.2 that rise in each hole, with gaps (a quarter is missing).

    The sheet's "at most 360 m" cannot hold: 3,469 bins of 0.2 m need 694 m, and the depths it was read from are
    multiples of 0.04. Holes here are as deep as their bins need.
    """
    step = 1 + (random.random(holes.sum()) < 0.04) * random.geometric(0.13, holes.sum())
    first = np.cumsum(holes) - holes
    index = np.cumsum(step)
    index -= np.repeat(index[first], holes)
    index += np.repeat((random.random(holes.size) < 0.3) * random.integers(1, 400, holes.size), holes)
    return np.round(index * 0.2, 1)


def _features(
    labels: np.ndarray, counts: np.ndarray, centres: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """labels[rows], counts[labels], centres[labels, 6] -> the six features in raw units, float64[rows, 6].

    In the transformed space a row is sqrt(share) * its class mean + sqrt(1 - share) * noise, both with the correlation
    matrix of the real table; marginals are bent to the real quartiles, scaled to the real mean and deviation, taken
    back through the logarithms and clipped to the real range.
    """
    skew, tail = _SKEW_TAIL.T
    share = counts / counts.sum()
    means = centres - share @ centres
    spread = (means * share[:, None]).T @ means  # whitened with the class shares: few classes carry most rows
    means = means @ np.linalg.inv(np.linalg.cholesky(spread)).T
    noise = random.standard_normal((labels.size, 6))
    white = np.sqrt(_LABEL_SHARE) * means[labels] + np.sqrt(1 - _LABEL_SHARE) * noise
    aim = _CORRELATION
    for _ in range(3):  # bending changes correlations a little: aim again by as much as the last one was missed
        values, vectors = np.linalg.eigh(aim)
        z = white @ (vectors * np.sqrt(np.clip(values, 2e-4, None))) @ vectors.T
        bent = np.sinh((np.arcsinh(z) + skew) / tail)
        aim = aim + _CORRELATION - np.corrcoef(bent.T)
    bent = (bent - bent.mean(axis=0)) / bent.std(axis=0)
    x = _MEAN + _SD * bent
    for i, transform in enumerate(_TRANSFORM):
        if transform == "slog":
            x[:, i] = np.sign(x[:, i]) * np.expm1(np.abs(x[:, i]))
        elif transform == "log1p":
            x[:, i] = np.expm1(x[:, i])
    return np.round(np.clip(x, _LOW, _HIGH), 6)
