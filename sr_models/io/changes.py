"""Differences between the settings of a file and those that are given now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["changed_settings"]


def changed_settings(former: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say which settings differ, a clause each.

    Example:
        >>> changed_settings({"n": 5, "seed": 0}, {"n": 10, "seed": 0})
        ['n was 5, now 10']
    """
    return [
        f"{name} was {former.get(name)}, now {now.get(name)}"
        for name in {**former, **now}
        if former.get(name) != now.get(name)
    ]
