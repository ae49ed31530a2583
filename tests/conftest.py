"""What every test may rely on: one thread, no telemetry, no key, and one local Ray cluster for those that need one."""

from __future__ import annotations

import os
import signal
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from fail_skipped import (  # noqa: F401  (hooks of pytest)
    pytest_addoption,
    pytest_make_collect_report,
    pytest_runtest_makereport,
)

# Read when the libraries are imported (here, in Ray's workers and in subprocesses), so set before any test is.
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    MPLBACKEND="Agg",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_DEDUP_LOGS="0",
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",  # a worker without a GPU keeps CUDA_VISIBLE_DEVICES, and Ray its warning
    WANDB_MODE="offline",
    WANDB_SILENT="true",
    WANDB_ERROR_REPORTING="false",
)
# Whatever the shell says, a test talks to no cluster and no account of the user.
for _name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_RUN_ID"):
    os.environ.pop(_name, None)

# A shell script's background processes are deaf to Ctrl-C, and all that they start; tests that press it are not.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
#: Folders at the top that are linked into `buttress/`, and imported from there alone.
LINKED = ("trainables", "analysis", "search_spaces")


def bare_modules(modules: Mapping[str, Any]) -> list[str]:
    """Modules of the linked folders that were imported without `buttress.` in front: each would exist twice."""
    found = []
    for name in modules:
        if name.partition(".")[0] in LINKED:
            places = [getattr(modules[name], "__file__", None) or "", *getattr(modules[name], "__path__", [])]
            if any(Path(place).is_relative_to(ROOT) for place in places if place):
                found.append(name)
    return sorted(found)


#: Modules and tests that start no Ray and yet take seconds of a core: left out of `make test-fast`.
SLOW = {
    # train real models, most of them on several ranks
    "test_batchnorm_is_torchs_on_one_rank_and_that_of_the_whole_batch_on_two", "test_lithology_train",
    "test_local_run", "test_local_training", "test_occupancy_metrics", "test_occupancy_train", "test_radio_train",
    "test_rainfall_loss", "test_rainfall_train", "test_recorded_trials_end_as_foreseen",
    "test_resumed_run_ends_bit_identical_on_two_ranks", "test_trials_are_timed_together_until_their_objective_is_known",
    "test_two_real_ranks_agree_with_float64",
    # read or make data of full size
    "test_collapsebench", "test_occupancy_data", "test_real_grids_are_prepared",
    # search, simulate, or resume from every prefix
    "test_a_sweep_of_a_small_space_resumes_from_any_prefix_to_the_same_end", "test_calibration",
    "test_every_prefix_of_a_journal_resumes_to_the_same_sweep",
    "test_every_prefix_of_an_audited_sweeps_journal_resumes_to_the_same_sweep",
    "test_no_damage_to_a_file_keeps_it_from_being_judged", "test_real_sweeps", "test_simulator", "test_versus_stock",
}  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what uses `ray_cluster` as `ray` and what is in SLOW as `slow`, and puts fast tests first: a mistake is
    seen early."""
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()) or item.get_closest_marker("cluster"):
            item.add_marker("ray")
        if item.path.stem in SLOW or getattr(item, "originalname", "") in SLOW:
            item.add_marker("slow")
    items.sort(key=lambda item: any(item.get_closest_marker(name) is not None for name in ("ray", "slow")))


@pytest.fixture(autouse=True)
def no_unmarked_ray(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that starts Ray in this process and is not marked `ray`: `make test-fast` would run it."""
    if "ray" in sys.modules and request.node.get_closest_marker("ray") is None:
        monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("this test starts Ray: mark it `ray`"))


@pytest.fixture(autouse=True)
def one_import_name() -> Iterator[None]:
    """Fails the test that imports a linked folder by its bare name."""
    yield
    assert not bare_modules(sys.modules), f"imported without `buttress.` in front: {bare_modules(sys.modules)}"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A test that sets torch's threads does not hand them on to the next one."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data, recorded curves and fact sheets beside the repository; tests that read them are skipped elsewhere."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("no folder ../shared with real data beside the repository")
    return folder


@pytest.fixture(scope="session")
def recorded_sweeps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real sweeps of the lithology family, recorded before the package `buttress` was; copied by who changes them."""
    folder = tmp_path_factory.mktemp("recorded")
    with tarfile.open(ROOT / "tests" / "data" / "recorded_sweeps.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def hosts_allowed() -> None:
    """Skips where hosts cannot be made of namespaces (hosts.py); `--fail-skipped` makes that a failure."""
    from hosts import lacking

    if reason := lacking():
        pytest.skip(reason)


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of prepared data for the tests of one module: nothing is read that an earlier run has left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUTTRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """`ray`, connected to one local cluster of two CPUs that all tests of the session share."""
    from buttress.compat.ray import RAY_ENVIRONMENT, bound_to_loopback

    os.environ.update(RAY_ENVIRONMENT)  # what a sweep sets before it starts Ray; its processes inherit it
    import ray

    with bound_to_loopback():
        ray.init(
            address="local",
            num_cpus=2,
            num_gpus=0,
            object_store_memory=200_000_000,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="WARNING",
            namespace="buttress-tests",
        )
    yield ray
    ray.shutdown()
