"""Factors of weights, and a store of them for CUDA graphs: the library that factorises cannot be captured."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar, Token

import torch
from torch import Tensor, nn

from invflow.layers._late import is_captured

__all__ = ["FactorStore", "factorize", "present_store"]


def factorize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return inverse (..., C, C) and ``log |det|`` (...) of weights (..., C, C), in float64, without a graph.

    ``log |det|`` of a weight that has no inverse is infinite or NaN.
    """
    exact = weight.double()
    factors, pivots, _ = torch.linalg.lu_factor_ex(exact)
    eye = torch.eye(exact.shape[-1], dtype=exact.dtype, device=exact.device).expand_as(exact)
    log_abs_det = factors.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
    # solutions come column by column, and kernels read rows
    return torch.linalg.lu_solve(factors, pivots, eye).contiguous(), log_abs_det


class FactorStore:
    """Factors in memory that stays where it is. While it is entered, flows take their factors from it.

    Enter it for a call as the graph will be, so that it learns of which weights it needs factors; then to capture the
    graph. Call :meth:`refresh` before every replay.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, ...], tuple[list[Tensor], Tensor, Tensor]] = {}
        self._token: Token[FactorStore | None] | None = None

    def __enter__(self) -> FactorStore:
        self._token = _STORE.set(self)
        return self

    def __exit__(self, *error: object) -> None:
        assert self._token is not None
        _STORE.reset(self._token)

    def factors_of(self, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return inverses (n, C, C) and ``log |det|`` (n,) of n weights, float64, computed now unless captured.

        Raises:
            RuntimeError: weights that a graph being captured meets for the first time.
        """
        key = tuple(map(id, weights))
        kept = self._kept.get(key)
        if kept is not None:
            if not is_captured(weights[0]):
                _refresh(kept)
        elif is_captured(weights[0]):
            raise RuntimeError("a graph can hold weights that are parameters, the same in every call, only")
        else:
            with torch.inference_mode(False), torch.no_grad():
                kept = self._kept[key] = list(weights), *factorize(torch.stack(list(weights)))
        return kept[1], kept[2]

    def refresh(self) -> None:
        """Compute all factors of the present values of the weights."""
        for kept in self._kept.values():
            _refresh(kept)

    @staticmethod
    def serves(module: nn.Module) -> bool:
        """Return whether all weights of a module whose factors are needed are plain parameters."""
        asked = ((getattr(type(part), "factorizes", None), part) for part in module.modules())
        return all(own is None or own(part) for own, part in asked)


def _refresh(kept: tuple[list[Tensor], Tensor, Tensor]) -> None:
    weights, *targets = kept
    with torch.inference_mode(False), torch.no_grad():  # in this order: the former turns gradients on
        torch._foreach_copy_(targets, list(factorize(torch.stack(weights))))


_STORE: ContextVar[FactorStore | None] = ContextVar("invflow_factors", default=None)


def present_store() -> FactorStore | None:
    """Return the store that is entered, if any."""
    return _STORE.get()
