"""The inverse and the determinant of a weight, from one LU factorisation in float64, once for every value it takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from invflow.layers._cache import ValueCache, can_remember

__all__ = ["InverseCache", "UnusableWeightError"]


class UnusableWeightError(ValueError):
    """A weight that has no inverse."""


class _InverseAndLogAbsDet(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, inverse: Tensor, log_abs_det: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(weight, inverse)
        return inverse.detach(), log_abs_det.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        weight, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():
            inverse = torch.linalg.inv(weight.double())  # to be differentiated again
        grad_inverse, grad_log_abs_det = grads
        grad = grad_log_abs_det * inverse.T - inverse.T @ grad_inverse @ inverse.T
        return grad.to(weight.dtype), None, None


class InverseCache:
    """Remembers the inverse of the last weight that it was asked for.

    A copied or unpickled cache is empty.
    """

    def __init__(self) -> None:
        self._cache: ValueCache[tuple[Tensor, Tensor]] = ValueCache()

    def __call__(self, weight: Tensor, owner: object) -> tuple[Tensor, Tensor]:
        """W^-1 (C, C) and log |det W| (scalar), float64, differentiable.

        Args:
            weight: W (C, C).
            owner: the layer that an error names.

        Raises:
            UnusableWeightError: if the weight is singular or not finite.
        """
        if not can_remember([weight]):
            exact = weight.double()
            return torch.linalg.inv(exact), torch.linalg.slogdet(exact).logabsdet
        inverse, log_abs_det = self._cache([weight], lambda: _factorize(weight, owner))
        if torch.is_grad_enabled() and weight.requires_grad:
            return _InverseAndLogAbsDet.apply(weight, inverse, log_abs_det)
        return inverse, log_abs_det


def _factorize(weight: Tensor, owner: object) -> tuple[Tensor, Tensor]:
    exact = weight.detach().double()
    factors, pivots, failed = torch.linalg.lu_factor_ex(exact)
    log_abs_det = factors.diagonal().abs().log().sum()
    if bool(failed) or not bool(log_abs_det.isfinite()):
        problem = "singular" if bool(exact.isfinite().all()) else "not finite"
        raise UnusableWeightError(f"{type(owner).__name__} with {weight.shape[0]} channels: weight is {problem}")
    inverse = torch.linalg.lu_solve(factors, pivots, torch.eye(len(exact), dtype=exact.dtype, device=exact.device))
    return inverse, log_abs_det
