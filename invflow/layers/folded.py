"""Layers as ``layer.folded()`` returns them: plain PyTorch operations with constants."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from invflow._numerics import compute_dtype, no_log_det, pixels_of
from invflow.layers._checks import check_context, check_input, check_shape, check_split_latents
from invflow.layers._derived import ChannelMap, compose
from invflow.layers.conditioning import over_pixels, repeat_context
from invflow.layers.folding import check_initialized, fold
from invflow.layers.protocol import Shape
from invflow.ops import AffineForm
from invflow.ops._gaussian_split import PRIOR_FORM
from invflow.ops._reference import channel_affine_reference

if TYPE_CHECKING:
    from invflow.layers._halves import Halves
    from invflow.layers.actnorm import ActNorm
    from invflow.layers.conv1x1 import InvertibleConv1x1
    from invflow.layers.coupling import AffineCoupling
    from invflow.layers.injector import AffineInjector
    from invflow.layers.split import Split

__all__ = ["FoldedAffine", "FoldedMap", "FoldedSplit", "merge_maps"]


class FoldedMap(nn.Module):
    """A channel map with constants: actnorm, 1x1 convolution, or several of them in succession.

    Constants are float64 if any parameter that they come from is, else float32. ``.to(dtype)`` leaves their dtype as it
    is, because rounded inverses would not be inverses any more. To have float64, fold the layer in float64.

    Args:
        there: the map, float64.
        back: its inverse, float64.
        dtype: dtype of the constants, float32 or float64.

    Shape:
        x (B, C, *) -> y (B, C, *), log_det (B,).
    """

    num_latents = 1
    matrix: Tensor
    shift: Tensor
    inverse_matrix: Tensor
    inverse_shift: Tensor
    log_abs_det: Tensor

    def __init__(self, there: ChannelMap, back: ChannelMap, dtype: torch.dtype) -> None:
        super().__init__()
        constants = {
            "matrix": there.matrix,
            "shift": there.shift,
            "inverse_matrix": back.matrix,
            "inverse_shift": back.shift,
            "log_abs_det": there.log_abs_det,
        }
        for name, value in constants.items():
            self.register_buffer(name, value.detach().to(dtype, copy=True).contiguous())

    @classmethod
    def of(cls, actnorm: ActNorm | None, conv: InvertibleConv1x1 | None) -> FoldedMap:
        """Return the map of an actnorm, a 1x1 convolution, or the one followed by the other."""
        bias = log_scale = None
        if actnorm is not None:
            check_initialized(actnorm)
            bias, log_scale = actnorm.bias, actnorm.log_scale
        if conv is not None:
            derived = functools.partial(conv.channel_map, bias, log_scale, torch.float64)
        else:
            assert log_scale is not None
            eye = torch.eye(len(log_scale), dtype=torch.float64, device=log_scale.device)
            derived = functools.partial(compose, eye, eye.new_zeros(()), bias, log_scale, torch.float64)
        parts = [part for part in (actnorm, conv) if part is not None]
        tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
        double = any(tensor.dtype == torch.float64 for tensor in tensors)
        return cls(derived(inverse=False), derived(inverse=True), torch.float64 if double else torch.float32)

    def followed_by(self, other: FoldedMap) -> FoldedMap:
        """Return this map and then the other, as one."""
        first, second = ([value.double() for value in part._constants()] for part in (self, other))
        matrix, shift, inverse_matrix, inverse_shift, log_abs_det = first
        matrix2, shift2, inverse_matrix2, inverse_shift2, log_abs_det2 = second
        total = log_abs_det + log_abs_det2
        there = ChannelMap(matrix2 @ matrix, matrix2 @ shift + shift2, total)
        back = ChannelMap(inverse_matrix @ inverse_matrix2, inverse_matrix @ inverse_shift2 + inverse_shift, -total)
        return FoldedMap(there, back, torch.promote_types(self.matrix.dtype, other.matrix.dtype))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check(x, "x")
        return self._apply_map(x, self.matrix, self.shift), self._log_det(x, self.log_abs_det)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self._check(z, "z")
        return self._apply_map(z, self.inverse_matrix, self.inverse_shift), self._log_det(z, -self.log_abs_det)

    def output_shapes(self, shape: Shape) -> list[Shape]:
        return [check_shape(self, shape, len(self.shift))]

    def _constants(self) -> list[Tensor]:
        return [self.matrix, self.shift, self.inverse_matrix, self.inverse_shift, self.log_abs_det]

    def _check(self, x: Tensor, name: str) -> None:
        if torch.jit.is_tracing():  # a trace would warn of every comparison of sizes
            return
        check_input(self, x, len(self.shift), name)
        if x.dtype == torch.float64 != self.matrix.dtype:
            raise TypeError(f"FoldedMap: {name} is float64 and the constants are float32; fold the flow in float64")

    @staticmethod
    def _apply_map(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
        dtype = compute_dtype(x.dtype)
        return channel_affine_reference(x, matrix.to(dtype), shift.to(dtype))

    @staticmethod
    def _log_det(x: Tensor, log_abs_det: Tensor) -> Tensor:
        return (pixels_of(x) * log_abs_det).to(compute_dtype(x.dtype)).expand(x.shape[0])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FoldedMap:
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, moved in list(self.named_buffers()):
            if moved.dtype != before[name].dtype:
                setattr(self, name, before[name].to(moved.device))
        return self

    def extra_repr(self) -> str:
        return f"channels={len(self.shift)}, {self.matrix.dtype}"


class FoldedAffine(nn.Module):
    """An affine coupling, injector or prior in plain PyTorch.

    Args:
        layer: the layer to copy.

    Shape:
        x (B, C, *), context as the layer needs it -> y (B, C, *), log_det (B,). In a traced program every state needs a
        context of its own.
    """

    num_latents = 1

    def __init__(self, layer: AffineCoupling | AffineInjector, *, standardises: bool = False) -> None:
        super().__init__()
        self.channels, self.context_channels = layer.channels, layer.context_channels
        self.form = layer.form
        #: Whether ``forward`` is the inverse of the map that the network's output makes.
        self.standardises = standardises
        #: Which channels are transformed; the network sees the others. ``None`` for an injector, which transforms all.
        self.halves: Halves | None = getattr(layer, "halves", None)
        self.net = fold(layer.net)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._transform(x, context, "x", inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._transform(z, context, "z", inverse=True)

    def output_shapes(self, shape: Shape) -> list[Shape]:
        return [check_shape(self, shape, self.channels)]

    def _transform(self, x: Tensor, context: Tensor | None, name: str, *, inverse: bool) -> tuple[Tensor, Tensor]:
        tracing = torch.jit.is_tracing()
        if not tracing:
            check_input(self, x, self.channels, name)
            check_context(self, x, context, self.context_channels)
        if self.halves is None:
            assert context is not None
            return self._changed(x, self.net(over_pixels(context, x)), inverse)
        passed = self.halves.passed(x)
        if not self.context_channels:
            h = self.net(passed)
        else:
            assert context is not None
            h = self.net(passed, over_pixels(context if tracing else repeat_context(context, x.shape[0]), x))
        changed, log_det = self._changed(self.halves.changed(x), h, inverse)
        return torch.cat(self.halves.in_order(passed, changed), 1), log_det

    def _changed(self, x: Tensor, h: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        h = h if torch.jit.is_tracing() else repeat_context(h, x.shape[0])
        return _elementwise(x, h, self.form, inverse != self.standardises)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, context_channels={self.context_channels}, {self.form}"


class FoldedSplit(nn.Module):
    """A :class:`~invflow.Split` in plain PyTorch.

    Args:
        split: the layer to copy.

    Shape:
        x (B, C, *) -> [epsilon, z], log_det (B,), as the layer.
    """

    num_latents = 2

    def __init__(self, split: Split) -> None:
        super().__init__()
        self.channels, self.kept, self.factored = split.channels, split.kept, split.factored
        self.net = None if split.net is None else fold(split.net)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        if not torch.jit.is_tracing():
            check_input(self, x, self.channels)
        z = x[:, : self.kept]
        if self.net is None:
            return [x[:, self.kept :], z], no_log_det(x)
        epsilon, log_det = _elementwise(x[:, self.kept :], self.net(z), PRIOR_FORM, inverse=True)
        return [epsilon, z], log_det

    def inverse(self, z: Sequence[Tensor], context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        epsilon, kept = z if torch.jit.is_tracing() else check_split_latents(z, self.kept, self.factored)
        if self.net is None:
            return torch.cat([kept, epsilon], 1), no_log_det(kept)
        factored, log_det = _elementwise(epsilon, self.net(kept), PRIOR_FORM, inverse=False)
        return torch.cat([kept, factored], 1), log_det

    def output_shapes(self, shape: Shape) -> list[Shape]:
        _, *spatial = check_shape(self, shape, self.channels)
        return [(self.factored, *spatial), (self.kept, *spatial)]

    def extra_repr(self) -> str:
        return f"channels={self.channels}, kept={self.kept}, factored={self.factored}"


def merge_maps(layers: Iterable[nn.Module]) -> list[nn.Module]:
    """Return the layers with successive channel maps made one."""
    merged: list[nn.Module] = []
    for layer in layers:
        if merged and isinstance(layer, FoldedMap) and isinstance(merged[-1], FoldedMap):
            merged[-1] = merged[-1].followed_by(layer)
        else:
            merged.append(layer)
    return merged


def _elementwise(x: Tensor, h: Tensor, form: AffineForm, inverse: bool) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(x.dtype)
    y, log_det = form.transform(x.to(dtype), h.to(dtype), inverse)
    return y.to(x.dtype), log_det
