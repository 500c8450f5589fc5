"""Features of a hierarchical flow's level: those of its own state, and those of deeper levels before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from invflow.ops._finished_conv3x3 import Finish, finished_conv3x3
from sr_models.networks.convolution import conv3x3_layer, evaluate, is_looked_at, is_plain_conv
from sr_models.networks.rrdb import RRDB

__all__ = ["TappedRRDB"]


class TappedRRDB(nn.Module):
    """RRDB network whose result is tapped twice: halfway, and at its end with a skip connection from its beginning
    (Liang et al., Hierarchical Conditional Flow, 2021; the blocks are those of Wang et al., ESRGAN, 2018).

    Args:
        own_channels: channels of the level's state.
        deeper_channels: channels of the features of every deeper level.
        features: channels of the trunk.
        growth: channels that each convolution of a dense block adds.
        blocks: number of blocks before and after the tap.
        halfway: put the features of the tap before those of the end. Otherwise the tap is left out.
    """

    def __init__(
        self,
        own_channels: int,
        deeper_channels: Sequence[int],
        *,
        features: int,
        growth: int,
        blocks: Sequence[int],
        halfway: bool = True,
    ) -> None:
        super().__init__()
        self.halfway = halfway
        self.conv_first = conv3x3_layer(own_channels + sum(deeper_channels), features)
        self.trunks = nn.ModuleList(nn.ModuleList(RRDB(features, growth) for _ in range(count)) for count in blocks)
        self.trunk_conv = conv3x3_layer(features, features)
        if not self.conv_first.weight.is_meta:
            with torch.no_grad():
                for conv in (part for part in self.trunks.modules() if isinstance(part, nn.Conv2d)):
                    nn.init.xavier_normal_(conv.weight).mul_(0.1)

    @property
    def context_channels(self) -> int:
        """Number of channels of the features."""
        return self.trunk_conv.out_channels * (2 if self.halfway else 1)

    def forward(self, own: Tensor, deeper: Sequence[Tensor] = ()) -> Tensor:
        """Compute features (B, ``context_channels``, H, W).

        Args:
            own: (B, own_channels, H, W), the level's state.
            deeper: features of the deeper levels, the nearest one first. Each is half as large as the one before, and
                enlarged by pixel repetition. The batch of each divides B: every sample serves successive states.
        """
        first = self._first(own, deeper)
        before, after = cast(Sequence[nn.ModuleList], self.trunks)
        tapped = first
        for block in before:
            tapped = block(tapped)
        last = tapped
        for block in after:
            last = block(last)
        last = first + evaluate(self.trunk_conv, last)
        return torch.cat([tapped, last], 1) if self.halfway else last

    def _first(self, own: Tensor, deeper: Sequence[Tensor]) -> Tensor:
        """Compute the first convolution, that of enlarged features at their own resolution."""
        conv = self.conv_first
        if is_looked_at() or not is_plain_conv(conv):
            return cast(Tensor, conv(joined(own, deeper)))
        weight, *others = conv.weight.split([own.shape[1], *(features.shape[1] for features in deeper)], 1)
        addend: Tensor | None = None
        for level, (features, part) in reversed(list(enumerate(zip(deeper, others, strict=True), 1))):
            addend = finished_conv3x3(features, part, repeat=2**level, finish=Finish(addend))
        return finished_conv3x3(own, weight, conv.bias, finish=Finish(addend))


def joined(own: Tensor, deeper: Sequence[Tensor]) -> Tensor:
    """Enlarge the features of deeper levels, and join them with the state: what :class:`TappedRRDB` sees."""
    parts = [own]
    for level, features in enumerate(deeper, 1):
        enlarged = nn.functional.interpolate(features, scale_factor=2**level)
        parts.append(enlarged.repeat_interleave(own.shape[0] // features.shape[0], 0))
    return torch.cat(parts, 1)
