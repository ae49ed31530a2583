"""The `buttress` command. Every verb imports what it needs when it is called: `--help` is fast, `table` needs no Ray.

Exit codes: 0 done; 1 a sweep without a healthy trial; 2 bad input; 3 an internal error (traceback in a file); 4 stopped
by its circuit breaker; 130 interrupted, by Ctrl-C or a full disk (the sweep can be resumed).
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from buttress.errors import BadInput
from buttress.journal import JournalUnwritable
from buttress.storage import LeaseLost, origin

app = typer.Typer(
    name="buttress",
    help="Search hyperparameters of models that collapse: a collapsed trial dies early, and never wins.\n\n"
    "Start with `buttress plan search_spaces/lithology.yaml --profile quick`, then `run`, `table`, `why`, `export`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
data_app = typer.Typer(help="Look at data before training on it.", no_args_is_help=True)
app.add_typer(data_app, name="data")
cluster_app = typer.Typer(help="Get a cluster ready for `ray up`.", no_args_is_help=True)
app.add_typer(cluster_app, name="cluster")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"buttress {version('buttress')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


Spec = Annotated[
    Path, typer.Argument(metavar="SPEC", help="The sweep's YAML file, such as search_spaces/lithology.yaml.")
]
Sweep = Annotated[
    str, typer.Argument(metavar="SWEEP", help="A sweep's folder or URL, or its name (or how that begins) under runs/.")
]
Profile = Annotated[str | None, typer.Option("--profile", "-p", help="A profile of the spec, such as `quick`.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change the spec (`budget.trials=8`) or fix a training "
                 "parameter (`config.train.epochs=5`). May be given several times."),
]
SetConfig = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="PATH=VALUE", help="Change the config (`train.epochs=5`). May be given several "
                 "times."),
]
WarmStart = Annotated[
    list[str] | None,
    typer.Option("--warm-start", metavar="SWEEP", help="Tell the sampler the trials of this earlier sweep first, "
                 "collapsed ones included. May be given several times."),
]
Address = Annotated[
    str | None,
    typer.Option("--address", envvar="RAY_ADDRESS", help="A running Ray cluster; by default Ray is started here."),
]
StepsPerEpoch = Annotated[
    int | None,
    typer.Option(min=1, help="Of curves that tell their epochs only (default 1,000) or their steps only (default: no "
                 "epoch is ever over).")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on the last line of standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress display.")]


@app.command()
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
    from buttress.execution.plan import make, show

    found = make(_warm(_load(spec, profile, set_), warm_start), address=address, timing=timing)
    show(found)
    if json_:
        _print_json(found.to_dict())


@app.command()
def run(
    spec: Spec,
    profile: Profile = None,
    set_: Set = None,
    out: Annotated[
        str, typer.Option("--out", "-o", help="The folder that holds sweeps, or a URL: s3://bucket/sweeps, gs://...")
    ] = "runs",
    warm_start: WarmStart = None,
    address: Address = None,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Run a sweep to its end. Ctrl-C leaves it ready for `buttress resume`."""
    from buttress.execution import driver

    _execute(driver.start(_warm(_load(spec, profile, set_), warm_start), out, address=address), quiet, json_)


@app.command()
def resume(
    sweep: Sweep,
    trials: Annotated[int | None, typer.Option(help="Raise the budget to this many trials.")] = None,
    hours: Annotated[float | None, typer.Option(help="Go on for at most this many hours.")] = None,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="On remote storage: do not wait for the lease of a driver that is gone.")
    ] = False,
    address: Address = None,
    quiet: Quiet = False,
    json_: Json = False,
) -> None:
    """Go on with a sweep that was interrupted or killed, from its journal; finished trials are not run again."""
    from buttress.execution import driver

    _execute(driver.resume(sweep, trials=trials, hours=hours, address=address, take_over=take_over), quiet, json_)


@app.command()
def status(sweep: Sweep, json_: Json = False) -> None:
    """How far a sweep is, who runs it, and what is best so far; works while it runs."""
    from buttress.analysis.render import status_of
    from buttress.journal import find, read

    journal = read(_found(find(sweep)).path)
    _console().print(status_of(journal))
    if json_:
        from buttress.analysis.selection import best_json

        _print_json({"sweep": journal.header.sweep, "counts": journal.counts(), "best": best_json(journal)})


@app.command()
def why(
    sweep: Sweep, trial: Annotated[str, typer.Argument(metavar="TRIAL", help="A trial, such as 7 or 0007.")]
) -> None:
    """Explain one trial: its outcome, the rule, values and thresholds behind it, and what was saved."""
    from buttress.analysis.explain import explain
    from buttress.analysis.render import explanation
    from buttress.journal import find, read

    _console().print(explanation(explain(read(_found(find(sweep)).path), trial)))


