"""Which trial is best, what the table says of each, and why it was stopped."""

from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import journal_lines
import pandas as pd
import pytest
from journals import SyntheticSweep, mixed_sweep
from rich.console import Console
from typer.testing import CliRunner

from buttress import journal as journals
from buttress.analysis.explanation import explain, stop_reason
from buttress.analysis.export import export
from buttress.analysis.render import render_explanation, render_status, render_sweep
from buttress.analysis.selection import best_epoch, best_json, best_report, best_trial, healthy_trials, pareto_front
from buttress.analysis.table import FIXED_COLUMNS, data_frame, filter_rows, rows, sort_rows, write_table
from buttress.cli.main import app
from buttress.errors import BadInput
from buttress.journal import Best, Journal, fold
from buttress.wording import duration, number, sparkline, times


@pytest.fixture
def mixed() -> Journal:
    return mixed_sweep().journal()


def text_of(renderable: Any, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def row(journal: Journal, trial: str) -> dict[str, Any]:
    return next(entry for entry in rows(journal) if entry["trial"] == trial)


# --- which trial is best ----------------------------------------------------------------------------------------------


def test_a_misspelt_outcome_is_refused_and_not_an_empty_table() -> None:
    table = [{"trial": "0000", "outcome": "collapsed"}]
    assert filter_rows(table, ["outcome=collapsed,pruned"]) == table and filter_rows(table, ["outcome=null"]) == []
    with pytest.raises(BadInput, match=r"no such outcome \(got 'colapsed'\); accepted: completed, running"):
        filter_rows(table, ["outcome=colapsed"])


def test_a_collapsed_trial_is_never_best(mixed: Journal) -> None:
    """Trial 0002 reached 0.9 in a valid epoch before it collapsed, and 0.95 after; 0006 is at 0.99 but unfinished."""
    assert [record.id for record in healthy_trials(mixed)] == ["0001", "0000"]
    assert best_json(mixed) == {"trial": "0001", "objective": {"ari": 0.52}}


@pytest.mark.parametrize("outcome", ["collapsed", "diverged", "pruned", "failed"])
def test_no_outcome_but_completed_is_chosen_however_good_its_line_looks(outcome: str) -> None:
    book = SyntheticSweep()
    book.trial("0000")
    book.outcome("0000", outcome, epochs=3, best=Best(2, 100, {"ari": 1.0}))
    assert best_trial(book.journal()) is None
    assert pareto_front(book.journal()) == []
    book.completed("0001", ari=[0.01])
    assert best_json(book.journal()) == {"trial": "0001", "objective": {"ari": 0.01}}


def test_a_completed_trial_without_a_valid_epoch_is_not_chosen() -> None:
    book = SyntheticSweep()
    book.trial("0000")
    book.epoch("0000", 1, {"ari": 0.9}, valid=False)
    book.outcome("0000", "completed", epochs=1)
    assert best_trial(book.journal()) is None


def test_the_best_epoch_is_the_best_valid_one_and_the_earliest_of_equals() -> None:
    book = SyntheticSweep()
    book.trial("0000")
    book.epoch("0000", 1, {"ari": 0.9}, valid=False)  # in the warm-up
    book.epoch("0000", 2, {"ari": 0.4})
    book.epoch("0000", 3, {"latent/kl_total": 1.0})  # a health report
    book.epoch("0000", 4, {"ari": 0.5})
    book.epoch("0000", 5, {"ari": float("nan")})
    book.epoch("0000", 6, {"ari": 0.5})
    journal = book.journal()
    report = best_report(journal.trials["0000"].reports, journal.objectives[0])
    assert report is not None and report.epoch == 4


def test_the_last_epochs_report_may_be_the_closing_one_and_best() -> None:
    book = SyntheticSweep()
    book.trial("0000")
    book.epoch("0000", 1, {"ari": 0.4})
    book.epoch("0000", 2, {"ari": 0.5}, closing=True)
    found = best_epoch(book.journal().trials["0000"], book.journal().objectives)
    assert found is not None and found.epoch == 2


def test_a_minimised_objective_picks_the_smallest_value() -> None:
    book = SyntheticSweep(objectives={"elbo_1": "min"})
    book.completed("0000", elbo_1=[3.0, 2.0, 2.5])
    book.completed("0001", elbo_1=[1.9, 5.0])
    assert best_json(book.journal()) == {"trial": "0001", "objective": {"elbo_1": 1.9}}
    assert row(book.journal(), "0000")["metric.elbo_1"] == 2.0


def test_equal_trials_are_chosen_by_their_id() -> None:
    book = SyntheticSweep()
    for id in ("0003", "0001", "0002"):
        book.completed(id, ari=[0.5])
    assert [record.id for record in healthy_trials(book.journal())] == ["0001", "0002", "0003"]


def test_the_pareto_front_is_what_nothing_healthy_beats_in_every_objective() -> None:
    book = SyntheticSweep(objectives={"ari": "max", "elbo_1": "min"})
    points = {"0000": (0.5, 2.0), "0001": (0.6, 3.0), "0002": (0.4, 2.5), "0003": (0.6, 3.5), "0004": (0.1, 1.0)}
    for id, (ari, elbo) in points.items():
        book.completed(id, ari=[ari], elbo_1=[elbo])
    book.collapsed("0005", kl=[3.0, 0.01], ari=[0.9, 0.9], elbo_1=[0.1, 0.1])
    assert [record.id for record in pareto_front(book.journal())] == ["0001", "0000", "0004"]
    assert "◆ on the Pareto front" in text_of(render_sweep(book.journal()))


# --- rows -------------------------------------------------------------------------------------------------------------


def test_every_row_has_the_same_keys_in_the_order_of_the_design(mixed: Journal) -> None:
    table = rows(mixed)
    assert [entry["trial"] for entry in table] == [f"000{index}" for index in range(7)]
    keys = list(table[0])
    assert all(list(entry) == keys for entry in table)
    assert tuple(keys[:10]) == FIXED_COLUMNS
    assert keys[10:13] == ["config.loss.beta", "config.train.lr", "metric.ari"]
    assert [key.split(".")[0] for key in keys[10:]] == sorted(key.split(".")[0] for key in keys[10:-5]) + ["last"] * 5


def test_a_row_says_where_the_trial_ended_and_what_its_best_valid_epoch_gave(mixed: Journal) -> None:
    assert {key: value for key, value in row(mixed, "0001").items() if not key.startswith("last.latent")} == {
        "trial": "0001", "outcome": "completed", "kind": None, "margin": -1.4, "warnings": ["weak_code"], "epoch": 4,
        "step": 200, "epochs_saved": 6, "seconds": 8.0, "seed": 101, "config.loss.beta": 0.02, "config.train.lr": 0.001,
        "metric.ari": 0.52, "metric.latent/active_kl": 4.0, "metric.latent/dims": 10.0, "metric.latent/kl_total": 8.0,
        "metric.train/loss": 1.0, "last.ari": 0.51, "last.train/loss": 0.75,
    }  # fmt: skip
    collapsed = row(mixed, "0002")
    assert (collapsed["outcome"], collapsed["kind"], collapsed["margin"]) == ("collapsed", "posterior_collapse", 1.9)
    assert (collapsed["epoch"], collapsed["step"], collapsed["epochs_saved"]) == (3, 150, 7)
    assert (collapsed["metric.latent/kl_total"], collapsed["last.latent/kl_total"]) == (3.0, 0.002)


def test_missing_values_are_null_and_never_nan() -> None:
    book = mixed_sweep()
    book.trial("0007", {"loss.beta": 0.1})  # train.lr is not in play, nothing was reported
    table = rows(book.journal())
    assert "NaN" not in json.dumps(table, allow_nan=False)
    assert table[7]["config.train.lr"] is None
    assert (table[7]["epoch"], table[7]["epochs_saved"], table[7]["metric.ari"]) == (None, None, None)
    assert table[4]["metric.ari"] is None and table[4]["last.train/loss"] is None


def test_a_running_trials_row_is_computed_from_its_reports() -> None:
    book = SyntheticSweep()
    book.trial("0000")
    book.epoch("0000", 1, {"ari": 0.4, "latent/kl_total": 5.0})
    book.epoch("0000", 2, {"ari": 0.3})
    book.epoch("0000", 2, {"latent/kl_total": 4.0}, seconds=5.5)
    entry = rows(book.journal(alive=True))[0]
    assert (entry["outcome"], entry["epoch"], entry["epochs_saved"]) == ("running", 2, None)
    assert (entry["metric.ari"], entry["last.ari"], entry["last.latent/kl_total"]) == (0.4, 0.3, 4.0)
    assert entry["seconds"] == 5.5


def test_all_brings_every_leaf_of_the_config(mixed: Journal) -> None:
    keys = list(rows(mixed, all=True)[0])
    assert "config.buttress.threads" in keys and "config.train.epochs" in keys
    assert "config.buttress.threads" not in rows(mixed)[0]
    assert rows(mixed, all=True)[3]["config.train.lr"] == 0.1


def test_a_sweep_without_trials_has_an_empty_table() -> None:
    journal = SyntheticSweep().journal()
    assert rows(journal) == []
    assert list(data_frame(rows(journal)).columns) == list(FIXED_COLUMNS)
    assert "no healthy trial" in text_of(render_sweep(journal))


def test_the_frame_holds_the_rows_with_numbers_as_numbers(mixed: Journal) -> None:
    table = data_frame(rows(mixed))
    assert table.shape == (7, len(rows(mixed)[0]))
    assert table["metric.ari"].dtype == "float64"
    assert table.loc[table.outcome == "completed", "metric.ari"].tolist() == [0.41, 0.52]
    assert math.isnan(table.set_index("trial").loc["0004", "metric.ari"])


# --- filters and order ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conditions", "trials"),
    [
        (["outcome=collapsed"], "2"),
        (["outcome=pruned,failed"], "35"),
        (["outcome!=completed", "epoch>=3"], "23"),
        (["margin>1"], "24"),
        (["margin=null"], "356"),
        (["margin!=null", "margin<=0"], "01"),
        (["kind=posterior_collapse"], "2"),
        (["loss.beta<0.1"], "01"),
        (["beta=0.5"], "34"),
        (["config.train.lr=1e-3"], "12"),
        (["ari>0.4"], "0126"),
        (["warnings=weak_code"], "1"),
        (["trial=0002"], "2"),
        (["trial=2"], "2"),
        (["trial=0"], "0"),
        (["trial=0,00,3"], "03"),
        (["trial!=0", "trial<3"], "12"),
        (["trial>=0004"], "456"),
        (["trial=toy-ab12cd-0001"], "1"),
        (["margin>1000"], ""),
    ],
)
def test_rows_are_filtered_by_conditions(mixed: Journal, conditions: list[str], trials: str) -> None:
    assert [entry["trial"] for entry in filter_rows(rows(mixed), conditions)] == [f"000{each}" for each in trials]


