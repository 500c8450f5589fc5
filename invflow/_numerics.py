"""Dtypes and layouts of states, and whether a value may be looked at."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["KERNEL_DTYPES", "compute_dtype", "empty_state", "no_log_det", "pixels_of", "reads_freely", "state_format"]

#: Dtypes of states that kernels take, with the numbers that the compiled ones know them by.
KERNEL_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of an operator's arithmetic and log-determinants: float64 for float64, else float32.

    Args:
        dtype: dtype of the state.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def state_format(x: Tensor) -> torch.memory_format:
    """Return the layout of what is computed from ``x``: channels_last or contiguous.

    It is channels_last where the channels of a pixel are neighbours in memory, also those of a part of such a tensor:
    PyTorch does not call a part channels_last. A map of one pixel is both, and counts as contiguous.
    """
    last = not x.is_contiguous() and x.stride(1) == 1
    return torch.channels_last if last else torch.contiguous_format


def empty_state(x: Tensor) -> Tensor:
    """Allocate a result of the shape of ``x``."""
    return torch.empty_like(x, memory_format=state_format(x))


def no_log_det(x: Tensor) -> Tensor:
    """Return the log-determinants (B,) of a map of a state (B, ...) that keeps volumes: zeros."""
    return torch.zeros(x.shape[0], dtype=compute_dtype(x.dtype), device=x.device)


def pixels_of(x: Tensor) -> int:
    """Return the number of pixels of a state (B, C, *): 1 of a vector, H W of an image."""
    shape = x.shape
    if len(shape) == 4:
        return shape[2] * shape[3]
    count = 1
    for size in shape[2:]:  # not numel(), which a tracer cannot follow
        count *= size
    return count


def reads_freely(tensor: Tensor) -> bool:
    """Return whether Python may look at the tensor's values without waiting for a device that computes them."""
    return tensor.is_cpu