@app.command()
def table(
    sweep: Sweep,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", "-w", metavar="COLUMN=VALUE", help="Only such rows: `outcome=collapsed`, `margin>1`."),
    ] = None,
    sort: Annotated[str | None, typer.Option(help="Sort by this column, `-column` for descending.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every config value, not only the searched ones.")] = False,
    json_: Json = False,
) -> None:
    """The trial table: every trial, its parameters, its outcome, and why it was stopped."""
    from buttress.analysis import table as tables
    from buttress.analysis.render import overview
    from buttress.journal import find, read

    journal = read(_found(find(sweep)).path)
    rows = tables.rows(journal, all=all_)
    if where:
        rows = tables.where(rows, where)
    rows = tables.sort(rows, sort, journal)
    if json_:
        _print_json(rows)
    else:
        _console().print(overview(journal, rows))


@app.command()
def export(
    sweep: Sweep,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the config.")] = Path("best.yaml"),
    trial: Annotated[str | None, typer.Option("--trial", help="This trial instead of the best one.")] = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="Also copy the best epoch's weights, beside the config.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Export a trial that did not complete; write over foreign files.")
    ] = False,
) -> None:
    """Write the best trial's config, ready for `buttress train` or for the original trainer."""
    from buttress.analysis.export import NothingHealthy
    from buttress.execution.handover import export_best

    try:
        for path in export_best(sweep, output, trial=trial, weights=weights, force=force):
            typer.echo(f"wrote {path}")
    except NothingHealthy as error:
        _exit(str(error), 1)


@app.command()
def replay(
    curves: Annotated[
        str,
        typer.Argument(metavar="CURVES", help="A sweep, a CSV, Parquet or CollapseBench file, or a folder of files."),
    ],
    family: Annotated[str, typer.Option("--family", "-f", help="Whose rules, such as lithology or radio.")],
    rules: Annotated[Path | None, typer.Option(help="This rules file instead of the family's.")] = None,
    steps_per_epoch: StepsPerEpoch = None,
    json_: Json = False,
) -> None:
    """Show what rules would have done to recorded curves: kills, warnings, and where the truth is known, how right."""
    from buttress.analysis.curves import read
    from buttress.analysis.render import replayed
    from buttress.analysis.replay import result
    from buttress.execution.setup import rules_of

    read_, watching = read(curves, steps_per_epoch=steps_per_epoch), rules_of(family, rules)
    with _about(curves):
        found = result(read_, watching, family=family)
    _console().print(replayed(found))
    if json_:
        _print_json(found)


@app.command()
def calibrate(
    curves: Annotated[
        str, typer.Argument(metavar="CURVES", help="Curves whose end is known: CollapseBench, or a column `truth`.")
    ],
    family: Annotated[str, typer.Option("--family", "-f", help="Whose rules to begin with.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the rules.")] = Path("rules.yaml"),
    false_kill: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="At most this share of the healthy curves may be killed.")
    ] = 0.02,
    delay: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="A mean delay of this share of the budget is soon enough.")
    ] = 0.05,
    rules: Annotated[Path | None, typer.Option(help="Begin with this rules file instead of the family's.")] = None,
    steps_per_epoch: StepsPerEpoch = None,
    json_: Json = False,
) -> None:
    """Propose thresholds, grace and patience for a family's rules from curves whose end is known."""
    from buttress.analysis.calibrate import calibrate, write
    from buttress.analysis.curves import read
    from buttress.execution.setup import rules_of

    found = read(curves, steps_per_epoch=steps_per_epoch)
    direction = str(found.about.get("direction", "max"))
    limits = {"false_kill": false_kill, "delay": delay}
    start = rules_of(family, rules)
    with _about(curves):
        made = calibrate(start, found.curves, **limits, direction=direction, tell=typer.echo)
    given = {"family": family, "rules": rules, "steps-per-epoch": steps_per_epoch, **limits}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]
    typer.echo(write(made, output, command=shlex.join(["buttress", "calibrate", curves, *options])))
    if json_:
        _print_json({"rules": str(output), **made.to_dict()})


@app.command()
def train(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A config, such as one written by `buttress export`.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The folder to write to; default: runs/train-TIME.")
    ] = None,
    set_: SetConfig = None,
    json_: Json = False,
) -> None:
    """Train one config: writes model.pt, history.json and checkpoints, watched by the same rules as in a sweep."""
    from buttress.execution.handover import Collapsed, train_config

    folder = out or Path("runs") / time.strftime("train-%Y%m%d-%H%M%S")
    try:
        result = train_config(config, folder, set_ or [])
    except Collapsed as error:
        _exit(str(error), error.exit_code)
    typer.echo(f"wrote {folder}/model.pt and history.json; best valid epoch {result['epoch']}")
    if json_:
        _print_json(result)


