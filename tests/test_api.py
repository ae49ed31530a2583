"""The Python API: what is imported when, what a spec may be given as, a sweep read and run as in a notebook."""

from __future__ import annotations

import _thread
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from journal_lines import event_of
from journals import SyntheticSweep, mixed_sweep

import buttress
from buttress import api, journal

HEAVY = {"torch", "ray", "optuna", "wandb", "pandas", "pydantic", "typer", "rich", "numpy", "yaml"}


def modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in which `runs/` holds a sweep with a trial of every outcome."""
    monkeypatch.chdir(tmp_path)
    mixed_sweep().write(tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def sweep(runs: Path) -> buttress.Sweep:
    return buttress.load("toy")


# --- imports ----------------------------------------------------------------------------------------------------------


def test_import_brings_nothing_heavy_and_reading_a_sweep_no_ray_and_no_torch(runs: Path) -> None:
    assert not modules_after("import buttress; buttress.BadInput") & HEAVY
    assert not modules_after("import buttress; buttress.run, buttress.load") & (HEAVY - {"pydantic"})
    read = "import buttress; s = buttress.load('toy'); s.table(); s.best.config; s.trials[2].history(); s.explain(2)"
    assert not modules_after(read) & {"torch", "ray", "optuna", "wandb"}


def test_every_public_name_is_there_and_an_unknown_one_is_an_attribute_error() -> None:
    assert sorted(buttress.__all__) == sorted(buttress._WHERE)
    for name in buttress.__all__:
        assert getattr(buttress, name).__doc__, name
        assert name in dir(buttress)
    with pytest.raises(AttributeError, match="nonsense"):
        buttress.nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_type_checkers_see_the_same_names_as_python() -> None:
    text = Path(buttress.__file__).read_text().partition("if TYPE_CHECKING:")[2].partition("\n\n__all__")[0]
    imported = {
        name.strip(): line.split()[1] for line in text.strip().splitlines()
        for name in line.partition(" import ")[2].split(",")
    }  # fmt: skip
    assert imported == buttress._WHERE


# --- what a spec may be -----------------------------------------------------------------------------------------------


def test_a_packaged_search_space_is_found_by_its_name_and_a_file_by_its_suffix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lithology").write_text("budget: nonsense")  # does not get in the way of the name
    found = api.resolve_spec("lithology", profile="quick", set={"budget.trials": 8, "config.train.lr": 1e-05})
    assert (found.name, found.budget.trials, found.fixed["train.lr"]) == ("lithology", 8, 1e-05)
    resolved = {key: value for key, value in found.to_dict().items() if key != "profile"}
    Path("lithology.yaml").write_text(yaml.safe_dump({**resolved, "seed": 77}))
    assert api.resolve_spec("lithology").seed != 77
    assert api.resolve_spec("lithology.yaml").seed == api.resolve_spec(Path("lithology.yaml")).seed == 77


def test_an_unknown_name_gets_the_near_one_and_all_there_are() -> None:
    with pytest.raises(buttress.BadInput, match=r"did you mean lithology\?.*occupancy, radio, rainfall"):
        api.resolve_spec("lithologie")


def test_mapping_spec_and_file_are_the_same_spec(tmp_path: Path) -> None:
    tree: dict[str, Any] = {
        "trainable": "lithology", "search": {"loss.beta": {"loguniform": [0.1, 10]}}, "objectives": ["val/ari"],
        "budget": {"trials": 4}, "profiles": {"quick": {"budget": {"trials": 2}}},
    }  # fmt: skip
    path = tmp_path / "lithology.yaml"
    path.write_text(yaml.safe_dump(tree))
    of_file = api.resolve_spec(path, profile="quick", set=["seed=5"])
    assert api.resolve_spec(tree, profile="quick", set={"seed": 5}) == of_file
    assert api.resolve_spec(of_file) is of_file
    with pytest.raises(buttress.BadInput, match="a spec cannot choose its profile; accepted: profile=NAME"):
        api.resolve_spec({**tree, "profile": "quick"})
    assert api.resolve_spec(of_file, set={"budget.trials": 9}).budget.trials == 9
    assert of_file.budget.trials == 2


def test_a_class_stands_for_its_name_where_workers_can_import_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from buttress.trainables.lithology.train import Lithology

    tree: dict[str, Any] = {"search": {}, "objectives": ["val/ari"], "budget": {"trials": 1}}
    assert api.resolve_spec({**tree, "trainable": Lithology}).trainable == "lithology"
    own = type("Own", (), {"__module__": "my_models.vae"})
    found = api.resolve_spec({**tree, "trainable": own})
    assert (found.trainable, found.name) == ("my_models.vae:Own", "vae")
    for unreachable in (type("Own", (), {"__module__": "__main__"}), "__main__:Own"):
        with pytest.raises(buttress.BadInput, match=r"Own is defined in a notebook.*my_trainer:Own"):
            api.resolve_spec({**tree, "trainable": unreachable})

    class Inner: ...

    with pytest.raises(buttress.BadInput, match="inside a function"):
        api.resolve_spec({**tree, "trainable": Inner})


def test_warm_starts_are_added_as_sweeps_or_names(sweep: buttress.Sweep) -> None:
    found = api.resolve_spec("lithology", warm_start=[sweep, "other"])
    assert found.warm_start == (sweep.where, "other")
    assert api.resolve_spec("lithology", warm_start=sweep).warm_start == (sweep.where,)


def test_what_yaml_cannot_say_is_refused() -> None:
    with pytest.raises(buttress.BadInput, match="cannot say"):
        api.resolve_spec("lithology", set={"budget.trials": object()})


# --- a sweep that is read ---------------------------------------------------------------------------------------------


def test_a_sweep_is_found_by_name_folder_and_file(runs: Path) -> None:
    folder = runs / "toy-ab12cd"
    for name in ("toy", "toy-ab12cd", folder, folder / "journal.jsonl", buttress.load("toy")):
        assert buttress.load(name).folder == folder, name
    with pytest.raises(buttress.BadInput, match="no such sweep"):
        buttress.load("nothing")


def test_the_table_has_a_row_a_trial_best_first(sweep: buttress.Sweep) -> None:
    table = sweep.table()
    assert len(table) == len(sweep.trials) == 7
    assert list(table["trial"][:2]) == ["0001", "0000"]
    by_trial = table.set_index("trial")
    assert by_trial.loc["0002", "outcome"] == "collapsed" and by_trial.loc["0002", "kind"] == "posterior_collapse"
    assert by_trial.loc["0002", "config.loss.beta"] == 9.0 and by_trial.loc["0001", "metric.ari"] == 0.52
    assert list(sweep.table(where="outcome=collapsed")["trial"]) == ["0002"]
    assert sweep.table(sort="-loss.beta")["trial"].iloc[0] == "0002"
    empty = sweep.table(where=["outcome=collapsed", "loss.beta<1"])
    assert empty.empty and list(empty.columns) == list(table.columns)
    assert table.to_dict("records")[0]["trial"] == sweep.rows()[0]["trial"]


def test_the_best_trial_has_config_params_metrics_and_checkpoint(sweep: buttress.Sweep) -> None:
    best = sweep.best
    assert best is not None and (best.id, best.number, best.outcome, best.best_epoch) == ("0001", 1, "completed", 3)
    assert best.params == {"loss.beta": 0.02, "train.lr": 0.001} and best.metrics["ari"] == 0.52
    assert best.config["loss"] == {"beta": 0.02} and best.config["buttress"]["trainable"] == "toy"
    assert best.warnings == ["weak_code"] and best.epochs == 4 and best.last["ari"] == 0.51 and best.margin == -1.4
    assert best.checkpoint is None
    file = sweep.folder / "trials" / "0001" / "checkpoint-0003.pt"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    assert best.checkpoint == file


def test_there_is_no_best_trial_without_a_healthy_one(tmp_path: Path) -> None:
    book = SyntheticSweep()
    book.collapsed("0000", kl=[3.0, 0.01, 0.002], ari=[0.9, 0.9, 0.95])
    found = buttress.load(book.write(tmp_path).parent)
    assert found.best is None and found.trials[0].metrics["ari"] == 0.9 and found.pareto == []
    with pytest.raises(buttress.NothingHealthy):
        found.export(tmp_path / "best.yaml")


def test_trials_are_indexed_by_number_and_id_and_iterated(sweep: buttress.Sweep) -> None:
    assert sweep.trials[2].id == sweep.trials["2"].id == sweep.trials["0002"].id == "0002"
    assert [trial.number for trial in sweep.trials] == list(range(7))
    assert 6 in sweep.trials and 7 not in sweep.trials
    with pytest.raises(buttress.BadInput, match="0000 to 0006"):
        sweep.trials[7]
    assert {trial.outcome for trial in sweep.trials} == {
        "completed", "collapsed", "pruned", "diverged", "failed", "waiting",
    }  # fmt: skip


def test_a_history_has_a_row_a_report(sweep: buttress.Sweep) -> None:
    history = sweep.trials[2].history()
    assert list(history["epoch"]) == [1, 2, 3] and list(history["latent/kl_total"]) == [3.0, 0.01, 0.002]
    assert list(history["valid"]) == [True, False, False] and list(history["state"])[-1] == "suspect"
    assert history["ari"].dtype == "float64"
    assert history.columns[:6].tolist() == ["epoch", "step", "full_beta_epochs", "seconds", "state", "valid"]
    assert sweep.trials[5].history().empty


def test_an_explanation_reads_as_text(sweep: buttress.Sweep) -> None:
    told = sweep.explain(2)
    assert repr(told) == str(told) and "posterior_collapse" in str(told) and "below 0.3" in str(told)
    assert str(sweep.trials[2].explain()) == str(told)


def test_export_writes_the_config_that_the_trial_shows(sweep: buttress.Sweep, tmp_path: Path) -> None:
    (written,) = sweep.export(tmp_path / "best.yaml")
    assert sweep.best is not None and yaml.safe_load(written.read_text()) == sweep.best.config
    with pytest.raises(buttress.BadInput, match="collapsed"):
        sweep.export(tmp_path / "other.yaml", trial=2)
    sweep.export(tmp_path / "other.yaml", trial=2, force=True)


def test_a_sweep_shows_its_newest_state(runs: Path) -> None:
    folder = runs / "toy-ab12cd"
    sweep = buttress.load(folder)
    assert sweep.status == "killed" and sweep.interrupted
    book = mixed_sweep()
    with journal.JournalWriter(folder / "journal.jsonl") as writer:
        assert sweep.status == "running" and not sweep.interrupted and sweep.counts["running"] == 1
        book.outcome("0006", "completed", epochs=1)
        writer.write(event_of(book.lines[-1]))
        assert sweep.counts["completed"] == 3
        book.end("budget spent")
        writer.write(event_of(book.lines[-1]))
    assert sweep.status == "budget spent" and not sweep.interrupted


def test_sweeps_and_trials_show_well_in_a_notebook(sweep: buttress.Sweep) -> None:
    html = sweep._repr_html_()
    assert html.count("<tr") == 8 and "loss.beta" in html and "collapsed" in html
    assert "0.52" in sweep.trials[1]._repr_html_() and "posterior_collapse" in sweep.trials[2]._repr_html_()
    assert "best 0001 with ari 0.52" in repr(sweep) and "collapsed (posterior_collapse)" in repr(sweep.trials[2])
    assert "text/html" in sweep.explain(2)._repr_mimebundle_()


# --- curves and plans -------------------------------------------------------------------------------------------------


def curves() -> pd.DataFrame:
    """One curve that lives and one whose code dies, 20 reports each."""
    rows = [
        {"trial": name, "epoch": epoch, "step": 100 * epoch, "latent/kl_total": kl, "latent/active_kl": 4.0 * (kl > 1)}
        for name, kl in (("alive", 8.0), ("dead", 0.001)) for epoch in range(1, 21)
    ]  # fmt: skip
    return pd.DataFrame(rows)


RULES = {
    "rules": {
        "posterior_collapse": {
            "action": "kill", "signs": [{"metric": "latent/kl_total", "below": 0.1}], "grace": {"epochs": 2},
            "patience": 3,
        }
    }
}  # fmt: skip


def test_replay_takes_a_data_frame_a_file_and_any_rules(tmp_path: Path) -> None:
    path = tmp_path / "curves.csv"
    curves().to_csv(path, index=False)
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(RULES))
    for source in (curves(), path, str(path)):
        for rules in (RULES, file, str(file), buttress.RuleSet.from_dict(RULES)):
            found = buttress.replay(source, rules)
            assert found.summary["killed"] == 1
    table = found.table().set_index("curve")
    assert table.loc["dead", "killed_at"] == 400 and pd.isna(table.loc["alive", "killed_at"])
    assert "1 killed" in repr(found) and "<table" in found._repr_html_()
    with pytest.raises(buttress.BadInput, match=r"curves\.csv: the curves hold nothing"):
        buttress.replay(path, {"rules": {"x": {"action": "kill", "signs": [{"metric": "nowhere", "below": 1}]}}})


def test_a_plan_is_data_and_a_table() -> None:
    plan = buttress.plan("lithology", profile="quick", timing=False, set={"budget.trials": 8})
    assert plan.trials == 8 and plan.epochs == (18, 18) and plan.seconds is None
    shown = plan._repr_mimebundle_()
    assert "8 trials of lithology" in shown["text/plain"] and "loss.beta" in shown["text/html"]
    json.dumps(plan.to_dict())


def test_one_config_is_trained_from_a_mapping(tmp_path: Path) -> None:
    config = {
        "data": {"kind": "synthetic", "size": "tiny"}, "train": {"epochs": 9},
        "buttress": {"trainable": "lithology", "objective": "val/ari"},
    }  # fmt: skip
    with pytest.raises(buttress.BadInput, match=r"train\.epoks"):
        buttress.train(config, tmp_path / "run", set={"train.epoks": 2})
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == config


# --- running ----------------------------------------------------------------------------------------------------------


class Interrupting(buttress.Callback):
    """Presses Ctrl-C after the first outcome."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_event(self, event: Any, trial: Any = None) -> None:
        self.events.append(event.line)
        if event.line == "outcome" and self.events.count("outcome") == 1:
            _thread.interrupt_main()


