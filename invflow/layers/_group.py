"""Channel maps of several flow steps of one kind: one factorisation and one derivative for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from invflow._numerics import pixels_of
from invflow.layers._derived import ChannelMap, FactorCache
from invflow.layers._factors import factorize, present_store
from invflow.ops._ordinary import have_numbers, numbers_of
from invflow.ops._transforms import reference_backward

__all__ = ["Group", "Sources"]


class Sources(NamedTuple):
    """The convolution and the parameters from which the channel map of a flow step is derived.

    Attributes:
        owner: an InvertibleConv1x1.
        weight, bias, log_scale: its weight, and the actnorm's parameters.
    """

    owner: Any
    weight: Tensor
    bias: Tensor
    log_scale: Tensor

    def are_trained(self) -> bool:
        """Return whether one of the parameters needs a gradient."""
        return self.weight.requires_grad or self.bias.requires_grad or self.log_scale.requires_grad


class Group:
    """Steps whose weights have one size, dtype and device.

    Attributes:
        weight_inverse: (n, C, C), float64.
        log_abs_det: ``log |det W|`` (n,), float64.
        trained: whether a parameter needs a gradient.
    """

    def __init__(self, sources: Sequence[Sources], cache: FactorCache) -> None:
        self._tensors = [tensor for kind in zip(*(each[1:] for each in sources), strict=True) for tensor in kind]
        self._versions = [tensor._version for tensor in self._tensors]
        self._numbers = [numbers_of([each.weight]) for each in sources]
        weight, self._bias, self._log_scale = _stacked(self._tensors)
        store = present_store()
        if store is None:
            self.weight_inverse, self.log_abs_det = cache([weight], lambda: factorize(weight))
        else:
            self.weight_inverse, self.log_abs_det = store.factors_of([each.weight for each in sources])
        self._weight = weight
        self.trained = any(tensor.requires_grad for tensor in self._tensors)
        self._found: dict[tuple[torch.dtype, bool, bool], list[ChannelMap]] = {}

    def holds(self, index: int) -> bool:
        """Return whether no parameter of a step has been written to since."""
        tensors, versions, count = self._tensors, self._versions, len(self._tensors) // 3
        return all(tensors[i]._version == versions[i] for i in (index, index + count, index + 2 * count))

    def holds_weight(self, index: int) -> bool:
        """Return the same, and whether a weight on the CPU has its values: an edit through ``.data`` leaves no sign."""
        numbers = self._numbers[index]
        return self.holds(index) and (numbers is None or have_numbers([self._tensors[index]], numbers))

    def hand_over(self, index: int, sources: Sources, factors: tuple[Tensor, Tensor]) -> None:
        """Let a convolution on the CPU remember the factors of its weight."""
        numbers = self._numbers[index]
        if numbers is not None:
            sources.owner._factorization.keep([sources.weight], numbers, factors)

    def maps(self, dtype: torch.dtype, inverse: bool, trained: bool) -> list[ChannelMap]:
        """Return the maps of all steps; with gradients if ``trained``."""
        found = self._found.get((dtype, inverse, trained))
        if found is None:
            given = self._weight, self._bias, self._log_scale, self.weight_inverse, self.log_abs_det
            # what is found may be saved for a backward pass later
            with torch.inference_mode(False), torch.set_grad_enabled(trained):
                if trained:
                    matrix, shift, log_abs_det = _Maps.apply(given, dtype, inverse, *self._tensors)
                else:
                    matrix, shift, log_abs_det = _compose(*given, inverse=inverse)
                    matrix, shift = matrix.to(dtype), shift.to(dtype)
                log_dets = _LogDets(log_abs_det, dtype)
                rows = zip(matrix.unbind(), shift.unbind(), log_abs_det.unbind(), strict=True)
                found = [_OneOf(*row, log_dets, index) for index, row in enumerate(rows)]
            self._found[dtype, inverse, trained] = found
        return found


class _LogDets:
    """Log-determinants of a group's maps, for states of any size."""

    def __init__(self, log_abs_det: Tensor, dtype: torch.dtype) -> None:
        self._log_abs_det, self._dtype = log_abs_det, dtype
        self._last: tuple[int, bool, tuple[Tensor, ...]] | None = None

    def __call__(self, pixels: int) -> tuple[Tensor, ...]:
        graph, last = torch.is_grad_enabled(), self._last
        if last is None or last[:2] != (pixels, graph):
            with torch.inference_mode(False):
                last = self._last = pixels, graph, (pixels * self._log_abs_det).to(self._dtype).unbind()
        return last[2]


