"""Checkerboard coupling: the pixels of one colour decide the elementwise map of the pixels of the other."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from invflow._numerics import compute_dtype
from invflow.layers._checks import check_channels, check_context, check_input, check_shape
from invflow.layers._halves import call_network, check_output, shared_network
from invflow.layers.conditioning import context_for
from invflow.layers.folding import copy_folded, folding
from invflow.layers.networks import NetFactory, network_of
from invflow.layers.protocol import ConditionedInverse, Context, Shape, SharedContext
from invflow.ops import AffineForm

__all__ = ["CheckerboardCoupling"]


class CheckerboardCoupling(nn.Module):
    r"""Checkerboard coupling: with the mask :math:`b` of the pixels that pass, :math:`y = b x + (1 - b) (x + t) s` with
    :math:`(t, s)` from :math:`h = \text{net}(b x, u)`; :math:`\log\det = \sum (1 - b) \log s` (Dinh et al., Real NVP,
    2017, section 3.4).

    A pixel is even if the sum of its coordinates is. The network sees the whole state with zeros in the place of the
    pixels that change. Two couplings in turn, which pass even and odd pixels, transform every pixel.

    >>> import torch, invflow
    >>> layer = invflow.CheckerboardCoupling(1, torch.nn.Conv2d(1, 2, 3, padding=1))
    >>> x = torch.zeros(1, 1, 2, 4)
    >>> y, log_det = layer(x)
    >>> (y == x).int()[0, 0].tolist()
    [[1, 0, 1, 0], [0, 1, 0, 1]]

    Args:
        channels: number C of channels.
        net: maps the masked state (B, C, *) to h (B, 2C, *), or (B, C, *) with the scale ``"none"``. It is called
            ``net(masked, context)`` if ``context_channels`` is not 0, else ``net(masked)``. Or a factory, as of
            :class:`AffineCoupling`.
        context_channels: channels of the context; 0 for an unconditional coupling, which ignores any context.
        form: rule by which h becomes shift and scale; default :class:`invflow.AffineForm`.
        passes: which pixels are unchanged, ``"even"`` or ``"odd"`` ones.

    Raises:
        ValueError: an unknown name.

    Shape:
        x (B, C, *) with at least one spatial dimension, context (B', context_channels, *) -> y (B, C, *),
        log_det (B,). B' divides B: each context serves B / B' successive states.
    """

    num_latents = 1
    takes_shared_context = True

    def __init__(
        self,
        channels: int,
        net: nn.Module | NetFactory,
        *,
        context_channels: int = 0,
        form: AffineForm | None = None,
        passes: Literal["even", "odd"] = "even",
    ) -> None:
        super().__init__()
        self.channels = check_channels(self, channels)
        if passes not in ("even", "odd"):
            raise ValueError(f"CheckerboardCoupling: passes must be 'even' or 'odd', got {passes!r}")
        self.context_channels = context_channels
        self.form = AffineForm() if form is None else form
        self.passes = passes
        self.net = network_of(self, net, channels, self.form.outputs * channels, context_channels=context_channels)

    def forward(self, x: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        return self._transform(x, context, "x", inverse=False)

    def inverse(self, z: Tensor, context: Context = None) -> tuple[Tensor, Tensor]:
        return self._transform(z, context, "z", inverse=True)

    def output_shapes(self, shape: Shape) -> list[Shape]:
        self._check_dimensions(len(shape) - 1)
        return [check_shape(self, shape, self.channels)]

    def conditioned_inverse(self, context: SharedContext) -> ConditionedInverse:
        output = shared_network(self, context)

        def inverse(z: Tensor, part: slice) -> Tensor:
            passes = self._passing(z)
            return self._apply_form(z, passes, output(z.masked_fill(~passes, 0.0), part), inverse=True)[0]

        return inverse

    @folding
    def folded(self) -> CheckerboardCoupling:
        """Return a copy for inference and export, with a folded network. See :class:`~invflow.layers.Foldable`."""
        return copy_folded(self)

    def _transform(self, x: Tensor, context: Context, name: str, *, inverse: bool) -> tuple[Tensor, Tensor]:
        if not torch.jit.is_tracing():  # a trace would warn of every comparison of sizes
            check_input(self, x, self.channels, name)
            check_context(self, x, context, self.context_channels)
        self._check_dimensions(x.dim() - 2)
        passes = self._passing(x)
        h = call_network(self, x.masked_fill(~passes, 0.0), context_for(self, context))
        return self._apply_form(x, passes, h, inverse=inverse)

    def _check_dimensions(self, dimensions: int) -> None:
        if dimensions < 1:
            raise ValueError(
                "CheckerboardCoupling: a state must have at least one spatial dimension, got none: use AffineCoupling"
            )

    def _passing(self, x: Tensor) -> Tensor:
        """Return which pixels pass, bool (*)."""
        total = torch.zeros((), dtype=torch.int64, device=x.device)
        for size in x.shape[2:]:
            total = total.unsqueeze(-1) + torch.arange(size, device=x.device)
        return total % 2 == (0 if self.passes == "even" else 1)

    def _apply_form(self, x: Tensor, passes: Tensor, h: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        check_output(self, h, self.form.outputs * self.channels, x)
        dtype = compute_dtype(x.dtype)
        # masked before it is used: what the network says of a pixel that passes has no effect, not even NaN
        h = h.to(dtype).masked_fill(passes, 0.0)
        y, log_slope = self.form.elementwise(x.to(dtype), h, inverse)
        if self.form.volume_preserving:
            log_det = log_slope.new_zeros(x.shape[0])
        else:
            log_det = log_slope.masked_fill(passes, 0.0).sum(tuple(range(1, x.dim())))
        return torch.where(passes, x, y.to(x.dtype)), log_det

    def extra_repr(self) -> str:
        return (
            f"channels={self.channels}, passes={self.passes!r}, context_channels={self.context_channels}, {self.form}"
        )
