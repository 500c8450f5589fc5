"""A block of vectors with a perceptron as its subnet in one call each way: gradients are written by hand.

Vectors are small. Most of their time goes to the calls of operators and to the nodes of a graph, so that fewer of
either are faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from invflow._numerics import KERNEL_DTYPES
from invflow.backends import current_backend
from invflow.backends._cpu import cpu
from invflow.backends.native import NO_VIEW, Step, View
from invflow.interop._subnets import GAIN
from invflow.ops import AffineForm
from invflow.ops._transforms import is_intercepted, needs_reference, reference_backward

__all__ = ["VectorBlock", "is_plain", "scale_of"]

_threshold_backward = torch.ops.aten.threshold_backward.default


def scale_of(raw: Tensor, kind: str) -> Tensor:
    """Return the global scale of its raw parameter.

    Args:
        raw: of any shape.
        kind: the activation: ``"SIGMOID"``, ``"SOFTPLUS"`` or ``"EXP"``.
    """
    if kind == "SIGMOID":
        return 10 * torch.sigmoid(raw - 2.0)
    if kind == "SOFTPLUS":
        return 0.1 * F.softplus(raw, beta=0.5)
    return raw.exp()


def is_plain(tensors: Sequence[Tensor]) -> bool:
    """Return whether kernels can read tensors: ordinary ones of a CPU, of one full dtype, and nobody looks on."""
    if needs_reference() or is_intercepted() or torch.is_autocast_enabled("cpu"):
        return False
    if cpu.extension is None or current_backend() not in ("auto", "cpu"):
        return False
    dtype = tensors[0].dtype
    if dtype not in (torch.float32, torch.float64):
        return False
    return all(type(each) in _ORDINARY and each.dtype == dtype and each.is_cpu for each in tensors)


_ORDINARY = (Tensor, torch.nn.Parameter)


def _has_no_memory(grad: Tensor) -> bool:
    """Return whether a gradient cannot be read, as several ones at once (``is_grads_batched``) cannot."""
    try:
        grad.data_ptr()
    except RuntimeError:
        return True
    return False


class VectorBlock(NamedTuple):
    """The tensors of a block: coupling, global affine map, orthogonal matrix.

    Args:
        raw_scale, offset: (1, D) of the global map; the scale is that of ``scale_of``.
        matrix: (D, D) of the map that is called, W or its inverse. It needs no gradient.
        layers: weight (O, I) and bias (O,) of every linear layer in turn, with a ReLU between two of them.
        kind: activation of the global scale.
        form: that of the coupling: x exp(a tanh(r)) + t.
    """

    raw_scale: Tensor
    offset: Tensor
    matrix: Tensor
    layers: list[Tensor]
    kind: str
    form: AffineForm

    def forward(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return y (B, D) and log_det (B,).

        Args:
            x: (B, D).
            condition: (B, K) or ``None``.
        """
        if torch.is_grad_enabled():
            found = _Function.apply(x, condition, *self[:3], self.kind, self.form, *self.layers)
            return cast("tuple[Tensor, Tensor]", found)
        return _forward(x, condition, self)[:2]

    def inverse(self, y: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return x (B, D) and log_det (B,) of the inverse.

        Args:
            y: (B, D).
            condition: (B, K) or ``None``.
        """
        scale = scale_of(self.raw_scale, self.kind)
        x = (y.mm(self.matrix.t()) - self.offset) / scale
        log_det = _couple(x, _outputs(_inputs(x, condition, self.layers)[-1], self), self, inverse=True)
        return x, log_det - scale.log().sum()


def _inputs(x: Tensor, condition: Tensor | None, layers: list[Tensor]) -> list[Tensor]:
    """Return the input of every linear layer."""
    kept = x[:, : x.shape[1] - x.shape[1] // 2]
    inputs = [kept if condition is None else torch.cat([kept, condition], 1)]
    for weight, bias in zip(layers[:-2:2], layers[1:-2:2], strict=True):
        inputs.append(torch.addmm(bias, inputs[-1], weight.t()).relu_())
    return inputs


def _outputs(last: Tensor, block: VectorBlock) -> Tensor:
    """Return raw scales and shifts (B, 2 D') of the last layer's input."""
    weight, bias = block.layers[-2:]
    return torch.addmm(bias, last, weight.t(), beta=GAIN, alpha=GAIN)


def _couple(x: Tensor, outputs: Tensor, block: VectorBlock, *, inverse: bool = False) -> Tensor:
    """Transform the second half of the rows of ``x`` in place, and return log_det (B,)."""
    log_det = torch.empty(x.shape[0], dtype=x.dtype, device="cpu")
    step = _step(x, outputs, NO_VIEW, block, inverse=inverse)
    cpu.extension.flow_step(step, step[3], log_det.data_ptr())
    return log_det


def _step(x: Tensor, outputs: Tensor, of_outputs: View, block: VectorBlock, *, inverse: bool) -> Step:
    """Describe the coupling of the second half of rows: to the kernels it is one channel with pixels side by side."""
    count = outputs.shape[1] // 2
    words: Any = block.form.words  # there are none of volume-preserving forms only
    of_map = (_swapped(outputs), of_outputs, 0, 1, 1, *words, inverse)
    return x.shape[0], 1, count, _second_half(x, count), 0, 0, [of_map], []


def _second_half(x: Tensor, count: int) -> View:
    row, column = x.stride()
    return x.data_ptr() + (x.shape[1] - count) * column * x.element_size(), KERNEL_DTYPES[x.dtype], row, 0, column


def _swapped(outputs: Tensor) -> View:
    """Describe raw scales and shifts to kernels, which read shifts first."""
    row, column = outputs.stride()
    half = outputs.shape[1] // 2 * column
    return outputs.data_ptr() + half * outputs.element_size(), KERNEL_DTYPES[outputs.dtype], row, -half, column


def _forward(x: Tensor, condition: Tensor | None, block: VectorBlock) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return y, log_det and what the gradients need."""
    inputs = _inputs(x, condition, block.layers)
    outputs = _outputs(inputs[-1], block)
    scale, coupled = scale_of(block.raw_scale, block.kind), x.clone(memory_format=torch.contiguous_format)
    log_det = _couple(coupled, outputs, block)
    y = torch.addcmul(block.offset, coupled, scale).mm(block.matrix.t())
    log_det += scale.log().sum()
    return y, log_det, [outputs, coupled, scale, *inputs[1:]]


def _reference(x: Tensor, condition: Tensor | None, block: VectorBlock) -> tuple[Tensor, Tensor]:
    """Compute the same in plain PyTorch."""
    raw, shift = _outputs(_inputs(x, condition, block.layers)[-1], block).chunk(2, 1)
    kept = x.shape[1] - shift.shape[1]
    log_scale, scale = block.form.bound * raw.tanh(), scale_of(block.raw_scale, block.kind)
    coupled = torch.cat([x[:, :kept], x[:, kept:] * log_scale.exp() + shift], 1)
    y = (coupled * scale + block.offset).mm(block.matrix.t())
    return y, log_scale.sum(1) + scale.log().sum()


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        condition: Tensor | None,
        raw_scale: Tensor,
        offset: Tensor,
        matrix: Tensor,
        kind: str,
        form: AffineForm,
        *layers: Tensor,
    ) -> tuple[Tensor, Tensor]:
        block = VectorBlock(raw_scale, offset, matrix, list(layers), kind, form)
        y, log_det, saved = _forward(x, condition, block)
        ctx.save_for_backward(x, condition, raw_scale, offset, matrix, *layers, *saved)
        ctx.options, ctx.count = (kind, form), len(layers)
        return y, log_det

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, condition, raw_scale, offset, matrix, *rest = ctx.saved_tensors
        layers, saved = rest[: ctx.count], rest[ctx.count :]
        block = VectorBlock(raw_scale, offset, matrix, layers, *ctx.options)
        with torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext():
            if torch.is_grad_enabled() or not is_plain(grads) or any(map(_has_no_memory, grads)):
                return _general_gradients(ctx, grads, x, condition, block)
            return _gradients(ctx.needs_input_grad, grads, x, condition, block, saved)


def _gradients(
    needs: Sequence[bool],
    grads: Sequence[Tensor],
    x: Tensor,
    condition: Tensor | None,
    block: VectorBlock,
    saved: list[Tensor],
) -> tuple[Tensor | None, ...]:
    grad_y, grad_log_det = grads
    outputs, coupled, scale, *hidden = saved
    grad = grad_y.mm(block.matrix)
    of_offset = grad.sum(0, keepdim=True) if needs[3] else None
    of_raw = None
    if needs[2]:
        of_scale = (grad * coupled).sum(0, keepdim=True) + grad_log_det.sum() / scale
        of_raw = of_scale * _slope(block.raw_scale, scale, block.kind)
    grad *= scale
    of_output = torch.empty_like(outputs)
    step, view = _step(x, outputs, _swapped(of_output), block, inverse=False), _second_half(grad, outputs.shape[1] // 2)
    of_log_det = grad_log_det.contiguous()
    cpu.extension.flow_step_backward(step, view, of_log_det.data_ptr(), view, 0, 0)
    of_output *= GAIN
    count = x.shape[1] - outputs.shape[1] // 2
    kept = x[:, :count]
    inputs = [kept if condition is None else torch.cat([kept, condition], 1), *hidden]
    of_layers: list[Tensor | None] = []
    for place in reversed(range(len(inputs))):
        needs_weight, needs_bias = needs[7 + 2 * place : 9 + 2 * place]
        of_layers[:0] = [
            of_output.t().mm(inputs[place]) if needs_weight else None,
            of_output.sum(0) if needs_bias else None,
        ]
        if place == 0 and not (needs[0] or needs[1]):
            break
        of_output = of_output.mm(block.layers[2 * place])
        if place:
            of_output = _threshold_backward(of_output, inputs[place], 0)
    if needs[0]:
        grad[:, :count] += of_output[:, :count]
    of_condition = of_output[:, count:] if needs[1] else None
    return grad if needs[0] else None, of_condition, of_raw, of_offset, None, None, None, *of_layers


def _slope(raw: Tensor, scale: Tensor, kind: str) -> Tensor:
    """Return the derivative of the global scale."""
    if kind == "SIGMOID":
        return scale * (1 - 0.1 * scale)
    if kind == "SOFTPLUS":
        return 0.1 * torch.sigmoid(0.5 * raw)
    return scale


def _general_gradients(
    ctx: Any, grads: Sequence[Tensor], x: Tensor, condition: Tensor | None, block: VectorBlock
) -> tuple[Tensor | None, ...]:
    """Return gradients of what is out of the ordinary, or with a graph of their own."""
    given = [x, condition, block.raw_scale, block.offset, *block.layers]
    places = [0, 1, 2, 3, *range(7, 7 + len(block.layers))]
    present = [place for place, tensor in zip(places, given, strict=True) if tensor is not None]

    def general(x: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        rest = list(others)
        given = rest.pop(0) if condition is not None else None
        made = VectorBlock(rest[0], rest[1], block.matrix, rest[2:], block.kind, block.form)
        return _reference(x, given, made)

    tensors = [tensor for tensor in given if tensor is not None]
    needs = [ctx.needs_input_grad[place] for place in present]
    results: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
    found = reference_backward(general, tensors, grads, needs, differentiable=torch.is_grad_enabled())
    for place, grad in zip(present, found, strict=True):
        results[place] = grad
    return tuple(results)
