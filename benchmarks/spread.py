"""Median and quartiles of what was timed in several rounds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Spread", "quartiles", "spreads"]


@dataclass(frozen=True)
class Spread:
    """Processor time of one call, in the unit of its benchmark.

    Attributes:
        name: what was timed.
        median, low, high: median and quartiles over the rounds.
    """

    name: str
    median: float
    low: float
    high: float


def quartiles(times: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile of at least two times."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, median, high


def spreads(times: Mapping[str, Sequence[float]]) -> list[Spread]:
    """Summarise the times of every call, of at least two rounds each."""
    found = {name: quartiles(seconds) for name, seconds in times.items()}
    return [Spread(name, median, low, high) for name, (low, median, high) in found.items()]
