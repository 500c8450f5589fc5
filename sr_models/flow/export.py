"""A super-resolution flow as a module that exporters and tracers can call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

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
        contexts = model.level_contexts(lr, noise)
        for level, context in reversed(list(zip(model._levels(), contexts, strict=True))):
            count = level.num_latents
            x, _ = level.inverse(states[-count:], context.joined())
            states[-count:] = [x]
        base = model.base_image(lr, contexts)
        return (states[0] if base is None else states[0] + base).clamp(0, 1)
