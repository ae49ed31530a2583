"""W&B runs from the driver: what stands in them, and that nothing about wandb disturbs a sweep."""

from __future__ import annotations

import io
import json
import logging
import math
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from journal_lines import event_of
from journals import mixed_sweep
from matplotlib.image import imsave
from rich.console import Console

import buttress
from buttress.callbacks.base import CallbackList
from buttress.callbacks.progress import Progress, ProgressHeader
from buttress.callbacks.wandb import MAX_FAILURES, WandbRuns, has_key, summary
from buttress.errors import BadInput
from buttress.training import registry
from buttress.training.trainable import Metric

COMPLETED = {
    "outcome": "completed",
    "margin": -0.7,
    "epochs": 8,
    "epochs_budget": 10,
    "best": {"epoch": 6, "step": 60, "metrics": {"ari": 0.41}},
    "last": {"ari": 0.38},
}
COLLAPSED = {
    "outcome": "collapsed",
    "kind": "posterior_collapse",
    "rule": "posterior_collapse",
    "margin": 1.6,
    "message": "the latent code carries 0.007 nats",
    "epochs": 3,
    "epochs_budget": 10,
    "best": {"epoch": 2, "step": 20, "metrics": {"elbo_1": 0.01}},
    "last": {"elbo_1": 0.001},
}

#: What an original logs that no value here has as its second name: another quantity or unit, or nothing of the kind.
WITHOUT_SECOND_NAME: dict[str, list[str]] = {
    "radio": ["total_loss"],
    "rainfall": ["epoch", "val_L_grad", "val_L_mass", "val_MAE_all_zspace", "val_MAE_tail_zspace", "val_loss"],
    "occupancy": [
        "6dof/embedding_mean_norm", "6dof/embedding_std", "6dof/pose_pos_std", "6dof/pose_variance_penalty",
        "6dof/pose_vel_std", "6dof/uncertainty_max", "6dof/uncertainty_mean", "6dof/uncertainty_min",
        "debug/exact_match", "debug/fut_mean", "debug/hist_fut_match", "debug/hist_mean", "debug/match_rate",
        "debug/occupancy_rate", "debug/params_with_grad", "epoch", "epoch/pred_occ_rate",
        "epoch/target_occ_rate", "epoch/time_seconds", "epoch/val_iou_t<k>", "epoch/val_loss",
        "epoch/val_temporal_consistency", "loss/occ", "loss_components/intersection",
        "loss_components/pred_sum", "loss_components/target_sum",
    ],
}  # fmt: skip

#: Keys of metrics as published trainers have them.
KEYS = ["val/FID", "metrics/mAP50-95(B)", "mAP@0.5", "R^2", "Recon loss (nats)", "*best*", "val/KL+CE"]


class FakeRun:
    """Records what it is told; `fault` makes `log` raise."""

    def __init__(self, fault: Exception | None = None, **given: Any) -> None:
        self.given, self.fault, self.rows, self.summary = given, fault, [], {}
        self.tags = tuple(given["tags"])
        self.exit_code: int | None = None
        self.step = 0

    def define_metric(self, name: str, **options: Any) -> None:
        self.defined = (name, options)

    def log(self, row: dict[str, Any], step: int) -> None:
        if self.fault:
            raise self.fault
        self.rows.append((step, row))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


class FakeWandb:
    """As much of the module as `WandbRuns` uses. `init_fault(mode)` may return what `init` raises."""

    Settings = SimpleNamespace

    def __init__(self, log_fault: Exception | None = None, init_fault: Any = lambda mode: None) -> None:
        self.runs: list[FakeRun] = []
        self.log_fault, self.init_fault = log_fault, init_fault

    def init(self, **given: Any) -> FakeRun:
        if fault := self.init_fault(given["mode"]):
            raise fault
        self.runs.append(FakeRun(self.log_fault, **given))
        return self.runs[-1]

    def Histogram(self, values: list[float], num_bins: int) -> tuple[str, list[float]]:
        return ("histogram", values)


