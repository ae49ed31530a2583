"""Radio maps: what is written is read again, real maps are read as they are, and whatever is wrong is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from buttress.errors import BadInput
from buttress.trainables.radio import data as files
from buttress.trainables.radio import synthetic
from buttress.trainables.radio.config import Config, Data
from buttress.training.cache import cached

pytestmark = pytest.mark.usefixtures("own_cache")

TINY = synthetic.SIZES["tiny"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.write(tmp_path_factory.mktemp("data") / "tiny", "tiny", 1)


@pytest.fixture
def few(tiny: Path, tmp_path: Path) -> Path:
    """Four maps of `tiny`, to be spoilt."""
    for number in range(4):
        for t in range(TINY.transmitters):
            for name in ("gain/DPM", "png/antennas"):
                (tmp_path / name).mkdir(parents=True, exist_ok=True)
                shutil.copy(tiny / name / f"{number}_{t}.png", tmp_path / name)
    shutil.copytree(tiny / "png/buildings_complete", tmp_path / "png/buildings_complete")
    return tmp_path


def from_files(root: Path, **data: Any) -> Data:
    return Data(kind="files", root=str(root), **data)


def load(root: Path, **data: Any) -> files.Dataset:
    return files.load(from_files(root, **data), cached)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# ---- the layout


def test_the_layout_is_radiomapseers(tiny: Path) -> None:
    images = TINY.maps * TINY.transmitters
    assert len(list((tiny / "gain/DPM").glob("*_*.png"))) == len(list((tiny / "png/antennas").iterdir())) == images
    assert len(list((tiny / "png/buildings_complete").iterdir())) == TINY.maps
    buildings, gain = pixels(tiny / "png/buildings_complete/5.png"), pixels(tiny / "gain/DPM/5_2.png")
    assert gain.dtype == np.uint8 and gain.shape == buildings.shape == (TINY.pixels, TINY.pixels)
    assert set(np.unique(buildings)) == {0, 255}
    ((row, column),) = np.argwhere(pixels(tiny / "png/antennas/5_2.png"))
    assert pixels(tiny / "png/antennas/5_2.png")[row, column] == 255 and buildings[row, column] == 0
    assert gain[row, column] == 255  # gain is highest at the transmitter, and 0 inside buildings
    assert (gain[buildings > 0] == 0).all()
    x, y = json.loads((tiny / "antenna/5.json").read_text())[2]
    assert (x, y) == (column, TINY.pixels - 1 - row)  # as in the real files: y from below


def test_one_city_is_almost_empty_and_one_is_dense(tiny: Path) -> None:
    coverage = [pixels(tiny / f"png/buildings_complete/{m}.png").mean() / 255 for m in range(TINY.maps)]
    assert coverage[0] < 0.08 and coverage[1] > 0.4 and 0.1 < np.median(coverage) < 0.4


def test_gain_without_buildings_is_the_free_space_line() -> None:
    city = synthetic.City(64, np.random.default_rng(0), coverage=0.0)
    assert not city.taken.any()
    gain, distance = city.gain(32, 32), np.arange(1, 32) * city.metres
    wanted = 1 - city.decade * np.log10(distance)
    assert gain[32, 33:] == pytest.approx(wanted, abs=1e-12)
    assert abs(city.decade - synthetic.DECADE) < 0.05


def test_walls_cast_shadows_of_a_bounded_depth() -> None:
    city = synthetic.City(64, np.random.default_rng(0), coverage=0.0)
    city.taken[28:37, 40:43], city.walls[28:37, 40:43] = True, 0.1
    free = synthetic.City(64, np.random.default_rng(0), coverage=0.0).gain(32, 32)
    lost = free - city.gain(32, 32)
    behind, beside, before = lost[32, 50], lost[5, 32], lost[32, 37]
    once = synthetic.MOST * -np.expm1(-0.1 / synthetic.MOST)
    assert behind == pytest.approx(once, rel=0.02) and abs(beside) < 1e-9 and before < 0.02
    city.walls[28:37, 40:43] = 9.0
    assert (free - city.gain(32, 32))[32, 50] == pytest.approx(synthetic.MOST, rel=0.02)


def test_the_maps_are_a_function_of_the_seed() -> None:
    one, same, other = (synthetic.City(32, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one.taken, same.taken) and not np.array_equal(one.taken, other.taken)


def test_full_size_maps_have_the_real_ones_statistics(shared: Path) -> None:
    root = shared / "data/radio"
    real = load(root).grey / 255
    made = []
    for number in range(2, 14):
        city = synthetic.City(256, np.random.default_rng([3, 256, number]))
        made.append(np.rint(255 * city.gain(*city.streets(1)[0])) / 255)
    ours = np.stack(made)
    assert ours.mean() == pytest.approx(real.mean(), abs=0.06)
    assert ours.std() == pytest.approx(real.std(), rel=0.15)
    assert (ours == 0).mean() == pytest.approx((real == 0).mean(), abs=0.08)
    assert np.quantile(ours, 0.99) == pytest.approx(np.quantile(real, 0.99), abs=0.05)
    assert np.median(ours) == pytest.approx(np.median(real), abs=0.1)
    rough = [np.abs(np.diff(images, axis=1)).mean() for images in (ours, real)]
    assert rough[0] == pytest.approx(rough[1], rel=0.5)


# ---- reading


def test_the_real_sample_is_read(shared: Path) -> None:
    root = shared / "data/radio"
    found = load(root)  # the folder that holds RadioMapSeer, or RadioMapSeer itself
    assert found.grey.shape == (8, 256, 256) and found.grey.dtype == np.uint8 and found.size == (256, 256)
    assert set(found.map) == {0} and sorted(found.transmitter) == [0, 1, 10, 11, 12, 13, 14, 15]
    path = root / "RadioMapSeer/gain/DPM/0_12.png"
    assert np.array_equal(found.grey[list(found.transmitter).index(12)], pixels(path))
    assert np.bincount(found.part).tolist() == [6, 1, 1]  # one map: split by transmitter
    small = load(root / "RadioMapSeer", shrink=4, transmitters=12)
    assert small.grey.shape == (4, 64, 64)
    block = pixels(root / "RadioMapSeer/gain/DPM/0_0.png")[:4, -4:].mean()
    assert abs(float(small.grey[0, 0, -1]) - block) <= 0.5
    rows = dict(files.check(root, Config()))
    assert rows["images"] == "8 of 256 x 256 px, gain/DPM" and rows["latent map"] == "3 x 64 x 64"
    assert rows["split train"] == "6 images of 1 maps"
    grey = found.grey / 255
    assert rows["grey"] == (
        f"mean {grey.mean():.3f}, deviation {grey.std():.3f}, {(grey == 0).mean():.1%} zeros, "
        f"99 % below {np.quantile(grey, 0.99):.2f}, maximum 1.00"
    )


def test_grey_becomes_minus_one_to_one() -> None:
    assert files.scaled(np.array([0, 255], np.uint8)).tolist() == [-1.0, 1.0]
    assert files.scaled(np.array([51], np.uint8))[0] == pytest.approx(2 * 51 / 255 - 1, abs=1e-7)


def test_splits_share_no_map_and_depend_on_the_seed_alone(few: Path, tiny: Path) -> None:
    found = load(tiny)
    maps = [set(found.map[found.rows(split)]) for split in files.SPLITS]
    assert [len(one) for one in maps] == [16, 4, 4]
    assert not (maps[0] & maps[1] or maps[0] & maps[2] or maps[1] & maps[2])
    assert np.array_equal(found.part, load(tiny).part)
    assert not np.array_equal(found.part, load(tiny, split_seed=1).part)
    by_site = load(tiny, split="transmitter")
    assert all(len(set(by_site.map[by_site.rows(split)])) == TINY.maps for split in files.SPLITS)
    assert len(set(by_site.transmitter[by_site.rows("val")])) == 1
    assert [len(load(few).rows(split)) for split in files.SPLITS] == [8, 4, 4]


def test_maps_are_read_once_and_again_when_a_file_changes(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load(few).grey
    with monkeypatch.context() as patch:
        patch.setattr(files, "read", lambda *_: pytest.fail("read again"))
        assert np.array_equal(load(few).grey, before)
        assert load(few, split_seed=9).grey.shape == before.shape  # the split is no part of what is read
    Image.fromarray(255 - before[0]).save(few / "gain/DPM/0_0.png", compress_level=0)
    assert np.array_equal(load(few).grey[0], 255 - before[0])


def test_synthetic_maps_go_through_the_same_loader() -> None:
    found = files.load(Data(size="tiny"), cached)
    assert found.grey.shape == (TINY.maps * TINY.transmitters, 32, 32)
    assert files.load(Data(size="tiny", shrink=2), cached).grey.shape[1:] == (16, 16)
    assert found.map.tolist() == sorted(found.map.tolist())


# ---- what is wrong is said


def spoil(root: Path, image: Image.Image | bytes | None) -> None:
    path = root / "gain/DPM/2_1.png"
    if image is None:
        path.unlink()
    elif isinstance(image, bytes):
        path.write_bytes(image)
    else:
        image.save(path)


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (Image.new("RGB", (32, 32)), r"2_1\.png: is not a grey image \(got 'mode RGB'\)"),
        (Image.new("I;16", (32, 32)), r"2_1\.png: is not a grey image \(got 'mode I;16'\)"),
        (Image.new("L", (32, 16)), r"2_1\.png: has another size than the others \(got '16 x 32'\).* 32 x 32"),
        (b"no picture", r"2_1\.png: cannot be read .*an 8-bit grey PNG"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(image: Any, match: str, few: Path) -> None:
    spoil(few, image)
    with pytest.raises(BadInput, match=match):
        load(few)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ({"simulation": "IRT4"}, r"data\.simulation: there is no such simulation.*IRT4.*DPM"),
        ({"shrink": 5}, r"data\.shrink: does not divide the 32 pixels of a side"),
        ({"split": "transmitter", "transmitters": 2}, r"data\.split: cannot be split .*: 2 transmitters"),
        ({"fractions": (0.1, 0.45, 0.45)}, r"data\.fractions: leaves none of 4 maps for training"),
    ],
)
def test_a_data_section_that_does_not_fit_is_refused(data: dict[str, Any], match: str, few: Path) -> None:
    with pytest.raises(BadInput, match=match):
        load(few, **data)


def test_folders_that_are_no_radiomapseer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"there is no such folder.*RadioMapSeer"):
        load(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="has no folder gain"):
        load(tmp_path)
    (tmp_path / "gain/DPM").mkdir(parents=True)
    with pytest.raises(BadInput, match="holds no map"):
        load(tmp_path)


def test_data_check_tells_what_is_there_and_what_is_missing(few: Path) -> None:
    from buttress.cli.main import app

    config = Config.of_groups({"data": {"size": "tiny"}})
    rows = files.check(few, config)
    assert ("split val", "4 images of 1 maps") in rows and not any(what == "warning" for what, _ in rows)
    Image.new("L", (32, 32), 7).save(few / "gain/DPM/3_1.png")
    (few / "png/antennas/0_1.png").unlink()
    (few / "png/buildings_complete/2.png").unlink()
    warnings = [text for what, text in files.check(few, config) if what == "warning"]
    assert warnings == [
        "1 images are constant, the first is 3_1.png",
        "1 images of buildings are missing: the second stage needs them",
        "1 images of antennas are missing: the second stage needs them",
    ]
    result = CliRunner().invoke(app, ["data", "check", "radio", str(few)])
    assert result.exit_code == 0 and "16 of 32 x 32 px" in result.stdout
