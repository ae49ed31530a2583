"""What a sweep's collapsed trials have in common stands below its table, in `why`, and in what the breaker says."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from journal_lines import Line
from rich.console import Console
from sweeps import RULES, Toy, drive, spec, state

from buttress.analysis.collapse_regions import (
    breaker_sentence,
    collapse_regions,
    collapse_sentence,
    region_sentence,
    trial_fates,
)
from buttress.analysis.explanation import explain
from buttress.analysis.render import render_sweep
from buttress.execution.setup import header
from buttress.journal.events import CircuitBroken
from buttress.journal.records import Journal, fold
from buttress.search.separation import Region

BETA = Region("loss.beta", "above", 2.0, 14, 15, 1, 5, 0.001).to_dict()
LR = Region("train.lr", "below", 0.01, 4, 4, 11, 16, 0.03).to_dict()


def ran(**changes: Any) -> tuple[Journal, list[Line]]:
    made, lines = spec(**{"budget": {"trials": 40}, **changes}), list[Line]()
    drive(state(made, lines))
    return fold([header(made, Toy(), RULES, "toy-000000"), *lines]), lines


@pytest.fixture(scope="module")
def journal() -> Journal:
    return ran()[0]


def printed(journal: Journal) -> str:
    console = Console(width=160, record=True, file=StringIO())
    console.print(render_sweep(journal))
    return console.export_text()


def test_the_table_says_what_collapse_goes_with(journal: Journal) -> None:
    sentence = collapse_sentence(journal)
    assert sentence is not None and sentence.startswith("collapse goes with loss.beta ")
    assert "loss.beta below 0.04 " in sentence and "loss.beta above " in sentence  # it diverges at one end
    assert sentence in printed(journal).replace("\n", " ") and "collapsed there" in sentence


def test_why_says_in_which_range_a_collapsed_trial_lay(journal: Journal) -> None:
    region = next(region for region in collapse_regions(journal) if region.side == "above")
    inside = [r for r in journal.trials.values() if r.state == "collapsed" and r.params["loss.beta"] > region.value]
    living = next(r for r in journal.trials.values() if r.state == "completed")
    assert inside and f"it lay in loss.beta above {region.value:g}" in str(explain(journal, inside[0].id))
    assert region_sentence(journal, living) is None and "it lay in" not in str(explain(journal, living.id))


def test_failed_trials_have_no_fate_and_diverged_ones_no_margin(journal: Journal) -> None:
    diverged = [record for record in journal.trials.values() if record.state == "diverged"]
    found = trial_fates(journal)
    assert diverged and len(found) == len(journal.trials)
    margins = {fate.params["loss.beta"]: fate.margin for fate in found}
    assert all(margins[record.params["loss.beta"]] is None for record in diverged)


def test_a_sweep_in_which_nothing_collapses_says_nothing() -> None:
    quiet, _ = ran(search={"loss.beta": {"loguniform": [0.1, 1.0]}})
    assert collapse_sentence(quiet) is None and "collapse goes with" not in printed(quiet)


def test_the_breaker_names_the_ranges_to_narrow_or_says_that_there_are_none() -> None:
    broken = CircuitBroken(time=0.0, first=20, ended=19, collapsed=18, regions=(BETA, LR))
    assert breaker_sentence(broken) == (
        "the circuit breaker stopped the sweep: 18 of its first 20 trials (19 of them have ended) collapsed, with "
        "loss.beta above 2 (14 of 15 collapsed there, 1 of 5 elsewhere) and train.lr below 0.01 (4 of 4 collapsed "
        "there, 11 of 16 elsewhere); narrow loss.beta and train.lr"
    )
    assert "no searched range separates them" in breaker_sentence(
        CircuitBroken(time=0.0, first=20, ended=20, collapsed=20)
    )


def test_a_tripped_sweep_says_so_below_its_table_until_it_is_resumed() -> None:
    deadly = {
        "search": {"loss.beta": {"loguniform": [0.5, 1.0e5]}, "train.lr": {"uniform": [0.0, 1.0]}}, "require": [],
        "breaker": {"first": 14, "collapsed": 0.75}, "seed": 7,
    }  # fmt: skip
    tripped, lines = ran(**deadly)
    assert "the circuit breaker stopped the sweep: 11 of its first 14 trials" in printed(tripped)
    resume = {"line": "resume", "time": lines[-1]["time"] + 1}
    again = fold([header(spec(), Toy(), RULES, "toy-000000"), *lines, resume])
    assert "circuit breaker" not in printed(again)