@data_app.command("check")
def data_check(
    family: Annotated[str, typer.Argument(help="A family, such as lithology.")],
    path: Annotated[Path, typer.Argument(help="Its file or folder.")],
    set_: SetConfig = None,
) -> None:
    """Read data as the trainer would, and say what is in it."""
    from buttress.execution.handover import check_data

    _console().print(check_data(family, path, set_ or []))


@cluster_app.command("check")
def cluster_check(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Files for `ray up`, or RayCluster manifests for KubeRay.")
    ],
    spec: Annotated[
        Path | None, typer.Option("--spec", help="A sweep's YAML file: do its trials, and so many at once, fit?")
    ] = None,
    profile: Profile = None,
    set_: Set = None,
    json_: Json = False,
) -> None:
    """Find what would go wrong, without contacting anything: one sentence per fault; exit code 2 if there is one."""
    from buttress.cluster.check.check import check

    sweep = _load(spec, profile, set_) if spec else None
    checked = [check(path, sweep) for path in files]
    for each in checked:
        for finding in each.findings:
            typer.echo(str(finding))
        if not each.findings:
            typer.echo(each.line())
    if json_:
        _print_json([each.to_dict() for each in checked])
    if any(each.findings for each in checked):
        raise typer.Exit(2)


@cluster_app.command("token")
def cluster_token(
    path: Annotated[
        Path | None, typer.Option("--path", help="Where to write it; default: where Ray looks, ~/.ray/auth_token.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a token that is there.")] = False,
) -> None:
    """Make the token that a cluster asks for, as a file that only you can read. It is not printed."""
    from buttress.cluster.token import default_path, make

    typer.echo(f"wrote {make(path or default_path(), force=force)}")


@contextmanager
def _about(source: str) -> Iterator[None]:
    """What is wrong with curves is said to be wrong with `source`."""
    try:
        yield
    except BadInput as error:
        raise error.at(source) from None


def _warm(spec: Any, sweeps: list[str] | None) -> Any:
    return spec.model_copy(update={"warm_start": (*spec.warm_start, *sweeps)}) if sweeps else spec


def _load(path: Path, profile: str | None, overrides: list[str] | None) -> Any:
    from buttress.spec.spec import SweepSpec

    return SweepSpec.load(path, profile=profile, overrides=overrides or [])


def _found(found: Any) -> Any:
    if found.note:
        typer.echo(found.note, err=True)
    return found


def _execute(driver: Any, quiet: bool, json_: bool) -> None:
    """Runs a driver under its callbacks and reports the end."""
    from buttress.execution.watching import watched
    from buttress.sweep.result import CIRCUIT_BREAKER

    # as Ctrl-C does, also where Ctrl-C itself is ignored: in a shell script's background
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    finish = watched(driver, quiet=quiet)
    from buttress.analysis.audits import audits
    from buttress.analysis.render import overview
    from buttress.analysis.selection import best_json
    from buttress.journal import read

    journal = read(finish.folder, alive=False)
    best = best_json(journal)
    _console().print(overview(journal))
    if json_:
        counts, seconds = journal.counts(), round(finish.seconds, 3)
        told = {"sweep": finish.sweep, "counts": counts, "best": best, "seconds": seconds}
        if (audited := audits(journal)) is not None:
            told["audit"] = audited.to_dict()
        _print_json(told)
    if finish.interrupted:
        _exit(f"interrupted; go on with: buttress resume {finish.where}", 130)
    if journal.breaker is not None and finish.reason == CIRCUIT_BREAKER:
        from buttress.analysis.advice import breaker_sentence

        _exit(f"{breaker_sentence(journal.breaker)}; go on as it is with: buttress resume {finish.where}", 4)
    if best is None:
        _exit("no trial of this sweep is healthy; `buttress table` says why each was stopped", 1)


def _console() -> Any:
    from rich.console import Console

    width = None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", 120))
    return Console(highlight=False, width=width)


def _print_json(value: Any) -> None:
    sys.stdout.flush()
    print(json.dumps(value, allow_nan=False), flush=True)


def main() -> None:
    """The console script: `app` with our exit codes."""
    try:
        app()
    except BadInput as error:
        _exit(str(error), 2)
    except KeyboardInterrupt:
        _exit("interrupted", 130)
    except LeaseLost as error:
        _exit(f"{error}; this one has stopped and writes no more", 130)
    except JournalUnwritable as error:
        sweep = origin(Path(error.filename).parent) or Path(error.filename).parent
        _exit(f"{error.strerror} ({error.filename}); make room, then go on with: buttress resume {sweep}", 130)
    except Exception as error:
        path = Path(tempfile.gettempdir()) / f"buttress-error-{os.getpid()}.txt"
        path.write_text(traceback.format_exc())
        said = (str(error).splitlines() or [""])[0]
        _exit(f"internal error: {type(error).__name__}: {said} (traceback in {path})", 3)


def _exit(sentence: str, code: int) -> None:
    sys.stdout.flush()
    print(f"buttress: {sentence}", file=sys.stderr, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
