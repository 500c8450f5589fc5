"""Spline coupling: one half of the channels decides a monotonic spline for every element of the other half."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from invflow._numerics import compute_dtype
from invflow.layers._checks import check_context, check_input, check_shape
from invflow.layers._halves import call_network, check_output, halves_of, shared_network
from invflow.layers._spline_map import SplineForm
from invflow.layers.conditioning import context_for
from invflow.layers.folding import copy_folded, folding
from invflow.layers.networks import NetFactory, network_of
from invflow.layers.protocol import ConditionedInverse, Context, Rerun, Shape, SharedContext, Stage

__all__ = ["SplineCoupling"]


class SplineCoupling(nn.Module):
    r"""Spline coupling: :math:`y_1 = x_1`, and every element of :math:`y_2` is a monotonic rational-quadratic spline of
    that of :math:`x_2`, made by :math:`\text{net}(x_1, u)`; :math:`\log\det = \sum \log dy_2 / dx_2` (Durkan et al.,
    Neural Spline Flows, 2019, eqs. 4 to 8).

    The spline maps [-limit, limit] to itself; outside it is the identity. Its slopes are bounded in practice, so an
    inverse does not explode, as that of an affine coupling may. A network that returns zeros makes the identity.

    >>> import torch, invflow
    >>> layer = invflow.SplineCoupling(4, torch.nn.Conv2d(2, 2 * 23, 3, padding=1), bins=8)
    >>> x = torch.randn(1, 4, 8, 8)
    >>> z, log_det = layer(x)
    >>> bool((layer.inverse(z)[0] - x).abs().max() < 1e-4)
    True

    Args:
        channels: C, at least 2.
        net: maps x_1 (B, C - C', *) to h (B, C' (3 bins - 1), *), where C' channels are transformed. It is called
            ``net(x_1, context)`` if ``context_channels`` is not 0, else ``net(x_1)``. Channels of h of the transformed
            channel c begin at c (3 bins - 1): ``bins`` widths, ``bins`` heights, ``bins - 1`` slopes, all raw. Or a
            factory, as of :class:`AffineCoupling`.
        bins: number of pieces of a spline, at least 2.
        limit: half of the length of the interval, in units of the state.
        least: the least width and height of a piece, as a fraction of the interval, and the least slope at a knot.
            Below 1 / bins. The paper's code has 0.001; flat pieces then cost the inverse in float32 its digits.
        context_channels: channels of the context; 0 for an unconditional coupling, which ignores any context.
        start: the first channel that is transformed, as in :class:`AffineCoupling`.
        stop: the channel after the last one that is transformed, as in :class:`AffineCoupling`.

    Raises:
        ValueError: an argument out of range.

    Shape:
        x (B, C, *), context (B', context_channels, *) -> y (B, C, *), log_det (B,). B' divides B: each context serves
        B / B' successive states.
    """

    num_latents = 1
    takes_shared_context = True

    def __init__(
        self,
        channels: int,
        net: nn.Module | NetFactory,
        *,
        bins: int = 8,
        limit: float = 3.0,
        least: float = 0.02,
        context_channels: int = 0,
        start: int | None = None,
        stop: int | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.halves = halves_of(self, channels, start, stop)
        self.context_channels = context_channels
        if bins < 2:
            raise ValueError(f"SplineCoupling: bins must be at least 2, got {bins}")
        if not limit > 0:
            raise ValueError(f"SplineCoupling: limit must be greater than 0, got {limit}")
        if math.isinf(limit):
            raise ValueError("SplineCoupling: limit must be finite, got inf")
        if not 0 < least < 1 / bins:
            raise ValueError(f"SplineCoupling: least must be between 0 and 1 / bins = {1 / bins:.3g}, got {least}")
        self.form = SplineForm(bins, float(limit), float(least))
        count = self.halves.size
        outputs = count * self.form.parameters
        self.net = network_of(self, net, channels - count, outputs, context_channels=context_channels)

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        return self._transform(x, context, "x", inverse=False)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        return self._transform(z, context, "z", inverse=True)

    def output_shapes(self, shape: Shape) -> list[Shape]:
        return [check_shape(self, shape, self.channels)]

    def reverse_stages(self) -> list[Stage]:
        return [Stage(self._rerun)]

    def conditioned_inverse(self, context: SharedContext) -> ConditionedInverse:
        output = shared_network(self, context)

        def inverse(z: Tensor, part: slice) -> Tensor:
            passed = self.halves.passed(z)
            return self._apply_spline(passed, self.halves.changed(z), output(passed, part), inverse=True)[0]

        return inverse

    @folding
    def folded(self) -> SplineCoupling:
        """Return a copy for inference and export, with a folded network. See :class:`~invflow.layers.Foldable`."""
        return copy_folded(self)

    def _rerun(self, z: Tensor, context: Context) -> Rerun:
        # one evaluation of the network serves both directions, since its input passes unchanged
        with torch.enable_grad():
            passed = self.halves.passed(z).detach().requires_grad_()
            h = call_network(self, passed, context_for(self, context))
        x, _ = self._apply_spline(passed.detach(), self.halves.changed(z), h.detach(), inverse=True)
        changed = self.halves.changed(x).detach().requires_grad_()
        with torch.enable_grad():
            outputs = self._apply_spline(passed, changed, h, inverse=False)
        return Rerun(x, self.halves.in_order(passed, changed), *outputs)

    def _transform(self, x: Tensor, context: Context, name: str, *, inverse: bool) -> tuple[Tensor, Tensor]:
        tracing = torch.jit.is_tracing()  # a trace would warn of every comparison of sizes
        if not tracing:
            check_input(self, x, self.channels, name)
            check_context(self, x, context, self.context_channels)
        passed = self.halves.passed(x)
        h = call_network(self, passed, context_for(self, context))
        return self._apply_spline(passed, self.halves.changed(x), h, inverse=inverse)

    def _apply_spline(self, passed: Tensor, changed: Tensor, h: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """Return the whole state after the spline, and log_det (B,)."""
        count, parameters = self.halves.size, self.form.parameters
        detail = f", {parameters} for each of the {count} that are transformed"
        check_output(self, h, count * parameters, changed, detail)
        dtype = compute_dtype(changed.dtype)
        raw = h.to(dtype).unflatten(1, (count, parameters))
        y, log_slope = self.form.transform(changed.to(dtype), raw, inverse=inverse)
        log_det = log_slope.flatten(1).sum(1)
        return torch.cat(self.halves.in_order(passed, y.to(changed.dtype)), 1), log_det

    def extra_repr(self) -> str:
        (start, stop), (bins, limit, least) = self.halves, self.form
        return f"channels={self.channels}, {start=}, {stop=}, {bins=}, {limit=}, {least=}"
