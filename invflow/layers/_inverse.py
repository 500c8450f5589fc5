"""The inverse and the determinant of a weight, from one LU factorisation in float64, once for every value it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from invflow.ops._common import needs_reference

__all__ = ["InverseCache", "UnusableWeightError"]


class UnusableWeightError(ValueError):
    """A weight that has no inverse."""


@dataclass(frozen=True)
class _Entry:
    version: int
    address: int
    weight: Tensor
    inverse: Tensor
    log_abs_det: Tensor

    def fits(self, weight: Tensor) -> bool:
        kept = self.weight
        if (weight.device, weight.dtype) != (kept.device, kept.dtype):
            return False
        if (weight._version, weight.data_ptr()) != (self.version, self.address):
            return False
        # An edit through .data leaves the version as it was. Looking would wait for a device other than the CPU.
        return weight.device.type != "cpu" or torch.equal(weight, kept)


class _InverseAndLogAbsDet(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, entry: _Entry) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(weight, entry.inverse)
        return entry.inverse.detach(), entry.log_abs_det.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        weight, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():
            inverse = torch.linalg.inv(weight.double())  # to be differentiated again
        grad_inverse, grad_log_abs_det = grads
        grad = grad_log_abs_det * inverse.T - inverse.T @ grad_inverse @ inverse.T
        return grad.to(weight.dtype), None


class InverseCache:
    """Remembers the inverse of the last weight that it was asked for.

    A copied or unpickled cache is empty.
    """

    def __init__(self) -> None:
        self._entry: _Entry | None = None

    def __reduce__(self) -> tuple[type[InverseCache], tuple[()]]:
        return InverseCache, ()

    def __call__(self, weight: Tensor, owner: object) -> tuple[Tensor, Tensor]:
        """W^-1 (C, C) and log |det W| (scalar), float64, differentiable.

        Args:
            weight: W (C, C).
            owner: the layer that an error names.

        Raises:
            UnusableWeightError: if the weight is singular or not finite.
        """
        if needs_reference() or torch.compiler.is_compiling() or weight.is_meta or weight.is_inference():
            exact = weight.double()
            return torch.linalg.inv(exact), torch.linalg.slogdet(exact).logabsdet
        if self._entry is None or not self._entry.fits(weight):
            self._entry = _factorize(weight, owner)
        if torch.is_grad_enabled() and weight.requires_grad:
            return _InverseAndLogAbsDet.apply(weight, self._entry)
        return self._entry.inverse, self._entry.log_abs_det


@torch.inference_mode(False)  # what is remembered may be saved for a backward pass later
@torch.no_grad()
def _factorize(weight: Tensor, owner: object) -> _Entry:
    exact = weight.detach().double()
    factors, pivots, failed = torch.linalg.lu_factor_ex(exact)
    log_abs_det = factors.diagonal().abs().log().sum()
    if bool(failed) or not bool(log_abs_det.isfinite()):
        problem = "singular" if bool(exact.isfinite().all()) else "not finite"
        raise UnusableWeightError(f"{type(owner).__name__} with {weight.shape[0]} channels: weight is {problem}")
    inverse = torch.linalg.lu_solve(factors, pivots, torch.eye(len(exact), dtype=exact.dtype, device=exact.device))
    return _Entry(weight._version, weight.data_ptr(), weight.detach().clone(), inverse, log_abs_det)
