"""A super-resolution flow as a module that exporters and tracers can call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from invflow import FlowSequential
from sr_models.flow.condition_sharing import LevelContext
from sr_models.flow.decoding import Place
from sr_models.flow.model import SuperResolutionFlow

__all__ = ["Decoder"]


class Decoder(nn.Module):
    """Module whose ``forward`` decodes latents: one sample an image, as :meth:`SuperResolutionFlow.sample` makes it.

    It takes no notice of samples that explode. A model that is conditioned on noise is given noise zero.

    Args:
        model: ``model.folded()``, to export or trace.
    """

    def __init__(self, model: SuperResolutionFlow) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, lr: Tensor, latents: Sequence[Tensor]) -> Tensor:
        """Decode latents to images.

        Args:
            lr: (B, 3, h, w) in [0, 1]; h and w must be divisible by ``model.lr_multiple``.
            latents: as :meth:`SuperResolutionFlow.latent_shapes` tells: of N(0, I), times the temperature.

        Returns:
            (B, 3, scale h, scale w), clamped to [0, 1].
        """
        model, states = self.model, list(latents)
        noise = lr.new_zeros(lr.shape[0], 1, 1, 1) if model.noise_channels else None
        return model.walk_decode(_invert, states, lr, noise).clamp(0, 1)


def _invert(flow: FlowSequential, latents: list[Tensor], context: LevelContext | None, place: Place) -> Tensor:
    """Invert a flow by plain calls: one state an image."""
    count = flow.num_latents
    given = latents[-count:]
    del latents[-count:]
    return flow.inverse(given, None if context is None else context.joined())[0]
