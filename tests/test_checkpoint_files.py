"""A checkpoint is read as it was written or refused: no flipped bit goes into a model, and a full disk says so."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from buttress.errors import BadInput
from buttress.training.checkpoints import load_checkpoint, save_checkpoint, save_weights, weights_of
from buttress.training.local_run import train
from buttress.training.trainable import Schedule, Section
from buttress.training.world import World


def content() -> dict[str, Any]:
    """A small model, its optimiser's state and plain values, as a trainer saves them."""
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 4)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "best": 0.25, "name": "own"}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


def silent_flips(folder: Path, count: int) -> list[int]:
    """Of so many random single-bit flips of a checkpoint those that load as something else."""
    path, damaged = folder / "whole.pt", folder / "damaged.pt"
    save_checkpoint(path, content())
    whole, expected, rng = path.read_bytes(), load_checkpoint(path), random.Random(7)
    assert same(expected, content())
    silent = []
    for bit in (rng.randrange(8 * len(whole)) for _ in range(count)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.write_bytes(flipped)
        try:
            if not same(load_checkpoint(damaged), expected):
                silent.append(bit)
        except BadInput as error:
            assert str(damaged) in str(error)
    return silent


def test_no_flipped_bit_of_a_checkpoint_loads_as_something_else(tmp_path: Path) -> None:
    assert silent_flips(tmp_path, 300) == []


@pytest.mark.long
def test_none_of_5000_flipped_bits_of_a_checkpoint_loads_as_something_else(tmp_path: Path) -> None:
    assert silent_flips(tmp_path, 5000) == []


def test_a_checkpoint_can_be_read_whatever_the_trainer_has_told_torch_about_checksums(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        save_checkpoint(tmp_path / "own.pt", content())
        assert not torch.serialization.get_crc32_options()  # his setting stays
    finally:
        torch.serialization.set_crc32_options(before)
    assert same(load_checkpoint(tmp_path / "own.pt"), content())


def test_a_file_of_torchs_old_format_is_read(tmp_path: Path) -> None:
    torch.save(content(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert same(load_checkpoint(tmp_path / "old.pt"), content())


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_full_disk_is_said_in_a_sentence(size: int, tmp_path: Path) -> None:
    for save in (save_checkpoint, lambda path, state: save_weights(state, path)):
        (tmp_path / "000001.part").symlink_to("/dev/full")
        with pytest.raises(OSError, match=r"^no space is left on the disk of .*000001\.pt$"):
            save(tmp_path / "000001.pt", {"weight": torch.zeros(size)})
        assert list(tmp_path.iterdir()) == []


def test_weights_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"the one before")
    with pytest.raises(Exception, match="pickle"):
        save_weights({"weight": torch.zeros(3), "bad": lambda: 0}, tmp_path / "model.pt")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"the one before"]
    save_weights({"weight": torch.zeros(3)}, tmp_path / "model.pt")
    assert same(torch.load(tmp_path / "model.pt", weights_only=True), {"weight": torch.zeros(3)})


def test_a_damaged_checkpoint_gives_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "000003.pt"
    save_checkpoint(path, {"model": {"weight": torch.arange(64.0)}})
    data = path.read_bytes()
    at = data.index(torch.arange(64.0).numpy().tobytes())
    path.write_bytes(data[: at + 33] + bytes([data[at + 33] ^ 8]) + data[at + 34 :])
    with pytest.raises(BadInput, match=r"000003\.pt: not a whole checkpoint \(.*checksum"):
        weights_of(object(), path)  # type: ignore[arg-type]


class Unverified:
    """A trainer that reads its checkpoint with `torch.load` alone."""

    name, Config, metrics, read = "unverified", Section, {}, False

    def schedule(self, config: Any) -> Schedule:
        return Schedule(epochs=1)

    def train(self, config: Any, world: World, report: Any, resume: Path | None) -> None:
        assert resume is not None and torch.load(resume, weights_only=True)
        self.read = True


def test_a_trainer_that_reads_its_checkpoint_itself_is_given_no_damaged_one(tmp_path: Path) -> None:
    path, trainer = tmp_path / "000003.pt", Unverified()
    save_checkpoint(path, {"weight": torch.arange(64.0)})
    train(Section(), trainer, tmp_path / "whole", resume=path)
    assert trainer.read
    trainer.read, data = False, path.read_bytes()
    at = data.index(torch.arange(64.0).numpy().tobytes())
    path.write_bytes(data[: at + 33] + bytes([data[at + 33] ^ 8]) + data[at + 34 :])
    with pytest.raises(BadInput, match=r"the checksum of .* does not match"):
        train(Section(), trainer, tmp_path / "damaged", resume=path)
    assert not trainer.read
