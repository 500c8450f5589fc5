"""``channel_affine``: one affine map of the channels at every pixel; an actnorm and a 1x1 convolution are that."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from invflow._numerics import empty_state, state_format
from invflow.backends import select_backend
from invflow.ops._checks import check_affine, check_same_device, check_state
from invflow.ops._registration import past_dispatcher, register
from invflow.ops._transforms import needs_reference, reference_backward

__all__ = ["channel_affine", "channel_affine_reference"]


def channel_affine_reference(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """:func:`channel_affine` in plain PyTorch: the truth that the kernels are verified against."""
    device = x.device.type
    # the meta device, for one, has no autocast to switch off
    with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
        inner = x.to(matrix.dtype)
        y = _product(inner, matrix, shift) if x.is_cuda else F.conv2d(inner, matrix[:, :, None, None], shift)
    return y.to(x.dtype)


def _product(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """The affine map for GPUs. There, PyTorch computes convolutions of float32 in TF32 unless it is told not to, but
    products of matrices only if it is told to, by :func:`torch.set_float32_matmul_precision`."""
    if not needs_reference() and state_format(x) == torch.channels_last:  # a transformed tensor does not say
        return F.linear(x.movedim(1, -1), matrix, shift).movedim(-1, 1)
    y = torch.baddbmm(shift[:, None], matrix.expand(x.shape[0], -1, -1), x.flatten(2))
    return y.view(x.shape)


_forward = past_dispatcher(
    register(
        "channel_affine",
        "(Tensor x, Tensor matrix, Tensor shift) -> Tensor",
        lambda x, matrix, shift: empty_state(x),
    )
)
_backward = register(
    "channel_affine_backward",
    "(Tensor grad_y, Tensor x, Tensor matrix) -> (Tensor, Tensor, Tensor)",
    lambda grad_y, x, matrix: (empty_state(x), matrix.new_empty(matrix.shape), matrix.new_empty(matrix.shape[0])),
)


class _ChannelAffine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, shift: Tensor, backend: str) -> Tensor:
        ctx.save_for_backward(x, matrix, shift)
        ctx.backend = backend
        return _forward(x, matrix, shift, backend)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, matrix, shift = ctx.saved_tensors
        if torch.is_grad_enabled():
            found = reference_backward(channel_affine_reference, (x, matrix, shift), grads, ctx.needs_input_grad[:3])
            return *found, None
        return *_backward(grads[0], x, matrix, ctx.backend), None


def channel_affine(x: Tensor, matrix: Tensor, shift: Tensor, *, backend: str | None = None) -> Tensor:
    r"""Affine map of the channels, the same at every pixel: :math:`y_{bohw} = v_o + \sum_i M_{oi} x_{bihw}`.

    Actnorm followed by a 1x1 convolution is this with :math:`M = W \operatorname{diag}(e^s)`, :math:`v = M b`; so is
    its inverse, with :math:`M^{-1}` and :math:`-M^{-1} v`. Its log-determinant, :math:`HW \log|\det M|`, does not
    depend on ``x`` and is the caller's (Kingma & Dhariwal, Glow, 2018, table 1).

    Args:
        x: (B, C, H, W), any floating dtype and strides.
        matrix: (C, C), float64 if ``x`` is, else float32.
        shift: (C,), the same dtype as ``matrix``.
        backend: overrides :func:`invflow.use_backend` for this call.

    Returns:
        (B, C, H, W), dtype and memory format of ``x``. Half-precision states are computed in float32.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape or device, or an unknown backend.
        RuntimeError: an explicitly chosen backend that cannot run this.
    """
    check_state(x)
    check_affine(x, matrix, shift)
    check_same_device(x, matrix=matrix, shift=shift)
    chosen = select_backend(backend, "channel_affine", x)
    if chosen == "reference" or needs_reference():
        return channel_affine_reference(x, matrix, shift)
    if torch.is_grad_enabled() and (x.requires_grad or matrix.requires_grad or shift.requires_grad):
        return _ChannelAffine.apply(x, matrix, shift, chosen)
    return _forward(x, matrix, shift, chosen)
