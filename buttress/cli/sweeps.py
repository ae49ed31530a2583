"""The verbs that run sweeps: `plan`, `run`, `resume`, `status`."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Annotated

import typer

from buttress.cli.options import Address, Json, Profile, Quiet, Report, Set, Spec, Sweep, WarmStart, named
from buttress.cli.output import console, leave, print_json

if TYPE_CHECKING:
    from buttress.analysis import results


def plan(
    spec: Spec,
    profile: Profile = None,
    set_: Set = None,
    warm_start: WarmStart = None,
    address: Address = None,
    timing: Annotated[bool, typer.Option(help="Time two training steps to estimate how long the sweep takes.")] = True,
    json_: Json = False,
) -> None:
    """Show what a sweep will run and what it needs, before anything starts."""
    from buttress import api

    found = api.plan(spec, profile=profile, set=set_, warm_start=warm_start or (), address=address, timing=timing)
    console().print(found)
    if json_:
        print_json(found.to_dict())


def run(
    spec: Spec,
    profile: Profile = None,
    set_: Set = None,
    out: Annotated[
        str,
        typer.Option(
            "--out", "-o", callback=named, help="The folder that holds sweeps, or a URL: s3://bucket/sweeps, gs://..."
        ),
    ] = "runs",
    warm_start: WarmStart = None,
    address: Address = None,
    report: Report = False,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Run a sweep to its end. Ctrl-C leaves it ready for `buttress resume`."""
    from buttress import api

    _stop_on_sigterm()
    sweep = api.run(
        spec, profile=profile, set=set_, out=out, warm_start=warm_start or (), address=address, report=report,
        quiet=quiet,
    )
    _report(sweep, json_)


def resume(
    sweep: Sweep,
    trials: Annotated[int | None, typer.Option(help="Raise the budget to this many trials.")] = None,
    hours: Annotated[float | None, typer.Option(help="Go on for at most this many hours.")] = None,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="On remote storage: do not wait for the lease of a driver that is gone.")
    ] = False,
    address: Address = None,
    report: Report = False,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Go on with a sweep that was interrupted or killed, from its journal; finished trials are not run again."""
    from buttress import api

    _stop_on_sigterm()
    found = api.resume(
        sweep, trials=trials, hours=hours, address=address, take_over=take_over, report=report, quiet=quiet
    )
    _report(found, json_)


def status(sweep: Sweep, json_: Json = False) -> None:
    """How far a sweep is, who runs it, and what is best so far; works while it runs."""
    from buttress.analysis.render import render_status
    from buttress.analysis.selection import best_json
    from buttress.cli.results import load

    journal = load(sweep).journal
    console().print(render_status(journal))
    if json_:
        print_json({"sweep": journal.header.sweep, "counts": journal.counts(), "best": best_json(journal)})


def _stop_on_sigterm() -> None:
    """SIGTERM ends a sweep as Ctrl-C does, also where Ctrl-C itself is ignored: in a shell script's background."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _report(sweep: results.Sweep, json_: bool) -> None:
    """Prints how a sweep ended and exits with the code that says so."""
    from buttress.analysis.audits import audit_summary
    from buttress.analysis.collapse_regions import breaker_sentence
    from buttress.analysis.render import render_sweep
    from buttress.analysis.selection import best_json
    from buttress.sweep.result import CIRCUIT_BREAKER

    journal = sweep.journal
    best = best_json(journal)
    console().print(render_sweep(journal))
    if json_:
        seconds = journal.ended.seconds if journal.ended is not None else None
        found = {"sweep": sweep.name, "counts": journal.counts(), "best": best, "seconds": seconds}
        if (audited := audit_summary(journal)) is not None:
            found["audit"] = audited.to_dict()
        print_json(found)
    if sweep.interrupted:
        leave(f"interrupted; go on with: buttress resume {sweep.where}", 130)
    if journal.breaker is not None and sweep.status == CIRCUIT_BREAKER:
        leave(f"{breaker_sentence(journal.breaker)}; go on as it is with: buttress resume {sweep.where}", 4)
    if best is None:
        leave("no trial of this sweep is healthy; `buttress table` says why each was stopped", 1)