@pytest.mark.parametrize(
    ("condition", "sentence"),
    [
        ("outcome", r"not a valid condition \(got 'outcome'\)"),
        ("outcom=collapsed", "no such column.*outcome"),
        ("margin>big", "number is compared with a text"),
    ],
)
def test_a_condition_that_makes_no_sense_is_bad_input(mixed: Journal, condition: str, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        filter_rows(rows(mixed), [condition])


def test_the_table_is_sorted_by_outcome_then_objective_then_margin() -> None:
    book = mixed_sweep()
    book.collapsed("0007", margin=2.5)
    journal = book.journal()
    order = "".join(entry["trial"][-1] for entry in sort_rows(rows(journal), journal=journal))
    assert order == "10637245"


@pytest.mark.parametrize(
    ("by", "order"), [("ari", "3012645"), ("-ari", "6210345"), ("-margin", "4201356"), ("outcome", "2014536")]
)
def test_rows_are_sorted_by_a_column_with_missing_values_last(mixed: Journal, by: str, order: str) -> None:
    assert "".join(entry["trial"][-1] for entry in sort_rows(rows(mixed), by)) == order


# --- on a terminal ----------------------------------------------------------------------------------------------------


def test_the_printed_table_marks_the_best_and_gives_the_reason_of_every_kill(mixed: Journal) -> None:
    text = text_of(render_sweep(mixed))
    assert re.search(r"^0001 ★ +completed", text, re.M)
    assert text.count("★") == 2  # its row and the legend
    for trial in ("0002", "0003", "0004", "0005"):
        assert len(re.findall(rf"^{trial} ", text, re.M)) == 2  # in the table and among the reasons
    flowing = " ".join(text.split())
    assert "collapsed: posterior +1.9 (0.9)" in flowing
    assert "ari 0.231 was worse than the cut-off 0.254 of 9 trials" in flowing
    assert "best: trial 0001 with ari 0.52" in flowing
    assert "22 of 50 budgeted epochs were run" in flowing
    assert "44 s of training in 7 trials" in flowing


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_printed_table_fits_its_terminal_and_says_what_it_left_out(width: int) -> None:
    paths = [f"loss.quite_a_long_weight_{index}" for index in range(9)]
    book = SyntheticSweep(search=paths)
    book.completed("0000", ari=[0.1234567])
    book.collapsed("0001")
    text = text_of(render_sweep(book.journal()), width=width)
    assert max(map(len, text.splitlines())) <= width
    header = text.split("0000")[0]
    shown = header.count("weight")
    assert shown >= (width - 76) // 20
    if shown < 9:
        assert f"not shown: loss.quite_a_long_weight_{shown}" in " ".join(text.split())


def test_a_deep_parameter_is_headed_by_its_group_and_a_warned_trial_is_marked() -> None:
    book = SyntheticSweep(search=["loss.beta.end"])
    book.completed("0000", ari=[0.5], warnings=["weak_code"])
    text = text_of(render_sweep(book.journal()))
    assert re.search(r"beta\. *\n.* end ", text)
    assert "completed !" in text and "!: has warnings" in text


def test_status_tells_who_runs_the_sweep_and_what_is_running(mixed: Journal, tmp_path: Any) -> None:
    assert "its driver is gone" in text_of(render_status(mixed))
    path = mixed_sweep().write(tmp_path)
    with journals.JournalWriter(path):
        text = text_of(render_status(journals.read(path)))
    assert re.search(r"run by a driver now \(host .*, pid \d+", text)
    assert "0006" in text and "running" in text and "0003" not in text


# --- why --------------------------------------------------------------------------------------------------------------


def test_why_tells_the_median_that_the_margin_is_from_of_values_that_end_elsewhere() -> None:
    book = SyntheticSweep()
    book.collapsed("0000", kl=[0.27, 0.36], margin=0.0458)  # 0.36 is within the hysteresis
    book.collapsed("0001", kl=[0.29, 0.36], margin=0.001)
    first, second = (str(explain(book.journal(), trial)) for trial in ("0", "1"))
    assert "latent/kl_total was 1.1 times smaller than 0.3 in the median of 2 reports" in first
    assert "margin +0.00: just beyond the threshold\n" in second and "smaller" not in second


def test_why_names_no_sign_whose_metric_never_came_as_having_held() -> None:
    book = SyntheticSweep()
    book.collapsed("0000")
    book.lines = json.loads(json.dumps(book.lines).replace('"latent/active_kl": 0.0, ', ""))
    told = str(explain(book.journal(), "0"))
    sign = "latent/kl_total below 0.3; 2 reports in a row; latent/active_kl was never reported and is left out"
    assert f"the rule posterior_collapse ({sign}) held" in told


def test_a_trial_that_raised_has_saved_nothing() -> None:
    book = SyntheticSweep()
    book.failed("0000")
    assert "not spent" not in str(explain(book.journal(), "0"))
    assert rows(book.journal())[0]["epochs_saved"] == 0
    assert re.search(r"RuntimeError: out of memory +0 %", text_of(render_sweep(book.journal())))


def test_why_a_trial_collapsed_names_rule_values_thresholds_margin_and_savings(mixed: Journal) -> None:
    told = str(explain(mixed, "2"))
    assert "Trial 0002 of toy-ab12cd collapsed (posterior_collapse) at epoch 3 of 10, step 150." in told
    assert "posterior_collapse (latent/active_kl below 1 and latent/kl_total below 0.3; 2 reports in a row)" in told
    assert "total KL was 0.01, 0.002 nats at epochs 2, 3 (steps 100, 150): below 0.3 nats in 2 reports in a row" in told
    assert "1.9 decades beyond the threshold: latent/kl_total was 79.4 times smaller than 0.3" in told
    assert "7 of its 10 epochs (70 %) were not spent, about 14 s at its pace" in told
    assert "it cannot be chosen" in told
    assert re.search(r"loss\.beta +9\n", told)
    assert re.search(r"latent/kl_total +█.▁ +3 to 0\.002", told)


def test_why_tells_the_other_outcomes_too(mixed: Journal) -> None:
    assert "it is the best of the sweep" in explain(mixed, "1").headline
    assert "ended by its own early stopping" in explain(mixed, "1").headline
    assert "weak_code (latent/active_kl below 3)" in str(explain(mixed, "1"))
    assert "1.4 decades (25.1 times) away from the nearest rule" in str(explain(mixed, "0"))
    assert "At rung 4 ari 0.231 was worse than the cut-off 0.254 of 9 trials" in str(explain(mixed, "3"))
    assert "12 plus the share of the budget" in str(explain(mixed, "4"))
    assert 'File "train.py", line 3, in train' in str(explain(mixed, "5"))
    assert stop_reason(mixed, mixed.trials["0005"]) == "RuntimeError: out of memory"
    assert explain(mixed, "6").headline == "Trial 0006 of toy-ab12cd is waiting: 1 of 10 epochs (step 50)."


def ties_and_gaps() -> SyntheticSweep:
    book = SyntheticSweep(search=("loss.kind",))
    book.completed("0000", {"loss.kind": ""}, ari=[0.1, 0.4])
    book.completed("0001", {"loss.kind": "x"}, ari=[0.4, 0.3])
    book.trial("0002", {"loss.kind": "x"})
    for epoch, value in enumerate([float("nan"), 0.2, float("inf")], 1):
        book.epoch("0002", epoch, {"ari": value, "latent/kl_total": 8.0}, valid=epoch == 2)
    book.outcome("0002", "completed", epochs=3, best=Best(2, 100, {"ari": 0.2}, 2, 1, None), last={"ari": None})
    return book


def test_ties_epochs_without_a_value_and_empty_choices_are_said() -> None:
    book = ties_and_gaps().journal()
    shown = text_of(render_sweep(book))
    assert "best: trial 0000 with ari 0.4; 0001 has the same value" in shown
    assert re.search(r"^0000 .*  ''  ", shown, re.M)
    exported = export(book).replace("\n#    ", "")
    assert "searched: loss.kind=''" in exported and "trial 0001 has the same value" in exported
    why = str(explain(book, "2"))
    assert "2 of 3 epochs had no finite ari and cannot be the best" in why
    assert "loss.kind  ''" in str(explain(book, "0")) and "no finite" not in str(explain(book, "0"))


def test_why_tells_losses_and_attempts() -> None:
    book = SyntheticSweep()
    book.trial("0000")
    book.epoch("0000", 1, {"ari": 0.1})
    book.add(journal_lines.lost("0000", 1, reason="worker died (signal 9)"))
    book.start("0000", 2, resumed_from=1)
    attempts = dict(explain(book.journal(), "0").sections)["attempts"]
    assert attempts == (
        "attempt 1: slot 0 on node-a, from the beginning",
        "attempt 1 was lost: worker died (signal 9)",
        "attempt 2: slot 0 on node-a, from report 1",
    )


def test_a_rung_without_a_valid_value_and_one_without_a_cutoff_are_told() -> None:
    book = SyntheticSweep()
    book.trial("0000")
    book.add(journal_lines.rung("0000", 1, age=2, phase=0, value=0.3, cutoff=None, peers=1, decision="continue"))
    book.add(journal_lines.rung("0000", 1, age=6, phase=1, value=None, cutoff=0.4, peers=5, decision="stop"))
    book.outcome("0000", "pruned", epochs=6)
    told = str(explain(book.journal(), "0"))
    assert "at rung 2: went on with 0.3: no cut-off yet among 1 trial" in told
    assert "At rung 6 of phase 1 it had no valid epoch; the cut-off of 5 trials was 0.4" in told


def test_a_rule_is_told_with_votes_transforms_and_relative_thresholds() -> None:
    book = SyntheticSweep()
    book.lines[0]["rules"]["rules"]["odd"] = {
        "action": "warn", "votes": 2, "patience": 3,
        "signs": [
            {"metric": "a", "transform": "window_max_over_min", "above": {"relative_to": "b", "factor": 3.0}},
            {"metric": "latent/kl_total", "below": {"per_dim": 0.005}},
            {"metric": "ablation/delta", "transform": "absent"},
        ],
    }  # fmt: skip
    book.completed("0000", ari=[0.5], warnings=["odd"])
    book.lines = json.loads(json.dumps(book.lines).replace('"train/loss"', '"a"'))
    assert dict(explain(book.journal(), "0").sections)["warnings"] == (
        "odd (2 of: window max over min of a above 3 times b, latent/kl_total below 0.005 per dimension, "
        "ablation/delta absent; 3 reports in a row)",
    )


def test_a_margin_above_a_threshold_is_told_as_larger() -> None:
    book = SyntheticSweep()
    book.trial("0000")
    evidence = [{"metric": "fill", "transform": "value", "values": [50.0], "threshold": 0.5, "comparison": "above",
                 "reports": [[1, 10]]}]  # fmt: skip
    book.outcome("0000", "collapsed", kind="full", rule="full", margin=2.0, evidence=evidence)
    assert "2.0 decades beyond the threshold: fill was 100 times larger than 0.5" in str(explain(book.journal(), "0"))


def test_what_is_shown_of_a_kill_is_an_observation_that_held() -> None:
    """The margin may be computed from a metric that had not passed its threshold, and that is no reason to kill."""
    book = SyntheticSweep()
    book.trial("0000")
    at = {"transform": "value", "comparison": "below", "reports": [[9, 90]]}
    graded = {**at, "metric": "latent/kl_total", "values": [0.09], "threshold": 0.05}
    sign = {**at, "metric": "ablation/relative", "values": [0.03], "threshold": 0.06}
    book.outcome("0000", "collapsed", kind="dead", rule="dead", margin=0.001, evidence=[graded, sign])
    journal = book.journal()
    said = "the share of the loss that the latent code removes was 0.03 at epoch 9 (step 90): below 0.06"
    assert stop_reason(journal, journal.trial("0")) == said[:1].upper() + said[1:]
    lines = dict(explain(journal, "0").sections)["why"]
    assert said in lines
    told = "total KL was 0.09 nats at epoch 9 (step 90): not below 0.05 nats (only the margin is computed from it)"
    assert told in lines
    assert "margin +0.00: just beyond, because the rule held; latent/kl_total by itself had not come so far" in lines


def test_why_prints_text_with_brackets_as_it_stands() -> None:
    """Errors hold text such as `[Errno 28]`, which rich would take for markup."""
    book = SyntheticSweep()
    book.failed("0000", error="OSError: [Errno 28] No space left on device: [/tmp/x]")
    assert "[Errno 28] No space left on device: [/tmp/x]" in text_of(render_explanation(explain(book.journal(), "0")))
    assert "[Errno 28] No space left on device: [/tmp/x]" in " ".join(text_of(render_sweep(book.journal())).split())


# --- words ------------------------------------------------------------------------------------------------------------


def test_numbers_and_times_are_short() -> None:
    values = [None, True, 3, 3.0, 0.002137, 1234567, 31415.9, 3.1e8, "adam", [1, 2.5], float("nan")]
    assert [number(value) for value in values] == [
        "-", "true", "3", "3", "0.00214", "1,234,567", "31,416", "3.1e+08", "adam", "[1, 2.5]", "-",
    ]  # fmt: skip
    assert [duration(value) for value in (0.42, 42, 185, 7620)] == ["0.4 s", "42 s", "3 min 05 s", "2 h 07 min"]
    assert [times(value) for value in (1.25, 125.9, 3e9)] == ["1.2 times", "126 times", "about 10^9 times"]


def test_a_sparkline_shows_the_shape_in_few_characters() -> None:
    assert sparkline([0.0, 1.0, 2.0, None, 7.0]) == "▁▂▃·█"
    assert sparkline([1e-3, 1e-2, 1e-1, 1.0]) == "▁▃▆█"  # by the logarithm
    assert len(sparkline(list(map(float, range(1000))), width=40)) == 40


def test_records_do_not_change() -> None:
    record = mixed_sweep().journal().trials["0000"]
    with pytest.raises(AttributeError):
        record.state = "completed"  # type: ignore[misc]
    assert replace(record, state="failed") != record
    assert fold(mixed_sweep().lines).trials["0000"] == record


# --- for other programs -----------------------------------------------------------------------------------------------


def test_a_table_is_written_for_other_programs(mixed: Journal, tmp_path: Path) -> None:
    table = data_frame(rows(mixed), list(rows(mixed)[0]))
    table.loc[0, "kind"] = "a|b"
    assert write_table(table, None, tmp_path / "t.csv") == (tmp_path / "t.csv").read_text()
    again = pd.read_csv(tmp_path / "t.csv", dtype={"trial": str})
    assert list(again["trial"]) == list(table["trial"]) and list(again.columns) == list(table.columns)
    assert write_table(table, None, tmp_path / "sub" / "t.parquet") == ""
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "sub" / "t.parquet"), table, check_dtype=False)
    head, line, first, *_ = write_table(table, "markdown", None).splitlines()
    assert head.startswith("| trial | outcome | kind |") and set(line) == set("| -") and "a\\|b" in first
    for format_, output in (("parquet", None), (None, tmp_path / "t.xlsx"), ("csv", Path("/proc/nowhere/t.csv"))):
        with pytest.raises(BadInput):
            write_table(table, format_, output)


def test_the_verb_writes_it(mixed: Journal, tmp_path: Path) -> None:
    folder = mixed_sweep().write(tmp_path).parent
    told = CliRunner().invoke(app, ["table", str(folder), "--format", "csv", "-w", "outcome=collapsed"])
    assert told.exit_code == 0 and len(told.stdout.splitlines()) == 2
    told = CliRunner().invoke(app, ["table", str(folder), "-o", str(tmp_path / "it.md")])
    assert told.exit_code == 0 and (tmp_path / "it.md").read_text().count("\n") == 2 + len(rows(mixed))
