"""Flow: invertible layers and a base distribution, together the distribution of data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from numbers import Number
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from invflow.bases import Base, StandardNormal
from invflow.layers import FlowSequential
from invflow.layers.conditioning import condition, repeat_context
from invflow.layers.protocol import Context, checked_latents, is_shared, output_shapes_of
from invflow.likelihood import bits_per_dim, standard_normal_log_prob

__all__ = ["Flow"]


class Flow(nn.Module):
    r"""A normalizing flow: the distribution of :math:`x = f^{-1}(z)`, with :math:`\log p(x) = \log p(z) + \log\det`.

    Calling it is :meth:`log_prob`, so that DistributedDataParallel, ``torch.compile`` and the like wrap it.

    >>> import torch, invflow
    >>> flow = invflow.glow((2,), steps=4)
    >>> flow.log_prob(torch.randn(8, 2)).shape, flow.sample(64).shape
    (torch.Size([8]), torch.Size([64, 2]))

    Contexts and labels have one row for each of B conditions. :meth:`log_prob` takes x ``(B, *event)`` or, with several
    samples of every condition, ``(n, B, *event)``, which is what :meth:`sample` returns.

    Args:
        layers: the layers in the order of data to latents, or one layer. A :class:`FlowSequential` stays as it is.
        base: distribution of the last latent; default :class:`StandardNormal`. See :class:`Base`.
        event_shape: shape of one sample, such as (C, H, W). Without it, :meth:`sample` must be told.
        memory: as of :class:`FlowSequential`; default its own. ``"invert"`` saves activations.

    Attributes:
        transform: the layers, a :class:`FlowSequential`. ``flow.transform(x, context)`` returns latents and log_det,
            ``flow.transform.inverse`` takes latents.
        base: the base distribution.
        event_shape: as given, or ``None``.

    Raises:
        TypeError: a base without the methods of :class:`Base`, or layers that :class:`FlowSequential` does not take.
        ValueError: an ``event_shape`` that the layers do not take.
    """

    def __init__(
        self,
        layers: Iterable[nn.Module] | nn.Module,
        base: nn.Module | None = None,
        *,
        event_shape: Sequence[int] | None = None,
        memory: Literal["store", "invert"] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(layers, FlowSequential) and memory in (None, layers.memory):
            self.transform = layers
        else:
            # what has an inverse is one layer, with a forward of its own even if it holds others
            single = type(layers) is not FlowSequential and callable(getattr(layers, "inverse", None))
            several = layers if isinstance(layers, Iterable) and not single else [cast(nn.Module, layers)]
            self.transform = FlowSequential(several, memory=memory or "store")
        self.base = StandardNormal() if base is None else base
        for method in ("log_prob", "sample"):
            if not callable(getattr(self.base, method, None)):
                raise TypeError(f"Flow: base, {type(self.base).__name__}, has no {method} method")
        self.event_shape = None if event_shape is None else _shape(event_shape)
        if self.event_shape is not None:
            self.latent_shapes()

    def forward(self, x: Tensor, context: Context = None, y: Tensor | int | None = None) -> Tensor:
        """Return :meth:`log_prob`."""
        return self.log_prob(x, context, y)

    def log_prob(self, x: Tensor, context: Context = None, y: Tensor | int | None = None) -> Tensor:
        """Return the log-density of samples, a natural logarithm.

        In training mode the first batch initialises the actnorms. A flow that begins with a dequantisation returns a
        bound on the log-probability of discrete data, with new noise in every call.

        Args:
            x: ``(N, *event)``, or ``(n, B, *event)`` if the flow has an ``event_shape``. Integers are taken in the
                dtype of the parameters.
            context: condition of the layers, as they take it: B rows. Of N samples, N / B successive ones have the same
                row.
            y: condition of the base, such as the labels of :class:`ClassNormal`: B rows, or one integer for all.

        Returns:
            (N,) or (n, B); float64 for float64 samples, else float32.

        Raises:
            ValueError: x of another shape, or rows that do not divide the samples.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
        event = self.event_shape
        several = event is not None and x.dim() == len(event) + 2
        if event is not None and (x.dim() <= len(event) or x.dim() > len(event) + 2 or x.shape[-len(event) :] != event):
            shape = ", ".join(map(str, event))
            raise ValueError(f"x must have shape (N, {shape}) or (n, B, {shape}), got {tuple(x.shape)}")
        if not several:
            return self._log_prob(x, context, y)
        n, rows = x.shape[:2]
        states = x.transpose(0, 1).flatten(0, 1)
        if isinstance(context, Tensor):
            context = _repeated(context, n * rows, "context")
        return self._log_prob(states, context, y).unflatten(0, (rows, n)).transpose(0, 1)

    def bits_per_dim(self, x: Tensor, context: Context = None, y: Tensor | int | None = None) -> Tensor:
        r"""Return the negative log-likelihood in bits per dimension, :math:`-\log p(x) / (D \ln 2)`.

        For a flow that begins with a dequantisation it is that of the discrete data; otherwise that of a density.

        Args:
            x, context, y: as in :meth:`log_prob`. D is the number of elements of one sample.

        Returns:
            (N,) or (n, B).
        """
        dims = math.prod(x.shape[1:] if self.event_shape is None else self.event_shape)
        return bits_per_dim(self.log_prob(x, context, y), dims)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        context: Context = None,
        y: Tensor | int | None = None,
        *,
        temperature: float = 1.0,
        shape: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw samples, without gradients, on the device and in the dtype of the parameters.

        Networks are used as they are: call ``flow.eval()`` before if they have dropout.

        Args:
            n: number of samples; of every row, where context or ``y`` has rows.
            context: condition of the layers, with B rows.
            y: condition of the base, with B rows; or an integer for all samples.
            temperature: factor of the standard deviation of all latents, at least 0.
            shape: shape of one sample; default the flow's ``event_shape``. Flows of convolutions take other sizes too.
            generator: source of the random numbers of the latents; default torch's own. They are drawn on its device.

        Returns:
            ``(n, *event)``; with rows ``(n, B, *event)``.

        Raises:
            ValueError: no shape, numbers out of range, or context and ``y`` with different rows.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise ValueError(f"n must be a whole number of at least 0, got {n!r}")
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ValueError(f"temperature must be finite and at least 0, got {temperature}")
        rows = _rows_of(context, y)
        count = n if rows is None else n * rows
        latents = self._noise(count, self.latent_shapes(shape), temperature, generator)
        latents[-1] = cast(Base, self.base).sample(latents[-1], _labels(y, latents[-1]), generator)
        spatial = len(self.event_shape if shape is None else shape) - 1  # type: ignore[arg-type]
        x = self._decode(latents, context, spatial)
        return x if rows is None else x.unflatten(0, (rows, n)).transpose(0, 1)

    def latent_shapes(self, event_shape: Sequence[int] | None = None) -> list[tuple[int, ...]]:
        """Return the shapes of one sample's latents, in encode order.

        Args:
            event_shape: shape of the sample; default the flow's own.

        Raises:
            ValueError: no shape, or one that a layer does not take.
        """
        shape = self.event_shape if event_shape is None else _shape(event_shape)
        if shape is None:
            raise ValueError("the flow has no event_shape: give one to Flow(..., event_shape=), or shape= to sample")
        return [tuple(latent) for latent in output_shapes_of(self.transform, cast(Any, shape))]

    def extra_repr(self) -> str:
        return "" if self.event_shape is None else f"event_shape={self.event_shape}"

    def _log_prob(self, x: Tensor, context: Context, y: Tensor | int | None) -> Tensor:
        if x.is_complex():
            raise TypeError(f"x must have a floating-point or an integer dtype, got {x.dtype}")
        # whole numbers, for a dequantisation
        x = x if x.is_floating_point() else x.to(self._like().dtype)
        z, log_det = self.transform(x, context)
        *leaving, last = checked_latents(z, self.transform, "transform")
        of_base = cast(Base, self.base).log_prob(last, _labels(y, last))
        if not isinstance(of_base, Tensor) or of_base.shape != log_det.shape:
            name = f"Flow: base, {type(self.base).__name__}"
            given = tuple(of_base.shape) if isinstance(of_base, Tensor) else type(of_base).__name__
            raise ValueError(f"{name}: log_prob must return shape {tuple(log_det.shape)}, one a sample, got {given}")
        log_prob = log_det + of_base
        return log_prob + standard_normal_log_prob(leaving) if leaving else log_prob

    def _like(self) -> Tensor:
        """Return a tensor on the device and in the dtype of the flow."""
        tensors = (tensor for tensor in chain(self.parameters(), self.buffers()) if tensor.is_floating_point())
        return next(tensors, torch.empty(0))

    def _noise(
        self, count: int, shapes: Sequence[Sequence[int]], temperature: float, generator: torch.Generator | None
    ) -> list[Tensor]:
        like = self._like()
        device = like.device if generator is None else generator.device
        draw = [torch.randn(count, *shape, generator=generator, dtype=like.dtype, device=device) for shape in shapes]
        return [temperature * latent.to(like.device) for latent in draw]

    def _decode(self, latents: list[Tensor], context: Context, spatial: int) -> Tensor:
        z = latents if len(latents) > 1 else latents[0]
        if context is None:
            return self.transform.inverse(z)[0]
        if isinstance(context, Tensor) and not context.dim() == latents[-1].dim() == spatial + 2:
            return self.transform.inverse(z, _repeated(context, len(latents[-1]), "context"))[0]
        shared = _Rows(context) if isinstance(context, Tensor) else context
        return condition(self.transform, shared)(z, slice(0, shared.shape[0]))


