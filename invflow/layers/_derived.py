"""Values derived from parameters: one cache of them, and one derivative.

Actnorm and 1x1 convolution are one channel map with M = W diag(e^s), v = M b and log |det M|. Its inverse has
M = diag(e^-s) W^-1 and v = -b. All are computed in float64, from one LU factorisation for every value that the weight
takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from invflow.ops._transforms import is_watched, reference_backward

__all__ = ["ChannelMap", "UnusableWeightError", "ValueCache", "can_remember", "compose", "derive"]

T = TypeVar("T")


class UnusableWeightError(ValueError):
    """A weight that has no inverse."""


def can_remember(tensors: Sequence[Tensor]) -> bool:
    """Return whether values computed from these tensors may be kept: nothing looks on, and they have data."""
    return not is_watched() and not any(tensor.is_meta or tensor.is_inference() for tensor in tensors)


@dataclass(frozen=True)
class _Entry(Generic[T]):
    versions: list[tuple[int, int]]
    copies: list[Tensor]
    value: T


def _version(tensor: Tensor) -> tuple[int, int]:
    return tensor._version, tensor.data_ptr()


def _same(tensor: Tensor, kept: Tensor) -> bool:
    if tensor.dtype is not kept.dtype:
        return False
    # An edit through .data leaves the version as it was. Looking would wait for a device other than the CPU.
    return kept.is_cpu and torch.equal(tensor, kept) if tensor.is_cpu else tensor.device == kept.device


class ValueCache(Generic[T]):
    """Cache of the value computed from the last contents of some tensors. A copied or unpickled cache is empty."""

    def __init__(self) -> None:
        self._entry: _Entry[T] | None = None

    def __reduce__(self) -> tuple[type[ValueCache[T]], tuple[()]]:
        return ValueCache, ()

    def __call__(self, tensors: Sequence[Tensor], compute: Callable[[], T]) -> T:
        """Return ``compute()``, without a graph, or its last result if ``tensors`` have kept their values."""
        entry, versions = self._entry, [_version(tensor) for tensor in tensors]
        if entry is None or entry.versions != versions or not all(map(_same, tensors, entry.copies)):
            # what is remembered may be saved for a backward pass later
            with torch.inference_mode(False), torch.no_grad():
                copies = [tensor.detach().clone() for tensor in tensors]
                entry = self._entry = _Entry(versions, copies, compute())
        return entry.value


class ChannelMap:
    """A channel map: :math:`M x + v` at every pixel.

    Attributes:
        matrix: M (C, C).
        shift: v (C,).
        log_abs_det: log |det M|, a float64 scalar.
    """

    def __init__(self, matrix: Tensor, shift: Tensor, log_abs_det: Tensor) -> None:
        self.matrix, self.shift, self.log_abs_det = matrix, shift, log_abs_det
        self._last: tuple[int, Tensor] | None = None

    def log_det(self, x: Tensor) -> Tensor:
        """Return the log-determinant for one sample, in the dtype of the matrix; cached per image size."""
        pixels = x.shape[2] * x.shape[3]
        if self._last is None or self._last[0] != pixels:
            with torch.inference_mode(False):
                self._last = pixels, (pixels * self.log_abs_det).to(self.matrix.dtype)
        return self._last[1]


def derive(
    weight: Tensor,
    bias: Tensor | None,
    log_scale: Tensor | None,
    dtype: torch.dtype,
    *,
    inverse: bool,
    cache: ValueCache[tuple[Tensor, Tensor]],
    owner: object,
) -> ChannelMap:
    """Return the map of an actnorm, or none, and a convolution, differentiable with all its gradients in one go.

    Args:
        weight: W (C, C).
        bias: b (C,) of the actnorm before the convolution; ``None`` without one.
        log_scale: s (C,), likewise.
        dtype: dtype of the resulting matrix and shift.
        inverse: return the inverse map.
        cache: holds the weight's inverse and determinant.
        owner: the layer that an error names.

    Raises:
        UnusableWeightError: a weight that is singular or not finite.
    """
    tensors = [tensor for tensor in (weight, bias, log_scale) if tensor is not None]
    if not can_remember(tensors):
        exact = weight.double()
        used = torch.linalg.inv(exact) if inverse else exact
        return compose(used, torch.linalg.slogdet(exact).logabsdet, bias, log_scale, dtype, inverse=inverse)
    weight_inverse, log_abs_det = cache([weight], lambda: _factorize(weight, owner))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return ChannelMap(*_Map.apply(weight, bias, log_scale, weight_inverse, log_abs_det, dtype, inverse))
    used = weight_inverse if inverse else weight.double()
    return compose(used, log_abs_det, bias, log_scale, dtype, inverse=inverse)


def compose(
    weight: Tensor,
    log_abs_det: Tensor,
    bias: Tensor | None,
    log_scale: Tensor | None,
    dtype: torch.dtype,
    *,
    inverse: bool,
) -> ChannelMap:
    """Return the map of an actnorm, or none, and a convolution, in plain PyTorch.

    Args:
        weight: W (C, C) or, for the inverse map, its inverse; float64.
        log_abs_det: log |det W|, float64.
        bias, log_scale, dtype, inverse: as in :func:`derive`.
    """
    matrix, shift, log_abs_det = _compose(weight, log_abs_det, bias, log_scale, dtype, inverse)
    return ChannelMap(matrix.to(dtype), shift, log_abs_det)


def _compose(
    weight: Tensor,
    log_abs_det: Tensor,
    bias: Tensor | None,
    log_scale: Tensor | None,
    dtype: torch.dtype,
    inverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return M in float64, v in ``dtype`` and log |det M|. ``weight`` is W or, for the inverse, W^-1."""
    if bias is None or log_scale is None:
        shift = torch.zeros(weight.shape[0], dtype=dtype, device=weight.device)
        return weight, shift, -log_abs_det if inverse else log_abs_det
    bias, log_scale = bias.double(), log_scale.double()
    log_abs_det = log_scale.sum() + log_abs_det
    if inverse:
        return (-log_scale).exp()[:, None] * weight, (-bias).to(dtype), -log_abs_det
    matrix = weight * log_scale.exp()
    return matrix, (matrix @ bias).to(dtype), log_abs_det


