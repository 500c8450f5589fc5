"""Exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

__all__ = ["averaged", "begin_average", "share_of_new", "update_average"]


def begin_average(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of every parameter, by name, from which an average begins."""
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def share_of_new(decay: float, updates: int) -> float:
    r"""Return what an average takes of the new weights, :math:`1 - d`; arguments as in :func:`update_average`."""
    return 1 - min(decay, (1 + updates) / (10 + updates))


@torch.no_grad()
def update_average(average: Mapping[str, Tensor], module: nn.Module, decay: float, updates: int) -> None:
    r"""Move an average towards the parameters: :math:`a \leftarrow d a + (1 - d) p`.

    The first updates forget faster, :math:`d = \min(decay, (1 + n) / (10 + n))`. An average of few steps is then not
    dominated by the weights that it began from.

    Args:
        average: what :func:`begin_average` returned; changed in place.
        module: the module with the same parameters.
        decay: in 0..1.
        updates: number n of updates that came before.
    """
    weight = share_of_new(decay, updates)
    parameters = dict(module.named_parameters())
    torch._foreach_lerp_(list(average.values()), [parameters[name].detach() for name in average], weight)


def averaged(state: Mapping[str, Tensor], average: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Lay an average over a state dict; without one return the state as it is."""
    return {**state, **(average or {})}
