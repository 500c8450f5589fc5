"""Actnorm and 1x1 convolution as one affine map of the channels, with all its gradients in one go."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from invflow.layers._cache import can_remember
from invflow.layers.actnorm import ActNorm
from invflow.layers.conv1x1 import InvertibleConv1x1
from invflow.ops._transforms import reference_backward

__all__ = ["ChannelAffine", "channel_affine_of"]


class ChannelAffine:
    """Actnorm and convolution, or their inverse: matrix, shift, and log |det| of the matrix in float64."""

    def __init__(self, matrix: Tensor, shift: Tensor, log_abs_det: Tensor) -> None:
        self.matrix, self.shift = matrix, shift
        self._log_abs_det = log_abs_det
        self._last: tuple[int, Tensor] | None = None

    def log_det(self, x: Tensor) -> Tensor:
        """Of the map of all pixels of a sample of ``x``: a scalar, remembered for the next call."""
        pixels = x.shape[2] * x.shape[3]
        if self._last is None or self._last[0] != pixels:
            with torch.inference_mode(False):
                self._last = pixels, (pixels * self._log_abs_det).to(self.matrix.dtype)
        return self._last[1]


def channel_affine_of(actnorm: ActNorm, conv: InvertibleConv1x1, dtype: torch.dtype, inverse: bool) -> ChannelAffine:
    """M = W diag(e^s), v = M b and log |det M|; for the inverse M = diag(e^-s) W^-1, v = -b and log |det M|. All are
    computed in float64; matrix and shift are returned in ``dtype``."""
    bias, log_scale = actnorm.bias, actnorm.log_scale
    full = type(conv) is InvertibleConv1x1
    if full and torch.is_grad_enabled() and can_remember([bias, log_scale, conv.weight]):
        weight_inverse, log_abs_det = conv.inverse_matrix().detach(), conv.log_abs_det().detach()
        return ChannelAffine(*_Map.apply(bias, log_scale, conv.weight, weight_inverse, log_abs_det, dtype, inverse))
    weight = conv.inverse_matrix() if inverse else conv.matrix()
    matrix, shift, log_det = _compose(bias.double(), log_scale.double(), weight, conv.log_abs_det(), inverse)
    return ChannelAffine(matrix.to(dtype), shift.to(dtype), log_det)


def _compose(
    bias: Tensor, log_scale: Tensor, weight: Tensor, log_abs_det: Tensor, inverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """``weight`` is W or, for the inverse, W^-1."""
    log_abs_det = log_scale.sum() + log_abs_det
    if inverse:
        return (-log_scale).exp()[:, None] * weight, -bias, -log_abs_det
    matrix = weight * log_scale.exp()
    return matrix, matrix @ bias, log_abs_det


class _Map(torch.autograd.Function):
    """The gradients are a handful of products of small matrices; as a graph of single operators they take longer than
    the pass over a small state."""

    @staticmethod
    def forward(
        ctx: Any,
        bias: Tensor,
        log_scale: Tensor,
        weight: Tensor,
        weight_inverse: Tensor,
        log_abs_det: Tensor,
        dtype: torch.dtype,
        inverse: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        used = weight_inverse if inverse else weight.double()
        matrix, shift, log_det = _compose(bias.double(), log_scale.double(), used, log_abs_det, inverse)
        ctx.save_for_backward(bias, log_scale, weight, weight_inverse, matrix)
        ctx.dtype, ctx.inverse = dtype, inverse
        return matrix.to(dtype, copy=True), shift.to(dtype, copy=True), log_det

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        bias, log_scale, weight, weight_inverse, matrix = ctx.saved_tensors
        if torch.is_grad_enabled():
            found = _differentiable_gradients(ctx, (bias, log_scale, weight), grads)
        else:
            grad_matrix, grad_shift, grad_log_det = (grad.double() for grad in grads)
            of_determinant = grad_log_det * weight_inverse.T
            if ctx.inverse:
                grad_bias = -grad_shift
                grad_log_scale = -(grad_matrix * matrix).sum(1) - grad_log_det
                # M = diag(e^-s) W^-1 and dW^-1 = -W^-1 dW W^-1
                grad_weight = -matrix.T @ grad_matrix @ weight_inverse.T - of_determinant
            else:
                grad_bias = grad_shift @ matrix
                grad_matrix = torch.addr(grad_matrix, grad_shift, bias.double())
                grad_log_scale = (grad_matrix * matrix).sum(0) + grad_log_det
                grad_weight = torch.addcmul(of_determinant, grad_matrix, log_scale.double().exp())
            found = [grad_bias.to(bias.dtype), grad_log_scale.to(log_scale.dtype), grad_weight.to(weight.dtype)]
        return *found, None, None, None, None


def _differentiable_gradients(ctx: Any, inputs: tuple[Tensor, ...], grads: tuple[Tensor, ...]) -> list[Tensor | None]:
    def reference(bias: Tensor, log_scale: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        exact = weight.double()
        used = torch.linalg.inv(exact) if ctx.inverse else exact
        log_abs_det = torch.linalg.slogdet(exact).logabsdet
        matrix, shift, log_det = _compose(bias.double(), log_scale.double(), used, log_abs_det, ctx.inverse)
        return matrix.to(ctx.dtype), shift.to(ctx.dtype), log_det

    return reference_backward(reference, inputs, grads, ctx.needs_input_grad[:3])
