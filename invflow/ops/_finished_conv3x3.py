"""A 3x3 convolution and the elementwise maps after it in one pass over the results, for inference."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from invflow.backends import conv3x3 as kernels
from invflow.backends.conv3x3 import NOTHING, Finish, Pointwise
from invflow.ops._conv3x3 import conv3x3, fits_kernel, is_large
from invflow.ops._transforms import is_intercepted

__all__ = ["NOTHING", "Finish", "Pointwise", "finished", "finished_conv3x3"]

#: Fewer channels than of :func:`conv3x3` alone, since results are not read again for the maps after it.
_LEAST_CHANNELS = 6


def finished_conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    repeat: int = 1,
    finish: Finish = NOTHING,
    pointwise: Pointwise | None = None,
    out: Tensor | None = None,
    memory_format: torch.memory_format | None = None,
) -> Tensor:
    """Compute ``activation(addend + share conv3x3(x, weight, bias))``, and a 1x1 convolution of it if there is one.

    On a CPU, float32 results leave the caches once. Everything else is a composition of PyTorch's operators.

    Args:
        x, weight, bias, repeat: as of :func:`conv3x3`.
        finish: addend, share and activation.
        pointwise: a 1x1 convolution and its activation; only without ``repeat``.
        out: where the result is written, (B, O or P, repeat H, repeat W), of any strides.
        memory_format: preferred memory format of the result; ``None`` is that of ``x``.

    Returns:
        (B, O or P, repeat H, repeat W), or ``out``. No gradient flows through the kernel; with gradients enabled it is
        a composition.
    """
    if not _runs_kernel(x, weight, bias, repeat, finish, pointwise, out):
        x = x if memory_format is None else x.contiguous(memory_format=memory_format)
        return finished(conv3x3(x, weight, bias, repeat=repeat), finish, pointwise, out)
    if out is None and memory_format is not None:
        outputs = len(weight if pointwise is None else pointwise.weight)
        shape = len(x), outputs, repeat * x.shape[2], repeat * x.shape[3]
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
    return kernels.conv3x3(x, weight, bias, repeat, False, out, finish, pointwise)


def finished(
    y: Tensor, finish: Finish = NOTHING, pointwise: Pointwise | None = None, out: Tensor | None = None
) -> Tensor:
    """Compute what comes after a convolution by PyTorch's operators; may overwrite its result ``y``."""
    if finish.addend is not None:
        y = _added(y, finish.addend, finish.share)
    if pointwise is None:
        return _activated(y, finish.slope, out)
    y = _activated(y, finish.slope, None)
    return _activated(F.conv2d(y, pointwise.weight, pointwise.bias), pointwise.slope, out)


def _runs_kernel(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    repeat: int,
    finish: Finish,
    pointwise: Pointwise | None,
    out: Tensor | None,
) -> bool:
    """Return whether the kernel can run, is faster than the composition, and finds what it reads: it checks nothing.

    PyTorch's operators refuse shapes that do not fit.
    """
    if torch.is_grad_enabled() or is_intercepted():
        return False
    tensors = [x, weight, bias, finish.addend, out, *([] if pointwise is None else pointwise[:2])]
    if not (fits_kernel([tensor for tensor in tensors if tensor is not None], repeat) and _pays(x, weight)):
        return False
    batch, channels, height, width = x.shape
    outputs, size, addend = len(weight), (repeat * height, repeat * width), finish.addend
    if weight.shape[1:] != (channels, 3, 3) or (bias is not None and bias.shape != (outputs,)):
        return False
    if addend is not None and (addend.shape[1:] != (outputs, *size) or not len(addend) or batch % len(addend)):
        return False
    if pointwise is not None:
        inputs, outputs = outputs, len(pointwise.weight)
        if not outputs or pointwise.weight.shape[1:] != (inputs, 1, 1) or pointwise.bias.shape != (outputs,):
            return False
    return out is None or out.shape == (batch, outputs, *size)


def _pays(x: Tensor, weight: Tensor) -> bool:
    return is_large(x, weight, _LEAST_CHANNELS)


def _added(y: Tensor, addend: Tensor, share: float) -> Tensor:
    """Return ``addend + share y``."""
    if len(addend) != len(y):
        # (images, results of each, C, H, W)
        parts = y.unflatten(0, (len(addend), len(y) // max(len(addend), 1)))
        parts.mul_(share).add_(addend[:, None]) if share != 1 else parts.add_(addend[:, None])
        return y
    if share == 1 and y.dtype is addend.dtype and not torch.is_grad_enabled():
        return y.add_(addend)
    # with gradients in a tensor of its own, since a transform may vary the addend alone
    return torch.add(addend, y, alpha=share)


def _activated(y: Tensor, slope: float, out: Tensor | None) -> Tensor:
    if slope == 1:
        return y if out is None else out.copy_(y)
    if out is not None:
        return torch._C._nn.leaky_relu(y, slope, out=out)
    return F.relu(y) if slope == 0 else F.leaky_relu(y, slope)
