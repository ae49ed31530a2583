"""The `buttress` command: its verbs, its help and its exit codes.

Exit codes: 0 done; 1 a sweep without a healthy trial; 2 bad input; 3 an internal error (traceback in a file); 4 stopped
by its circuit breaker; 130 interrupted, by Ctrl-C or a full disk (the sweep can be resumed). Every verb imports what it
needs when it is called: `--help` is fast, `table` needs no Ray.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Annotated

import typer

from buttress.cli import cluster, figures, init, listing, requests, results, rules, sweeps, training
from buttress.cli.output import close_output, leave, prepare_streams, say
from buttress.errors import BadInput, printable

HELP = """Search hyperparameters of models that collapse: a collapsed trial dies early, and never wins.

A first sweep, on this machine:

    buttress plan   lithology --profile quick  # what will run, and for how long
    buttress run    lithology --profile quick  # Ctrl-C leaves it resumable
    buttress table  lithology                  # every trial, and why it ended
    buttress why    lithology 3                # one trial in words
    buttress report lithology                  # all of it as one HTML page, with pictures
    buttress export lithology -o best.yaml     # the best config ...
    buttress train  best.yaml                  # ... trains to the same figures

A model of your own: `buttress init own`. `buttress VERB --help` explains a verb and its options.
"""
EXIT_CODES = (
    "Exit codes: 0 done, 1 no healthy trial, 2 bad input, 3 internal error, 4 stopped by the circuit breaker, "
    "130 interrupted (after 4 and 130 `buttress resume` goes on)."
)

app = typer.Typer(
    name="buttress",
    help=HELP,
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
RUN, STEER, READ, RULES, MORE = "Run sweeps", "Steer a running sweep", "Read sweeps", "Check rules", "More"
for panel, verb in (
    (RUN, init.init),
    (RUN, sweeps.plan),
    (RUN, sweeps.run),
    (RUN, sweeps.resume),
    (STEER, requests.add),
    (STEER, requests.stop),
    (STEER, requests.pause),
    (STEER, requests.go),
    (READ, listing.ls),
    (READ, sweeps.status),
    (READ, results.table),
    (READ, results.why),
    (READ, figures.plot),
    (READ, figures.report),
    (READ, figures.show),
    (READ, listing.diff),
    (READ, results.export),
    (RULES, rules.replay),
    (RULES, rules.calibrate),
    (MORE, training.train),
):
    app.command(rich_help_panel=panel)(verb)

data_app = typer.Typer(help="Look at data before training on it.", no_args_is_help=True)
data_app.command("check")(training.data_check)
app.add_typer(data_app, name="data", rich_help_panel=MORE)

cluster_app = typer.Typer(help="Get a cluster ready for `ray up`.", no_args_is_help=True)
cluster_app.command("check")(cluster.check)
cluster_app.command("token")(cluster.token)
app.add_typer(cluster_app, name="cluster", rich_help_panel=MORE)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        say(f"buttress {version('buttress')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


#: Click's error of a call that does not fit; Typer carries Click within itself.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def main() -> None:
    """The console script: `app` with our exit codes."""
    prepare_streams()
    try:
        code = _call()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0
        if type(sys.stdout).__name__ == "PacifyFlushWrapper":  # Typer's word for a reader who has left
            code = 141
    close_output()
    sys.exit(code)


def _call() -> int:
    try:
        return app(standalone_mode=False) or 0
    except BadInput as error:
        leave(str(error), 2)
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
            return 2
        context = error.ctx  # type: ignore[attr-defined]
        more = f" (see: {context.command_path} --help)" if context is not None else ""
        leave(" ".join(error.format_message().split()) + more, 2)  # type: ignore[attr-defined]
    except (KeyboardInterrupt, typer.Abort):
        leave("interrupted", 130)
    except Exception as error:
        if (stopped := _resumable(error)) is not None:
            leave(stopped, 130)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            leave(f"the output cannot be written ({error.strerror})", 2)
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            leave(f"{str(error.filename)[:60]}...: there is no file with so long a name", 2)
        if getattr(error, "deleted", False):
            leave(f"{error}: the sweep stops, and what it had found is gone", 1)
        first = (str(error).splitlines() or [""])[0]
        leave(f"internal error: {type(error).__name__}: {first} (traceback {_written_traceback()})", 3)


def _written_traceback() -> str:
    """Writes the current error's traceback to a new file that its owner alone can read, and says where it is."""
    text = printable(traceback.format_exc())
    try:
        handle, path = tempfile.mkstemp(prefix=f"buttress-error-{os.getpid()}-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:  # no folder for it, or a full disk
        say(text, error=True)
        return "above"
    return f"in {path}"


def _resumable(error: Exception) -> str | None:
    """How to go on after an error that leaves a sweep resumable; None for any other one."""
    from buttress.journal import JournalUnwritable
    from buttress.journal.mirror import LeaseLost, origin

    if isinstance(error, LeaseLost):
        return f"{error}; this one has stopped and writes no more"
    if isinstance(error, JournalUnwritable) and not error.deleted:
        folder = Path(error.filename).parent
        problem = f"{error.strerror} ({error.filename})"
        return f"{problem}; make room, then go on with: buttress resume {origin(folder) or folder}"
    return None


if __name__ == "__main__":
    main()
