"""JSON that comes from files of others."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

__all__ = ["parse_json", "repeated"]


def parse_json(text: str | bytes) -> Any:
    """Read JSON text, and refuse keys that stand twice and what is nested so deeply that Python cannot follow.

    Args:
        text: all of it; bytes are UTF-8, UTF-16 or UTF-32.

    Raises:
        ValueError: text that is not JSON, has a key twice in one object, or is nested too deeply.

    Example:
        >>> parse_json('{"scale": 4}')
        {'scale': 4}
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"{repeated(key for key, _ in pairs)!r} stands in it twice")
    return found


def repeated(keys: Iterable[str]) -> str | None:
    """Return the first key that came before; ``None``: there is none."""
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            return key
        seen.add(key)
    return None
