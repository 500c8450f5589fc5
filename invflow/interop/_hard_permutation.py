"""Permutation matrices of images as what they are: channels in another order, without a product of matrices."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from invflow.ops._transforms import has_values, is_watched

__all__ = ["order_of", "permuted"]


def order_of(matrix: Tensor, state: Tensor) -> Tensor | None:
    """Return the order (C,) into which a matrix puts the channels of images, or ``None`` where a product is better.

    Args:
        matrix: (C, C), looked at in every call: a file may have put another into its place.
        state: (B, C, *), to be mapped.
    """
    if state.dim() < 3 or not state.is_cpu or matrix.requires_grad or is_watched() or torch.jit.is_tracing():
        return None
    if not (has_values(state) and has_values(matrix)):
        return None
    largest, order = matrix.max(1)
    channels = len(matrix)
    if int(matrix.count_nonzero()) != channels or not bool((largest == 1).all()):
        return None
    return order if len(order.unique()) == channels else None


def permuted(x: Tensor, order: Tensor) -> Tensor:
    """Return ``x[:, order]`` for an order that has every channel once."""
    return cast(Tensor, _Permuted.apply(x, order))


class _Permuted(torch.autograd.Function):
    """Its gradient is the opposite permutation, where that of ``index_select`` adds to zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return x.index_select(1, order)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        (order,) = ctx.saved_tensors
        return _Permuted.apply(grad_y, order.argsort()), None
