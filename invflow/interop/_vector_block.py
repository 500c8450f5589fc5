"""A block of vectors with a perceptron as its subnet in one call of a kernel each way.

Vectors are small. Most of their time goes to the calls of operators and to the nodes of a graph: one of either is
faster, and csrc/cpu/vector_block.inc multiplies small matrices without copies between the products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from invflow.backends import current_backend
from invflow.backends._cpu import cpu
from invflow.interop._subnets import GAIN
from invflow.ops._transforms import reference_backward

__all__ = ["VectorBlock", "scale_of"]

#: Numbers of the activations, as csrc/cpu/vectors.cpp has them.
_NAMES = ("SIGMOID", "SOFTPLUS", "EXP")
_KINDS = {name: number for number, name in enumerate(_NAMES)}


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


class VectorBlock(NamedTuple):
    """The tensors of a block: coupling, global affine map, orthogonal matrix.

    Args:
        raw_scale, offset: (1, D) of the global map; the scale is that of ``scale_of``.
        matrix: (D, D) of the map that is called, W or its inverse. It needs no gradient.
        layers: weight (O, I) and bias (O,) of every linear layer in turn, with a ReLU between two of them.
        kind: activation of the global scale.
        bound: a of the coupling x exp(a tanh(r)) + t.
    """

    raw_scale: Tensor
    offset: Tensor
    matrix: Tensor
    layers: list[Tensor]
    kind: str
    bound: float

    def forward(self, x: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Return y (B, D) and log_det (B,), or ``None`` where the kernel cannot: the block then goes the general way.

        Args:
            x: (B, D).
            condition: (B, K) or ``None``.
        """
        extension = _extension()
        if extension is None:
            return None
        arguments = self._arguments(x, condition)
        found = extension.vector_block(*arguments, False, False)
        if found is False:  # a gradient is asked for
            found = _Function.apply(extension, *arguments[:5], *arguments[6:], *self.layers)
        return cast("tuple[Tensor, Tensor] | None", found)

    def inverse(self, y: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Return x (B, D) and log_det (B,) of the inverse, or ``None`` as ``forward`` does, and if a gradient is asked.

        Args:
            y: (B, D).
            condition: (B, K) or ``None``.
        """
        extension = _extension()
        found = None if extension is None else extension.vector_block(*self._arguments(y, condition), True, False)
        return cast("tuple[Tensor, Tensor] | None", found or None)

    def _arguments(self, x: Tensor, condition: Tensor | None) -> tuple[Any, ...]:
        """Return what the functions of the extension have in common."""
        return x, condition, *self[:4], _KINDS[self.kind], self.bound


def _extension() -> Any:
    """Return the compiled extension, or ``None`` where its kernels are not wanted or would not be seen."""
    if current_backend() not in ("auto", "cpu") or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return None
    return cpu.extension


def _reference(x: Tensor, condition: Tensor | None, block: VectorBlock) -> tuple[Tensor, Tensor]:
    """Compute the same in plain PyTorch."""
    raw, shift = _network(x, condition, block.layers).chunk(2, 1)
    kept = x.shape[1] - shift.shape[1]
    log_scale, scale = block.bound * raw.tanh(), scale_of(block.raw_scale, block.kind)
    coupled = torch.cat([x[:, :kept], x[:, kept:] * log_scale.exp() + shift], 1)
    y = (coupled * scale + block.offset).mm(block.matrix.t())
    return y, log_scale.sum(1) + scale.log().sum()


def _network(x: Tensor, condition: Tensor | None, layers: list[Tensor]) -> Tensor:
    """Return raw scales and shifts (B, 2 D')."""
    kept = x[:, : x.shape[1] - x.shape[1] // 2]
    h = kept if condition is None else torch.cat([kept, condition], 1)
    for weight, bias in zip(layers[:-2:2], layers[1:-2:2], strict=True):
        h = F.linear(h, weight, bias).relu()
    return F.linear(h, layers[-2], layers[-1]) * GAIN


class _Function(torch.autograd.Function):
    """Returns ``None`` for what the kernel declines."""

    @staticmethod
    def forward(
        ctx: Any,
        extension: Any,
        x: Tensor,
        condition: Tensor | None,
        raw_scale: Tensor,
        offset: Tensor,
        matrix: Tensor,
        kind: int,
        bound: float,
        *layers: Tensor,
    ) -> tuple[Tensor, Tensor] | None:
        found = extension.vector_block(x, condition, raw_scale, offset, matrix, list(layers), kind, bound, False, True)
        if found is None:
            return None
        y, log_det, kept = found
        ctx.save_for_backward(kept, x, condition, raw_scale, offset, matrix, *layers)
        ctx.others = extension, kind, bound
        return y, log_det

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_log_det: Tensor) -> Any:
        extension, kind, bound = ctx.others
        kept, x, condition, raw_scale, offset, matrix, *layers = ctx.saved_tensors
        needs = ctx.needs_input_grad
        found = None
        if not torch.is_grad_enabled():
            wanted = (*needs[1:5], *needs[8:])
            given = x, condition, raw_scale, offset, matrix, layers, kind, bound
            found = extension.vector_block_gradients(kept, grad_y, grad_log_det, wanted, *given)
        if found is None:
            block = VectorBlock(raw_scale, offset, matrix, layers, _NAMES[kind], bound)
            with torch.autocast("cpu", enabled=False):  # as in the forward pass
                found = _general_gradients((grad_y, grad_log_det), (*needs[1:5], *needs[8:]), x, condition, block)
        return None, *found[:4], None, None, None, *found[4:]


def _general_gradients(
    grads: Sequence[Tensor], needs: Sequence[bool], x: Tensor, condition: Tensor | None, block: VectorBlock
) -> list[Tensor | None]:
    """Return gradients of what is out of the ordinary, or with a graph of their own."""
    given = [x, condition, block.raw_scale, block.offset, *block.layers]
    present = [place for place, tensor in enumerate(given) if tensor is not None]

    def general(x: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        rest = list(others)
        condition = rest.pop(0) if given[1] is not None else None
        return _reference(x, condition, block._replace(raw_scale=rest[0], offset=rest[1], layers=rest[2:]))

    tensors = [tensor for tensor in given if tensor is not None]
    wanted = [needs[place] for place in present]
    results: list[Tensor | None] = [None] * len(given)
    found = reference_backward(general, tensors, grads, wanted, differentiable=torch.is_grad_enabled())
    for place, grad in zip(present, found, strict=True):
        results[place] = grad
    return results
