"""Suggestions for names that are mistyped."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

__all__ = ["nearest"]


def nearest(name: str, known: Collection[str]) -> str:
    """Suggest the known name that a mistyped one resembles; empty if none does."""
    found = get_close_matches(name, known, n=1) or [other for other in sorted(known) if other.startswith(name)]
    return f"; did you mean {found[0]}?" if found else ""
