"""The parts of a flow step in plain PyTorch, one operator after the other, as flow libraries write them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["affine", "coupled"]


def coupled(x: Tensor, h: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """SRFlow's affine coupling of the second half of the channels, as its authors write it."""
    half = x.shape[1] // 2
    shift, raw = h[:, 0::2], h[:, 1::2]
    scale = torch.sigmoid(raw + 2.0) + 1e-4
    changed = x[:, half:] / scale - shift if inverse else (x[:, half:] + shift) * scale
    log_det = scale.log().sum((1, 2, 3))
    return torch.cat([x[:, :half], changed], 1), -log_det if inverse else log_det


def affine(x: Tensor, bias: Tensor, log_scale: Tensor, weight: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """Actnorm and 1x1 convolution, determinant and inverse anew in every call."""
    log_det = x.shape[2] * x.shape[3] * (log_scale.sum() + torch.linalg.slogdet(weight).logabsdet)
    if inverse:
        x = F.conv2d(x, torch.linalg.inv(weight.double()).to(x.dtype)[:, :, None, None])
        return x * (-log_scale).exp()[:, None, None] - bias[:, None, None], -log_det
    x = (x + bias[:, None, None]) * log_scale.exp()[:, None, None]
    return F.conv2d(x, weight[:, :, None, None]), log_det
