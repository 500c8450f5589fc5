"""What every operator and backend agrees on: in which dtype it calculates, and the layout of its results."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which an operator calculates and returns log-determinants: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def state_format(x: Tensor) -> torch.memory_format:
    """The layout of a result: that of ``x`` if it is channels_last, else contiguous."""
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def empty_state(x: Tensor) -> Tensor:
    """Memory for a result of the shape of ``x``."""
    return torch.empty_like(x, memory_format=state_format(x))
