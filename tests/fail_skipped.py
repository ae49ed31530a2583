"""The pytest option `--fail-skipped`: a skipped test fails, unless this machine cannot run it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

#: Reasons for a skip that no package manager takes away: no GPU, no real data, no root or namespaces, no memory.
ALLOWED = re.compile(
    r"CUDA device|beside the repository|\.\./shared|need Linux and root|hosts cannot be made here|of free memory"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fail-skipped", action="store_true", help="a test that is skipped fails, if it could run on this machine"
    )


def _fail(report: Any, config: pytest.Config) -> None:
    if not report.skipped or hasattr(report, "wasxfail") or not config.getoption("--fail-skipped"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not ALLOWED.search(reason):
        report.outcome, report.longrepr = "failed", f"could run here, but: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    _fail(report, item.config)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    report = yield
    _fail(report, collector.config)
    return report
