"""Dense block of the encoder, evaluated in one buffer that the backward pass shares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invflow._numerics import state_format
from invflow.ops import conv3x3_gradients
from invflow.ops._finished_conv3x3 import Finish, finished_conv3x3
from invflow.ops._transforms import reference_backward, saving_is_watched
from sr_models.networks.convolution import SLOPE, conv3x3_layer, is_looked_at, is_plain_conv, leaky
from sr_models.networks.precision import half_precision

__all__ = ["DenseBlock"]

#: Share of the last convolution's result that is added to the input.
_SHARE = 0.2


class DenseBlock(nn.Module):
    """Dense block: five convolutions, each seeing all earlier outputs (Wang et al., ESRGAN, 2018, figure 4).

    All outputs lie in one buffer, of which each convolution sees the first channels. It is all that the backward pass
    keeps. Where somebody watches the calls of the convolutions, or they are of another kind, they are called on joined
    tensors.

    Args:
        features: channels of the input and of the result.
        growth: channels that each of the first four convolutions adds.
    """

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        outputs = (growth, growth, growth, growth, features)
        self.convs = nn.ModuleList(_small_conv(features + i * growth, out) for i, out in enumerate(outputs))

    def forward(self, x: Tensor) -> Tensor:
        parameters = self._parameters_for(x)
        if parameters is None:
            return self._joined(x)
        if not torch.is_grad_enabled():
            return _evaluate(x, parameters)[0]
        y = cast(Tensor, _DenseBlock.apply(x, *parameters))
        _keep_once(y)
        return y

    def _joined(self, x: Tensor) -> Tensor:
        seen = x
        for conv in self.convs[:-1]:
            seen = torch.cat([seen, leaky(conv(seen))], 1)
        return torch.add(x, self.convs[-1](seen), alpha=_SHARE)

    def _parameters_for(self, x: Tensor) -> list[Tensor] | None:
        """Return weight and bias of each convolution, in the dtype in which it computes now.

        Returns:
            ``None`` if a convolution's call may do more than they say.
        """
        if type(x) is not Tensor or x.dim() != 4 or is_looked_at() or not all(map(is_plain_conv, self.convs)):
            return None
        parameters = [cast(Tensor, parameter) for conv in self.convs for parameter in (conv.weight, conv.bias)]
        if not all(type(parameter) in (Tensor, nn.Parameter) for parameter in parameters):
            return None
        dtype = half_precision(x.device)
        if dtype is not None:  # as autocast converts them
            if x.dtype is torch.float64:
                return None
            parameters = [parameter.to(dtype) for parameter in parameters]
        elif x.dtype is not parameters[0].dtype:
            return None
        alike = all(p.dtype is parameters[0].dtype and p.device == x.device for p in parameters)
        return parameters if alike else None


class _DenseBlock(torch.autograd.Function):
    """``y(x, weight, bias, weight, bias, ...)`` of a dense block."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        y, buffer = _evaluate(x, parameters)
        ctx.save_for_backward(x, buffer, *parameters)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, buffer, *parameters = ctx.saved_tensors
        if torch.is_grad_enabled():
            return tuple(reference_backward(_composition, [x, *parameters], grads, ctx.needs_input_grad))
        return tuple(_gradients(buffer, parameters, grads[0], ctx.needs_input_grad, x.dtype))


def _evaluate(x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the result, and the buffer with the input and the results of the activations."""
    *growing, (last_weight, last_bias) = _pairs(parameters)
    batch, _, height, width = x.shape
    buffer = torch.empty(
        (batch, last_weight.shape[1], height, width),
        dtype=last_weight.dtype,
        device=x.device,
        memory_format=state_format(x),
    )
    buffer[:, : x.shape[1]].copy_(x)
    for weight, bias in growing:
        start = weight.shape[1]
        out = buffer[:, start : start + len(weight)]
        finished_conv3x3(buffer[:, :start], weight, bias, finish=Finish(slope=SLOPE), out=out)
    return finished_conv3x3(buffer, last_weight, last_bias, finish=Finish(x, _SHARE)), buffer


def _gradients(
    buffer: Tensor, parameters: Sequence[Tensor], grad_y: Tensor, needs: Sequence[bool], dtype: torch.dtype
) -> Iterator[Tensor | None]:
    """Return the gradients of the input, in ``dtype``, and of the parameters."""
    pairs = list(_pairs(parameters))
    found: list[Tensor | None] = []
    grad = (grad_y * _SHARE).to(buffer.dtype)
    of_buffer: Tensor | None = None
    for number in reversed(range(len(pairs))):
        weight, _ = pairs[number]
        start = weight.shape[1]
        if of_buffer is not None:
            part = of_buffer[:, start : start + len(weight)]
            seen = buffer[:, start : start + len(weight)]
            # the sign of the result is that of the input
            grad = torch.ops.aten.leaky_relu_backward(part, seen, SLOPE, True)
        needs_weight, needs_bias = needs[2 * number + 1 : 2 * number + 3]
        # of what comes before
        needs_seen = any(needs[: 2 * number + 1])
        of_seen, of_weight, of_bias = conv3x3_gradients(
            grad, buffer[:, :start], weight, (needs_seen, needs_weight, needs_bias)
        )
        found += [of_bias, of_weight]
        if of_buffer is None:
            of_buffer = of_seen
        elif of_seen is not None:
            of_buffer[:, :start].add_(of_seen)
        if not needs_seen:
            break
    found += [None] * (len(parameters) - len(found))
    of_x = None
    if needs[0]:
        assert of_buffer is not None
        of_x = torch.add(grad_y, of_buffer[:, : pairs[0][0].shape[1]]).to(dtype)
    return iter([of_x, *reversed(found)])


def _composition(x: Tensor, *parameters: Tensor) -> Tensor:
    """Compute the same as a composition, for a backward pass that is differentiated itself."""
    *growing, (last_weight, last_bias) = _pairs(parameters)
    seen = x.to(last_weight.dtype)
    for weight, bias in growing:
        seen = torch.cat([seen, leaky(F.conv2d(seen, weight, bias, padding=1))], 1)
    return torch.add(x, F.conv2d(seen, last_weight, last_bias, padding=1), alpha=_SHARE)


def _keep_once(y: Tensor) -> None:
    """Let the graph keep the buffer only, of which the input is a part, unless other hooks see what it keeps."""
    node: Any = y.grad_fn
    if type(node).__name__ != "_DenseBlockBackward" or saving_is_watched():
        return
    x, buffer, *_ = node.saved_tensors
    if x.dtype is buffer.dtype:
        part = buffer[:, : x.shape[1]].detach()
        node._raw_saved_tensors[0].register_hooks(lambda _: part, lambda packed: packed)


def _pairs(parameters: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(parameters[::2], parameters[1::2], strict=True)


def _small_conv(inputs: int, outputs: int) -> nn.Conv2d:
    """A convolution that starts at a tenth of the usual size, so that residual blocks start near the identity."""
    conv = conv3x3_layer(inputs, outputs)
    if conv.weight.is_meta:  # nothing is drawn there, but torch takes a millisecond to do so
        return conv
    nn.init.kaiming_normal_(conv.weight)
    with torch.no_grad():
        conv.weight.mul_(0.1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
