"""Tables are read as they are, split by borehole and scaled by the training split; a fault is told in one sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from buttress.errors import BadInput
from buttress.trainables.lithology import data as tables
from buttress.trainables.lithology import synthetic
from buttress.trainables.lithology.config import Config, Data, Feature

FORCE = "lithology/force2020_wells.csv"


def uncached(key: Any, build: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    json.dumps(key)  # a key is anything JSON can write
    return dict(build())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write(tmp_path_factory.mktemp("table") / "tiny.csv", "tiny")


def of(path: Path, **choices: Any) -> Data:
    return Data(kind="files", path=str(path), **choices)


def test_the_real_layout_is_read_cell_by_cell(tiny: Path) -> None:
    frame = pd.read_csv(tiny)
    assert list(frame.columns) == list(synthetic.COLUMNS)
    table = tables.read(tiny, Data().columns())
    assert len(table.label) == len(frame) == 3_000 and len(table.holes) == 16
    assert table.features == ("gra", "ms", "ngr", "r", "g", "b")
    assert [table.labels[i] for i in table.label[:50]] == frame["Principal"].tolist()[:50]
    assert [table.holes[i] for i in table.hole] == frame["Borehole_ID"].tolist()
    ms, red = frame["Magnetic susceptibility (instr. units)"].to_numpy(), frame["R"].to_numpy()
    np.testing.assert_allclose(table.values[:, 0], frame["Bulk density (GRA)"], rtol=1e-12)
    np.testing.assert_allclose(table.values[:, 1], np.sign(ms) * np.log(1 + np.abs(ms)), rtol=1e-12)
    np.testing.assert_allclose(table.values[:, 3], np.log(1 + red), rtol=1e-12)
    for i, kind in enumerate(("none", "slog", "slog", "log1p")):
        raw = frame.iloc[:, synthetic.FEATURES[i]].to_numpy()
        np.testing.assert_allclose(tables.inverse(table.values[:, i], kind), raw, rtol=1e-9, atol=1e-9)


def test_columns_are_found_by_name_not_by_place(tiny: Path, tmp_path: Path) -> None:
    shuffled = tmp_path / "shuffled.csv"
    pd.read_csv(tiny)[[*synthetic.COLUMNS[::-1]]].to_csv(shuffled, index=False)
    ours, theirs = (tables.read(path, Data().columns()) for path in (tiny, shuffled))
    np.testing.assert_array_equal(ours.values, theirs.values)


def test_a_borehole_stands_in_one_split_only_and_the_split_is_the_originals(tiny: Path) -> None:
    from sklearn.model_selection import train_test_split

    dataset = tables.load(of(tiny), uncached)
    holes = [set(dataset.hole[dataset.rows(split)]) for split in tables.SPLITS]
    assert [len(group) for group in holes] == [10, 3, 3] and len(set.union(*holes)) == 16
    rest, test = train_test_split(np.arange(16), test_size=0.15, random_state=42)
    train, val = train_test_split(rest, test_size=0.15 / 0.85, random_state=42)
    assert holes == [set(train), set(val), set(test)]
    other = tables.load(of(tiny, split_seed=43), uncached)
    assert set(other.hole[other.rows("val")]) != holes[1]


def test_296_boreholes_split_into_206_45_45() -> None:
    part = tables._split(np.arange(296), tuple(map(str, range(296))), Data())
    assert np.bincount(part).tolist() == [206, 45, 45]


def test_the_scaler_knows_the_training_split_alone(tiny: Path) -> None:
    dataset = tables.load(of(tiny), uncached)
    table = tables.read(tiny, Data().columns())
    train, val = dataset.rows("train"), dataset.rows("val")
    np.testing.assert_allclose(dataset.x[train].mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(dataset.x[train].std(0), 1, rtol=1e-12)  # population deviation, as scikit-learn's
    assert np.abs(dataset.x[val].mean(0)).max() > 0.05
    back = dataset.x * dataset.sd + dataset.mean
    np.testing.assert_allclose(back, table.values[dataset.source], rtol=1e-9, atol=1e-12)


def test_explicit_lists_of_boreholes_are_followed(tiny: Path) -> None:
    names = sorted(pd.read_csv(tiny)["Borehole_ID"].unique())
    lists = {"train_holes": names[4:], "val_holes": names[:2], "test_holes": names[2:4]}
    dataset = tables.load(of(tiny, **lists), uncached)
    assert sorted({names[i] for i in dataset.hole[dataset.rows("val")]}) == names[:2]
    for wrong, what in (
        ({"val_holes": [*names[:2], "999-U1-A"]}, "999-U1-A"),
        ({"val_holes": [*names[:3]]}, "two splits"),
        ({"train_holes": names[5:]}, "leave out 1 boreholes"),
        ({"test_holes": []}, "the test split has no borehole"),
    ):
        with pytest.raises(BadInput, match=what):
            tables.load(of(tiny, **(lists | wrong)), uncached)


def test_rows_are_split_at_random_only_under_a_name_that_warns(tiny: Path) -> None:
    dataset = tables.load(of(tiny, split="rows_leaky"), uncached)
    assert set(dataset.hole[dataset.rows("val")]) & set(dataset.hole[dataset.rows("train")])
    assert ("warning", "rows of one borehole stand in several splits: scores are too good") in tables.check(
        tiny, Config(data=of(tiny, split="rows_leaky"))
    )
    with pytest.raises(ValueError, match="rows_leaky"):
        Data(split="rows")


# ---- real tables


def test_force_wells_missing_cells_are_dropped_or_filled_and_counted(shared: Path) -> None:
    path = shared / "data" / FORCE
    frame = pd.read_csv(path, low_memory=False)
    logs = ["GR", "RHOB", "NPHI", "DTC", "RDEP", "RMED"]
    dropped = tables.load(of(path, layout="force2020"), uncached)
    assert len(dropped.x) == frame[logs].notna().all(axis=1).sum() == 22_344
    assert int(dropped.dropped) == 4_158 and np.isnan(dropped.fill).all()

    filled = tables.load(of(path, layout="force2020", missing="median"), uncached)
    assert len(filled.x) == 26_502 and int(filled.dropped) == 0
    np.testing.assert_array_equal(filled.filled, frame[logs].isna().sum())
    training = frame.iloc[filled.source[filled.rows("train")]]
    density = training["RHOB"].median()
    assert filled.fill[1] == pytest.approx(density, rel=1e-12)
    gap = frame["RHOB"].isna().to_numpy()
    np.testing.assert_allclose((filled.x * filled.sd + filled.mean)[gap, 1], density, rtol=1e-9)
    assert filled.fill[4] == pytest.approx(np.log10(training["RDEP"]).median(), rel=1e-9)
    wells = set(filled.holes)
    assert wells == set(frame["WELL"]) and len(wells) == 8


def test_force_labels_that_training_never_saw_are_counted(shared: Path) -> None:
    found = dict(tables.check(shared / "data" / FORCE, Config()))  # its layout is found by the columns
    assert found["layout"] == "force2020"
    assert found["labels"] == "10 distinct, 0 rows without one"
    assert found["split val"].endswith("25 rows of labels unseen in training")
    assert "2,676 empty (10.1%)" in found["feature rhob"]


def test_a_table_of_another_layout_is_recognised(shared: Path, tiny: Path) -> None:
    with pytest.raises(BadInput, match=r"no column 'Borehole_ID' \(the columns are those of data.layout: force2020\)"):
        tables.load(of(shared / "data" / FORCE), uncached)
    for path, layout in ((shared / "data/lithology/lily_avs.csv", "lily_datalith"), (tiny, "lily20cm")):
        assert dict(tables.check(path, Config()))["layout"] == layout


def test_lily_tables_group_by_expedition_site_and_hole(shared: Path) -> None:
    """Quoted fields, one of them over several lines, and boreholes named by three columns."""
    path = shared / "data/lithology/lily_avs.csv"
    table = tables.read(path, Data(layout="lily_datalith").columns())
    assert (len(table.label), len(table.holes), len(table.labels)) == (2_028, 74, 53)
    assert table.features == ("avs_strength", "avs_angle")
    assert table.holes[table.hole[0]] == "334-U1378-B" and table.labels[table.label[0]] == "silty clay"
    assert table.values[0, 0] == pytest.approx(np.log1p(10.489))
    own = (Feature(column="Vane shear strength (kN/m^2)", name="strength", transform="log10"),)
    chosen = Data(layout="lily_datalith", features=own, label="Simplified Lithology", groups=("Exp", "Site"))
    other = tables.read(path, chosen.columns())
    assert (len(other.labels), other.features) == (21, ("strength",)) and len(other.holes) < 74


# ---- faults


def broken(tiny: Path, tmp_path: Path, change: Callable[[list[str]], list[str]]) -> Path:
    path = tmp_path / "broken.csv"
    path.write_text("\n".join(change(tiny.read_text().splitlines())) + "\n")
    return path


def cell(line: str, place: int, value: str) -> str:
    parts = line.split(",")
    parts[place] = value
    return ",".join(parts)


FAULTS: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {  # what is done to the lines, what is told
    "missing column": (
        lambda lines: [line.rsplit(",", 1)[0] for line in lines],
        "there is no column 'B'; accepted: Borehole_ID, Depth_Bin",
    ),
    "text in a number": (
        lambda lines: [*lines[:6], cell(lines[6], 6, "dark"), *lines[7:]],
        "broken.csv: R: row 7 holds no number (got 'dark'); accepted: numbers, or empty cells",
    ),
    "infinite number": (
        lambda lines: [*lines[:3], cell(lines[3], 4, "-inf"), *lines[4:]],
        "Magnetic susceptibility (instr. units): row 4 is not finite (got -inf)",
    ),
    "text in a depth": (
        lambda lines: [lines[0], cell(lines[1], 1, "top"), *lines[2:]],
        "Depth_Bin: row 2 holds no number",
    ),
    "no borehole": (lambda lines: [*lines[:2], cell(lines[2], 0, ""), *lines[3:]], "row 3 names no borehole"),
    "only a header": (lambda lines: lines[:1], "has a header but no rows"),
    "rows too long": (lambda lines: [lines[0], *(line + ",7" for line in lines[1:])], "is not a CSV table"),
    "no whole row": (
        lambda lines: [lines[0], *(cell(line, 8, "") for line in lines[1:])],
        "every row has an empty feature cell (b is empty in 100% of the rows)",
    ),
    "constant column": (
        lambda lines: [lines[0], *(cell(line, 2, "1.5") for line in lines[1:])],
        "gra: is the same in every training row",
    ),
    "two boreholes": (
        lambda lines: [*lines[:9], *lines[-9:]],
        "data.fractions: of 2 boreholes every split needs one",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence_that_names_the_place(fault: str, tiny: Path, tmp_path: Path) -> None:
    change, sentence = FAULTS[fault]
    with pytest.raises(BadInput) as told:
        tables.load(of(broken(tiny, tmp_path, change)), uncached)
    assert sentence in str(told.value) and "\n" not in str(told.value)


def test_files_that_are_no_table(tmp_path: Path) -> None:
    for name, content, sentence in (
        ("empty.csv", b"", "is empty"),
        ("picture.csv", b"\x89PNG\r\n\x1a\n\xff\xfe\x00", "is not a CSV table in UTF-8"),
        ("other.csv", b"a,b\n1,2\n", "there is no column 'Borehole_ID'; accepted: a, b"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match=sentence):
            tables.load(of(tmp_path / name), uncached)
    with pytest.raises(BadInput, match="no such file"):
        tables.load(of(tmp_path / "nowhere.csv"), uncached)
    with pytest.raises(BadInput, match="is a directory"):
        tables.load(of(tmp_path), uncached)


def test_a_logarithm_of_nothing_is_named(tmp_path: Path) -> None:
    rows = "".join(f"w{i % 4},{i + 0.5},{value}\n" for i, value in enumerate([3, 2, 0, 5, 4] * 4))
    (tmp_path / "logs.csv").write_text("well,gr,res\n" + rows)
    logs = (Feature(column="gr", name="gr"), Feature(column="res", name="res", transform="log10"))
    data = of(tmp_path / "logs.csv", layout="custom", features=logs, groups=("well",))
    with pytest.raises(BadInput, match=r"res: row 4 has a value of which log10 cannot be taken \(got 0.0\)"):
        tables.load(data, uncached)
    bounded = (logs[0], logs[1].model_copy(update={"low": 0.1}))
    assert int(tables.load(data.model_copy(update={"features": bounded}), uncached).dropped) == 4


def test_values_that_stand_for_nothing_or_cannot_be_count_as_missing(tiny: Path, tmp_path: Path) -> None:
    path = broken(
        tiny, tmp_path,
        lambda lines: [lines[0], cell(lines[1], 2, "-999.25"), cell(lines[2], 2, "9.9"), cell(lines[3], 5, ""),
                       *lines[4:]],
    )  # fmt: skip
    table = tables.read(path, of(path, null_values=(-999.25,)).columns())
    assert table.empty.tolist() == [1, 0, 1, 0, 0, 0] and table.outside.tolist() == [1, 0, 0, 0, 0, 0]
    assert int(tables.load(of(path, null_values=(-999.25,)), uncached).dropped) == 3


def test_a_table_is_parsed_once_until_it_changes(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from buttress.training.world import World

    monkeypatch.setenv("BUTTRESS_CACHE", str(tmp_path / "cache"))
    path, reads = tmp_path / "table.csv", []
    path.write_bytes(tiny.read_bytes())
    read = tables.read
    monkeypatch.setattr(tables, "read", lambda *given: reads.append(given) or read(*given))
    first = tables.load(of(path), World().cache)
    again = tables.load(of(path, split_seed=7), World().cache)
    assert len(reads) == 1 and not np.array_equal(first.part, again.part)
    os.utime(path, ns=(1, 1))
    tables.load(of(path), World().cache)
    assert len(reads) == 2


def test_data_sections_that_cannot_work_are_refused() -> None:
    for wrong, what in (
        ({"kind": "files"}, "data.path"),
        ({"layout": "custom"}, "data.features and data.groups"),
        ({"fractions": (0.5, 0.2, 0.2)}, "sum to 1"),
        ({"val_holes": ("a",)}, "all of data.train_holes"),
    ):
        with pytest.raises(ValueError, match=what):
            Data(**wrong)
