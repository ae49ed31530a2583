"""Warm starts: tells the sampler the trials of earlier sweeps before the first draw.

A trial can be told if the present space could have drawn it: every searched parameter's value (from the trial's config,
so that it may have been fixed then) lies in the range, and the config that the present spec builds from these values is
the trial's own, apart from `buttress:` (seed, threads, reports). Once the event is written the earlier sweeps are not
needed any more: a resume reads the event.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from buttress import journal
from buttress.errors import BadInput
from buttress.journal.events import Objective, WarmStarted
from buttress.journal.fields import plain
from buttress.journal.records import Journal, TrialRecord
from buttress.search.proposals import build
from buttress.spec import trial_config
from buttress.spec.fingerprint import data_fingerprint
from buttress.spec.parameters import Parameter
from buttress.spec.spec import SweepSpec
from buttress.storage import is_url
from buttress.wording import listing, plural


def resolve_sweeps(spec: SweepSpec) -> SweepSpec:
    """The spec with its `warm_start` as folders and URLs.

    To be called before the new sweep's folder is made: a name stands for the newest sweep of that name.

    Raises:
        BadInput: a sweep is not there.
    """
    found = []
    for index, where in enumerate(spec.warm_start):
        try:
            path = journal.find(where).path
        except BadInput as error:
            problem = f"this earlier sweep cannot be read ({error.problem})"
            raise spec.error(problem, key=f"warm_start.{index}", value=where, accepted=error.accepted) from None
        found.append(where if is_url(where) else os.fspath(path.parent.absolute()))
    return spec.model_copy(update={"warm_start": tuple(found)}) if found else spec


def collect(spec: SweepSpec, trainable: Any) -> WarmStarted:
    """The event of a warm start.

    Raises:
        BadInput: no earlier trial can be told to the sampler.
    """
    told: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    seen: set[str] = set()
    for where in spec.warm_start:
        earlier = journal.read(journal.find(where).path)
        if earlier.header.sweep in seen:
            continue
        seen.add(earlier.header.sweep)
        foreign, reasons = _foreign(earlier, spec), Counter[str]()
        for record in earlier.trials.values():
            params, reason = (None, foreign) if foreign else _converted(record, spec, trainable)
            if params is None:
                reasons[str(reason)] += 1
            else:
                told.append(_entry(earlier, record, params))
        left_out += [{"sweep": earlier.header.sweep, "reason": why, "count": count} for why, count in reasons.items()]
    event = WarmStarted(told=tuple(plain(told)), left_out=tuple(plain(left_out)))
    if not told:
        raise spec.error(describe(event), key="warm_start", value=list(spec.warm_start))
    return event


def describe(event: WarmStarted) -> str:
    """A warm start in words."""
    told, left_out = event.told, sum(entry["count"] for entry in event.left_out)
    dead = sum(entry["outcome"] in ("collapsed", "diverged") for entry in told)
    text = f"{len(told)} of {plural(len(told) + left_out, 'trial')} of earlier sweeps are told to the sampler"
    text += f", {dead} of them collapsed" if dead else ""
    reasons = Counter[str]()
    for entry in event.left_out:
        reasons[entry["reason"]] += entry["count"]
    return text + (f"; left out: {listing([f'{count} ({why})' for why, count in reasons.items()])}" if reasons else "")


# --- one sweep, one trial ---------------------------------------------------------------------------------------------


def _foreign(earlier: Journal, spec: SweepSpec) -> str | None:
    """Why none of an earlier sweep's trials can be told; None: some may."""
    if earlier.header.trainable != spec.trainable:
        return f"trained {earlier.header.trainable}"
    present = tuple(Objective(each.metric, each.direction or "min") for each in spec.objectives)
    if earlier.objectives != present:
        return f"objective {', '.join(f'{each.metric} ({each.direction})' for each in earlier.objectives)}"
    sizes = [
        {key: entry["bytes"] for key, entry in files.items()}
        for files in (earlier.header.data.get("files") or {}, data_fingerprint(spec)["files"])
    ]
    return "other data files" if sizes[0] != sizes[1] else None


