"""Lists the sweeps of a folder or a URL, and says in what two sweeps or two trials differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from buttress.analysis.selection import best_epoch, best_trial, objective_value
from buttress.analysis.table import flatten
from buttress.errors import BadInput
from buttress.journal import FILE, Journal, TrialRecord, find, owner, read
from buttress.storage import Storage, is_url, unreachable


class Listed(NamedTuple):
    """One sweep in a list.

    Attributes:
        name: Its id.
        state: `running`; why it ended (`budget spent`, `interrupted`); `killed`; or `damaged: ...`.
        trials: Trials by state.
        best: Value of the first objective of the best trial; None without one.
        objective: Name of that objective.
        time: When it began, in seconds since 1970; 0 where that cannot be read.
    """

    name: str
    state: str
    trials: dict[str, int]
    best: float | None
    objective: str
    time: float


def list_sweeps(where: str = "runs") -> list[Listed]:
    """The sweeps under a folder or a URL, the newest first.

    Args:
        where: A folder that holds sweeps, or a URL such as `s3://bucket/sweeps`.

    Raises:
        BadInput: There is no such folder, or the storage cannot be reached.
    """
    if is_url(where):
        store = Storage(where)
        try:
            places = [f"{where.rstrip('/')}/{name}" for name in store.folders()]
        except OSError as error:
            raise unreachable(store, error) from None
    elif Path(where).is_dir():
        places = [str(folder) for folder in Path(where).iterdir() if (folder / FILE).is_file()]
    else:
        accepted = "a folder that holds sweeps, or a URL"
        raise BadInput("there is no such folder", key="RUNS", value=where, accepted=accepted)
    found = [listed for place in places if (listed := _listed(place)) is not None]
    return sorted(found, key=lambda each: (-each.time, each.name))


def _listed(place: str) -> Listed | None:
    """One sweep, damaged ones included; None for another folder of a URL."""
    try:
        path = find(place).path
        alive = owner(path) is not None
        journal = read(path, alive=alive)
    except BadInput as error:
        return None if is_url(place) else Listed(Path(place).name, f"damaged: {error.problem}", {}, None, "", 0.0)
    winner, first = best_trial(journal), journal.objectives[0]
    value = objective_value(winner, journal.objectives) if winner is not None else None
    state = "running" if alive else journal.ended.reason if journal.ended is not None else "killed"
    return Listed(journal.header.sweep, state, journal.counts(), value, first.metric, journal.header.time)


class Difference(NamedTuple):
    """A value that is not the same: where it stands, and what it is on either side (None: it is not there)."""

    where: str
    one: Any
    other: Any


def compare_trials(one: tuple[Journal, str], other: tuple[Journal, str]) -> list[Difference]:
    """In what two trials differ: config, how they ended, metrics at the best valid epoch.

    Args:
        one: A sweep, and number or id of its trial.
        other: Likewise; of the same sweep or another one.

    Raises:
        BadInput: There is no such trial.
    """
    return _differences(*(_trial_values(journal, journal.trial(trial)) for journal, trial in (one, other)))


def compare_sweeps(one: Journal, other: Journal) -> list[Difference]:
    """In what two sweeps differ: spec, rules, versions, how many trials ended as what, and the best trial."""
    return _differences(_sweep_values(one), _sweep_values(other))


def _trial_values(journal: Journal, record: TrialRecord) -> dict[str, Any]:
    done, best = record.outcome, best_epoch(record, journal.objectives)
    values: dict[str, Any] = {f"config.{path}": value for path, value in flatten(record.config).items()}
    values |= {"outcome": record.state, "warnings": list(record.warnings)}
    if done is not None:
        values |= {"kind": done.kind, "margin": done.margin, "epochs": done.epochs}
    if best is not None:
        values |= {"best.epoch": best.epoch, **{f"metric.{name}": value for name, value in best.metrics.items()}}
    return values


def _sweep_values(journal: Journal) -> dict[str, Any]:
    header, winner = journal.header, best_trial(journal)
    values: dict[str, Any] = {f"spec.{path}": value for path, value in flatten(header.spec).items()}
    values |= {f"rules.{path}": value for path, value in flatten(dict(header.rules)).items()}
    values |= {f"versions.{name}": version for name, version in header.versions.items()}
    values |= {"commit": header.commit, **{f"data.{path}": value for path, value in flatten(header.data).items()}}
    values |= {f"trials.{state}": count for state, count in journal.counts().items()}
    if winner is not None:
        first = journal.objectives[0].metric
        values |= {f"best.{first}": objective_value(winner, journal.objectives)}
        values |= {f"best.{path}": value for path, value in winner.params.items()}
    return values


def _differences(one: dict[str, Any], other: dict[str, Any]) -> list[Difference]:
    missing = object()
    return [
        Difference(where, one.get(where), other.get(where))
        for where in dict.fromkeys([*one, *other])
        if (a := one.get(where, missing)) is not (b := other.get(where, missing)) and (type(a) is not type(b) or a != b)
    ]
