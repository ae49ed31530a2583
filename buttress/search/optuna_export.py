"""Writes a sweep as an Optuna study into a storage that Optuna's own tools open."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from buttress.errors import BadInput
from buttress.journal import Journal, TrialRecord
from buttress.search.importance import holds
from buttress.search.optuna_study import distribution, sampler_result
from buttress.spec.parameters import Parameter, choice_key

ACCEPTED = "sqlite:///study.db, another database URL, or a .log file (Optuna's journal)"


def export_study(journal: Journal, storage: str) -> str:
    """Writes every trial of a sweep: parameters, values, intermediate values, constraints and what became of it.

    A completed trial is COMPLETE, a running one RUNNING; collapsed, diverged and pruned ones are PRUNED, as the sweep's
    own sampler was told them, with the constraint `collapse` (decades beyond the nearest rule, above 0 infeasible).
    User attributes: `trial`, `outcome`, `kind`, `rule`, `margin`, `epochs`, `seconds`, `message`.

    Args:
        journal: The sweep; it becomes the study of its name.
        storage: A database URL as in `optuna.create_study`, or a file that ends in `.log`.

    Returns:
        Name of the study.

    Raises:
        BadInput: The storage cannot be written, or holds a study of this name.
    """
    name = journal.header.sweep
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the journal storage is marked as experimental
        try:
            study = optuna.create_study(
                storage=_storage(storage), study_name=name,
                directions=["maximize" if each.direction == "max" else "minimize" for each in journal.objectives],
            )  # fmt: skip
        except optuna.exceptions.DuplicatedStudyError:
            raise BadInput("holds a study of this name already", key="--optuna", value=storage,
                           accepted="another file") from None  # fmt: skip
        except Exception as error:  # whatever the database says
            problem = f"cannot be opened ({str(error).splitlines()[0]})"
            raise BadInput(problem, key="--optuna", value=storage, accepted=ACCEPTED) from None
        study.set_metric_names([each.metric for each in journal.objectives])
        study.set_user_attr("buttress", {"sweep": name, "trainable": journal.header.trainable})
        space = _space(journal)
        study.add_trials([_frozen(journal, record, space) for record in journal.trials.values()])
    return name


def _storage(given: str) -> Any:
    if "://" in given:
        return given
    if Path(given).suffix != ".log":
        raise BadInput("is not a storage of Optuna", key="--optuna", value=given, accepted=ACCEPTED)
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(given))


def _frozen(journal: Journal, record: TrialRecord, space: Mapping[str, tuple[BaseDistribution, bool]]) -> FrozenTrial:
    done, first = record.outcome, journal.objectives[0]
    values = None
    if done is not None and done.outcome == "completed" and done.best is not None:
        found = [done.best.metrics.get(each.metric) for each in journal.objectives]
        values = [float(value) for value in found if value is not None]
    complete = values is not None and len(values) == len(journal.objectives)
    result = sampler_result(done.outcome, kind=done.kind, margin=done.margin) if done is not None else None
    state = TrialState.RUNNING if result is None else TrialState.COMPLETE if complete else result.state
    if state is TrialState.COMPLETE and not complete:
        state = TrialState.FAIL
    reported = {report.epoch: value for report in record.reports
                if report.epoch > 0 and (value := report.metrics.get(first.metric)) is not None}  # fmt: skip
    about = {
        "trial": record.id, "outcome": record.state,
        **({"kind": done.kind, "rule": done.rule, "margin": done.margin, "epochs": done.epochs,
            "seconds": done.seconds, "message": done.message} if done is not None else {}),
    }  # fmt: skip
    frozen = optuna.trial.create_trial(
        state=state,
        values=values if state is TrialState.COMPLETE else None,
        params={path: choice_key(value) if space[path][1] else value for path, value in record.params.items()},
        distributions={path: space[path][0] for path in record.params},
        intermediate_values=reported if len(journal.objectives) == 1 else None,
        constraints=dict(result.constraints) if result is not None else None,
        user_attrs={key: value for key, value in about.items() if value is not None},
    )
    begun = record.attempts[0].time if record.attempts else record.time
    frozen.datetime_start = datetime.fromtimestamp(begun)
    frozen.datetime_complete = datetime.fromtimestamp(done.time) if done is not None else None
    return frozen


def _space(journal: Journal) -> dict[str, tuple[BaseDistribution, bool]]:
    """The searched space, and whether it holds values as texts (`choice_key`).

    It is widened where trials lie outside of it: ranges may have been changed on the way.
    """
    search: Mapping[str, Any] = journal.header.spec.get("search") or {}
    drawn: dict[str, list[Any]] = {}
    for record in journal.trials.values():
        for path, value in record.params.items():
            drawn.setdefault(path, []).append(value)
    space: dict[str, tuple[BaseDistribution, bool]] = {}
    for path, values in drawn.items():
        parameter = Parameter.model_validate(dict(search[path])) if path in search else None
        choices = parameter.choices if parameter is not None else None
        made = distribution(parameter) if parameter is not None and choices is None else None
        if made is not None and not all(holds(made, value) for value in values):
            made = _widened(made, values)
        space[path] = (made, False) if made is not None else _categories([*(choices or ()), *values])
    return space


def _widened(made: BaseDistribution, values: Sequence[Any]) -> BaseDistribution | None:
    """The range with all values in it; None where it cannot hold them."""
    assert isinstance(made, FloatDistribution | IntDistribution)
    if not all(isinstance(value, int | float) and (value > 0 or not made.log) for value in values):
        return None
    low, high = min(made.low, *values), max(made.high, *values)
    if isinstance(made, IntDistribution) and all(float(value).is_integer() for value in values):
        return IntDistribution(int(low), int(high), log=made.log)
    return FloatDistribution(low, high, log=made.log)


def _categories(values: Sequence[Any]) -> tuple[CategoricalDistribution, bool]:
    """Choices as they are where Optuna tells them apart (true, 1 and 1.0 are one to it), else texts; which of both."""
    keys = list(dict.fromkeys(map(choice_key, values)))
    distinct = [json.loads(key) for key in keys]
    plain = all(isinstance(each, str | int | float | None) for each in distinct) and len({*distinct}) == len(distinct)
    return CategoricalDistribution(distinct if plain else keys), not plain
