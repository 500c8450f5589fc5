"""FlowSequential: invertible layers one after the other, itself an invertible layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, cast, overload

import torch
from torch import Tensor, nn

from invflow._numerics import compute_dtype
from invflow.layers._derived import LayerError
from invflow.layers._drift import StoreDistance
from invflow.layers._inversion import stages_of
from invflow.layers._together import Derivation, Together
from invflow.layers.conditioning import condition, takes_shared
from invflow.layers.folded import merge_maps
from invflow.layers.folding import fold, folding, naming
from invflow.layers.protocol import (
    ConditionedInverse,
    Context,
    Fusable,
    InvertibleLayer,
    PendingCoupling,
    Shape,
    SharedContext,
    Stage,
    checked_latents,
    is_fusable,
    is_shared,
    is_watched,
    num_latents_of,
    output_shapes_of,
    supports,
    watches_all,
)
from invflow.layers.reversible import builds_graph, encode_reversibly

__all__ = ["FlowSequential", "InverseStep"]


class InverseStep(NamedTuple):
    """A layer on the way back from the latents.

    Attributes:
        position: number of the layer, from 0, in the order of ``forward``.
        layer: the layer to invert.
        leaving: latents that it factored out, in encode order.
    """

    position: int
    layer: InvertibleLayer
    leaving: list[Tensor]

    def input(self, x: Tensor, part: slice | None = None) -> Any:
        """Return the argument of the layer's inverse: the state that went on, after the latents that left, if any.

        Args:
            x: the state (B, C, *) that went on.
            part: the part of the latents' samples that ``x`` holds; ``None`` for all.
        """
        if not self.leaving:
            return x
        return [*self.leaving, x] if part is None else [*(latent[part] for latent in self.leaving), x]


class FlowSequential(nn.Module):
    r"""Composition of invertible layers.

    ``forward`` applies them in order and ``inverse`` in reverse; the log-determinants add up. Every
    :class:`InvertibleLayer` composes: any module with ``forward(x, context) -> (z, log_det)`` and its ``inverse``.

    Layers that factor variables out (:class:`Split`, or a FlowSequential that contains one) return a list of latents,
    of which the composition goes on with the last. A FlowSequential with such layers returns the list of all its
    latents in encode order, and its inverse takes that list. Without such layers it maps a tensor to a tensor.

    A context may be a :class:`~invflow.layers.SharedContext`. Layers that do not take one are given the joined context,
    which is then made once for all of them.

    The coupling of a :class:`FlowStep` and the channel map and injector of the next one are one pass over the state.

    ``memory="invert"`` keeps the input and the outputs only. The backward pass reconstructs every layer's input from
    its output. The memory for activations then does not grow with the number of layers, at the cost of one more
    evaluation of every network. Values and gradients are those of ``"store"``.

    A layer that cannot be evaluated again keeps its activations, and a warning names it. Its network draws random
    numbers, changes a buffer, or uses a tensor that was computed outside; or the layer has hooks. Under
    ``torch.compile`` and ``torch.func`` transforms all activations are kept.

    Every backward pass compares the reconstruction with the true state. If they differ by more than 1e-3 of a sample's
    largest element, a warning is given and every n-th state is stored afterwards. A reconstruction that is not finite
    raises ``RuntimeError``.

    Args:
        layers: the layers in the order of ``forward``.
        memory: ``"store"`` keeps what the backward pass needs, ``"invert"`` reconstructs it.

    Shape:
        x (B, C, *) and one context for all layers -> z, a tensor or a list of tensors, and log_det (B,).
    """

    takes_shared_context = True

    def __init__(self, layers: Iterable[nn.Module], *, memory: Literal["store", "invert"] = "store") -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        if not len(self.layers):
            raise ValueError("FlowSequential: layers must not be empty")
        if memory not in ("store", "invert"):
            raise ValueError(f"FlowSequential: memory must be 'store' or 'invert', got {memory!r}")
        for position, layer in enumerate(self.layers):
            _check_invertible(position, layer)
        self.memory = memory
        self.store_distance = StoreDistance()
        self._derivation = Derivation()

    @property
    def num_latents(self) -> int:
        """Number of tensors that ``forward`` returns as latents."""
        return 1 + sum(num_latents_of(layer) - 1 for layer in self.layers)

    def forward(self, x: Tensor, context: Context = None) -> tuple[Any, Tensor]:
        inverts = self.memory == "invert" and builds_graph(self, x, context)
        with self.deriving(x, whole=not inverts):
            if inverts:
                latents, log_det = encode_reversibly(self._single_layers(), self.store_distance, x, context)
            else:
                latents, log_det = self.encode(x, context)
        return latents if len(latents) > 1 else latents[0], _one_a_sample(log_det, latents[-1])

    def encode(self, x: Tensor, context: Context) -> tuple[list[Tensor], Tensor]:
        """Apply the layers in order and return all latents, in a list, and log_det.

        Args:
            x, context: as in ``forward``.
        """
        given = _Given(context)
        latents: list[Tensor] = []
        total: Tensor | None = None
        pending: PendingCoupling | None = None
        position = 0
        try:
            for position, layer in enumerate(self.layers):
                fusable = is_fusable(layer)
                if pending is not None and not fusable:
                    x, log_det = pending.apply(x)
                    total, pending = log_det if total is None else total + log_det, None
                if fusable:
                    x, log_det, pending = cast(Fusable, layer).forward_fused(x, given.to(layer), pending)
                else:
                    x, log_det = layer(x, given.to(layer))
                    if isinstance(x, list | tuple) or num_latents_of(layer) > 1:
                        *leaving, x = checked_latents(x, layer, f"layer {position}")
                        latents += leaving
                total = log_det if total is None else total + log_det
        except LayerError as error:
            raise type(error)(f"layer {position}: {error}") from None
        if pending is not None:
            x, log_det = pending.apply(x)
            total = log_det if total is None else total + log_det
        assert total is not None
        return [*latents, x], total

    def inverse(self, z: Tensor | Sequence[Tensor], context: Context = None) -> tuple[Tensor, Tensor]:
        latents, x = self._state_of(z)
        given = _Given(context)
        total: Tensor | None = None
        position = 0
        try:
            with self.deriving(x):
                for step in self.walk_inverse(latents):
                    position = step.position
                    x, log_det = step.layer.inverse(step.input(x), given.to(step.layer))
                    total = log_det if total is None else total + log_det
        except LayerError as error:
            raise type(error)(f"layer {position}: {error}") from None
        assert total is not None
        return x, _one_a_sample(total, x)

    def deriving(self, x: Tensor, *, whole: bool = True) -> Together:
        """Return a context in which the channel maps of all flow steps are derived together, where that saves time.

        Args:
            x: a state that goes through the flow.
            whole: derive maps with their gradients; false: only inverses and determinants of the weights.
        """
        return Together(self, self._derivation, x, whole=whole)

    def walk_inverse(self, latents: list[Tensor]) -> Iterator[InverseStep]:
        """Yield the layers from the last to the first, each with the latents that it factored out.

        Args:
            latents: all but the last, in encode order. They are taken off the end of the list one layer at a time.
        """
        for position in reversed(range(len(self.layers))):
            layer = self.layers[position]
            leaving: list[Tensor] = []
            if extra := num_latents_of(layer) - 1:
                leaving = latents[-extra:]
                del latents[-extra:]
            yield InverseStep(position, cast(InvertibleLayer, layer), leaving)

    def walk_shapes(self, shape: Shape) -> Iterator[tuple[nn.Module, list[Shape]]]:
        """Yield the layers from the first to the last, each with the shapes (C, *) of its outputs.

        Args:
            shape: (C, *) of the input.

        Raises:
            TypeError: a layer of several latents that has no method ``output_shapes``.
            ValueError: a shape that a layer does not take.
        """
        for position, layer in enumerate(self.layers):
            try:
                shapes = output_shapes_of(layer, shape)
            except ValueError as error:
                raise ValueError(f"layer {position}: {error}") from error
            except TypeError as error:
                raise TypeError(f"layer {position}: {error}") from error
            yield layer, shapes
            shape = shapes[-1]

    def latent_shapes(self, channels: int, *spatial: int) -> list[Shape]:
        """Return the shapes (C, *) of all latents, in encode order, for an input of this shape.

        Args:
            channels: C of the input.
            spatial: its other dimensions: H and W of an image, none of a vector.

        Raises:
            TypeError, ValueError: as :meth:`walk_shapes`.
        """
        latents: list[Shape] = [(channels, *spatial)]
        for _, shapes in self.walk_shapes(latents[0]):
            latents[-1:] = shapes
        return latents

    def output_shapes(self, shape: Shape) -> list[Shape]:
        return self.latent_shapes(*shape)

    def reverse_stages(self) -> list[Stage]:
        return [stage for layer in self.layers for stage in stages_of(layer)]

    def conditioned_inverse(self, context: SharedContext) -> ConditionedInverse:
        inverses = [condition(layer, context) for layer in self.layers]

        def inverse(z: Tensor | Sequence[Tensor], part: slice) -> Tensor:
            latents, x = self._state_of(z)
            for step in self.walk_inverse(latents):
                x = inverses[step.position](step.input(x), part)
            return x

        return inverse

    def _single_layers(self, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
        """Yield the layers of this flow and of those nested in it, each with its name in messages."""
        for position, layer in enumerate(self.layers):
            name = f"{prefix}layer {position}"
            watched = is_watched(layer) or watches_all()
            if isinstance(layer, FlowSequential) and supports(layer, "reverse_stages") and not watched:
                yield from layer._single_layers(f"{name}: ")
            else:
                yield name, layer

    @folding
    def folded(self) -> FlowSequential:
        """Return a copy for inference and export, in plain PyTorch operations with constants.

        Nested sequences are dissolved, and successive channel maps become one. See :func:`~invflow.layers.fold`.

        Raises:
            RuntimeError, TypeError, ValueError: as :func:`~invflow.layers.fold`; the message says which layer it is.
        """
        parts: list[nn.Module] = []
        for position, layer in enumerate(self.layers):
            with naming(f"layer {position}"):
                part = fold(layer)
            parts += part.layers if type(part) is FlowSequential else [part]
        return FlowSequential(merge_maps(parts))

    def _state_of(self, z: Tensor | Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return the latents that left, and the last one."""
        latents = [z] if isinstance(z, Tensor) else list(z)
        if len(latents) != self.num_latents:
            raise ValueError(f"FlowSequential: z must hold {self.num_latents} latents, got {len(latents)}")
        return latents[:-1], latents[-1]

    def __len__(self) -> int:
        return len(self.layers)

    @overload
    def __getitem__(self, position: int) -> nn.Module: ...
    @overload
    def __getitem__(self, position: slice) -> FlowSequential: ...
    def __getitem__(self, position: int | slice) -> nn.Module:
        """Return a layer; for a slice, a FlowSequential of these same layers with the same ``memory``.

        Raises:
            IndexError: no layer there.
            ValueError: a slice of no layers.
        """
        if isinstance(position, slice):
            return FlowSequential(self.layers[position], memory=self.memory)
        return self.layers[position]

    def append(self, layer: nn.Module) -> FlowSequential:
        """Add a layer at the end, and return the flow itself.

        Raises:
            TypeError: not a module, or one without an ``inverse`` method.
        """
        _check_invertible(len(self), layer)
        self.layers.append(layer)
        return self

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.layers)


def _check_invertible(position: int, layer: object) -> None:
    """Raise ``TypeError`` unless a layer has an inverse."""
    if not callable(getattr(layer, "inverse", None)):
        raise TypeError(f"FlowSequential: layer {position}, {type(layer).__name__}, has no inverse method")


class _Given:
    """A context as the layers of one sequence are given it: a shared one is joined once."""

    def __init__(self, context: Any) -> None:
        self._context, self._joined = context, None
        self._shared = is_shared(context)

    def to(self, layer: nn.Module | InvertibleLayer) -> Any:
        """Return the context for a layer."""
        if not self._shared or takes_shared(layer):
            return self._context
        if self._joined is None:
            self._joined = self._context.joined()
        return self._joined


def _one_a_sample(log_det: Any, x: Tensor) -> Tensor:
    """Return log_det (B,), which layers of others may return as one number for all samples."""
    if isinstance(log_det, Tensor) and log_det.dim():
        return log_det
    return torch.as_tensor(log_det, dtype=compute_dtype(x.dtype), device=x.device).repeat(x.shape[0])
