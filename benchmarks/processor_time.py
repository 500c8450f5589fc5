"""Processor time of calls that are shorter than its clock can tell."""

from __future__ import annotations

from collections.abc import Callable
from time import process_time

__all__ = ["repetitions", "seconds_of"]


def repetitions(call: Callable[[], object], least_seconds: float) -> int:
    """Return how often a call is repeated for one measurement of at least so many seconds, a power of two."""
    call()  # the first call loads what it needs
    count = 1
    while seconds_of(call, count) * count < least_seconds:
        count *= 2
    return count


def seconds_of(call: Callable[[], object], count: int) -> float:
    """Return the mean seconds of processor time of ``count`` calls."""
    start = process_time()
    for _ in range(count):
        call()
    return (process_time() - start) / count
