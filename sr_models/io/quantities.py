"""Quantities for people to read."""

from __future__ import annotations

__all__ = ["quantity"]


def quantity(value: float, unit: str) -> str:
    """Format a number with three digits and a prefix of thousands.

    Example:
        >>> quantity(6_630_000_000, "B")
        '6.63 GB'
    """
    prefixes = ["", "k", "M", "G", "T", "P", "E"]
    while value >= 999.5 and len(prefixes) > 1:
        value /= 1000
        del prefixes[0]
    return f"{value:.3g} {prefixes[0]}{unit}"
