"""The operators in plain PyTorch: the truth that the kernels are verified against."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from invflow._numerics import compute_dtype, state_format
from invflow.ops._affine_form import PUBLISHED_FORM, AffineForm
from invflow.ops._pixels import as_image
from invflow.ops._transforms import needs_reference

__all__ = ["affine_coupling_reference", "channel_affine_reference", "flow_step_reference"]


def channel_affine_reference(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """Compute :func:`invflow.channel_affine` in plain PyTorch; arguments and result as there."""
    if x.dim() > 2 and x.dim() != 4:
        return channel_affine_reference(as_image(x), matrix, shift).reshape(x.shape)
    device = x.device.type
    # An exported program would keep a context that changes nothing. Whether there is an autocast is not asked of torch:
    # the compiler of torch 2.11 cannot trace the question.
    autocast = device != "meta" and torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False) if autocast else nullcontext():
        inner = x.to(matrix.dtype)
        # a convolution refuses a state without pixels; a trace would warn of the question
        by_product = x.dim() == 2 or x.is_cuda or not (torch.jit.is_tracing() or x.numel())
        y = _product(inner, matrix, shift) if by_product else F.conv2d(inner, matrix[:, :, None, None], shift)
    return y.to(x.dtype)


def _product(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """Apply the channel map by a product of matrices: on a GPU, to vectors, and to a state without elements.

    On a GPU, PyTorch computes convolutions of float32 in TF32 unless told not to, but products of matrices only if
    :func:`torch.set_float32_matmul_precision` asks for it.
    """
    if x.dim() == 2:
        return F.linear(x, matrix, shift)
    if not needs_reference() and state_format(x) == torch.channels_last:  # a transformed tensor does not say
        return F.linear(x.movedim(1, -1), matrix, shift).movedim(-1, 1)
    y = torch.baddbmm(shift[:, None], matrix.expand(x.shape[0], -1, -1), x.flatten(2))
    return y.view(x.shape)


def affine_coupling_reference(
    x: Tensor, h: Tensor, form: AffineForm | None = None, *, start: int | None = None, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Compute :func:`invflow.affine_coupling` in plain PyTorch; arguments and results as there."""
    form = form or PUBLISHED_FORM
    dtype, count = compute_dtype(x.dtype), h.shape[1] // form.outputs
    start = x.shape[1] - count if start is None else start
    # converted before it is repeated, so that the gradient of a shared sample is rounded once
    h = h.to(dtype)
    if h.shape[0] != x.shape[0]:
        h = h.repeat_interleave(x.shape[0] // h.shape[0], 0)
    part, log_det = form.transform(x[:, start : start + count].to(dtype), h, inverse)
    return torch.cat([x[:, :start], part.to(x.dtype), x[:, start + count :]], 1), log_det


def flow_step_reference(
    x: Tensor,
    matrix: Tensor | None,
    shift: Tensor | None,
    coupling: Tensor | None = None,
    injector: Tensor | None = None,
    *,
    coupling_form: AffineForm | None = None,
    injector_form: AffineForm | None = None,
    start: int | None = None,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute :func:`invflow.flow_step` in plain PyTorch; arguments and results as there.

    Matrix and shift may be ``None``. Then there are only coupling and injector.
    """
    y = x.to(compute_dtype(x.dtype))
    log_det = y.new_zeros(x.shape[0])
    if coupling is not None:
        y, part = affine_coupling_reference(y, coupling, coupling_form, start=start, inverse=inverse)
        log_det = log_det + part
    if matrix is not None and shift is not None and not inverse:
        y = channel_affine_reference(y, matrix, shift)
    if injector is not None:
        y, part = affine_coupling_reference(y, injector, injector_form, start=0, inverse=inverse)
        log_det = log_det + part
    if matrix is not None and shift is not None and inverse:
        y = channel_affine_reference(y, matrix, shift)
    return y.to(x.dtype), log_det