class _OneOf(ChannelMap):
    """A map of a group."""

    def __init__(self, matrix: Tensor, shift: Tensor, log_abs_det: Tensor, log_dets: _LogDets, index: int) -> None:
        super().__init__(matrix, shift, log_abs_det)
        self._log_dets, self._index = log_dets, index

    def log_det(self, x: Tensor) -> Tensor:
        return self._log_dets(pixels_of(x))[self._index]


def _stacked(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Stack n weights, then n biases, then n log_scales."""
    count = len(tensors) // 3
    weight, bias, log_scale = (torch.stack(list(tensors[i * count : (i + 1) * count])) for i in range(3))
    return weight, bias.double(), log_scale.double()


def _compose(
    weight: Tensor, bias: Tensor, log_scale: Tensor, weight_inverse: Tensor, log_abs_det: Tensor, *, inverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return M (n, C, C), v (n, C) and log |det M| (n,) in float64; of the inverse maps, if asked for."""
    log_abs_det = log_scale.sum(-1) + log_abs_det
    if inverse:
        return (-log_scale).exp()[:, :, None] * weight_inverse, -bias, -log_abs_det
    matrix = weight.double() * log_scale.exp()[:, None]
    return matrix, (matrix @ bias[:, :, None])[:, :, 0], log_abs_det


class _Maps(torch.autograd.Function):
    """Channel maps of the parameters of n steps, with all their gradients in one backward pass.

    Parameters are n weights (C, C), then n biases (C,), then n log_scales (C,).
    """

    @staticmethod
    def forward(
        ctx: Any, given: tuple[Tensor, ...], dtype: torch.dtype, inverse: bool, *tensors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        matrix, shift, log_abs_det = _compose(*given, inverse=inverse)
        _, bias, log_scale, weight_inverse, _ = given
        ctx.save_for_backward(bias, log_scale, weight_inverse, matrix, *tensors)
        ctx.dtype, ctx.inverse = dtype, inverse
        # a copy of what is saved
        return matrix.to(dtype, copy=True), shift.to(dtype), log_abs_det

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        bias, log_scale, weight_inverse, matrix, *tensors = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, None, None, *_differentiable_gradients(ctx, tensors, grads)
        grad_matrix, grad_shift, grad_log_det = (grad.double() for grad in grads)
        of_determinant = grad_log_det[:, None, None] * weight_inverse.mT
        if ctx.inverse:
            # M = diag(e^-s) W^-1 and dW^-1 = -W^-1 dW W^-1
            grad_weight = -(matrix.mT @ grad_matrix @ weight_inverse.mT) - of_determinant
            grad_bias = -grad_shift
            grad_log_scale = -(grad_matrix * matrix).sum(2) - grad_log_det[:, None]
        else:
            grad_bias = (grad_shift[:, None] @ matrix)[:, 0]
            grad_matrix = torch.addcmul(grad_matrix, grad_shift[:, :, None], bias[:, None])
            grad_log_scale = (grad_matrix * matrix).sum(1) + grad_log_det[:, None]
            grad_weight = torch.addcmul(of_determinant, grad_matrix, log_scale.exp()[:, None])
        count = len(tensors) // 3
        kinds = zip((grad_weight, grad_bias, grad_log_scale), tensors[::count], strict=True)
        return None, None, None, *(row for grad, like in kinds for row in grad.to(like.dtype).unbind())


def _differentiable_gradients(ctx: Any, tensors: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor | None]:
    def reference(*tensors: Tensor) -> tuple[Tensor, ...]:
        weight, bias, log_scale = _stacked(tensors)
        exact = weight.double()
        given = weight, bias, log_scale, torch.linalg.inv(exact), torch.linalg.slogdet(exact).logabsdet
        matrix, shift, log_abs_det = _compose(*given, inverse=ctx.inverse)
        return matrix.to(ctx.dtype), shift.to(ctx.dtype), log_abs_det

    return reference_backward(reference, tensors, grads, ctx.needs_input_grad[3:])
