"""Packages that register models and degradations, by the entry point ``sr_models.plugins``."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.metadata import entry_points

__all__ = ["load_plugins", "summary_of"]


def load_plugins(modules: Sequence[str]) -> None:
    """Import built-in modules that register something, in order, and then what other packages announce."""
    for module in modules:
        importlib.import_module(module)
    for entry_point in entry_points(group="sr_models.plugins"):
        entry_point.load()


def summary_of(function: object, summary: str) -> str:
    """Return the given summary or, without one, the first line of the function's docstring."""
    return summary or (function.__doc__ or "").strip().split("\n")[0]
