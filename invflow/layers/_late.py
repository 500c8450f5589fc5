"""Weights that have no inverse, found without waiting for the device that holds them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["LateCheck", "LayerError", "UnusableWeightError", "is_captured", "look_at_weights"]

#: Name of a layer in messages, empty or "layer 3: ", the layer, and its weight.
Owner = tuple[str, nn.Module, Tensor]


class LayerError(ValueError):
    """A weight or batch that a layer cannot use. A sequence adds the layer's position to the message."""


class UnusableWeightError(LayerError):
    """A weight that has no inverse."""

    @classmethod
    def of(cls, name: str, layer: nn.Module, weight: Tensor) -> UnusableWeightError:
        """Return the error of a layer; looks at the weight to say what is wrong with it."""
        problem = "singular" if bool(weight.isfinite().all()) else "not finite"
        return cls(f"{name}{type(layer).__name__} with {weight.shape[0]} channels: weight is {problem}")


class _Pending(NamedTuple):
    """Determinants on their way to the host, and whose they are."""

    log_abs_dets: Tensor
    arrived: torch.cuda.Event | None
    owners: Sequence[Owner]


class LateCheck:
    """Determinants of weights that are looked at when they are known, by a later call. A copy has none to look at."""

    def __init__(self) -> None:
        self._pending: deque[_Pending] = deque()

    def __reduce__(self) -> tuple[type[LateCheck], tuple[()]]:
        return LateCheck, ()

    def note(self, log_abs_dets: Tensor, owners: Sequence[Owner]) -> None:
        """Keep determinants for a later look; nothing while a graph is captured, which computes others later.

        Args:
            log_abs_dets: ``log |det W|`` of the weights, infinite or NaN for those without an inverse.
            owners: the layers, as many.
        """
        if is_captured(log_abs_dets):
            return
        arrived = None
        if log_abs_dets.is_cuda:
            log_abs_dets = log_abs_dets.to("cpu", non_blocking=True)  # into pinned memory
            arrived = torch.cuda.Event()
            arrived.record()
        self._pending.append(_Pending(log_abs_dets, arrived, owners))

    def look(self, *, wait: bool = False) -> None:
        """Look at the determinants that have arrived; not while a graph is captured, which forbids the question.

        Args:
            wait: look at all, also at those that the device has still to compute.

        Raises:
            UnusableWeightError: a weight that has no inverse.
        """
        pending = self._pending
        while pending:
            arrived = pending[0].arrived
            if arrived is not None and not wait and not arrived.query():
                return
            try:
                found = pending.popleft()
            except IndexError:  # another thread has looked
                return
            if found.arrived is not None:
                found.arrived.synchronize()
            for value, owner in zip(found.log_abs_dets.flatten().tolist(), found.owners, strict=True):
                if not math.isfinite(value):
                    pending.clear()
                    raise UnusableWeightError.of(*owner)


def is_captured(tensor: Tensor) -> bool:
    """Return whether what is computed of a tensor is being captured in a graph."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def look_at_weights(module: nn.Module) -> None:
    """Wait for the devices, and raise if a call of the module or of a part of it met a weight that has no inverse.

    Calls on the CPU raise at once. On another device a call does not wait for what it computes.

    Raises:
        UnusableWeightError: such a weight; the message names the layer.
    """
    for part in module.modules():
        for held in part.__dict__.values():
            late = getattr(held, "late", None)
            if isinstance(late, LateCheck):
                late.look(wait=True)
