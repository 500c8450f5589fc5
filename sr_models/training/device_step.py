"""A training step that waits for nothing: the device itself decides whether to update, and may repeat it as a graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from invflow.layers import FactorStore

__all__ = ["DeviceStep", "Outcome", "fused_adam"]

#: Steps without a graph before the first one with it, in which libraries choose and allocate what they need.
_WARM_UP = 3

#: The tensors of one part of a batch, of which the loss is computed.
Part = Sequence[Tensor | None]


class Outcome(NamedTuple):
    """Figures of a step, on the device until they are looked at.

    Attributes:
        loss: mean loss of the batch.
        norm: norm of the gradient before it was clipped.
    """

    loss: Tensor
    norm: Tensor


def fused_adam(groups: Iterable[Iterable[nn.Parameter]], betas: tuple[float, float] = (0.9, 0.999)) -> torch.optim.Adam:
    """Return Adam with learning rates on the device, and an update that can be left out there.

    Args:
        groups: parameters of every group, of which one may be empty.
        betas: Adam's decays of the gradient and of its square.
    """
    listed = [list(group) for group in groups]
    device = next(parameter.device for group in listed for parameter in group)
    settings = [{"params": group, "lr": torch.zeros((), device=device)} for group in listed]
    return torch.optim.Adam(settings, betas=betas, fused=True, capturable=device.type == "cuda")


class DeviceStep:
    """A training step: losses, gradients, clipping, Adam and the moving average of the weights.

    The device leaves out the update of a step whose loss or gradient is not finite. Nothing waits for that.

    Args:
        loss: ``loss(*part)`` of the tensors of a part of a batch.
        optimizer: of :func:`fused_adam`.
        average: moving averages, changed in place.
        averaged: the parameters that they follow.
        clip: largest norm of the gradient.
        graph: repeat the step as a CUDA graph once it has been taken a few times. A batch of another shape is computed
            without.
    """

    def __init__(
        self,
        loss: Callable[..., Tensor],
        optimizer: Optimizer,
        *,
        average: Sequence[Tensor] = (),
        averaged: Sequence[Tensor] = (),
        clip: float = math.inf,
        graph: bool = False,
    ) -> None:
        self._loss, self._optimizer, self._clip = loss, optimizer, clip
        self._average, self._averaged = list(average), [parameter.detach() for parameter in averaged]
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._weight = torch.zeros((), device=self._parameters[0].device)
        self._eager_steps = 0 if graph else None
        self._store = FactorStore()
        self._graph: _Graph | None = None

    def __call__(self, parts: Sequence[Part], rates: Sequence[float], weight: float = 0.0) -> Outcome:
        """Take a step.

        Args:
            parts: the parts of a batch, all of one shape.
            rates: learning rates of the optimizer's groups.
            weight: what the average takes of the new weights, in 0..1.
        """
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"].fill_(rate)
        self._weight.fill_(weight)
        if self._graph is None and self._eager_steps == _WARM_UP:
            self._graph = _Graph(self._take, parts, self._optimizer, self._store)
        if self._graph is not None and self._graph.fits(parts):
            return self._graph(parts)
        if self._eager_steps is None or self._graph is not None:
            return self._take(parts)
        self._eager_steps += 1
        with self._store:
            return _aside(self._take, parts)

    def _take(self, parts: Sequence[Part]) -> Outcome:
        self._optimizer.zero_grad()
        total = torch.zeros_like(self._weight)
        for part in parts:
            loss = self._loss(*part) / len(parts)
            loss.backward()
            total = total + loss.detach()
        norm = clip_grad_norm_([each for each in self._parameters if each.grad is not None], self._clip)
        fine = (total + norm).isfinite()
        self._optimizer.found_inf = (~fine).float()  # type: ignore[attr-defined]
        self._optimizer.step()
        if self._average:
            ways = torch._foreach_sub(self._averaged, self._average)
            # weights may be finite while what they have just been averaged with was left out
            torch._foreach_mul_(ways, self._weight * fine)
            torch._foreach_add_(self._average, ways)
        return Outcome(total, norm)


class _Graph:
    """A step as a CUDA graph."""

    def __init__(
        self,
        take: Callable[[Sequence[Part]], Outcome],
        parts: Sequence[Part],
        optimizer: Optimizer,
        store: FactorStore,
    ) -> None:
        self._store = store
        self._parts = [[None if tensor is None else tensor.clone() for tensor in part] for part in parts]
        optimizer.zero_grad()  # gradients then belong to the graph
        self._graph = torch.cuda.CUDAGraph()
        with store, torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._outcome = take(self._parts)

    def fits(self, parts: Sequence[Part]) -> bool:
        return [list(map(_kind, part)) for part in parts] == [list(map(_kind, part)) for part in self._parts]

    def __call__(self, parts: Sequence[Part]) -> Outcome:
        for own, given in zip(self._parts, parts, strict=True):
            for target, tensor in zip(own, given, strict=True):
                if target is not None and tensor is not None:
                    target.copy_(tensor, non_blocking=True)
        self._store.refresh()
        self._graph.replay()
        return Outcome(*(figure.clone() for figure in self._outcome))


def _kind(tensor: Tensor | None) -> object:
    return None if tensor is None else (tensor.shape, tensor.dtype)


def _aside(take: Callable[[Sequence[Part]], Outcome], parts: Sequence[Part]) -> Outcome:
    """Take a step in a stream of its own, as a graph will: what is made there may be used by the graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        outcome = take(parts)
    torch.cuda.current_stream().wait_stream(stream)
    return outcome
