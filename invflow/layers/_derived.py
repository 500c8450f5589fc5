"""Values derived from parameters: one cache of them, and one derivative.

Actnorm and 1x1 convolution are one channel map with M = W diag(e^s), v = M b and log |det M|. Its inverse has
M = diag(e^-s) W^-1 and v = -b. All are computed in float64, from one LU factorisation for every value that the weight
takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from invflow._numerics import pixels_of, reads_freely
from invflow.layers._factors import factorize, present_store
from invflow.layers._late import LateCheck, LayerError, UnusableWeightError, is_captured
from invflow.ops._ordinary import have_numbers, numbers_of
from invflow.ops._transforms import is_watched, reference_backward

__all__ = [
    "ChannelMap",
    "FactorCache",
    "LayerError",
    "Snapshot",
    "UnusableWeightError",
    "ValueCache",
    "are_plain",
    "compose",
    "derive",
    "factors",
    "is_plain",
]

T = TypeVar("T")

_PLAIN_TYPES = (Tensor, nn.Parameter)


def is_plain(tensors: Sequence[Tensor]) -> bool:
    """Return whether these are ordinary tensors that have data, and no transform, compiler or mode looks on."""
    return not is_watched() and are_plain(tensors)


def are_plain(tensors: Sequence[Tensor]) -> bool:
    """Return whether these are ordinary tensors that have data."""
    for tensor in tensors:  # noqa: SIM110 (a generator takes twice as long)
        if type(tensor) not in _PLAIN_TYPES or tensor.is_meta or tensor.is_inference():
            return False
    return True


class ValueCache(Generic[T]):
    """Cache of the value computed from the last contents of some tensors. A copied or unpickled cache is empty.

    It serves by comparing all contents: fused optimizers, edits through ``.data`` and replayed graphs change a tensor
    without a sign. Comparing would wait for a device other than the CPU, so nothing is kept for tensors there.
    """

    def __init__(self) -> None:
        # one attribute, since other threads may exchange it at any time
        self._entry: tuple[bytes | list[Tensor], T] | None = None

    def __reduce__(self) -> tuple[type[ValueCache[T]], tuple[()]]:
        return type(self), ()

    def known(self, tensors: list[Tensor]) -> T | None:
        """Return the value for tensors that need not be plain, if it is quickly found."""
        entry = self._entry
        if entry is None or not isinstance(entry[0], bytes) or not have_numbers(tensors, entry[0]):
            return None
        return entry[1]

    def keep(self, tensors: list[Tensor], numbers: bytes, value: T) -> None:
        """Remember the value for numbers, unless the tensors have others by now."""
        if have_numbers(tensors, numbers):
            self._entry = numbers, value

    def __call__(self, tensors: list[Tensor], compute: Callable[[], T]) -> T:
        """Return ``compute()``, without a graph, or its last result if ``tensors`` have kept their values.

        Args:
            tensors: plain tensors, always as many.
            compute: depends on nothing else.
        """
        entry = self._entry
        if entry is not None and _same(tensors, entry[0]):
            return entry[1]
        # what is remembered may be saved for a backward pass later
        with torch.inference_mode(False), torch.no_grad():
            if not all(map(reads_freely, tensors)):
                return compute()
            kept: bytes | list[Tensor] | None = numbers_of(tensors)
            if kept is None:
                kept = [tensor.detach().clone() for tensor in tensors]
            value = compute()
        # unless another thread has changed them meanwhile
        if _same(tensors, kept):
            self._entry = kept, value
        return value


def _same(tensors: list[Tensor], kept: bytes | list[Tensor]) -> bool:
    """Return whether tensors have the values that were kept of them; ``False`` if looking would wait for a device."""
    if isinstance(kept, bytes):
        return have_numbers(tensors, kept)
    for tensor, copy in zip(tensors, kept, strict=True):
        if not reads_freely(tensor) or tensor.dtype is not copy.dtype or not torch.equal(tensor, copy):
            return False
    return True


class FactorCache(ValueCache[tuple[Tensor, Tensor]]):
    """Cache of the inverse and ``log |det|`` of weights.

    Attributes:
        late: what is still to be looked at, of weights on another device than the CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.late = LateCheck()


