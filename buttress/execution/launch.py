"""Begins new sweeps and resumes interrupted ones: checks what is asked for and makes their drivers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from buttress import journal
from buttress.errors import BadInput, from_pydantic
from buttress.execution.driver import Driver
from buttress.execution.ray_session import free_resources
from buttress.execution.setup import located_in, new_id, spec_was_edited
from buttress.journal.events import Header, Resumed
from buttress.journal.mirror import origin
from buttress.rules import RuleSet
from buttress.search.warm_start import resolve_sweeps
from buttress.spec.sections import Budget
from buttress.spec.spec import SweepSpec
from buttress.storage import Storage, is_url


def start(spec: SweepSpec, out: Path | str, *, sweep: str | None = None, **options: Any) -> Driver:
    """A new sweep in its own folder under `out`, a folder or a URL, which is made once the spec is found good.

    Raises:
        BadInput: the sweep cannot run, or its folder cannot be made.
    """
    sweep = sweep or new_id(spec.name)
    store = Storage(str(out)).folder(sweep) if is_url(out) else None
    driver = Driver(resolve_sweeps(spec), Path(out) / sweep, sweep=sweep, store=store, **options)
    if driver.address is None:
        _refuse_what_does_not_fit(spec)
    if store is not None:
        from buttress.journal.remote import spool

        driver.folder = spool(store)
        return driver
    try:
        driver.folder.mkdir(parents=True, exist_ok=False)
    except OSError as error:
        problem = f"the sweep's folder cannot be made ({error.strerror})"
        raise BadInput(problem, where=driver.folder, key="--out") from None
    return driver


def _refuse_what_does_not_fit(spec: SweepSpec) -> None:
    """Of a sweep that would start Ray on this machine: whether a trial fits is known before."""
    free = free_resources()  # it prepares the environment in which Ray is imported
    import ray

    from buttress.execution.worker_pool import resolve_concurrency

    if not ray.is_initialized():
        with located_in(spec):
            resolve_concurrency(spec.resources, [free])


def resume(
    where: str | os.PathLike[str], *, trials: int | None = None, hours: float | None = None, **options: Any
) -> Driver:
    """The sweep at `where`, to go on from its journal; `trials` and `hours` raise its budget."""
    path = journal.find(where).path
    if (store := origin(path.parent)) is not None:
        from buttress.journal.remote import fetch

        path = fetch(store) / journal.FILE
        options = {**options, "store": store}
    events = list(journal.events(path))
    first = events[0]
    assert isinstance(first, Header)
    given = {name: value for name, value in (("trials", trials), ("hours", hours)) if value is not None}
    for name, value in given.items():
        _check_budget(name, value)
    changed: dict[str, Any] = {}
    for event in events:
        changed |= event.budget if isinstance(event, Resumed) else {}
    changed |= given
    tree = {**first.spec, "budget": {**first.spec["budget"], **changed}}
    spec = SweepSpec.from_dict(tree, where=path, module_folders=first.module_folders)
    rules = RuleSet.from_dict(first.rules, where=path)
    options["changed_budget"] = changed
    driver = Driver(spec, path.parent, sweep=first.sweep, earlier=events[1:], rules=rules, **options)
    if (edited := spec_was_edited(first)) is not None:
        driver.notes.append(edited)
    return driver


def _check_budget(name: str, value: Any) -> None:
    """A budget given to `resume`: it would be a year's sweep, or an endless one, otherwise."""
    try:
        Budget.model_validate({name: value})
    except ValidationError as error:
        bad = from_pydantic(error, Budget)
        raise BadInput(bad.problem, key=f"--{name}", value=value, accepted=bad.accepted) from None
