"""``conv3x3``: the 3x3 convolution of coupling networks and encoders, by Winograd's algorithm on a CPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F

from invflow._numerics import state_format
from invflow.backends import conv3x3 as kernels
from invflow.backends import cpu, current_backend
from invflow.ops._checks import check_image
from invflow.ops._transforms import is_exported, is_intercepted, needs_reference, reference_backward

__all__ = ["conv3x3", "conv3x3_gradients"]

#: Below these numbers of channels and pixels the transforms take longer than the products that they save.
_LEAST_CHANNELS, _LEAST_PIXELS = 12, 100
#: Repetitions that the kernel is compiled for.
_REPEATS = (1, 2, 4)
_PLAIN_TYPES = (Tensor, Parameter)


def conv3x3(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, repeat: int = 1, out: Tensor | None = None
) -> Tensor:
    r"""Convolve images with 3x3 weights, stride 1 and zeros around: ``torch.conv2d(x, weight, bias, padding=1)``.

    On a CPU, float32 images are convolved by Winograd's algorithm F(4x4, 3x3), where it is faster (Lavin & Gray, Fast
    Algorithms for Convolutional Neural Networks, 2016). It computes 4x4 results with 36 products instead of 144. Its
    rounding error is 2.4 to 3 times that of a direct sum. Everything else is ``torch.conv2d``: other dtypes, devices,
    instruction sets and shapes, autocast, ``torch.func``, export, and ``use_backend("reference")``.

    Images that are enlarged by pixel repetition first take 9 products a pixel, for all its repetitions together, not
    9 for each: a pixel's repetitions differ in its differences to neighbours only.

    Where an infinite or NaN number comes in, the results that depend on it are not finite. Others within four pixels
    of them may be NaN too. Numbers beyond 1e36 may overflow on the way.

    Results do not depend on the number of threads.

    Args:
        x: (B, C, H, W), of any strides: a slice of the channels of a larger tensor is read where it is.
        weight: (O, C, 3, 3), dtype and device of ``x``.
        bias: (O,) or ``None``.
        repeat: repetitions of a pixel in both directions before the convolution.
        out: (B, O, repeat H, repeat W), of any strides: where the result is written. No gradient can flow through it.

    Returns:
        (B, O, repeat H, repeat W), in the memory format of ``x``, or ``out``.

    Raises:
        TypeError: ``x`` is no floating-point tensor.
        ValueError: a wrong shape.
        RuntimeError: ``out`` together with a tensor that requires a gradient.
    """
    check_image(x)
    if weight.dim() != 4 or weight.shape[1:] != (x.shape[1], 3, 3):
        raise ValueError(
            f"weight must have shape (outputs, {x.shape[1]}, 3, 3) for x with {x.shape[1]} channels, got "
            f"{tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias must have shape ({weight.shape[0]},), as many as weight has outputs, got {tuple(bias.shape)}"
        )
    if repeat < 1:
        raise ValueError(f"repeat must be at least 1, got {repeat}")
    tensors = (x, weight) if bias is None else (x, weight, bias)
    differentiated = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if out is not None:
        expected = kernels.result_shape(x, weight, repeat, False)
        if out.shape != expected or out.dtype != x.dtype or out.device != x.device:
            raise ValueError(
                f"out must have shape {expected}, {x.dtype} and device {x.device}, as the result has, got "
                f"{tuple(out.shape)}, {out.dtype} and {out.device}"
            )
        if differentiated:
            raise RuntimeError(
                "out must be None where a gradient is required: call conv3x3 in torch.no_grad(), or without out"
            )
    if not _runs_kernel(tensors, repeat):
        y = _reference(x, weight, bias, repeat)
        return y if out is None else out.copy_(y)
    if differentiated:
        return cast(Tensor, _Conv3x3.apply(x, weight, bias, repeat))
    if out is not None and not is_intercepted():
        return kernels.conv3x3(x, weight, bias, repeat, False, out)
    y = _convolve(x, weight, bias, repeat, False)
    return y if out is None else out.copy_(y)


def conv3x3_gradients(
    grad_y: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool, bool], *, repeat: int = 1
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Compute gradients of :func:`conv3x3`, for the backward pass of a function of one's own.

    Args:
        grad_y: (B, O, repeat H, repeat W), the gradient of the result.
        x: (B, C, H, W).
        weight: (O, C, 3, 3).
        needs: which gradients are wanted: those of ``x``, ``weight`` and the bias.
        repeat: repetitions of a pixel.

    Returns:
        These gradients, and ``None`` in place of others. They cannot be differentiated again.
    """
    if not _runs_kernel((x, weight, grad_y), repeat):
        if repeat == 1:
            sizes = [1, 1]
            return torch.ops.aten.convolution_backward(
                grad_y, x, weight, [len(weight)], sizes, sizes, sizes, False, [0, 0], 1, list(needs)
            )
        of_x, of_weight = reference_backward(
            lambda x, weight: _reference(x, weight, None, repeat), (x, weight), [grad_y], needs[:2]
        )
    else:
        of_x = _convolve(grad_y, weight, None, repeat, True) if needs[0] else None
        of_weight = _gradient_of_weight(x, grad_y, repeat) if needs[1] else None
    return of_x, of_weight, grad_y.sum((0, 2, 3)) if needs[2] else None


