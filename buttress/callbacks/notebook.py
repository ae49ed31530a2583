"""Shows a Rich renderable in a notebook's output cell, and draws it again there.

Rich's own `Live` needs ipywidgets in a notebook; this needs what every kernel has.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from typing import Any

from rich.console import RenderableType

from buttress.console import PlainConsole

WIDTH = 110  # columns
_FORMAT = "<pre style='line-height:normal;overflow-x:auto'>{code}</pre>"


class NotebookView:
    """What `render()` returns, drawn every `every_s` seconds by a thread of its own.

    Example:
        >>> view = NotebookView(lambda: "3 of 8 trials")                                # doctest: +SKIP
        >>> view.start()                                                                # doctest: +SKIP
    """

    def __init__(self, render: Callable[[], RenderableType], *, every_s: float = 1.0) -> None:
        self._render, self._every_s = render, every_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._redraw, name="notebook view", daemon=True)
        self._handle: Any = None

    def start(self) -> None:
        from IPython.display import HTML, display

        self._handle = display(HTML(html_of(self._render())), display_id=True)
        self._thread.start()

    def stop(self) -> None:
        """Leaves the last state in the cell."""
        self._stopped.set()
        self._thread.join(timeout=5.0)
        self._update()

    def _redraw(self) -> None:
        while not self._stopped.wait(self._every_s):
            self._update()

    def _update(self) -> None:
        from IPython.display import HTML

        self._handle.update(HTML(html_of(self._render())))


def html_of(renderable: RenderableType) -> str:
    """A renderable as HTML, in the colours of a light terminal."""
    console = PlainConsole(record=True, file=io.StringIO(), width=WIDTH, force_jupyter=False, force_terminal=True)
    console.print(renderable)
    return console.export_html(inline_styles=True, code_format=_FORMAT)
