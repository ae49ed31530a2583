"""The ranks of a run outside a sweep: errors of each are raised, and no process is left."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from toy import Collected, Config, Toy

from buttress.errors import BadInput
from buttress.training.local_run import WorkerFailed, train
from buttress.training.trainable import Buttress


def children() -> set[int | None]:
    return {process.pid for process in multiprocessing.active_children()}


def toy_config(workers: int = 1, **other: Any) -> Config:
    return Config(buttress=Buttress(workers=workers, report_every=2), **other)


def test_worker_that_fails_alone_is_named_with_its_error_and_none_is_left(tmp_path: Path) -> None:
    before = children()
    config = toy_config(2, fail_at=5, fail_rank=1)
    says = r"toy.py: line \d+: forward raised ArithmeticError: the toy fails \(on worker 1\)"
    with pytest.raises(BadInput, match=says):
        train(config, Toy(), tmp_path)
    assert children() == before


def test_error_of_rank_0_is_raised_as_it_is_and_no_worker_is_left(tmp_path: Path) -> None:
    before = children()
    sink = Collected()
    with pytest.raises(ArithmeticError, match="the toy fails"):
        train(toy_config(2, fail_at=5, fail_rank=0), Toy(), tmp_path, sink=sink)
    assert [one.step for one in sink.reports] == [2, 4]
    assert children() == before


class Unimportable(Toy):
    def __reduce__(self) -> Any:
        return exit, (7,)


def test_worker_that_does_not_start_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(WorkerFailed, match="worker 1 did not start"):
        train(toy_config(2), Unimportable(), tmp_path)