def _runs_kernel(tensors: tuple[Tensor, ...], repeat: int) -> bool:
    """Return whether the kernel can run and is faster than PyTorch. ``x`` and the weight come first."""
    return fits_kernel(tensors, repeat) and _pays(*tensors[:2])


def fits_kernel(tensors: Iterable[Tensor], repeat: int) -> bool:
    """Return whether the kernel can run on these tensors, be it faster or not."""
    for tensor in tensors:
        if type(tensor) not in _PLAIN_TYPES or not tensor.is_cpu or tensor.dtype != torch.float32:
            return False
        if not torch.compiler.is_compiling() and tensor.is_neg():
            return False
    if needs_reference() or torch.is_autocast_enabled("cpu") or is_exported():
        return False
    if current_backend() not in ("auto", "cpu") or cpu.unavailable():
        return False
    return repeat in _REPEATS


def _reference(x: Tensor, weight: Tensor, bias: Tensor | None, repeat: int) -> Tensor:
    """Compute it in plain PyTorch.

    Repetition is a transposed convolution with ones, so both together are one. A pixel takes 4 taps instead of 9 for
    ``repeat`` = 2, and 9 / 4 for 4.
    """
    if repeat == 1:
        return F.conv2d(x, weight, bias, padding=1)
    # in float32, as all weights
    with torch.autocast(weight.device.type, enabled=False):
        # full correlation with a box of ones
        kernel = F.conv2d(weight.flatten(0, 1)[:, None], weight.new_ones(1, 1, repeat, repeat), padding=repeat - 1)
    kernel = kernel.flip((2, 3)).view(*weight.shape[:2], repeat + 2, repeat + 2)
    return F.conv_transpose2d(x, kernel.transpose(0, 1), bias, stride=repeat, padding=1)


def _pays(x: Tensor, weight: Tensor) -> bool:
    """Return whether the kernel is faster here, by what was measured."""
    return is_large(x, weight, _LEAST_CHANNELS)


def is_large(x: Tensor, weight: Tensor, channels: int) -> bool:
    """Return whether there are images, with enough pixels, and at least so many channels on both sides."""
    return x.shape[0] > 0 and min(weight.shape[:2]) >= channels and x.shape[2] * x.shape[3] >= _LEAST_PIXELS


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, repeat: int, transposed: bool) -> Tensor:
    if is_intercepted():
        return cast(Tensor, torch.ops.invflow.conv3x3(x, weight, bias, repeat, transposed))
    return kernels.conv3x3(x, weight, bias, repeat, transposed)


def _gradient_of_weight(x: Tensor, grad_y: Tensor, repeat: int) -> Tensor:
    if is_intercepted():
        return cast(Tensor, torch.ops.invflow.conv3x3_weight_gradient(x, grad_y, repeat))
    return kernels.weight_gradient(x, grad_y, repeat)


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, repeat: int) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.repeat = repeat
        return _convolve(x, weight, bias, repeat, False)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Any:
        x, weight, bias = ctx.saved_tensors
        repeat, needs = ctx.repeat, ctx.needs_input_grad[:3]
        if not torch.is_grad_enabled():
            return *conv3x3_gradients(grad_y, x, weight, needs, repeat=repeat), None
        if bias is None:
            found = reference_backward(
                lambda x, weight: _reference(x, weight, None, repeat), (x, weight), [grad_y], needs[:2]
            )
            return *found, None, None
        found = reference_backward(
            lambda x, weight, bias: _reference(x, weight, bias, repeat), (x, weight, bias), [grad_y], needs
        )
        return *found, None


def _fake_conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None, repeat: int, transposed: bool) -> Tensor:
    shape = kernels.result_shape(x, weight, repeat, transposed)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=state_format(x))


def _fake_weight_gradient(x: Tensor, grad_y: Tensor, repeat: int) -> Tensor:
    return x.new_empty((grad_y.shape[1], x.shape[1], 3, 3))


_LIBRARY = torch.library.Library("invflow", "FRAGMENT")
_LIBRARY.define("conv3x3(Tensor x, Tensor weight, Tensor? bias, int repeat, bool transposed) -> Tensor")
_LIBRARY.define("conv3x3_weight_gradient(Tensor x, Tensor grad_y, int repeat) -> Tensor")
_LIBRARY.impl("conv3x3", kernels.conv3x3, "CPU")
_LIBRARY.impl("conv3x3_weight_gradient", kernels.weight_gradient, "CPU")
torch.library.register_fake("invflow::conv3x3", _fake_conv3x3, lib=_LIBRARY)
torch.library.register_fake("invflow::conv3x3_weight_gradient", _fake_weight_gradient, lib=_LIBRARY)
