"""The result of encoding: latents and likelihood of a batch of images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from invflow import bits_per_dim

__all__ = ["Encoding"]


@dataclass(frozen=True)
class Encoding:
    """A batch of images as a flow sees them.

    Attributes:
        latents: in encode order, standardised: their prior is N(0, I).
        log_det: (B,), pure ``log |det|`` of the map from image to latents.
        log_prior: (B,), log N(latents; 0, I).
        dims: number of elements of one image.
    """

    latents: list[Tensor]
    log_det: Tensor
    log_prior: Tensor
    dims: int

    @property
    def log_prob(self) -> Tensor:
        """(B,), log-density of the images (scaled to [0, 1]) given their low-resolution images."""
        return self.log_det + self.log_prior

    @property
    def bits_per_dim(self) -> Tensor:
        """(B,), negative log-likelihood in bits per dimension of images scaled to [0, 1]. For 8-bit values add 8.

        The SR-flow papers' code reports three times this value, bits per pixel.
        """
        return bits_per_dim(self.log_prob, self.dims)
