"""torch.distributions: invflow layers as a ``Transform``, and transforms as layers.

>>> import torch, invflow
>>> from torch.distributions import Independent, Normal, TransformedDistribution
>>> from invflow.interop.distributions import FlowTransform
>>> flow = invflow.glow((2,), steps=2)
>>> base = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
>>> distribution = TransformedDistribution(base, FlowTransform(flow.transform, (2,)))
>>> x = distribution.sample((5, 3))
>>> x.shape, distribution.log_prob(x).shape
(torch.Size([5, 3, 2]), torch.Size([5, 3]))
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from invflow.interop._contract import check_layer, one_a_sample
from invflow.interop.flat import Flat
from invflow.layers.protocol import InvertibleLayer, Shape, num_latents_of, output_shapes_of

__all__ = ["FlowTransform", "layer_of"]


class FlowTransform(Transform):
    """An invflow layer as a transform from latents to data.

    A transform is no module: train, move and save the layer. ``flow.to(device)`` moves what the transform computes
    with, but for the context.

    A layer with several latents takes them as one vector (:class:`invflow.interop.Flat`).

    Args:
        layer: satisfies :class:`invflow.InvertibleLayer`.
        event_shape: shape (C, *) of one sample of data, such as (2,) or (3, 32, 32).
        context: condition of the layer, ``(*batch, *one)``. It is expanded to the batch shape of what is transformed.
        context_dim: number of dimensions of one condition: 1 of a vector, 3 of an image.
        cache_size: 1 remembers the last pair of latents and data, as in every transform; 0 does not.

    Raises:
        TypeError: no layer.
        ValueError: a shape that the layer does not take.

    Shape:
        latents ``(*batch, *latent)`` -> data ``(*batch, *event)``, with a log-determinant ``(*batch)``.
    """

    bijective = True

    def __init__(
        self,
        layer: nn.Module,
        event_shape: Sequence[int],
        context: Tensor | None = None,
        *,
        context_dim: int = 1,
        cache_size: int = 0,
    ) -> None:
        super().__init__(cache_size=cache_size)
        shape = torch.Size(event_shape)
        check_layer(type(self).__name__, layer)
        self.layer = Flat(layer, shape) if num_latents_of(layer) > 1 else layer
        self.event_shape, self.latent_shape = shape, torch.Size(output_shapes_of(self.layer, tuple(shape))[0])
        self.context, self.context_dim = context, context_dim
        self.domain = constraints.independent(constraints.real, len(self.latent_shape))
        self.codomain = constraints.independent(constraints.real, len(shape))
        self._known: _Known | None = None

    def with_cache(self, cache_size: int = 1) -> FlowTransform:
        """Return a transform of the same layer with this cache."""
        if cache_size == self._cache_size:
            return self
        layer = self.layer.layer if isinstance(self.layer, Flat) else self.layer
        return type(self)(layer, self.event_shape, self.context, context_dim=self.context_dim, cache_size=cache_size)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the log-determinants ``(*batch)`` of the map from latents to data.

        Args:
            x: latents.
            y: the data that belongs to them.
        """
        known = self._known
        if not self._cache_size:
            self._known = None
        if known is not None and not torch.compiler.is_compiling() and known.holds(x, y, self.layer):
            return known.log_det
        return -self._run(self.layer, y, self.event_shape)[1]

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the shape of data for that of latents."""
        return self._shape(shape, self.latent_shape, self.event_shape)

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the shape of latents for that of data."""
        return self._shape(shape, self.event_shape, self.latent_shape)

    def _call(self, x: Tensor) -> Tensor:
        y, log_det = self._run(cast(InvertibleLayer, self.layer).inverse, x, self.latent_shape)
        self._remember(x, y, log_det)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x, log_det = self._run(self.layer, y, self.event_shape)
        self._remember(x, y, -log_det)
        return x

    def _remember(self, x: Tensor, y: Tensor, log_det: Tensor) -> None:
        # a compiler cannot follow weak references and versions; it removes what is computed twice by itself
        self._known = None if torch.compiler.is_compiling() else _Known(x, y, log_det, self.layer)

    def _run(self, function: Any, x: Tensor, event: torch.Size) -> tuple[Tensor, Tensor]:
        batch = self._shape(x.shape, event, torch.Size())
        context = self.context
        if context is not None:
            one = context.shape[context.dim() - self.context_dim :]
            context = context.expand(*batch, *one).reshape(-1, *one)
        y, log_det = function(x.reshape(-1, *event), context)
        return y.reshape(*batch, *y.shape[1:]), log_det.reshape(batch)

    def _shape(self, shape: Sequence[int], event: torch.Size, other: torch.Size) -> torch.Size:
        batch = len(shape) - len(event)
        if batch < 0 or tuple(shape[batch:]) != event:
            dims = ", ".join(map(str, event))
            raise ValueError(f"{type(self).__name__}: expected shape (*batch, {dims}), got {tuple(shape)}")
        return torch.Size((*shape[:batch], *other))

    def __getstate__(self) -> dict[str, Any]:
        # what was remembered has graphs, which cannot be copied
        state = {**super().__getstate__(), "_known": None}
        if "_cached_x_y" in state:
            state["_cached_x_y"] = None, None
        return state


