"""The 3x3 convolution of the extension ``invflow._C``: tensors described by address and strides."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from invflow._numerics import state_format
from invflow.backends._cpu import cpu
from invflow.backends.native import with_memory

__all__ = ["NOTHING", "Finish", "Pointwise", "conv3x3", "result_shape", "weight_gradient"]

_Images = tuple[int, int, int, int, int]
_Weights = tuple[int, int, int, bool]


class Finish(NamedTuple):
    """Change of a convolution's result y before it is written: ``activation(addend + share y)``.

    Attributes:
        addend: (B', O, H, W) in the size of the result; B / B' successive images share one. ``None``: nothing.
        share: factor of what is added to the addend.
        slope: by which the activation multiplies negative numbers: 1 is no activation, 0 a ReLU.
    """

    addend: Tensor | None = None
    share: float = 1.0
    slope: float = 1.0


class Pointwise(NamedTuple):
    """A 1x1 convolution after it, and its activation.

    Attributes:
        weight: (P, O, 1, 1).
        bias: (P,).
        slope: as of :class:`Finish`.
    """

    weight: Tensor
    bias: Tensor
    slope: float = 1.0


#: Leaves a result as it is.
NOTHING = Finish()


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    repeat: int,
    transposed: bool,
    out: Tensor | None = None,
    finish: Finish = NOTHING,
    pointwise: Pointwise | None = None,
) -> Tensor:
    """Compute a convolution, or the gradient of its input. Nothing is checked.

    Args:
        x: (B, C, H, W), float32; with ``transposed`` the gradient of a result, (B, O, repeat H, repeat W).
        weight: (O, C, 3, 3), float32.
        bias: (O,), float32, or ``None``.
        repeat: 1, 2 or 4 repetitions of a pixel in both directions before the convolution.
        transposed: computes the gradient of the input.
        out: where the result is written, of any strides; ``None`` allocates it in the layout of ``x``.
        finish: what happens to the result, float32.
        pointwise: a 1x1 convolution of that, float32; ``repeat`` is then 1.

    Returns:
        (B, O or P, repeat H, repeat W), or (B, C, H, W) with ``transposed``.
    """
    if out is not None and out.data_ptr() == x.data_ptr():
        # what is written is still read for its neighbours
        return out.copy_(conv3x3(x, weight, bias, repeat, transposed, None, finish, pointwise))
    kept: list[Tensor] = []
    outputs, inputs = weight.shape[1::-1] if transposed else weight.shape[:2]
    shape = result_shape(x, weight, repeat, transposed)
    if out is None:
        made = shape if pointwise is None else (shape[0], len(pointwise.weight), *shape[2:])
        out = torch.empty(made, dtype=x.dtype, device=x.device, memory_format=state_format(x))
    batch, _, height, width = x.shape if not transposed else shape
    address, by_output, by_input, _ = _weights(kept, weight)
    of_weight = (address, by_input, by_output, True) if transposed else (address, by_output, by_input, False)
    if bias is not None:
        bias = bias.contiguous()
        kept.append(bias)
    cpu.extension.conv3x3(
        (batch, inputs, outputs, height, width, repeat),
        _images(kept, x),
        (out.data_ptr(), *out.stride()),  # never a copy
        of_weight,
        0 if bias is None else bias.data_ptr(),
        _finish(kept, finish, batch),
        _pointwise(kept, pointwise),
    )
    return out


def weight_gradient(x: Tensor, grad_y: Tensor, repeat: int) -> Tensor:
    """Compute the gradient of the weights. Nothing is checked.

    Args:
        x: (B, C, H, W), float32.
        grad_y: (B, O, repeat H, repeat W), float32, the gradient of the result.
        repeat: 1, 2 or 4 repetitions of a pixel in both directions before the convolution.

    Returns:
        (O, C, 3, 3).
    """
    kept: list[Tensor] = []
    batch, inputs, height, width = x.shape
    outputs = grad_y.shape[1]
    grad_weight = torch.empty((outputs, inputs, 3, 3), dtype=x.dtype, device=x.device)
    cpu.extension.conv3x3_weight_gradient(
        (batch, inputs, outputs, height, width, repeat),
        _images(kept, x),
        _images(kept, grad_y),
        _weights(kept, grad_weight),
    )
    return grad_weight


def result_shape(x: Tensor, weight: Tensor, repeat: int, transposed: bool) -> tuple[int, ...]:
    """Return the shape of what :func:`conv3x3` returns."""
    batch, _, height, width = x.shape
    if transposed:
        return batch, weight.shape[1], height // repeat, width // repeat
    return batch, weight.shape[0], height * repeat, width * repeat


def _images(kept: list[Tensor], x: Tensor) -> _Images:
    """Describe images. A copy, if pixels or channels do not lie side by side, is added to ``kept``."""
    used = x if 1 in (x.stride(3), x.stride(1)) else x.contiguous()
    used = used if used.data_ptr() else with_memory(used)
    kept.append(used)
    samples, channels, rows, pixels = used.stride()
    return used.data_ptr(), samples, channels, rows, pixels


def _finish(kept: list[Tensor], finish: Finish, batch: int) -> tuple[_Images, int, float, float]:
    if finish.addend is None:
        return (0, 0, 0, 0, 0), 1, finish.share, finish.slope
    return _images(kept, finish.addend), batch // len(finish.addend), finish.share, finish.slope


def _pointwise(kept: list[Tensor], pointwise: Pointwise | None) -> tuple[int, int, int, float]:
    if pointwise is None:
        return 0, 0, 0, 1.0
    weight, bias = pointwise.weight.flatten(1).contiguous(), pointwise.bias.contiguous()
    kept += [weight, bias]
    return len(weight), weight.data_ptr(), bias.data_ptr(), pointwise.slope


def _weights(kept: list[Tensor], weight: Tensor) -> _Weights:
    """Describe weights. A copy, if the nine of a pair do not lie side by side, is added to ``kept``."""
    used = weight if weight.stride()[2:] == (3, 1) else weight.contiguous()
    used = used if used.data_ptr() else with_memory(used)
    kept.append(used)
    return used.data_ptr(), used.stride(0), used.stride(1), False
