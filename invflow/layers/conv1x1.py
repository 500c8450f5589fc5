"""Invertible 1x1 convolutions: a learned mixing of the channels, with the weight full or as an LU factorisation."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from invflow._numerics import compute_dtype, pixels_of
from invflow.layers._checks import check_channels, check_input, check_shape
from invflow.layers._current import current
from invflow.layers._derived import ChannelMap, FactorCache, Snapshot, compose, derive, factors
from invflow.layers._late import UnusableWeightError, look_at_weights
from invflow.layers._together import factors_of
from invflow.layers.conditioning import without_context
from invflow.layers.folded import FoldedMap
from invflow.layers.folding import folding
from invflow.layers.protocol import ConditionedInverse, Shape, SharedContext
from invflow.ops import channel_affine

__all__ = ["InvertibleConv1x1", "InvertibleConv1x1LU", "check_weights"]


def _random_rotation(channels: int) -> Tensor:
    """Draw an orthogonal matrix, in float64."""
    return torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64)).Q


def _derives_from_matrix(kind: type[InvertibleConv1x1]) -> bool:
    """Return whether a class leaves inverse and determinant to be derived from its matrix."""
    base = InvertibleConv1x1
    return kind.inverse_matrix is base.inverse_matrix and kind.log_abs_det is base.log_abs_det


class InvertibleConv1x1(nn.Module):
    r"""Invertible 1x1 convolution: :math:`y = W x` at every of N pixels, :math:`\log\det = N \log|\det W|`
    (Kingma & Dhariwal, Glow, 2018, section 3.2). ``weight`` starts as a random rotation.

    The inverse and the determinant come from one LU factorisation in float64, for any dtype of the state. It costs C^3
    operations for every new value of the weight: once a training step, not once a call.

    Args:
        channels: number C of channels.

    Raises:
        ValueError: a weight that is singular or not finite, in ``forward`` and ``inverse``.

    Shape:
        x (B, C, *) -> y (B, C, *), log_det (B,). A vector is one pixel.
    """

    num_latents = 1
    takes_shared_context = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = check_channels(self, channels)
        self.weight = nn.Parameter(_random_rotation(channels).to(torch.get_default_dtype()).contiguous())
        self._factorization = FactorCache()

    def factorizes(self) -> bool:
        """Return whether the map is derived from factors of one parameter, and of nothing else."""
        return type(self) is InvertibleConv1x1 and self._parameters.get("weight") is not None

    def matrix(self) -> Tensor:
        """Return W (C, C) in float64. A subclass that makes its matrix of something else overrides this method."""
        return current(self, "weight").to(torch.float64, copy=True)

    def inverse_matrix(self) -> Tensor:
        """Return the inverse of W (C, C) in float64, a new tensor."""
        return self._map_of_weight(None, None, torch.float64, inverse=True).matrix

    def log_abs_det(self) -> Tensor:
        """Return ``log |det W|``, a float64 scalar."""
        return self._map_of_weight(None, None, torch.float64, inverse=False).log_abs_det

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_input(self, x, self.channels)
        return self._apply_map(x, inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        check_input(self, z, self.channels, "z")
        return self._apply_map(z, inverse=True)

    def output_shapes(self, shape: Shape) -> list[Shape]:
        return [check_shape(self, shape, self.channels)]

    def conditioned_inverse(self, context: SharedContext) -> ConditionedInverse:
        if torch.is_grad_enabled():
            return without_context(self)
        found = Snapshot(partial(self.channel_map, None, None, inverse=True))

        def inverse(z: Tensor, part: slice) -> Tensor:
            check_input(self, z, self.channels, "z")
            affine = found(compute_dtype(z.dtype))
            return channel_affine(z, affine.matrix, affine.shift)

        return inverse

    @folding
    def folded(self) -> FoldedMap:
        """Return a copy for inference and export: see :class:`~invflow.layers.Foldable`."""
        return FoldedMap.of(None, self)

    def log_det(self, x: Tensor) -> Tensor:
        """Return the log-determinant (B,) of ``forward`` for a state of the shape and dtype of ``x``."""
        return (pixels_of(x) * self.log_abs_det()).to(compute_dtype(x.dtype)).repeat(x.shape[0])

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return the inverse and ``log |det|`` of a plain weight, float64, without a graph.

        Raises:
            UnusableWeightError: a weight that has no inverse.
        """
        weight = self._parameters["weight"]
        assert weight is not None
        cache = self._factorization
        return cache.known([weight]) or factors_of(weight) or factors(weight, cache, self)

    def sources(self) -> list[Tensor]:
        """Return the tensors whose values alone decide the map; an empty list if those are not known.

        They are known of this class and of :class:`InvertibleConv1x1LU`, unless a hook or a parametrization computes
        one.
        """
        parameters, buffers = self._parameters, self._buffers
        found: list[Tensor] = []
        for name in _SOURCES.get(type(self), ()):
            tensor: Tensor | None = parameters.get(name)
            if tensor is None and (tensor := buffers.get(name)) is None:
                return []
            found.append(tensor)
        return found

    def channel_map(
        self,
        bias: Tensor | None,
        log_scale: Tensor | None,
        dtype: torch.dtype,
        *,
        inverse: bool,
        pixels: int | None = None,
    ) -> ChannelMap:
        """Return the map of an actnorm followed by this convolution, or the inverse map.

        Args:
            bias: bias of the actnorm; ``None`` without one.
            log_scale: likewise.
            dtype: dtype of matrix and shift.
            inverse: return the inverse map.
            pixels: number of pixels of the states that the map is for; ``None`` for any.
        """
        if _derives_from_matrix(type(self)):
            return self._map_of_weight(bias, log_scale, dtype, inverse=inverse, pixels=pixels)
        # a subclass that has an inverse and a determinant of its own
        matrix = self.inverse_matrix() if inverse else self.matrix()
        return compose(matrix, self.log_abs_det(), bias, log_scale, dtype, inverse=inverse)

    def _map_of_weight(
        self,
        bias: Tensor | None,
        log_scale: Tensor | None,
        dtype: torch.dtype,
        *,
        inverse: bool,
        pixels: int | None = None,
    ) -> ChannelMap:
        # read once: a parametrization may change its state whenever it computes the weight
        own = type(self).matrix is not InvertibleConv1x1.matrix
        weight = self.matrix() if own else current(self, "weight")
        return derive(
            weight,
            bias,
            log_scale,
            dtype,
            inverse=inverse,
            cache=self._factorization,
            owner=self,
            known=factors_of(weight),
            pixels=pixels,
        )

    def _apply_map(self, x: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        dtype = compute_dtype(x.dtype)
        found = self.channel_map(None, None, dtype, inverse=inverse)
        log_det = (pixels_of(x) * found.log_abs_det).to(dtype).repeat(x.shape[0])
        return channel_affine(x, found.matrix, found.shift), log_det

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        name = f"{prefix}weight"
        if name in state_dict:
            # files of version 0.1 hold it transposed, which assign=True would keep
            state_dict[name] = state_dict[name].contiguous()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return f"channels={self.channels}"


class InvertibleConv1x1LU(InvertibleConv1x1):
    r"""Invertible 1x1 convolution with its weight as :math:`W = P L (U + \operatorname{diag}(\sigma e^{d}))`
    (Kingma & Dhariwal, Glow, 2018, eq. 10): :math:`\log|\det W| = \sum d`, never singular, and cheaper to invert.

    P is a fixed permutation and :math:`\sigma` fixed signs; L is lower triangular with a unit diagonal and U strictly
    upper triangular. The product starts as a random rotation.

    Args:
        channels: number C of channels.
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int) -> None:
        nn.Module.__init__(self)
        self.channels = check_channels(self, channels)
        permutation, lower, upper = torch.linalg.lu(_random_rotation(channels))
        diagonal, dtype = upper.diagonal(), torch.get_default_dtype()
        self.register_buffer("permutation", permutation.to(dtype).contiguous())
        self.register_buffer("sign", diagonal.sign().to(dtype))
        self.lower = nn.Parameter(lower.tril(-1).to(dtype).contiguous())
        self.upper = nn.Parameter(upper.triu(1).to(dtype).contiguous())
        self.log_diagonal = nn.Parameter(diagonal.abs().log().to(dtype))

    def _factors(self) -> tuple[Tensor, Tensor, Tensor]:
        lower = current(self, "lower").double().tril(-1)
        lower = lower + torch.eye(self.channels, dtype=lower.dtype, device=lower.device)
        diagonal = self.sign.double() * current(self, "log_diagonal").double().exp()
        return self.permutation.double(), lower, current(self, "upper").double().triu(1) + diagonal.diag()

    def matrix(self) -> Tensor:
        """Return W (C, C) in float64."""
        permutation, lower, upper = self._factors()
        return permutation @ lower @ upper

    def inverse_matrix(self) -> Tensor:
        """Return the inverse of W (C, C) in float64, by two triangular solves."""
        permutation, lower, upper = self._factors()
        half = torch.linalg.solve_triangular(lower, permutation.T, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, half, upper=True)

    def log_abs_det(self) -> Tensor:
        """Return ``log |det W|``, a float64 scalar."""
        return current(self, "log_diagonal").double().sum()


_SOURCES: dict[type[InvertibleConv1x1], tuple[str, ...]] = {
    InvertibleConv1x1: ("weight",),
    InvertibleConv1x1LU: ("lower", "upper", "log_diagonal", "permutation", "sign"),
}


@torch.no_grad()
def check_weights(module: nn.Module) -> None:
    """Check that the weight of every invertible convolution has an inverse. This waits for the device.

    A layer on the CPU checks its weight in every call. One on another device does not wait: its log-determinant is
    infinite or NaN, and a later call raises. Call this to know at once, say when a loss is not finite.

    Args:
        module: a layer, a flow, or a model that contains some.

    Raises:
        UnusableWeightError: a weight that is singular or not finite; the message names the layer.
    """
    for name, part in module.named_modules():
        if isinstance(part, InvertibleConv1x1):
            try:
                part.log_abs_det()
                look_at_weights(part)
            except UnusableWeightError as error:
                raise UnusableWeightError(f"{name}: {error}" if name else str(error)) from None
