"""Tiny models none of whose parts is at its initial identity."""

from __future__ import annotations

from typing import Any

import torch

import sr_models
from invflow import ActNorm

NAMES = ("srflow", "srflow-da", "srflow-da-r", "srflow-da-d", "srflow-da-s", "ncsr")
TINY: dict[str, Any] = {"steps": 2, "hidden_channels": 4, "features": 4, "growth": 2, "blocks": 2}


def randomised(
    name: str, scale: int = 4, dtype: torch.dtype = torch.float64, **overrides: Any
) -> sr_models.SuperResolutionFlow:
    """The model of that name with a few channels and steps, in evaluation mode."""
    torch.manual_seed(1)
    more: dict[str, Any] = {"noise_steps": (0,) + (1,) * (scale.bit_length() - 1)} if name == "ncsr" else {}
    model = sr_models.create(name, scale=scale, stacked_blocks=(0, 1), **{**TINY, **more, **overrides}).to(dtype)
    with torch.no_grad():
        for parameter in model.levels.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    for module in model.modules():
        if isinstance(module, ActNorm):
            module.mark_initialized()
    return model.eval()
