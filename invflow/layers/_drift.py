"""Drift of reconstructed states, and how often a state is stored because of it."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

__all__ = ["DRIFT_TOLERANCE", "StoreDistance", "relative_difference"]

#: The largest difference between a reconstructed and the true state of a sample, relative to its largest element, that
#: is accepted.
DRIFT_TOLERANCE = 1e-3


class StoreDistance:
    """Number of layers between two stored states.

    Attributes:
        layers: the present number; ``None`` as long as only the input is stored.
    """

    def __init__(self) -> None:
        self.layers: int | None = None

    def store_more(self, length: int) -> None:
        """Halve the distance, at most ``length`` layers."""
        self.layers = max(1, min(self.layers or length, length) // 2)

    def note_drift(self, drift: float, length: int) -> None:
        """Store more states, with a warning, after a reconstructed state differed too much from the true one.

        Args:
            drift: largest difference, relative to the largest element.
            length: number of layers in a row that were inverted.
        """
        self.store_more(length)
        warnings.warn(
            f"FlowSequential(memory='invert'): a reconstructed state differed from the true one by {drift:.1e} of its "
            f"largest element; from now on the state is stored after every {self.layers} layers",
            stacklevel=2,
        )


def relative_difference(actual: list[Tensor], expected: list[Tensor], *, only_finite: bool = False) -> float:
    """Return the largest difference of a sample, relative to its largest element."""
    found = []
    for a, e in zip(actual, expected, strict=True):
        if not e.numel():
            continue
        difference = a - e
        if only_finite:
            finite = e.isfinite()
            difference, e = difference.where(finite, 0), e.where(finite, 0)
        size = _largest(e).clamp(min=torch.finfo(torch.float32).tiny)
        found.append((_largest(difference) / size).max())
    return float(torch.stack(found).max()) if found else 0.0


def _largest(x: Tensor) -> Tensor:
    """Return the largest magnitude of each sample of ``x`` (B, ...); NaN if one element is NaN."""
    return torch.linalg.vector_norm(x, math.inf, tuple(range(1, x.dim())))
