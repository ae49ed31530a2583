"""The undocumented settings and side effects of wandb that Buttress has to deal with. wandb itself is not imported."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

#: Settings whose names say that they may change (`x_...`), as keyword arguments of `wandb.Settings`. One process logs
#: the runs of many trials that train elsewhere: what wandb would record of this process and machine says nothing.
EXPERIMENTAL_SETTINGS: dict[str, bool] = {
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
}


def disable_error_reporting() -> None:
    """Before wandb is imported: it sends no reports about its own errors; what the user has set stays."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")


@contextlib.contextmanager
def preserved_exit_hooks() -> Iterator[None]:
    """Undoes that `wandb.init` replaces `sys.exit` and `sys.excepthook`: they are the command line's."""
    hooks = sys.exit, sys.excepthook
    try:
        yield
    finally:
        sys.exit, sys.excepthook = hooks