def report(step: int, **metrics: float) -> dict[str, Any]:
    ages = {"epoch": step // 10, "step": step, "full_beta_epochs": 0, "phase": 0}
    return {**ages, "state": "healthy", "metrics": metrics}


def one_trial(runs: WandbRuns, trial: str = "0001", outcome: dict[str, Any] | None = None) -> None:
    runs.start(trial, {"loss": {"beta": 0.1}}, {"loss.beta": 0.1})
    runs.report(trial, report(10, ari=0.2))
    runs.outcome(trial, outcome or COMPLETED)


# --- what is logged -----------------------------------------------------------------------------------------------


def test_one_run_per_trial_grouped_by_sweep(tmp_path: Path) -> None:
    wandb = FakeWandb()
    runs = WandbRuns("toy-abc123", tmp_path, project="p", client=wandb)
    one_trial(runs, "0001")
    one_trial(runs, "0002", COLLAPSED)
    runs.close()
    first, second = wandb.runs
    assert [run.given["id"] for run in wandb.runs] == ["toy-abc123-0001", "toy-abc123-0002"]
    assert {run.given["group"] for run in wandb.runs} == {"toy-abc123"}
    assert {run.given["mode"] for run in wandb.runs} == {"offline"}
    assert {run.given["reinit"] for run in wandb.runs} == {"create_new"}
    assert first.given["config"] == {"loss": {"beta": 0.1}, "params": {"loss.beta": 0.1}}
    assert first.rows == [(10, {"ari": 0.2, "epoch": 1, "full_beta_epochs": 0, "phase": 0, "suspect": 0})]
    assert first.tags == ("completed",)
    assert second.tags == ("collapsed", "posterior_collapse")
    assert first.summary["epochs_saved"] == 2
    assert first.exit_code == second.exit_code == 0


def test_summary_shows_a_best_value_of_completed_trials_only() -> None:
    assert summary(COMPLETED)["best/ari"] == 0.41
    told = summary(COLLAPSED)
    assert not [name for name in told if name.startswith("best/")]
    assert told["outcome"] == "collapsed" and told["margin"] == 1.6 and told["last/elbo_1"] == 0.001


def test_a_metric_is_logged_under_its_original_name_too(tmp_path: Path) -> None:
    wandb = FakeWandb()
    metrics = {"val/kl": Metric("min", original_name="val_kl_loss"), "val/l1": Metric("min")}
    others = {"train/lr": "Learning_Rate", "val/kl": "kl (encoder-decoder)", "train/never": "never"}
    runs = WandbRuns("toy", tmp_path, metrics=metrics, original_names=others, client=wandb)
    runs.start("0001", {}, {})
    runs.report("0001", report(1, **{"val/kl": 2.5, "val/l1": 1.0, "train/lr": 0.1}))
    runs.close()
    row = wandb.runs[0].rows[0][1]
    assert row["val/kl"] == row["val_kl_loss"] == row["kl (encoder-decoder)"] == 2.5
    assert row["train/lr"] == row["Learning_Rate"] == 0.1 and not {"", "never"} & {*row}


@pytest.mark.parametrize(
    ("family", "lists"),
    [
        ("radio", ("tensorboard",)), ("rainfall", ("csv_columns",)),
        ("occupancy", ("wandb_epoch", "wandb_debug", "wandb_debug_simple", "wandb_debug_6dof")),
    ],
)  # fmt: skip
def test_second_names_of_a_familys_values_are_those_of_its_original(
    family: str, lists: tuple[str, ...], shared: Path
) -> None:
    """`results_names.json` is what the originals logged when they were run."""
    trainable: Any = registry.load(family)
    recorded = json.loads((shared / "golden" / "results_names.json").read_text())[family]
    recorded["csv_columns"] = recorded.get("csv_columns", {}).get("d1af71b", [])
    theirs = {name for each in lists for name in recorded[each]}
    names = {metric.original_name for metric in trainable.metrics.values() if metric.original_name}
    assert {*trainable.original_names.values()} <= theirs
    assert len({*trainable.original_names.values()}) == len(trainable.original_names)
    assert sorted(theirs - names - {*trainable.original_names.values()}) == sorted(WITHOUT_SECOND_NAME[family])


def test_a_vector_is_a_histogram_of_its_finite_values(tmp_path: Path) -> None:
    wandb = FakeWandb()
    runs = WandbRuns("toy", tmp_path, client=wandb)
    runs.start("0001", {}, {})
    vectors = {"latent/kl": [0.1, math.inf, None, 2.0], "none": [None]}
    runs.report("0001", {**report(1, gone=math.nan), "vectors": vectors})
    runs.close()
    row = wandb.runs[0].rows[0][1]
    assert row["latent/kl"] == ("histogram", [0.1, 2.0])
    assert "none" not in row and math.isnan(row["gone"])


def test_a_new_attempt_keeps_the_open_run_and_repeats_no_step(tmp_path: Path) -> None:
    wandb = FakeWandb()
    runs = WandbRuns("toy", tmp_path, client=wandb)
    for steps in ((10, 20, 30), (20, 30, 40)):  # lost after step 30, resumed from the checkpoint at step 10
        runs.start("0001", {}, {})
        for step in steps:
            runs.report("0001", report(step))
    runs.close()
    assert [step for step, _ in wandb.runs[0].rows] == [10, 20, 30, 30, 40]


def test_a_resumed_sweep_reuses_the_run_id(tmp_path: Path) -> None:
    wandb = FakeWandb()
    for _ in range(2):  # two processes, one after the other
        runs = WandbRuns("toy", tmp_path, client=wandb)
        runs.start("0001", {}, {})
        runs.close()
    assert [run.given["id"] for run in wandb.runs] == ["toy-0001", "toy-0001"]
    assert {run.given["resume"] for run in wandb.runs} == {"allow"}


def test_a_trial_without_outcome_is_closed_as_interrupted(tmp_path: Path) -> None:
    wandb = FakeWandb()
    runs = WandbRuns("toy", tmp_path, client=wandb)
    runs.start("0001", {}, {})
    runs.close()
    runs.report("0001", report(1))  # after the end: nothing
    assert wandb.runs[0].summary["outcome"] == "interrupted" and wandb.runs[0].exit_code == 0


def test_journal_lines_drive_it(tmp_path: Path) -> None:
    wandb = FakeWandb()
    runs = WandbRuns("toy", tmp_path, client=wandb)
    live = SimpleNamespace(config={"loss": {"beta": 0.1}}, params={"loss.beta": 0.1})
    runs.on_event(event_of({"line": "start", "trial": "0001", "attempt": 1, "slot": "slot-0"}), live)
    moment = {"attempt": 1, "seq": 0, "full_beta_epochs": 1, "full_beta_steps": 10, "phase": 0}
    runs.on_event(event_of({"line": "report", "trial": "0001", **moment, **report(10, ari=0.2), "vectors": {}}), live)
    runs.on_event(event_of({"line": "outcome", "trial": "0001", **COLLAPSED}), None)
    runs.on_message("nothing")
    runs.close()
    (run,) = wandb.runs
    assert run.given["config"]["params"] == {"loss.beta": 0.1}
    assert [step for step, _ in run.rows] == [10]
    assert run.summary["kind"] == "posterior_collapse"


# --- what must not happen -----------------------------------------------------------------------------------------


def test_a_wandb_that_raises_is_told_once_and_disturbs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    wandb = FakeWandb(log_fault=RuntimeError("broken pipe"))
    told: list[str] = []
    runs = WandbRuns("toy", tmp_path, client=wandb, on_message=told.append)
    with caplog.at_level(logging.WARNING, "buttress.wandb"):
        for trial in range(MAX_FAILURES + 2):
            one_trial(runs, f"{trial:04}")
        runs.close()
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2 and told == messages and runs.closing_line() == messages[1]
    assert "trial 0000" in messages[0] and "goes on without it" in messages[1]
    assert "broken pipe" in caplog.text
    assert len(wandb.runs) == MAX_FAILURES  # given up: the other trials never reach wandb
    assert capfd.readouterr().err == ""


def test_one_failing_run_leaves_the_others_logged(tmp_path: Path) -> None:
    wandb = FakeWandb()
    runs = WandbRuns("toy", tmp_path, client=wandb)
    runs.start("0001", {}, {})
    runs.report("0001", {"metrics": {}})  # no step: a fault of the row, not of wandb
    one_trial(runs, "0002")
    runs.close()
    assert [run.exit_code for run in wandb.runs] == [None, 0]


def test_the_caller_never_waits_for_a_slow_wandb(tmp_path: Path) -> None:
    wandb, gate = FakeWandb(), threading.Event()
    wandb.init_fault = lambda mode: gate.wait(30) and None
    runs = WandbRuns("toy", tmp_path, client=wandb)
    started = time.monotonic()
    one_trial(runs)
    runs.close(timeout=0.2)
    assert time.monotonic() - started < 2.0
    gate.set()


def test_reports_are_dropped_and_counted_when_too_many_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("buttress.callbacks.wandb.MAX_WAITING", 5)
    wandb, gate = FakeWandb(), threading.Event()
    wandb.init_fault = lambda mode: gate.wait(30) and None
    runs = WandbRuns("toy", tmp_path, client=wandb)
    runs.start("0001", {}, {})
    for step in range(20):
        runs.report("0001", report(step))
    runs.outcome("0001", COLLAPSED)
    gate.set()
    with caplog.at_level(logging.WARNING, "buttress.wandb"):
        runs.close()
    assert 4 <= len(wandb.runs[0].rows) <= 6
    assert wandb.runs[0].summary["outcome"] == "collapsed"
    assert "reports not logged to W&B" in caplog.text and "reports not logged to W&B" in runs.closing_line()


def test_online_without_a_key_is_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not has_key()
    wandb = FakeWandb()
    with caplog.at_level(logging.WARNING, "buttress.wandb"):
        told: list[str] = []
        runs = WandbRuns("toy", tmp_path, mode="online", client=wandb, on_message=told.append)
        one_trial(runs)
        one_trial(runs, "0002")
        runs.close()
    assert wandb.runs[0].given["mode"] == "offline"
    assert "no W&B key" in caplog.text
    assert len(told) == 1 and "no W&B key was found, so runs are kept offline" in told[0]
    assert runs.closing_line().startswith(told[0])
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123\n")
    assert has_key()


def test_online_without_a_server_is_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    wandb = FakeWandb(init_fault=lambda mode: ConnectionError("no route") if mode == "online" else None)
    shown = io.StringIO()
    progress = Progress(ProgressHeader("toy", "ari", "max"), Console(file=shown, width=200))
    callbacks = CallbackList([progress])
    runs = WandbRuns("toy", tmp_path, mode="online", client=wandb, on_message=callbacks.on_message)
    with progress:
        one_trial(runs)
        one_trial(runs, "0002")
        runs.close()
    assert [run.given["mode"] for run in wandb.runs] == ["offline", "offline"]
    assert [run.exit_code for run in wandb.runs] == [0, 0]
    sentence = "W&B cannot be reached (no route), so runs are kept offline"
    assert shown.getvalue().count(sentence) == 1 and runs.closing_line().startswith(sentence)


def test_disabled_does_not_import_wandb(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from buttress.callbacks.wandb import WandbRuns\n"
        f"runs = WandbRuns('toy', pathlib.Path({str(tmp_path / 'sweep')!r}), mode='disabled')\n"
        "runs.start('0001', {}, {}); runs.report('0001', {'step': 1}); runs.outcome('0001', {'outcome': 'failed'})\n"
        "runs.close(); print('wandb' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert not (tmp_path / "sweep").exists()


# --- the real wandb, offline --------------------------------------------------------------------------------------


def records(file: Path) -> Iterator[Any]:
    """The records of a `.wandb` file (LevelDB's log format: 32 KiB blocks, 7-byte headers, after a 7-byte preamble)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def test_real_offline_runs_hold_the_outcome_and_keep_quiet(tmp_path: Path) -> None:
    best = {"epoch": 6, "step": 60, "metrics": {"ari": 0.41, **dict.fromkeys(KEYS, 0.5)}}
    completed_outcome = {**COMPLETED, "best": best}
    code = (
        f"import sys, pathlib, signal\nKEYS = {KEYS!r}\n"
        "from buttress.callbacks.wandb import WandbRuns\n"
        "before = sys.exit, sys.excepthook, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)\n"
        f"runs = WandbRuns('toy-abc123', pathlib.Path({str(tmp_path)!r}), project='toy')\n"
        "for trial in ('0001', '0002'):\n"
        "    runs.start(trial, {'loss': {'beta': 0.1}}, {'loss.beta': 0.1})\n"
        "for trial in ('0001', '0002'):\n"
        "    for step in (10, 20):\n"
        "        values = {'elbo_1': 0.5, 'bad': float('nan'), **dict.fromkeys(KEYS, 0.5)}\n"
        "        runs.report(trial, {'epoch': 1, 'step': step, 'metrics': values,\n"
        "                            'vectors': {'latent/kl': [0.1, 2.0]}})\n"
        f"runs.outcome('0001', {completed_outcome!r}); runs.outcome('0002', {COLLAPSED!r})\n"
        "runs.close()\n"
        "assert runs.closing_line().startswith('2 W&B runs offline: wandb sync ')\n"
        "assert before == (sys.exit, sys.excepthook, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    files = {file.stem.removeprefix("run-"): file for file in tmp_path.glob("wandb/offline-run-*/*.wandb")}
    assert sorted(files) == ["toy-abc123-0001", "toy-abc123-0002"]
    found: dict[str, dict[str, Any]] = {}
    for name, file in files.items():
        told: dict[str, Any] = {}
        steps, tags = [], []
        for record in records(file):
            match record.WhichOneof("record_type"):
                case "summary":
                    for item in record.summary.update:
                        told["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
                case "history":
                    row = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                    steps += [int(row["_step"])]
                    assert "latent/kl/bins" in row and {*KEYS} <= {*row}
                case "run":
                    assert record.run.run_group == "toy-abc123"
                    tags = list(record.run.tags)
        found[name] = {"summary": told, "steps": steps, "tags": tags}
    completed, collapsed = found["toy-abc123-0001"], found["toy-abc123-0002"]
    assert completed["steps"] == collapsed["steps"] == [10, 20]
    assert completed["summary"]["best/ari"] == 0.41
    assert {f"best/{key}" for key in KEYS} <= {*completed["summary"]}
    assert collapsed["tags"] == ["collapsed", "posterior_collapse"]
    assert collapsed["summary"]["kind"] == "posterior_collapse"
    # The last value logged is nobody's summary: sorting by `elbo_1` cannot put the collapsed trial first.
    assert not [name for name in collapsed["summary"] if name.startswith(("elbo_1", "best/"))]


def test_the_sweep_has_a_run_of_its_own_with_counts_table_report_and_pictures(tmp_path: Path) -> None:
    """A recorded sweep, told to the real wandb as its driver would, the first outcome by an earlier process."""
    book = mixed_sweep()
    folder = book.write(tmp_path).parent
    assert book.journal().trials["0001"].state == "completed"
    (folder / "report.html").write_text("<p>report</p>")
    (folder / "trials" / "0001" / "media").mkdir(parents=True)
    for name in ("trials/0001/media/a.png", "outside.png"):
        imsave(folder / name, np.zeros((4, 4)))
    code = (
        "import sys, dataclasses, pathlib\n"
        "from types import SimpleNamespace\n"
        "from buttress import journal\n"
        "from buttress.callbacks.wandb import WandbRuns\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "events = list(journal.events(folder / journal.FILE))\n"
        "ends = [event for event in events if event.line == 'outcome']\n"
        "runs = WandbRuns('toy-ab12cd', folder, objective=('ari', 'max'), earlier=ends[:1])\n"
        "for event in events:\n"
        "    if event.line == 'report' and event.trial == '0001':\n"
        "        media = {'samples': 'media/a.png', 'out': '../../outside.png', 'gone': 'media/b.png'}\n"
        "        event = dataclasses.replace(event, media=media)\n"
        "    if event not in ends[:1]:\n"
        "        runs.on_event(event, SimpleNamespace(config={}, params={}))\n"
        "runs.close(); print(runs.closing_line())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    trials = [*book.journal().trials.values()]
    outcomes = [trial.outcome for trial in trials if trial.outcome]
    assert f"W&B runs offline: wandb sync {folder}/wandb/offline-run-*" in done.stdout, done.stderr
    (file,) = folder.glob("wandb/offline-run-*-toy-ab12cd/*.wandb")
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records(file)
        if record.WhichOneof("record_type") == "history"
    ]
    counts = Counter(outcome.outcome for outcome in outcomes)
    last = {key: value for row in rows for key, value in row.items()}
    assert [row["_step"] for row in rows][:2] == [2, 3] and last["_step"] == len(outcomes)
    assert {name: last[f"trials/{name}"] for name in counts} == counts
    best = [outcome.best.metrics["ari"] for outcome in outcomes if outcome.outcome == "completed" and outcome.best]
    assert last["best/ari"] == max(value for value in best if value is not None)
    (table,) = file.parent.glob("files/media/table/trials/*.json")
    content = json.loads(table.read_text())
    assert len(content["data"]) == len(trials) and content["columns"][:2] == ["trial", "outcome"]
    (page,) = file.parent.glob("files/media/html/*.html")
    assert "<p>report</p>" in page.read_text()
    (trial,) = folder.glob("wandb/offline-run-*-toy-ab12cd-0001")
    names = [path.name for path in trial.glob("files/media/images/*.png")]
    assert names and all(name.startswith("samples_") for name in names)


def test_one_training_writes_a_run_and_trains_as_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from test_cli import call

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "mine.yaml").write_text(
        'train: {epochs: 2}\nbuttress: {trainable: "toy:Toy", objective: val/recon, seed: 9}\n'
    )
    options = ["--wandb-project", "mine", "--wandb-run-id", "abc", "--wandb-run-name", "first", "--wandb-tags", "a, b"]
    metrics = []
    for out, more in (("plain", []), ("logged", options)):
        code, said, err = call(capfd, "train", "mine.yaml", "--json", "--out", out, *more)
        assert code == 0, said + err
        metrics += [json.loads(said.splitlines()[-1])["metrics"]]
    assert metrics[0] == metrics[1] and not (tmp_path / "plain" / "wandb").exists()
    assert "1 W&B run offline: wandb sync logged/wandb/offline-run-*" in said
    (file,) = (tmp_path / "logged").glob("wandb/offline-run-*-abc/*.wandb")
    told: dict[str, Any] = {}
    rows = []
    for record in records(file):
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
            case "history":
                rows += [{"/".join(item.nested_key) or item.key for item in record.history.item}]
            case "summary":
                told |= {"/".join(e.nested_key) or e.key: json.loads(e.value_json) for e in record.summary.update}
    assert (run.project, run.display_name, run.run_group) == ("mine", "first", "")
    assert {*run.tags} == {"a", "b", "completed"} and {e.key for e in run.config.update} >= {"train", "buttress"}
    assert any("val/recon" in row for row in rows)
    assert told["best/val/recon"] == metrics[0]["val/recon"] and told["outcome"] == "completed"


def test_a_misspelt_option_of_a_trainings_run_is_refused(tmp_path: Path) -> None:
    config = {"train": {"epochs": 1}, "buttress": {"trainable": "toy:Toy", "objective": "val/recon"}}
    with pytest.raises(BadInput, match=r"wandb.projekt: unknown option; accepted: project, entity"):
        buttress.train(config, tmp_path / "out", wandb={"projekt": "x"})
    with pytest.raises(BadInput, match=r"wandb.mode: no such mode \(got 'on'\); accepted: online, offline, disabled"):
        buttress.train(config, tmp_path / "out", wandb={"mode": "on"})
