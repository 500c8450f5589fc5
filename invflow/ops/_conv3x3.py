"""``conv3x3``: the 3x3 convolution of coupling networks and encoders, by Winograd's algorithm on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F

from invflow._numerics import state_format
from invflow.backends import conv3x3 as kernels
from invflow.backends import cpu, current_backend
from invflow.ops._checks import check_state
from invflow.ops._transforms import is_intercepted, needs_reference, reference_backward

__all__ = ["conv3x3", "conv3x3_gradients"]

_PLAIN_TYPES = (Tensor, Parameter)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor | None = None) -> Tensor:
    r"""Convolve images with 3x3 weights, stride 1 and zeros around: ``torch.conv2d(x, weight, bias, padding=1)``.

    On a CPU, float32 images are convolved by Winograd's algorithm F(4x4, 3x3), where it is faster (Lavin & Gray, Fast
    Algorithms for Convolutional Neural Networks, 2016). It computes 4x4 results with 36 products instead of 144. Its
    rounding error is about 2.5 times that of a direct sum. Everything else is ``torch.conv2d``: other dtypes, devices,
    instruction sets and shapes, autocast, ``torch.func``, export, and ``use_backend("reference")``.

    Where an infinite or NaN number comes in, the results that depend on it are not finite. Others within four pixels
    of them may be NaN too. Numbers beyond 1e36 may overflow on the way.

    Results do not depend on the number of threads.

    Args:
        x: (B, C, H, W), of any strides: a slice of the channels of a larger tensor is read where it is.
        weight: (O, C, 3, 3), dtype and device of ``x``.
        bias: (O,) or ``None``.
        out: (B, O, H, W), of any strides: where the result is written. No gradient can flow through it.

    Returns:
        (B, O, H, W), in the memory format of ``x``, or ``out``.

    Raises:
        TypeError: ``x`` is no floating-point tensor.
        ValueError: a wrong shape.
        RuntimeError: ``out`` together with a tensor that requires a gradient.
    """
    check_state(x)
    if weight.dim() != 4 or weight.shape[1:] != (x.shape[1], 3, 3):
        raise ValueError(
            f"weight must have shape (outputs, {x.shape[1]}, 3, 3) for x with {x.shape[1]} channels, got "
            f"{tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias must have shape ({weight.shape[0]},), as many as weight has outputs, got {tuple(bias.shape)}"
        )
    tensors = (x, weight) if bias is None else (x, weight, bias)
    differentiated = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if out is not None:
        expected = (x.shape[0], weight.shape[0], *x.shape[2:])
        if out.shape != expected or out.dtype != x.dtype or out.device != x.device:
            raise ValueError(
                f"out must have shape {expected}, {x.dtype} and device {x.device}, as the result has, got "
                f"{tuple(out.shape)}, {out.dtype} and {out.device}"
            )
        if differentiated:
            raise RuntimeError(
                "out must be None where a gradient is required: call conv3x3 in torch.no_grad(), or without out"
            )
    if not _runs_kernel(tensors):
        y = F.conv2d(x, weight, bias, padding=1)
        return y if out is None else out.copy_(y)
    if differentiated:
        return _Conv3x3.apply(x, weight, bias)
    if out is not None and not is_intercepted():
        return kernels.conv3x3(x, weight, bias, False, out)
    y = _convolve(x, weight, bias, False)
    return y if out is None else out.copy_(y)


def conv3x3_gradients(
    grad_y: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Compute gradients of :func:`conv3x3`, for the backward pass of a function of one's own.

    Args:
        grad_y: (B, O, H, W), the gradient of the result.
        x: (B, C, H, W).
        weight: (O, C, 3, 3).
        needs: which gradients are wanted: those of ``x``, ``weight`` and the bias.

    Returns:
        These gradients, and ``None`` in place of others. They cannot be differentiated again.
    """
    if not _runs_kernel((grad_y, x, weight)):
        return torch.ops.aten.convolution_backward(
            grad_y, x, weight, [weight.shape[0]], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, list(needs)
        )
    return (
        _convolve(grad_y, weight, None, True) if needs[0] else None,
        _gradient_of_weight(x, grad_y) if needs[1] else None,
        grad_y.sum((0, 2, 3)) if needs[2] else None,
    )


def _runs_kernel(tensors: tuple[Tensor, ...]) -> bool:
    """Return whether the kernel can run, and is faster than ``torch.conv2d``; x or grad_y first, then the weight."""
    for tensor in tensors:
        if type(tensor) not in _PLAIN_TYPES or not tensor.is_cpu or tensor.dtype != torch.float32:
            return False
        if not torch.compiler.is_compiling() and tensor.is_neg():
            return False
    if needs_reference() or torch.is_autocast_enabled("cpu") or torch.jit.is_tracing() or torch.compiler.is_exporting():
        return False
    if current_backend() not in ("auto", "cpu") or cpu.unavailable():
        return False
    weight = tensors[-1] if tensors[-1].dim() == 4 else tensors[-2]
    return _pays(tensors[0], weight)


def _pays(x: Tensor, weight: Tensor) -> bool:
    """Return whether Winograd's algorithm is faster here, by what was measured."""
    outputs, inputs, pixels = *weight.shape[:2], x.shape[2] * x.shape[3]
    return pixels >= 256 and outputs * inputs >= 256 and x.shape[0] > 0


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    if is_intercepted():
        return torch.ops.invflow.conv3x3(x, weight, bias, transposed)
    return kernels.conv3x3(x, weight, bias, transposed)


def _gradient_of_weight(x: Tensor, grad_y: Tensor) -> Tensor:
    if is_intercepted():
        return torch.ops.invflow.conv3x3_weight_gradient(x, grad_y)
    return kernels.weight_gradient(x, grad_y)


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return _convolve(x, weight, bias, False)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        x, weight, bias = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return conv3x3_gradients(grad_y, x, weight, ctx.needs_input_grad)
        inputs = (x, weight) if bias is None else (x, weight, bias)

        def reference(*tensors: Tensor) -> Tensor:
            return F.conv2d(tensors[0], tensors[1], tensors[2] if len(tensors) > 2 else None, padding=1)

        found = reference_backward(reference, inputs, [grad_y], ctx.needs_input_grad[: len(inputs)])
        return *found, *([None] if bias is None else [])


def _fake_conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    shape = x.shape[0], weight.shape[1 if transposed else 0], *x.shape[2:]
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=state_format(x))


def _fake_weight_gradient(x: Tensor, grad_y: Tensor) -> Tensor:
    return x.new_empty((grad_y.shape[1], x.shape[1], 3, 3))


_LIBRARY = torch.library.Library("invflow", "FRAGMENT")
_LIBRARY.define("conv3x3(Tensor x, Tensor weight, Tensor? bias, bool transposed) -> Tensor")
_LIBRARY.define("conv3x3_weight_gradient(Tensor x, Tensor grad_y) -> Tensor")
_LIBRARY.impl("conv3x3", kernels.conv3x3, "CPU")
_LIBRARY.impl("conv3x3_weight_gradient", kernels.weight_gradient, "CPU")
torch.library.register_fake("invflow::conv3x3", _fake_conv3x3, lib=_LIBRARY)
torch.library.register_fake("invflow::conv3x3_weight_gradient", _fake_weight_gradient, lib=_LIBRARY)