class ChannelMap:
    """A channel map: :math:`M x + v` at every pixel.

    Attributes:
        matrix: M (C, C).
        shift: v (C,).
        log_abs_det: log |det M|, a float64 scalar.
    """

    log_abs_det: Tensor

    def __init__(self, matrix: Tensor, shift: Tensor, log_abs_det: Tensor) -> None:
        self.matrix, self.shift, self.log_abs_det = matrix, shift, log_abs_det
        self._last: tuple[int, Tensor] | None = None

    @property
    def constant(self) -> Tensor | None:
        """``log_abs_det``, or ``None`` if it has a graph."""
        return None if self.log_abs_det.requires_grad else self.log_abs_det

    def log_det(self, x: Tensor) -> Tensor:
        """Return the log-determinant for one sample, in the dtype of the matrix; cached per image size."""
        pixels, last = pixels_of(x), self._last
        if last is None or last[0] != pixels:
            with torch.inference_mode(False):
                last = self._last = pixels, (pixels * self.log_abs_det).to(self.matrix.dtype)
        return last[1]


class _SizedMap(ChannelMap):
    """A channel map for states of one size: its log-determinant for them has the same derivative."""

    def __init__(self, matrix: Tensor, shift: Tensor, log_det: Tensor) -> None:
        self.matrix, self.shift, self._log_det = matrix, shift, log_det

    @property
    def constant(self) -> Tensor | None:
        return None

    def log_det(self, x: Tensor) -> Tensor:
        return self._log_det


class Snapshot:
    """A channel map as it is now, without a graph, for states of any dtype.

    Args:
        compute: returns the map with matrix and shift of a dtype.
    """

    def __init__(self, compute: Callable[[torch.dtype], ChannelMap]) -> None:
        with torch.no_grad():
            self._exact = compute(torch.float64)
        self._found: dict[torch.dtype, ChannelMap] = {torch.float64: self._exact}

    def __call__(self, dtype: torch.dtype) -> ChannelMap:
        """Return the map with matrix and shift of this dtype."""
        found = self._found.get(dtype)
        if found is None:
            exact = self._exact
            found = ChannelMap(exact.matrix.to(dtype), exact.shift.to(dtype), exact.log_abs_det)
            self._found[dtype] = found
        return found


def derive(
    weight: Tensor,
    bias: Tensor | None,
    log_scale: Tensor | None,
    dtype: torch.dtype,
    *,
    inverse: bool,
    cache: FactorCache,
    owner: nn.Module,
    known: tuple[Tensor, Tensor] | None = None,
    pixels: int | None = None,
) -> ChannelMap:
    """Return the map of an actnorm, or none, and a convolution, differentiable with all its gradients in one go.

    Args:
        weight: W (C, C).
        bias: b (C,) of the actnorm before the convolution; ``None`` without one.
        log_scale: s (C,), likewise.
        dtype: dtype of the resulting matrix and shift.
        inverse: return the inverse map.
        cache: holds the weight's inverse and determinant, on the CPU.
        owner: the layer that an error names.
        known: inverse and ``log |det W|`` of the weight, if they are known; float64.
        pixels: number of pixels of the states that the map is for; ``None`` for any.

    Raises:
        UnusableWeightError: a weight that is singular or not finite. For one on another device than the CPU this may
            happen in a later call only, so that no call waits for the device; log_det is infinite or NaN meanwhile.
    """
    tensors = [tensor for tensor in (weight, bias, log_scale) if tensor is not None]
    if not is_plain(tensors):
        exact = weight.double()
        used = torch.linalg.inv(exact) if inverse else exact
        return compose(used, torch.linalg.slogdet(exact).logabsdet, bias, log_scale, dtype, inverse=inverse)
    weight_inverse, log_abs_det = known or factors(weight, cache, owner)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        given = weight, bias, log_scale, weight_inverse, log_abs_det, dtype, inverse
        return ChannelMap(*_Map.apply(*given, None)) if pixels is None else _SizedMap(*_Map.apply(*given, pixels))
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
    matrix, shift, composed = _compose(weight, log_abs_det, bias, log_scale, dtype, inverse)
    # without an actnorm the arguments come back, which a cache may hold and the caller may change
    return ChannelMap(matrix.to(dtype, copy=matrix is weight), shift, composed.clone() if bias is None else composed)


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
    return matrix, torch.mv(matrix, bias).to(dtype), log_abs_det


