"""The zero-initialised convolution that ends a coupling network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from invflow.layers.folding import folding, plain_conv
from invflow.ops import conv3x3

__all__ = ["ZeroConv2d", "is_3x3"]


class ZeroConv2d(nn.Conv2d):
    r"""3x3 convolution whose weight and bias start at zero, with a learned output scale:
    :math:`y = (\operatorname{conv}(x) + b) \, e^{3 l}` (Kingma & Dhariwal, Glow, 2018, section 3.3).

    As the last layer of a coupling network it makes every flow step start as (nearly) the identity.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.

    Shape:
        x (B, in_channels, H, W) -> y (B, out_channels, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        self.log_scale = nn.Parameter(torch.zeros(out_channels))
        nn.init.zeros_(self.weight)
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, *self.merged())

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if input.dim() == 4 and is_3x3(self):
            return conv3x3(input, weight, bias)
        return super()._conv_forward(input, weight, bias)

    def merged(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of the one equal convolution. It scales the few weights, not the many results."""
        scale = (3.0 * self.log_scale).exp()
        assert self.bias is not None
        return self.weight * scale[:, None, None, None], self.bias * scale

    @folding
    def folded(self) -> nn.Conv2d:
        """Return the equal plain convolution: see :class:`~invflow.layers.Foldable`."""
        return plain_conv(self, *self.merged())


def is_3x3(conv: nn.Conv2d) -> bool:
    """Return whether the settings of a convolution are those of one of 3x3 that keeps the size."""
    settings = conv.kernel_size, conv.padding, conv.stride, conv.dilation, conv.groups, conv.padding_mode
    return settings == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")
