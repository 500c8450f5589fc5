"""Gradients of networks with ReLUs, compared without their kinks.

Either slope is right for a pre-activation within rounding of zero, and one such element changes gradients a thousand
times more than rounding does. Runs that are given the signs of one of them differentiate the same function.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: By the module, or by the number of the call of ``F.leaky_relu``: what entered each evaluation.
PreActivations = dict[nn.Module | int, list[Tensor]]


@contextmanager
def pre_activations(signs: Mapping[nn.Module | int, list[Tensor]] | None = None) -> Iterator[PreActivations]:
    """Record what enters every ``nn.ReLU`` and ``F.leaky_relu``; with ``signs``, their slopes are those of that run.

    Modules may be evaluated any number of times, in any order; calls of ``F.leaky_relu`` must follow the same order.
    """
    found: PreActivations = {}
    relu, leaky_relu = nn.ReLU.forward, F.leaky_relu
    calls = 0

    def record(key: nn.Module | int, x: Tensor) -> None:
        found.setdefault(key, []).append(x.detach().clone())  # the activation may be in place

    def recorded_relu(self: nn.ReLU, x: Tensor) -> Tensor:
        record(self, x)
        return relu(self, x) if signs is None else torch.where(signs[self][0] > 0, x, 0 * x)

    def recorded_leaky_relu(x: Tensor, slope: float, inplace: bool = False) -> Tensor:
        nonlocal calls
        key, calls = calls, calls + 1
        record(key, x)
        return leaky_relu(x, slope) if signs is None else torch.where(signs[key][0] > 0, x, slope * x)

    with patch.object(nn.ReLU, "forward", recorded_relu), patch.object(F, "leaky_relu", recorded_leaky_relu):
        yield found
