"""Networks of couplings that users wrote as ``nn.Sequential``, evaluated by faster operators where nobody looks on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invflow.layers.protocol import is_watched, watches_all
from invflow.ops import conv3x3
from invflow.ops._transforms import needs_reference

__all__ = ["GAIN", "perceptron_of", "shift_and_scale"]

#: What FrEIA multiplies every output of a subnet with.
GAIN = 0.1


def shift_and_scale(subnet: nn.Module, x: Tensor) -> Tensor:
    """Return 0.1 times a subnet's output (B, 2C, *) with its halves exchanged: shifts first, then raw scales.

    The layers of an ``nn.Sequential`` stay modules with their parameters. Its plain 3x3 convolutions go to
    :func:`invflow.ops.conv3x3`, those of 1x1 to products of matrices, and paddings before them are no copy. Gain and
    exchange are applied to the few weights of the last layer, not to its many results. A subnet that has hooks, or of
    another kind, is called.

    Args:
        subnet: returns raw scales, then shifts.
        x: (B, C', *), its input; of images only layers are evaluated one by one.
    """
    layers = None if x.dim() != 4 or _is_looked_at() else _plain_layers(subnet)
    if layers is None:
        h = subnet(x) * GAIN
        return h.roll(h.shape[1] // 2, 1)
    *before, last = layers
    h = x
    for layer, padding in before:
        h = _evaluate(padding, h, layer.weight, layer.bias) if _is_conv(layer) else layer(h)
    layer, padding = last
    bias = None if layer.bias is None else _exchanged(layer.bias)
    return _evaluate(padding, h, _exchanged(layer.weight), bias)


def perceptron_of(subnet: nn.Module) -> list[Tensor] | None:
    """Return weight and bias of each layer of a plain perceptron in turn, or ``None`` for another subnet.

    Args:
        subnet: a perceptron is an ``nn.Sequential`` of ``nn.Linear`` with biases, and of ``nn.ReLU`` between them.
    """
    if type(subnet) is not nn.Sequential or _does_more(subnet) or watches_all():
        return None
    found: list[Tensor] = []
    linear = False
    for layer in _flat(subnet):
        if type(layer) is not (nn.ReLU if linear else nn.Linear) or _does_more(layer):
            return None
        linear = not linear
        if linear:
            own = layer._parameters  # not as attributes, which a module finds slowly
            weight, bias = own.get("weight"), own.get("bias")
            if weight is None or bias is None:
                return None
            found += [weight, bias]
    return found if linear else None


def _exchanged(tensor: Tensor) -> Tensor:
    half = tensor.shape[0] // 2
    return torch.cat([tensor[half:], tensor[:half]]) * GAIN


def _evaluate(padding: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if padding == 1 and weight.shape[2:] == (3, 3):
        return conv3x3(x, weight, bias)
    if padding == 0 and weight.shape[2:] == (1, 1) and _is_pixel_rows(x):
        return _conv1x1(x, weight.flatten(1), bias)
    return F.conv2d(x, weight, bias, padding=padding)


def _is_pixel_rows(x: Tensor) -> bool:
    """Return whether the pixels of a channel lie side by side on a CPU: a product of matrices is faster there."""
    return x.is_cpu and x.stride(3) == 1 and x.stride(2) == x.shape[3] and not torch.is_autocast_enabled("cpu")


def _conv1x1(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return a 1x1 convolution with the weight (O, C) as one product of matrices a sample."""
    weights, pixels = weight.expand(x.shape[0], -1, -1), x.flatten(2)
    y = torch.bmm(weights, pixels) if bias is None else torch.baddbmm(bias[None, :, None], weights, pixels)
    return y.unflatten(2, x.shape[2:])


def _plain_layers(subnet: nn.Module) -> list[tuple[Any, int]] | None:
    """Return the layers with the padding of each convolution, or ``None`` if one does more than its type says."""
    if type(subnet) is not nn.Sequential or _does_more(subnet):
        return None
    found: list[tuple[Any, int]] = []
    pending = 0
    for layer in _flat(subnet):
        if _does_more(layer):
            return None
        if type(layer) is nn.ZeroPad2d:
            width = _equal(layer.padding)
            if width is None or pending:
                return None
            pending = width
            continue
        own = _padding_of(layer) if _is_conv(layer) else 0
        if own is None or (pending and (own or not _is_conv(layer))):
            return None
        found.append((layer, own + pending))
        pending = 0
    if pending or not found or not _is_conv(found[-1][0]) or found[-1][0].weight.shape[0] % 2:
        return None
    return found


def _flat(subnet: nn.Sequential) -> Iterator[nn.Module]:
    for layer in subnet:
        if type(layer) is nn.Sequential and not _does_more(layer):
            yield from _flat(layer)
        else:
            yield layer


def _is_conv(layer: nn.Module) -> bool:
    return type(layer) is nn.Conv2d


def _does_more(layer: nn.Module) -> bool:
    own = layer.__dict__
    return is_watched(layer) or "forward" in own or "_conv_forward" in own


def _padding_of(layer: nn.Module) -> int | None:
    """Return the padding of a plain convolution with a square kernel, or ``None`` for any other."""
    conv = cast(nn.Conv2d, layer)
    if (conv.stride, conv.dilation, conv.groups, conv.padding_mode) != ((1, 1), (1, 1), 1, "zeros"):
        return None
    if conv.padding == "valid":
        return 0
    if conv.padding == "same":
        size = conv.kernel_size[0]
        return size // 2 if conv.kernel_size == (size, size) and size % 2 else None
    return _equal(cast("tuple[int, ...]", conv.padding))


def _equal(widths: tuple[int, ...]) -> int | None:
    return widths[0] if len(set(widths)) == 1 and widths[0] >= 0 else None


def _is_looked_at() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or needs_reference() or watches_all()
