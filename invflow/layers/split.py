"""Split: channels leave the flow as a latent, standardised by a prior that the others predict, or as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from invflow._numerics import no_log_det
from invflow.layers._checks import check_channels, check_input, check_shape, check_split_latents
from invflow.layers._layouts import evaluate
from invflow.layers.conditioning import without_context
from invflow.layers.folded import FoldedSplit
from invflow.layers.folding import folding
from invflow.layers.networks import NetFactory, network_of
from invflow.layers.protocol import ConditionedInverse, Rerun, Shape, SharedContext, Stage
from invflow.layers.zero_conv import ZeroConv2d
from invflow.ops import gaussian_split

__all__ = ["Split"]


class Split(nn.Module):
    r"""Split of channels with a learned Gaussian prior: :math:`x = (z, x_2)`,
    :math:`(\mu, \log\sigma) = \text{net}(z)`, :math:`\epsilon = (x_2 - \mu) e^{-\log\sigma}`,
    :math:`\log\det = -\sum \log\sigma` (Dinh et al., Real NVP, 2017, section 3.6; Kingma & Dhariwal, Glow, 2018).

    The prior of the latent :math:`\epsilon` is N(0, I), so :math:`\log p(x_2 | z) = \log N(\epsilon; 0, I) + \log\det`.
    The first K channels stay, and the last C - K leave. Mean and log-scale are the even and odd channels of the
    network's output. Without a network the channels leave as they are, and log_det is 0.

    Args:
        channels: C, at least 2.
        net: maps z (B, K, *) to (B, 2 (C - K), *), or a factory ``net(in_channels, out_channels)`` of such a network;
            default :class:`ZeroConv2d`, which takes images only. ``None``: no prior.
        kept: K, in 1..C - 1; default C - round(C / 2).

    Raises:
        ValueError: numbers of channels out of range.

    Shape:
        x (B, C, *) -> [epsilon (B, C - K, *), z (B, K, *)], log_det (B,). The list is in encode order, and the flow
        goes on with its last latent.
    """

    num_latents = 2
    takes_shared_context = True

    def __init__(
        self, channels: int, net: nn.Module | NetFactory | None = ZeroConv2d, *, kept: int | None = None
    ) -> None:
        super().__init__()
        if check_channels(self, channels) < 2:
            raise ValueError(f"Split: channels must be at least 2, got {channels}")
        self.channels = channels
        self.kept = channels - round(channels / 2) if kept is None else kept
        if not 1 <= self.kept < channels:
            raise ValueError(f"Split: kept must be in 1..{channels - 1} for {channels} channels, got {kept}")
        self.factored = channels - self.kept
        self.net = None if net is None else network_of(self, net, self.kept, 2 * self.factored)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        check_input(self, x, self.channels)
        z, factored = x[:, : self.kept], x[:, self.kept :]
        if self.net is None:
            return [factored, z], no_log_det(x)
        epsilon, log_det = gaussian_split(factored, self._prior(z))
        return [epsilon, z], log_det

    def inverse(self, z: Sequence[Tensor], context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        epsilon, kept = check_split_latents(z, self.kept, self.factored)
        if self.net is None:
            return torch.cat([kept, epsilon], 1), no_log_det(kept)
        factored, log_det = gaussian_split(epsilon, self._prior(kept), inverse=True)
        return torch.cat([kept, factored], 1), log_det

    def output_shapes(self, shape: Shape) -> list[Shape]:
        _, *spatial = check_shape(self, shape, self.channels)
        return [(self.factored, *spatial), (self.kept, *spatial)]

    def reverse_stages(self) -> list[Stage]:
        return [Stage(self._rerun if self.net is not None else self._join, self.num_latents)]

    def conditioned_inverse(self, context: SharedContext) -> ConditionedInverse:
        return without_context(self)

    @folding
    def folded(self) -> FoldedSplit:
        """Return a copy for inference and export: see :class:`~invflow.layers.Foldable`."""
        return FoldedSplit(self)

    def _rerun(self, z: Sequence[Tensor], context: Tensor | None) -> Rerun:
        # one evaluation of the network serves both directions, since its input stays
        epsilon, kept = z
        kept = kept.detach().requires_grad_()
        with torch.enable_grad():
            h = self._prior(kept)
        factored = gaussian_split(epsilon, h.detach(), inverse=True)[0].requires_grad_()
        with torch.enable_grad():
            epsilon, log_det = gaussian_split(factored, h)
            return Rerun(torch.cat([kept, factored], 1).detach(), [kept, factored], [epsilon, kept * 1], log_det)

    def _join(self, z: Sequence[Tensor], context: Tensor | None) -> Rerun:
        epsilon, kept = (latent.detach().requires_grad_() for latent in z)
        with torch.enable_grad():
            return Rerun(
                torch.cat([kept, epsilon], 1).detach(), [kept, epsilon], [epsilon * 1, kept * 1], no_log_det(kept)
            )

    def _prior(self, z: Tensor) -> Tensor:
        if z.dim() != 4 and isinstance(self.net, ZeroConv2d):
            raise ValueError(
                f"Split: its default network takes images, (batch, {self.kept}, height, width), got z of shape "
                f"{tuple(z.shape)}: pass net= for such states"
            )
        h = evaluate(self, z)
        expected = (z.shape[0], 2 * self.factored, *z.shape[2:])
        if h.shape != expected:
            raise ValueError(f"Split: net must return shape {expected}, got {tuple(h.shape)}")
        return h

    def extra_repr(self) -> str:
        prior = "" if self.net is not None else ", no prior"
        return f"channels={self.channels}, kept={self.kept}, factored={self.factored}{prior}"
