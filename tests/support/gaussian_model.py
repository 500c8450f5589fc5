"""A super-resolution model whose distribution is known: the bicubic enlargement and independent normal noise."""

from __future__ import annotations

import math

import torch

from invflow import ActNorm, FlowSequential, Squeeze
from sr_models.flow.model import SuperResolutionFlow
from sr_models.networks.rrdb import RRDBEncoder

__all__ = ["gaussian_model"]


def gaussian_model(deviation: float) -> SuperResolutionFlow:
    """Return a 4x model in evaluation mode; at temperature 1 values have this standard deviation, images in [0, 1]."""
    noise = ActNorm(12)
    with torch.no_grad():
        noise.log_scale.fill_(-math.log(deviation))
    noise.mark_initialized()
    encoder = RRDBEncoder(4, features=2, growth=1, blocks=1, stacked_blocks=())
    model = SuperResolutionFlow(4, encoder, [FlowSequential([Squeeze(2), noise])], base="bicubic")
    model.name = "gaussian"
    return model.eval()
