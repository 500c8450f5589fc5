"""Dense network of a coupling, whose result is no residual."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from sr_models.networks.convolution import conv3x3_layer, evaluate, leaky

__all__ = ["DenseNet"]


class DenseNet(nn.Module):
    """Five convolutions, each seeing the input and all earlier results (Xiao et al., Invertible Image Rescaling, 2020).

    The last one starts at zero, so that a coupling starts as the identity.

    Args:
        in_channels: channels of the input.
        growth: channels that each of the first four convolutions adds.
        out_channels: channels of the result.
    """

    def __init__(self, in_channels: int, growth: int, out_channels: int) -> None:
        super().__init__()
        outputs = (growth, growth, growth, growth, out_channels)
        self.convs = nn.ModuleList(conv3x3_layer(in_channels + i * growth, out) for i, out in enumerate(outputs))
        *hidden, last = (cast(nn.Conv2d, conv) for conv in self.convs)
        for conv in hidden:
            if not conv.weight.is_meta:
                nn.init.xavier_normal_(conv.weight, gain=0.1)
            nn.init.zeros_(cast(Tensor, conv.bias))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(cast(Tensor, last.bias))

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.convs
        for conv in hidden:
            x = torch.cat([x, leaky(evaluate(conv, x))], 1)
        return evaluate(last, x)