def _factorize(weight: Tensor, owner: object) -> tuple[Tensor, Tensor]:
    exact = weight.detach().double()
    factors, pivots, failed = torch.linalg.lu_factor_ex(exact)
    log_abs_det = factors.diagonal().abs().log().sum()
    if bool(failed) or not bool(log_abs_det.isfinite()):
        problem = "singular" if bool(exact.isfinite().all()) else "not finite"
        raise UnusableWeightError(f"{type(owner).__name__} with {weight.shape[0]} channels: weight is {problem}")
    inverse = torch.linalg.lu_solve(factors, pivots, torch.eye(len(exact), dtype=exact.dtype, device=exact.device))
    return inverse, log_abs_det


class _Map(torch.autograd.Function):
    """Channel map of the parameters, with all its gradients in one backward pass.

    They are a handful of products of small matrices. As a graph of single operators they take longer than the pass over
    a small state.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        bias: Tensor | None,
        log_scale: Tensor | None,
        weight_inverse: Tensor,
        log_abs_det: Tensor,
        dtype: torch.dtype,
        inverse: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        used = weight_inverse if inverse else weight.double()
        matrix, shift, log_det = _compose(used, log_abs_det, bias, log_scale, dtype, inverse)
        ctx.save_for_backward(weight, bias, log_scale, weight_inverse, matrix)
        ctx.dtype, ctx.inverse = dtype, inverse
        if bias is None:
            ctx.mark_non_differentiable(shift)  # zeros
            log_det = log_det.clone()
        # copies of what is saved, or held by the cache
        return matrix.to(dtype, copy=True), shift, log_det

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias, log_scale, weight_inverse, matrix = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_differentiable_gradients(ctx, (weight, bias, log_scale), grads), None, None, None, None
        grad_matrix, grad_shift, grad_log_det = (grad.double() for grad in grads)
        of_determinant = grad_log_det * weight_inverse.T
        if ctx.inverse:
            # M = diag(e^-s) W^-1 and dW^-1 = -W^-1 dW W^-1
            grad_weight = -matrix.T @ grad_matrix @ weight_inverse.T - of_determinant
        elif bias is None:
            grad_weight = grad_matrix + of_determinant
        else:
            grad_bias = grad_shift @ matrix
            grad_matrix = torch.addr(grad_matrix, grad_shift, bias.double())
            grad_log_scale = (grad_matrix * matrix).sum(0) + grad_log_det
            grad_weight = torch.addcmul(of_determinant, grad_matrix, log_scale.double().exp())
        if bias is None:
            return grad_weight.to(weight.dtype), None, None, None, None, None, None
        if ctx.inverse:
            grad_bias = -grad_shift
            grad_log_scale = -(grad_matrix * matrix).sum(1) - grad_log_det
        own = grad_weight.to(weight.dtype), grad_bias.to(bias.dtype), grad_log_scale.to(log_scale.dtype)
        return *own, None, None, None, None


def _differentiable_gradients(
    ctx: Any, inputs: tuple[Tensor | None, ...], grads: tuple[Tensor, ...]
) -> list[Tensor | None]:
    present = [tensor for tensor in inputs if tensor is not None]

    def reference(weight: Tensor, bias: Tensor | None = None, log_scale: Tensor | None = None) -> tuple[Tensor, ...]:
        exact = weight.double()
        used = torch.linalg.inv(exact) if ctx.inverse else exact
        log_abs_det = torch.linalg.slogdet(exact).logabsdet
        matrix, shift, log_det = _compose(used, log_abs_det, bias, log_scale, ctx.dtype, ctx.inverse)
        return matrix.to(ctx.dtype), shift, log_det

    found = reference_backward(reference, present, grads, ctx.needs_input_grad[: len(present)])
    return [*found, *[None] * (len(inputs) - len(present))]
