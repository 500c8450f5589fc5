"""Dequantisation: noise makes continuous data of discrete data, such as the values of images."""

from __future__ import annotations

import math
from numbers import Integral

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invflow._numerics import compute_dtype, reads_freely
from invflow.layers.protocol import ConditionedInverse, Context, Shape, SharedContext, num_latents_of
from invflow.ops._transforms import has_values, is_watched

__all__ = ["UniformDequantization", "VariationalDequantization"]


class UniformDequantization(nn.Module):
    r"""Uniform dequantisation: :math:`z = (x + u) / K` with noise :math:`u` from :math:`U[0, 1)`, new in every call;
    :math:`\log\det = -D \log K` (Theis et al., A note on the evaluation of generative models, 2016, section 3.1).

    It is the first layer of a flow for data of K values. The log-density of the flow is then a lower bound, in the mean
    over the noise, of the log-probability of the data. Its bits per dimension are those of the discrete data.

    The inverse rounds down, and is exact: ``inverse(forward(x))`` is x. States outside of [0, 1) become the least or
    the largest value. The noise comes from torch's default generator, in evaluation mode too.

    Args:
        values: K, between 2 and 65536.

    Shape:
        x (B, ...) of whole numbers 0 to K - 1 -> z (B, ...) in [0, 1), log_det (B,). x has an integer or a floating
        dtype. z has that of x, and torch's default dtype for integers. The inverse returns whole numbers in the dtype
        of z.

    Raises:
        TypeError: a dtype with too few digits for K values, such as float16 for 256; K that is no whole number.
        ValueError: numbers that are not whole or out of range. They are looked at on a CPU only.
    """

    num_latents = 1
    takes_shared_context = True

    def __init__(self, values: int = 256) -> None:
        super().__init__()
        if isinstance(values, bool) or not isinstance(values, Integral):
            given = values if isinstance(values, int | float) else type(values).__name__
            raise TypeError(f"{type(self).__name__}: values must be a whole number, got {given}")
        if not 2 <= values <= 65536:
            raise ValueError(f"{type(self).__name__}: values must be between 2 and 65536, got {values}")
        self.values: int = int(values)

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        x = self._checked(x)
        return self._with_noise(x, torch.rand_like(x)), self._log_det(x)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        return self._rounded(z), -self._log_det(z)

    def output_shapes(self, shape: Shape) -> list[Shape]:
        return [shape]

    def conditioned_inverse(self, context: SharedContext) -> ConditionedInverse:
        return lambda z, part: self._rounded(z)

    def _checked(self, x: Tensor) -> Tensor:
        """Return x in a floating dtype."""
        name = type(self).__name__
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: x must be a torch.Tensor, got {type(x).__name__}")
        if x.is_complex():
            raise TypeError(f"{name}: x must have an integer or a floating-point dtype, got {x.dtype}")
        if x.dtype in (torch.uint16, torch.uint32, torch.uint64):
            x = x.to(torch.int64)  # torch knows few operations of these
        if not is_watched() and reads_freely(x) and has_values(x) and x.numel():
            least, largest = (value.item() for value in torch.aminmax(x))
            if not (least >= 0 and largest <= self.values - 1):
                raise ValueError(
                    f"{name}: x must hold values 0 to {self.values - 1}, got {least} to {largest}; for images in "
                    f"[0, 1], pass (x * {self.values - 1}).round()"
                )
            if x.is_floating_point() and not torch.equal(x, x.round()):
                raise ValueError(
                    f"{name}: x must hold whole numbers 0 to {self.values - 1}, got fractions; for images in [0, 1], "
                    f"pass (x * {self.values - 1}).round()"
                )
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        if _margin(x, self.values) > 0.1:
            raise TypeError(f"{name}: {x.dtype} has too few digits for {self.values} values: use float32")
        return x

    def _with_noise(self, x: Tensor, noise: Tensor) -> Tensor:
        margin = _margin(x, self.values)
        return (x + noise.clamp(margin, 1 - margin)) / self.values

    def _rounded(self, z: Tensor) -> Tensor:
        return (z * self.values).floor().clamp(0, self.values - 1)

    def _log_det(self, x: Tensor) -> Tensor:
        log_det = -math.prod(x.shape[1:]) * math.log(self.values)
        return torch.full((x.shape[0],), log_det, dtype=compute_dtype(x.dtype), device=x.device)

    def extra_repr(self) -> str:
        return f"values={self.values}"


class VariationalDequantization(UniformDequantization):
    r"""Variational dequantisation: :math:`z = (x + u) / K` with noise :math:`u = \operatorname{sigmoid}(v)`, where a
    flow makes v of x and of :math:`\epsilon` from N(0, I) (Ho et al., Flow++, 2019, section 3.1).

    :math:`\log\det = -D \log K - \log q(u | x)`, with the density q of the noise. Trained with the rest, the
    flow makes the bound of :class:`UniformDequantization` tighter.

    The inverse rounds down, and is exact. Its log-determinant is minus that of ``forward`` for the same noise.
    ``memory="invert"`` stores what this layer needs, with a warning: it draws random numbers.

    Args:
        values: K, between 2 and 65536.
        flow: an invertible layer of one latent of the shape of x. Its context is :math:`2 (x + 1/2) / K - 1`, of that
            shape too. ``AffineInjector(C, net, context_channels=C)`` is a Gaussian whose parameters a network predicts.
            The context of the layer itself is ignored.

    Shape, Raises:
        As :class:`UniformDequantization`.
    """

    takes_shared_context = True

    def __init__(self, values: int, flow: nn.Module) -> None:
        super().__init__(values)
        if not callable(getattr(flow, "inverse", None)):
            raise TypeError(f"VariationalDequantization: flow, {type(flow).__name__}, has no inverse method")
        if num_latents_of(flow) != 1:
            raise ValueError(f"VariationalDequantization: flow must have one latent, got {num_latents_of(flow)}")
        self.flow = flow

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        x = self._checked(x)
        epsilon = torch.randn_like(x)
        v, log_det = self.flow(epsilon, self._context(x))
        if v.shape != x.shape:
            raise ValueError(
                f"VariationalDequantization: flow must return shape {tuple(x.shape)}, got {tuple(v.shape)}"
            )
        return self._with_noise(x, torch.sigmoid(v)), self._log_det(x) - _log_density(epsilon, v, log_det)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        x = self._rounded(z)
        margin = _margin(z, self.values)
        v = torch.logit((z * self.values - x).clamp(margin, 1 - margin))
        epsilon, log_det = self.flow.inverse(v, self._context(x))  # type: ignore[operator]
        return x, _log_density(epsilon, v, -log_det) - self._log_det(x)

    def conditioned_inverse(self, context: SharedContext) -> ConditionedInverse:
        return lambda z, part: self._rounded(z)

    def _context(self, x: Tensor) -> Tensor:
        return (2 * x + 1) / self.values - 1


def _margin(x: Tensor, values: int) -> float:
    """Return the distance of the noise from 0 and 1 at which no rounding, here or in the inverse, changes the value."""
    return 2 * values * torch.finfo(x.dtype).eps


def _log_density(epsilon: Tensor, v: Tensor, log_det: Tensor) -> Tensor:
    """Return the log-density (B,) of sigmoid(v), for v made of epsilon from N(0, I) with this log-determinant."""
    epsilon, v = (tensor.to(compute_dtype(tensor.dtype)) for tensor in (epsilon, v))
    terms = -0.5 * (epsilon.square() + math.log(2 * math.pi)) - F.logsigmoid(v) - F.logsigmoid(-v)
    return terms.flatten(1).sum(1) - log_det
