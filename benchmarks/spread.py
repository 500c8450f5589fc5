"""Median and quartiles of what was timed in several rounds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Spread", "spreads"]


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


def spreads(times: Mapping[str, Sequence[float]]) -> list[Spread]:
    """Summarise the times of every call, of at least two rounds each."""
    return [
        Spread(name, median, low, high)
        for name, found in times.items()
        for low, median, high in [statistics.quantiles(found, n=4)]
    ]