def factors(weight: Tensor, cache: FactorCache, owner: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the inverse and ``log |det|`` of a weight, float64, without a graph; arguments as for :func:`derive`.

    Raises:
        UnusableWeightError: as :func:`derive`.
    """
    if reads_freely(weight):
        return cache([weight], lambda: _factorize(weight, owner))
    store = present_store()
    if store is not None:
        inverses, log_abs_dets = store.factors_of([weight])
        return inverses[0], log_abs_dets[0]
    if not is_captured(weight):
        cache.late.look()
    with torch.inference_mode(False), torch.no_grad():
        inverse, log_abs_det = factorize(weight)
    cache.late.note(log_abs_det, [("", owner, weight)])
    return inverse, log_abs_det


def _factorize(weight: Tensor, owner: nn.Module) -> tuple[Tensor, Tensor]:
    inverse, log_abs_det = factorize(weight.detach())
    if not bool(log_abs_det.isfinite()):
        raise UnusableWeightError.of("", owner, weight)
    return inverse, log_abs_det


class _Map(torch.autograd.Function):
    """Channel map of the parameters, with all its gradients in one backward pass.

    They are a handful of products of small matrices. As a graph of single operators they take longer than the pass over
    a small state. The third result is log |det M| in float64 or, for a number of pixels, that of a state in ``dtype``.
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
        pixels: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        used = weight_inverse if inverse else weight.double()
        matrix, shift, log_det = _compose(used, log_abs_det, bias, log_scale, dtype, inverse)
        ctx.save_for_backward(weight, bias, log_scale, weight_inverse, matrix)
        ctx.dtype, ctx.inverse, ctx.pixels = dtype, inverse, pixels
        if bias is None:
            ctx.mark_non_differentiable(shift)  # zeros
            log_det = log_det.clone()
        if pixels is not None:
            log_det = (pixels * log_det).to(dtype)
        # copies of what is saved, or held by the cache
        return matrix.to(dtype, copy=True), shift, log_det

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias, log_scale, weight_inverse, matrix = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_differentiable_gradients(ctx, (weight, bias, log_scale), grads), None, None, None, None, None
        grad_matrix, grad_shift, grad_log_det = (grad.double() for grad in grads)
        if ctx.pixels is not None:
            grad_log_det = ctx.pixels * grad_log_det
        if ctx.inverse:
            # M = diag(e^-s) W^-1 and dW^-1 = -W^-1 dW W^-1
            grad_weight = -matrix.T @ grad_matrix @ weight_inverse.T - grad_log_det * weight_inverse.T
        elif bias is None:
            grad_weight = torch.addcmul(grad_matrix, weight_inverse.T, grad_log_det)
        else:
            grad_bias = torch.mv(matrix.T, grad_shift)
            grad_matrix = torch.addcmul(grad_matrix, grad_shift.unsqueeze(1), bias.double())
            grad_log_scale = (grad_matrix * matrix).sum(0) + grad_log_det
            grad_weight = torch.addcmul(grad_log_det * weight_inverse.T, grad_matrix, log_scale.double().exp())
        if bias is None:
            return grad_weight.to(weight.dtype), None, None, None, None, None, None, None
        if ctx.inverse:
            grad_bias = -grad_shift
            grad_log_scale = -(grad_matrix * matrix).sum(1) - grad_log_det
        own = grad_weight.to(weight.dtype), grad_bias.to(bias.dtype), grad_log_scale.to(log_scale.dtype)
        return *own, None, None, None, None, None


def _differentiable_gradients(
    ctx: Any, inputs: tuple[Tensor | None, ...], grads: tuple[Tensor, ...]
) -> list[Tensor | None]:
    present = [tensor for tensor in inputs if tensor is not None]

    def reference(weight: Tensor, bias: Tensor | None = None, log_scale: Tensor | None = None) -> tuple[Tensor, ...]:
        exact = weight.double()
        used = torch.linalg.inv(exact) if ctx.inverse else exact
        log_abs_det = torch.linalg.slogdet(exact).logabsdet
        matrix, shift, log_det = _compose(used, log_abs_det, bias, log_scale, ctx.dtype, ctx.inverse)
        return matrix.to(ctx.dtype), shift, log_det if ctx.pixels is None else (ctx.pixels * log_det).to(ctx.dtype)

    found = reference_backward(reference, present, grads, ctx.needs_input_grad[: len(present)])
    return [*found, *[None] * (len(inputs) - len(present))]
