"""FlowSequential: invertible layers one after the other, itself an invertible layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from invflow.layers._inverse import UnusableWeightError
from invflow.layers._rerun import DRIFT_TOLERANCE, Inverted, Stage, stages_of, trained_parameters, warn_of_drift
from invflow.layers.flow_step import FlowStep, PendingCoupling
from invflow.ops._transforms import needs_reference

__all__ = ["FlowSequential", "InvertibleLayer"]


class InvertibleLayer(Protocol):
    """What composes in :class:`FlowSequential`: any ``nn.Module`` with these two methods.

    ``log_det`` (B,) is the natural logarithm of the absolute Jacobian determinant of the map that was called. A layer
    that factors variables out also has an integer attribute ``num_latents``, returns the list of that many latents as
    ``z``, in encode order, and takes it in ``inverse``; the composition goes on with the last of them.
    """

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Any, Tensor]: ...

    def inverse(self, z: Any, context: Tensor | None = None) -> tuple[Tensor, Tensor]: ...


class FlowSequential(nn.Module):
    r"""Composition of invertible layers: ``forward`` applies them in order, ``inverse`` in reverse, and the
    log-determinants add up. Anything with ``forward(x, context) -> (z, log_det)`` and its ``inverse`` composes.

    Layers that factor variables out (:class:`Split`, or a FlowSequential that contains one) return a list of latents,
    of which the composition goes on with the last. A FlowSequential with such layers returns the list of all its
    latents in encode order, and its inverse takes that list; without them it maps a tensor to a tensor.

    The coupling of a :class:`FlowStep` and the affine map and injector of the next one are one pass over the state.

    With ``memory="invert"`` only the outputs are kept for the backward pass, which reconstructs every layer's input
    from its output: the memory for activations does not grow with the number of layers, for one more evaluation of
    every network. A network must then compute the same in both evaluations (no dropout). How far the reconstruction
    drifts is measured on one sample in every backward pass; if it exceeds 1e-3 of the largest element, a warning is
    given and every n-th state stored from then on. Under ``torch.compile`` and ``torch.func`` transforms all states are
    stored.

    Args:
        layers: the layers in the order of ``forward``.
        memory: ``"store"`` keeps what the backward pass needs, ``"invert"`` reconstructs it.

    Shape:
        x (B, C, H, W) and one context for all layers -> z, a tensor or a list of tensors, and log_det (B,).
    """

    def __init__(self, layers: Iterable[nn.Module], *, memory: Literal["store", "invert"] = "store") -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        if not len(self.layers):
            raise ValueError("FlowSequential: layers must not be empty")
        if memory not in ("store", "invert"):
            raise ValueError(f"FlowSequential: memory must be 'store' or 'invert', got {memory!r}")
        for position, layer in enumerate(self.layers):
            if not callable(getattr(layer, "inverse", None)):
                raise TypeError(f"FlowSequential: layer {position}, {type(layer).__name__}, has no inverse method")
        self.memory = memory
        self._store_every = len(self.layers)

    @property
    def num_latents(self) -> int:
        """How many tensors ``forward`` returns as latents."""
        return 1 + sum(_num_latents(layer) - 1 for layer in self.layers)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Any, Tensor]:
        if self.memory == "invert" and self._can_invert(x, context):
            *latents, log_det = Inverted.apply(self, x, context, *trained_parameters(self.stages()))
        else:
            latents, log_det, _ = self.encode_and_keep(x, context)
        return latents if len(latents) > 1 else latents[0], log_det

    def encode_and_keep(self, x: Tensor, context: Tensor | None) -> tuple[list[Tensor], Tensor, dict[int, Tensor]]:
        """All latents, log_det and, by the number of the stage that they enter, the states that ``memory="invert"``
        keeps: a sample of the input, and every n-th state if the reconstruction was found to drift."""
        latents: list[Tensor] = []
        total: Tensor | None = None
        pending: PendingCoupling | None = None
        kept = {0: x[:1].detach().clone()} if self.memory == "invert" else {}
        stage = 0
        for position, layer in enumerate(self.layers):
            keep = self.memory == "invert" and position > 0 and position % self._store_every == 0
            fuses = _fuses(layer) and not keep
            parts = []
            if pending is not None and not fuses:
                x, log_det = pending.apply(x)
                pending, parts = None, [log_det]
            if keep:
                kept[stage] = x.detach()
            with _named(position):
                if _fuses(layer):
                    z, log_det, pending = cast(FlowStep, layer).encode(x, context, pending)
                else:
                    z, log_det = layer(x, context)
            for part in (*parts, log_det):
                total = part if total is None else total + part
            if isinstance(z, list):
                latents += z[:-1]
                z = z[-1]
            x = z
            stage += len(stages_of(layer)) if self.memory == "invert" else 1
        if pending is not None:
            x, log_det = pending.apply(x)
            total = log_det if total is None else total + log_det
        assert total is not None
        return [*latents, x], total, kept

    def stages(self) -> list[Stage]:
        """The parts that ``memory="invert"`` reconstructs one after the other, in the order of ``forward``."""
        return [stage for layer in self.layers for stage in stages_of(layer)]

    def _can_invert(self, x: Tensor, context: Tensor | None) -> bool:
        """Whether a graph would be built, and neither a compiler nor a transform looks on."""
        if not torch.is_grad_enabled() or torch.compiler.is_compiling() or needs_reference():
            return False
        tensors = [x, *([] if context is None else [context]), *self.parameters()]
        return any(tensor.requires_grad for tensor in tensors)

    def note_drift(self, drift: float) -> None:
        if drift > DRIFT_TOLERANCE and self._store_every > 1:
            self._store_every = max(1, self._store_every // 2)
            warn_of_drift(drift, self._store_every)

    def inverse(self, z: Tensor | Sequence[Tensor], context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        latents = [z] if isinstance(z, Tensor) else list(z)
        if len(latents) != self.num_latents:
            raise ValueError(f"FlowSequential: z must hold {self.num_latents} latents, got {len(latents)}")
        x = latents.pop()
        total: Tensor | None = None
        for position, layer in reversed(list(enumerate(self.layers))):
            extra = _num_latents(layer) - 1
            layer_input: Any = x
            if extra:
                layer_input = [*latents[-extra:], x]
                del latents[-extra:]
            with _named(position):
                x, log_det = cast(InvertibleLayer, layer).inverse(layer_input, context)
            total = log_det if total is None else total + log_det
        assert total is not None
        return x, total

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, position: int) -> nn.Module:
        return self.layers[position]

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.layers)


def _num_latents(layer: nn.Module) -> int:
    return getattr(layer, "num_latents", 1)


def _fuses(layer: nn.Module) -> bool:
    """Whether the layer's coupling may wait for the next step: a FlowStep whose own ``forward`` nobody watches."""
    return type(layer) is FlowStep and not (layer._forward_hooks or layer._forward_pre_hooks)


@contextmanager
def _named(position: int) -> Iterator[None]:
    """Adds where the layer is to the message about its weight."""
    try:
        yield
    except UnusableWeightError as error:
        raise UnusableWeightError(f"layer {position}: {error}") from None
