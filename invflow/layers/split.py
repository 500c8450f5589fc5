"""Split: half of the channels leave the flow as a latent, standardised by a prior that the other half predicts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from invflow.layers._checks import check_channels, check_input
from invflow.layers.zero_conv import ZeroConv2d
from invflow.ops._common import check_state, compute_dtype

__all__ = ["Split"]


class Split(nn.Module):
    r"""Factors out channels with a learned Gaussian prior: :math:`x = (z, x_2)`,
    :math:`(\mu, \log\sigma) = \text{net}(z)`, :math:`\epsilon = (x_2 - \mu) e^{-\log\sigma}`,
    :math:`\log\det = -\sum \log\sigma` (Dinh et al., Real NVP, 2017, section 3.6; Kingma & Dhariwal, Glow, 2018).

    The prior of the latent :math:`\epsilon` is N(0, I), so :math:`\log p(x_2 | z) = \log N(\epsilon; 0, I) + \log\det`.
    The last ``round(C / 2)`` channels leave. Mean and log-scale are the even and odd channels of the network's output.

    Args:
        channels: C, at least 2.
        net: maps z (B, C - round(C / 2), H, W) to (B, 2 round(C / 2), H, W); default :class:`ZeroConv2d`.

    Shape:
        x (B, C, H, W) -> [epsilon (B, round(C / 2), H, W), z (B, C - round(C / 2), H, W)], log_det (B,): the list of
        latents in encode order, of which the flow goes on with the last.
    """

    num_latents = 2

    def __init__(self, channels: int, net: nn.Module | None = None) -> None:
        super().__init__()
        if check_channels(self, channels) < 2:
            raise ValueError(f"Split: channels must be at least 2, got {channels}")
        self.channels = channels
        self.factored = round(channels / 2)
        self.kept = channels - self.factored
        self.net = ZeroConv2d(self.kept, 2 * self.factored) if net is None else net

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        check_input(self, x, self.channels)
        z, factored = x[:, : self.kept], x[:, self.kept :]
        mean, log_scale = self._prior(z)
        epsilon = (factored.to(mean.dtype) - mean) * (-log_scale).exp()
        return [epsilon.to(x.dtype), z], -log_scale.sum((1, 2, 3))

    def inverse(self, z: Sequence[Tensor], context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if isinstance(z, Tensor) or len(z) != 2:
            given = "a tensor" if isinstance(z, Tensor) else f"{len(z)}"
            raise ValueError(f"Split: the inverse takes the 2 latents [epsilon, z], got {given}")
        epsilon, kept = z
        check_input(self, kept, self.kept, "z")
        check_state(epsilon, "epsilon")
        expected = (kept.shape[0], self.factored, *kept.shape[2:])
        if epsilon.shape != expected:
            raise ValueError(f"Split: epsilon must have shape {expected}, got {tuple(epsilon.shape)}")
        mean, log_scale = self._prior(kept)
        factored = epsilon.to(mean.dtype) * log_scale.exp() + mean
        return torch.cat([kept, factored.to(kept.dtype)], 1), log_scale.sum((1, 2, 3))

    def _prior(self, z: Tensor) -> tuple[Tensor, Tensor]:
        h = self.net(z)
        expected = (z.shape[0], 2 * self.factored, *z.shape[2:])
        if h.shape != expected:
            raise ValueError(f"Split: net must return shape {expected}, got {tuple(h.shape)}")
        h = h.to(compute_dtype(z.dtype))
        return h[:, 0::2], h[:, 1::2]

    def extra_repr(self) -> str:
        return f"channels={self.channels}, kept={self.kept}, factored={self.factored}"
