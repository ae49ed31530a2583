"""Collapse rules: from a stream of reports to a verdict."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from buttress.rules.engine import RuleEngine
    from buttress.rules.schema import RuleSet
    from buttress.rules.verdict import Evidence, Verdict

__all__ = ["Evidence", "RuleEngine", "RuleSet", "Verdict"]

_MODULES = {"Evidence": "verdict", "RuleEngine": "engine", "RuleSet": "schema", "Verdict": "verdict"}


if not TYPE_CHECKING:  # a type checker sees the imports above, and what is misspelt is an error to it

    def __getattr__(name: str) -> Any:
        """Imports a public name when it is first asked for, so that the package itself imports nothing."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