def _converted(record: TrialRecord, spec: SweepSpec, trainable: Any) -> tuple[dict[str, Any] | None, str | None]:
    """The trial as a draw of the present space, or None and why it is none."""
    if record.outcome is None:
        return None, "unfinished"
    if record.outcome.outcome == "failed":
        return None, "failed"
    try:
        was = trainable.Config.model_validate(record.config).model_dump(mode="json")
    except ValidationError:
        return None, "config refused by the present trainer"
    params: dict[str, Any] = {}
    for path, parameter in trial_config.active_parameters(spec, params, trainable.Config):
        paths = spec.searched[path]
        held = _at(was, path) if paths == (path,) else {each: _at(was, each) for each in paths}
        value = inside(parameter, held)
        if value is _OUTSIDE:
            return None, f"{path} outside the space"
        params[path] = value
    config, reason = build(spec, trainable, params, record.seed or 0)
    if reason is not None:
        return None, f"refused by the present spec: {reason}"
    other = _difference(was, config.model_dump(mode="json"))
    return (None, f"another {other}") if other is not None else (params, None)


_OUTSIDE = object()


def inside(parameter: Parameter, value: Any) -> Any:
    """The value as the parameter would draw it; `_OUTSIDE` where it could not."""
    if parameter.choices is not None:
        same = [each for each in parameter.choices if _agrees(each, value)]
        exact = [each for each in same if type(each) is type(value) and each == value]
        return max(exact or same, key=lambda each: len(each) if isinstance(each, Mapping) else 0, default=_OUTSIDE)
    assert parameter.low is not None and parameter.high is not None
    if isinstance(value, bool) or not isinstance(value, int | float) or not parameter.low <= value <= parameter.high:
        return _OUTSIDE
    if parameter.whole and not float(value).is_integer():
        return _OUTSIDE
    if parameter.step is not None:
        steps = (value - parameter.low) / parameter.step
        if abs(steps - round(steps)) > 1e-9 * max(1.0, steps):
            return _OUTSIDE
    return int(value) if parameter.whole else float(value)


def _agrees(choice: Any, held: Any) -> bool:
    """Whether a config that holds `held` may have been built of `choice`, whose mappings name only part of theirs."""
    if isinstance(choice, Mapping) and isinstance(held, Mapping):
        return all(name in held and _agrees(each, held[name]) for name, each in choice.items())
    if isinstance(choice, list) and isinstance(held, list):
        return len(choice) == len(held) and all(map(_agrees, choice, held))
    return isinstance(choice, bool) == isinstance(held, bool) and bool(choice == held)  # true is no 1


def _at(tree: Any, path: str) -> Any:
    for name in path.split("."):
        if not isinstance(tree, Mapping) or name not in tree:
            return _OUTSIDE
        tree = tree[name]
    return tree


def _difference(one: Mapping[str, Any], other: Mapping[str, Any], above: str = "") -> str | None:
    """The first config path at which two configs differ, `buttress:` apart; None if they are the same."""
    for name in {**one, **other}:
        path = f"{above}{name}"
        here, there = one.get(name), other.get(name)
        if path == "buttress" or here == there:
            continue
        if isinstance(here, Mapping) and isinstance(there, Mapping):
            if (inner := _difference(here, there, f"{path}.")) is not None:
                return inner
            continue
        return path
    return None


def _entry(earlier: Journal, record: TrialRecord, params: dict[str, Any]) -> dict[str, Any]:
    """What is told of a trial: what `sampler_result` takes."""
    done = record.outcome
    assert done is not None
    metrics = done.best.metrics if done.best else {}
    values = {each.metric: metrics.get(each.metric) for each in earlier.objectives}
    return {
        "sweep": earlier.header.sweep,
        "trial": record.id,
        "params": params,
        "outcome": done.outcome,
        "kind": done.kind,
        "margin": done.margin,
        "best": {"metrics": values} if done.outcome == "completed" else None,
        "by_age": _by_age(earlier, record) if done.outcome == "pruned" else {},
    }


def _by_age(earlier: Journal, record: TrialRecord) -> dict[int, float]:
    """Full-beta age -> best valid value of the first objective by then."""
    first, best = earlier.objectives[0], None
    found: dict[int, float] = {}
    for report in record.reports:
        value = report.metrics.get(first.metric)
        if report.valid and value is not None:
            best = value if best is None or first.better(value, best) else best
            found[report.full_beta_epochs] = best
    return found