@pytest.mark.long
def test_ctrl_c_returns_a_sweep_that_resume_ends(
    ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(__file__).parent / "resumable.py", tmp_path)
    spec = {
        "trainable": "resumable:Resumable", "search": {"beta": {"uniform": [0.1, 0.5]}}, "objectives": ["val/score"],
        "scheduler": {"kind": "fifo"}, "budget": {"trials": 3}, "resources": {"concurrency": 1},
        "wandb": {"mode": "disabled"},
    }  # fmt: skip
    pressing = Interrupting()
    stopped = buttress.run(spec, callbacks=[pressing], quiet=True)
    assert stopped.interrupted and stopped.status == "interrupted" and "report" in pressing.events
    assert stopped.counts["completed"] < 3
    ended = buttress.resume(stopped, quiet=True)
    assert ended.status == "budget spent" and not ended.interrupted and ended.counts == {"completed": 3}
    assert ended.name == stopped.name and ended.best is not None and ended.best.checkpoint is not None
    assert stopped.counts == ended.counts  # the same journal
    assert capsys.readouterr().out == ""


@pytest.mark.ray
@pytest.mark.long
def test_a_sweep_in_a_notebook_shows_its_progress_and_says_where_a_trainer_belongs(tmp_path: Path) -> None:
    from jupyter_client.manager import start_new_kernel

    shutil.copy(Path(__file__).parent / "resumable.py", tmp_path)
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    manager, client = start_new_kernel(kernel_name="python3", cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})
    try:
        def shown(code: str) -> tuple[list[str], list[str]]:
            """Runs a cell: HTML of everything that it displayed or updated, and its error's lines."""
            html, errors = [], []

            def heard(message: Any) -> None:
                content = message["content"]
                if "data" in content:
                    html.append(str(content["data"].get("text/html", "")))
                errors.extend(content.get("traceback", []))

            client.execute_interactive(code, timeout=200, output_hook=heard)
            return html, errors

        search = "'search': {'beta': {'uniform': [0.1, 0.5]}}, 'objectives': ['val/score'], 'budget': {'trials': 2}"
        _, errors = shown(
            f"import buttress\nclass Mine: pass\nbuttress.run({{'trainable': Mine, {search}}})"
        )
        assert "put it into my_trainer.py" in errors[-1]
        html, errors = shown(f"sweep = buttress.run({{'trainable': 'resumable:Resumable', {search}}})\nsweep")
        assert not errors, errors
        assert any("2 of 2 trials" in each for each in html), html[-3:]
        assert html[-1].count("<tr") == 3 and "completed" in html[-1]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
