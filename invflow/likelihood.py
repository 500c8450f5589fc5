"""Likelihoods from latents and log-determinants."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["bits_per_dim", "standard_normal_log_prob"]


def standard_normal_log_prob(z: Tensor | Sequence[Tensor]) -> Tensor:
    r"""Compute the log-density under N(0, I): :math:`-\tfrac12 \sum (z^2 + \log 2\pi)`.

    The sum runs over all latents and all dimensions but the batch.

    Args:
        z: (B, ...), or a list of such latents.

    Returns:
        (B,), float64 for float64 latents, else float32.

    Raises:
        ValueError: an empty list.
    """
    total: Tensor | None = None
    for latent in [z] if isinstance(z, Tensor) else z:
        latent = latent if latent.dtype == torch.float64 else latent.float()
        log_prob = -0.5 * (latent.square() + math.log(2 * math.pi))
        log_prob = log_prob.flatten(1).sum(1) if log_prob.dim() > 1 else log_prob
        total = log_prob if total is None else total + log_prob
    if total is None:
        raise ValueError("z must hold at least one latent, got an empty list")
    return total


def bits_per_dim(log_prob: Tensor, dims: int) -> Tensor:
    r"""Compute the negative log-likelihood in bits per dimension, :math:`-\log p(x) / (D \ln 2)`.

    It is that of the density of ``x`` as given. For images scaled to [0, 1], the figure for 8-bit values is 8 more.

    Args:
        log_prob: (B,), natural logarithm.
        dims: D, the number of elements of one sample.

    Returns:
        (B,), with the dtype of ``log_prob``.

    Raises:
        ValueError: ``dims`` below 1.
    """
    if dims < 1:
        raise ValueError(f"dims must be at least 1, got {dims}")
    return -log_prob / (dims * math.log(2))