class _Rows:
    """A context tensor as a :class:`~invflow.layers.SharedContext`, each row of which serves many states."""

    def __init__(self, context: Tensor) -> None:
        self.context = context

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.context.shape)

    def joined(self) -> Tensor:
        return self.context

    def network(self, net: nn.Module) -> Any:
        def output(passed: Tensor | None, part: slice) -> Tensor:
            context = self.context[part]
            return net(context) if passed is None else net(passed, repeat_context(context, len(passed)))

        return output


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of one sample, checked, as a tuple."""
    if not isinstance(shape, Sequence) or not shape or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(f"event_shape must be a shape such as (3, 32, 32), or (2,) for vectors, got {shape!r}")
    return tuple(shape)


def _rows_of(context: Any, y: Tensor | int | None) -> int | None:
    """Return the number of conditions, ``None`` if there is none."""
    if context is not None and not (isinstance(context, Tensor) or is_shared(context)):
        raise TypeError(f"context must be a torch.Tensor or a SharedContext, got {type(context).__name__}")
    if isinstance(context, Tensor) and not context.dim():
        raise ValueError("context must have a row for each condition, got a tensor without dimensions")
    rows = None if context is None else context.shape[0]
    if not isinstance(y, Tensor) or not y.dim():
        return rows
    if rows is not None and len(y) != rows:
        raise ValueError(f"context and y must have as many rows, got {rows} and {len(y)}")
    return len(y)


def _labels(y: Tensor | int | None, z: Tensor) -> Tensor | None:
    """Return one row of ``y`` for every latent."""
    if y is None:
        return None
    if not isinstance(y, Tensor | Number):
        raise TypeError(f"y must be a torch.Tensor, or an integer for all samples, got {type(y).__name__}")
    y = torch.as_tensor(y, device=z.device)
    return y.expand(len(z)) if not y.dim() else _repeated(y, len(z), "y")


def _repeated(rows: Tensor, count: int, name: str) -> Tensor:
    """Return rows so often, one after the other, that they are ``count``."""
    if len(rows) == count:
        return rows
    if not len(rows) or count % len(rows):
        raise ValueError(f"{name} must have {count} rows or a divisor of it, got {len(rows)}")
    return rows.repeat_interleave(count // len(rows), 0)