class _Known:
    """The log-determinant of one evaluation, for the pair that it belongs to, which it does not keep alive."""

    def __init__(self, x: Tensor, y: Tensor, log_det: Tensor, layer: nn.Module) -> None:
        self._pair = weakref.ref(x), weakref.ref(y)
        self._versions = _versions(x, y, layer)
        self.log_det = log_det

    def holds(self, x: Tensor, y: Tensor, layer: nn.Module) -> bool:
        """Return whether it is that of latents ``x`` and data ``y`` now, with a graph if one is wanted."""
        same = self._pair[0]() is x and self._pair[1]() is y and self._versions == _versions(x, y, layer)
        return same and (self.log_det.requires_grad or not torch.is_grad_enabled())


def _versions(x: Tensor, y: Tensor, layer: nn.Module) -> list[int]:
    """Return how often each tensor was changed in place, as an optimizer changes parameters."""
    return [tensor._version for tensor in (x, y, *layer.parameters()) if not tensor.is_inference()]


def layer_of(transform: Transform, module: nn.Module | None = None) -> nn.Module:
    """Return a layer that is the inverse of a transform: its ``forward`` takes data and returns latents.

    Args:
        transform: maps latents to data, as those of ``TransformedDistribution``. It must have an inverse.
        module: a module that holds the tensors with which the transform computes, to be trained, moved and saved with
            the layer. A transform that is a module, as those of pyro, needs none.

    Raises:
        TypeError: not a transform.
        ValueError: a transform without an inverse.
    """
    if not isinstance(transform, Transform):
        raise TypeError(f"layer_of: transform must be a torch.distributions.Transform, got {type(transform).__name__}")
    if not transform.bijective:
        raise ValueError(f"layer_of: transform must be bijective, got {type(transform).__name__}")
    return _TransformLayer(transform, module)


class _TransformLayer(nn.Module):
    """A transform from latents to data as a layer from data to latents."""

    def __init__(self, transform: Transform, module: nn.Module | None) -> None:
        super().__init__()
        self.transform, self.module = transform, module

    def forward(self, x: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        return to_latents(self.transform, x)

    def inverse(self, z: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        return to_data(self.transform, z)

    def output_shapes(self, shape: Shape) -> list[Shape]:
        return [tuple(self.transform.inverse_shape(torch.Size(shape)))]


def to_latents(transform: Transform, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the latents of data ``x`` (B, ...), and log_det (B,) of the map from data to latents."""
    x = _unknown(x)
    z = transform.inv(x)
    return z, -one_a_sample(transform.log_abs_det_jacobian(z, x), x)


def to_data(transform: Transform, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the data of latents ``z`` (B, ...), and log_det (B,) of the map from latents to data."""
    z = _unknown(z)
    x = transform(z)
    return x, one_a_sample(transform.log_abs_det_jacobian(z, x), z)


def _unknown(x: Tensor) -> Tensor:
    """Return the tensor as another object, for which no transform has a result of older parameters in its cache."""
    return x.view_as(x)
