"""The low-resolution encoder: RRDB, whose features condition every flow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_models.networks.convolution import conv3x3_layer, evaluate, leaky
from sr_models.networks.dense_block import DenseBlock

__all__ = ["Features", "RRDBEncoder"]


@dataclass(frozen=True)
class Features:
    """Features that condition one level of a flow, before they are enlarged to the level's resolution.

    Attributes:
        own: (B, F, H, W), at the level's resolution.
        stacked: (B, S, H / repeat, W / repeat); its enlargement follows the channels of ``own``. ``None``: nothing.
        repeat: repetitions of a pixel of ``stacked`` in both directions, at least 2.
    """

    own: Tensor
    stacked: Tensor | None = None
    repeat: int = 2

    @property
    def channels(self) -> int:
        """Number of channels of both parts together."""
        return self.own.shape[1] + (0 if self.stacked is None else self.stacked.shape[1])

    def joined(self) -> Tensor:
        """Enlarge and join the parts: (B, F + S, H, W), at the level's resolution."""
        if self.stacked is None:
            return self.own
        return torch.cat([self.own, F.interpolate(self.stacked, scale_factor=self.repeat)], 1)


class RRDB(nn.Module):
    """Residual in residual: three dense blocks under one more skip connection."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.dense = nn.Sequential(*(DenseBlock(features, growth) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.dense(x), alpha=0.2)


class RRDBEncoder(nn.Module):
    """RRDB network: features of the low-resolution image at several resolutions, and the image that they predict.

    A feature map of factor f has f times the resolution of the low-resolution image. At factor 1 it is the trunk's
    output, at 2, 4 and so on the output of an upsampling stage, after its activation. Outputs of the ``stacked_blocks``
    of the trunk, enlarged by pixel repetition, follow in each (Lugmayr et al., SRFlow, 2020, section 3.3).

    Args:
        scale: a power of two from 2, the enlargement of the predicted image.
        features: channels of the trunk.
        growth: channels that each convolution of a dense block adds.
        blocks: number of RRDB blocks.
        stacked_blocks: indices, from 0, of the blocks whose outputs are concatenated to every feature map.
    """

    def __init__(
        self,
        scale: int,
        *,
        features: int = 64,
        growth: int = 32,
        blocks: int = 23,
        stacked_blocks: tuple[int, ...] = (1, 8, 15, 22),
    ) -> None:
        super().__init__()
        if any(not 0 <= block < blocks for block in stacked_blocks):
            raise ValueError(f"stacked_blocks must be in 0..{blocks - 1} for {blocks} blocks, got {stacked_blocks}")
        self.scale = scale
        self.stacked_blocks = tuple(stacked_blocks)
        self.context_channels = (len(stacked_blocks) + 1) * features
        self.conv_first = conv3x3_layer(3, features)
        self.trunk = nn.ModuleList(RRDB(features, growth) for _ in range(blocks))
        self.trunk_conv = conv3x3_layer(features, features)
        self.upconvs = nn.ModuleList(conv3x3_layer(features, features) for _ in range(scale.bit_length() - 1))
        self.hr_conv = conv3x3_layer(features, features)
        self.last_conv = conv3x3_layer(features, 3)

    def forward(self, lr: Tensor, factors: Iterable[float]) -> dict[float, Tensor]:
        """Compute joined feature maps (B, ``context_channels``, factor h, factor w) by factor, see :meth:`features`."""
        return {factor: features.joined() for factor, features in self.features(lr, factors).items()}

    def features(self, lr: Tensor, factors: Iterable[float]) -> dict[float, Features]:
        """Compute features by factor. Upsampling stages beyond the largest factor are not computed.

        At factor 1/2 the trunk's output is averaged over 2 x 2 pixels. The stacked blocks keep every second pixel of
        every second row, as in the published networks.

        Args:
            lr: (B, 3, h, w) in [0, 1].
            factors: powers of two from 1/2 to the scale; h and w are even if 1/2 is among them.
        """
        factors = set(factors)
        feature, blocks = self._trunk(lr)
        stacked = torch.cat(blocks, 1) if blocks else None
        found: dict[float, Features] = {}
        if 0.5 in factors:
            found[0.5] = Features(
                torch.cat([F.avg_pool2d(feature, 2), *(block[:, :, ::2, ::2] for block in blocks)], 1)
            )
        parts = [feature, *blocks]
        factor = 1
        while True:
            if factor in factors:
                enlarged = factor > 1
                found[factor] = Features(feature, stacked, factor) if enlarged else Features(torch.cat(parts, 1))
            if factor >= max(factors):
                return found
            feature = self._upsample(feature, factor)
            factor *= 2

    def image(self, lr: Tensor, known: tuple[Tensor, int] | None = None) -> Tensor:
        """Predict the high-resolution image (B, 3, scale h, scale w), unclamped, as L1 pretraining trains it.

        Args:
            lr: (B, 3, h, w) in [0, 1].
            known: ``own`` of :meth:`features` of ``lr``, and its factor, at least 1, to go on from.
        """
        if known is None:
            feature, factor = self._trunk(lr)[0], 1
        else:
            # at factor 1 the stacked blocks follow
            feature, factor = known[0][:, : self.last_conv.in_channels], known[1]
        while factor < self.scale:
            feature = self._upsample(feature, factor)
            factor *= 2
        return evaluate(self.last_conv, leaky(evaluate(self.hr_conv, feature)))

    def _trunk(self, lr: Tensor) -> tuple[Tensor, list[Tensor]]:
        feature = evaluate(self.conv_first, lr)
        outputs: dict[int, Tensor] = {}
        for index, block in enumerate(self.trunk):
            feature = block(feature)
            if index in self.stacked_blocks:
                outputs[index] = feature
        # The long skip starts at the last block, not at the first convolution as in ESRGAN: so are the published flows.
        return feature + evaluate(self.trunk_conv, feature), [outputs[index] for index in self.stacked_blocks]

    def _upsample(self, feature: Tensor, factor: int) -> Tensor:
        """Enlarge the features from factor to twice the factor."""
        conv = self.upconvs[factor.bit_length() - 1]
        return leaky(evaluate(conv, F.interpolate(feature, scale_factor=2)))
