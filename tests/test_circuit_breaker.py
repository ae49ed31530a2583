"""The circuit breaker: a sweep whose first trials collapse stops, says where they lie, and can be gone on with."""

from __future__ import annotations

from typing import Any

import pytest
from journal_lines import Line, events_of
from sweeps import RULES, Toy, World, drive, spec, state

from buttress.errors import BadInput
from buttress.execution.setup import header
from buttress.journal.records import fold
from buttress.search.separation import Region
from buttress.spec.spec import SweepSpec

#: Nearly all of this space collapses: it does from a beta of 2 on.
DEADLY: dict[str, Any] = {
    "search": {"loss.beta": {"loguniform": [0.5, 1.0e5]}, "train.lr": {"uniform": [0.0, 1.0]}},
    "require": [],
    "budget": {"trials": 40},
    "breaker": {"first": 14, "collapsed": 0.75},
    "seed": 7,
}


def test_too_many_collapsed_among_the_first_stop_the_sweep_and_name_the_range() -> None:
    lines: list[Line] = []
    sweep = state(spec(**DEADLY), lines)
    drive(sweep)
    (line,) = [line for line in lines if line["line"] == "breaker"]
    dead = [trial for trial, end in sweep.outcomes.items() if end.dead]
    assert lines[-1] == line and line["collapsed"] == len(dead) == 11 and line["ended"] == len(sweep.outcomes) <= 14
    assert sweep.next_trial() is None and sweep.tripped is not None and sweep.tripped.to_line() == line
    (region,) = [Region.from_dict(region) for region in line["regions"]]
    assert (region.path, region.side) == ("loss.beta", "above")
    inside = sum(region.holds(sweep.proposals.explored.params[trial]) for trial in dead)
    assert region.by == "margins" and inside == region.dead >= 6


def test_it_goes_on_when_it_is_resumed_and_does_not_stop_again() -> None:
    lines: list[Line] = []
    drive(state(spec(**DEADLY), lines))
    stopped = len(lines)
    again = state(spec(**DEADLY), lines)
    again.replay(events_of(lines[:stopped]))
    drive(again)
    assert len(again.outcomes) == 40 and sum(line["line"] == "breaker" for line in lines) == 1


def test_a_journal_cut_before_its_line_gets_it_when_it_is_resumed() -> None:
    lines: list[Line] = []
    drive(state(spec(**DEADLY), lines))
    assert lines[-1]["line"] == "breaker"
    more: list[Line] = []
    again = state(spec(**DEADLY), more)
    again.replay(events_of(lines[:-1]))
    assert [line["line"] for line in more] == ["breaker"] and again.next_trial() is None
    assert {**more[0], "time": 0} == {**lines[-1], "time": 0}


def test_a_journal_from_before_there_was_a_breaker_is_gone_on_with() -> None:
    lines: list[Line] = []
    drive(state(spec(**{**DEADLY, "breaker": False}), lines))
    assert not [line for line in lines if line["line"] == "breaker"]
    again = state(spec(**{**DEADLY, "budget": {"trials": 44}}), lines)
    again.replay(events_of(lines))
    drive(again)
    assert len(again.outcomes) == 44 and not [line for line in lines if line["line"] == "breaker"]


@pytest.mark.parametrize("changes", [{"breaker": False}, {"breaker": {"first": 14, "collapsed": 1.0}}])
def test_it_can_be_switched_off_and_its_share_counts(changes: dict[str, Any]) -> None:
    sweep = state(spec(**{**DEADLY, **changes}))
    drive(sweep)
    assert len(sweep.outcomes) == 40 and sweep.tripped is None


def test_a_space_in_which_half_collapses_never_trips_it() -> None:
    sweep = state(spec(budget={"trials": 30}, breaker=True))
    drive(sweep)
    assert sweep.tripped is None and sweep.counts["collapsed"] + sweep.counts["diverged"] > 5


def test_later_trials_do_not_count() -> None:
    """Only the first ones say what the space is like, whatever the sampler does later."""

    class Late(World):
        def reports(self, config: dict[str, Any], from_epoch: int = 0) -> Any:
            beta = config["loss"]["beta"] if self.count >= 14 else 0.5
            self.count += 1
            return super().reports({**config, "loss": {**config["loss"], "beta": beta}}, from_epoch)

        count = 0

    sweep = state(spec(**DEADLY))
    drive(sweep, Late())
    assert sweep.tripped is None and sweep.counts["collapsed"] > 15


def test_the_journal_tells_it() -> None:
    made = spec(**DEADLY)
    lines: list[Line] = []
    drive(state(made, lines))
    journal = fold([header(made, Toy(), RULES, "toy-000000"), *lines])
    assert journal.breaker is not None and journal.breaker.collapsed == 11


@pytest.mark.parametrize(
    "given, key",
    [({"frist": 3}, "breaker.frist"), ({"first": 2}, "breaker.first"), ({"collapsed": 1.2}, "breaker.collapsed"),
     ("maybe", "breaker")],
)  # fmt: skip
def test_wrong_settings_are_told_in_a_sentence(given: Any, key: str) -> None:
    with pytest.raises(BadInput, match=rf"{key}: "):
        SweepSpec.from_dict({"trainable": "toy", "objectives": ["a"], "budget": {"trials": 3}, "breaker": given})
