"""JSON that comes from files of others."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["parse_json"]


def parse_json(text: str | bytes) -> Any:
    """Read JSON text, and refuse what is nested so deeply that Python cannot follow.

    Args:
        text: all of it; bytes are UTF-8, UTF-16 or UTF-32.

    Raises:
        ValueError: text that is not JSON, or is nested too deeply.

    Example:
        >>> parse_json('{"scale": 4}')
        {'scale': 4}
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
