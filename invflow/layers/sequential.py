"""FlowSequential: invertible layers one after the other, itself an invertible layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, cast

from torch import Tensor, nn

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

    Args:
        layers: the layers in the order of ``forward``.

    Shape:
        x (B, C, H, W) and one context for all layers -> z, a tensor or a list of tensors, and log_det (B,).
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        if not len(self.layers):
            raise ValueError("FlowSequential: layers must not be empty")
        for position, layer in enumerate(self.layers):
            if not callable(getattr(layer, "inverse", None)):
                raise TypeError(f"FlowSequential: layer {position}, {type(layer).__name__}, has no inverse method")

    @property
    def num_latents(self) -> int:
        """How many tensors ``forward`` returns as latents."""
        return 1 + sum(_num_latents(layer) - 1 for layer in self.layers)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Any, Tensor]:
        latents: list[Tensor] = []
        total: Tensor | None = None
        for layer in self.layers:
            z, log_det = layer(x, context)
            total = log_det if total is None else total + log_det
            if isinstance(z, list):
                latents += z[:-1]
                z = z[-1]
            x = z
        assert total is not None
        return [*latents, x] if latents else x, total

    def inverse(self, z: Tensor | Sequence[Tensor], context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        latents = [z] if isinstance(z, Tensor) else list(z)
        if len(latents) != self.num_latents:
            raise ValueError(f"FlowSequential: z must hold {self.num_latents} latents, got {len(latents)}")
        x = latents.pop()
        total: Tensor | None = None
        for layer in reversed(self.layers):
            extra = _num_latents(layer) - 1
            layer_input: Any = x
            if extra:
                layer_input = [*latents[-extra:], x]
                del latents[-extra:]
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
