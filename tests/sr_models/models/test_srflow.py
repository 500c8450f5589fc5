"""The elementwise maps of SRFlow: those of the released models, and those of the papers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sr_models
from invflow import AffineInjector

TINY = {"hidden_channels": 4, "features": 4, "growth": 2, "blocks": 2, "stacked_blocks": (0, 1)}


@pytest.mark.parametrize("affine", ["sigmoid", "exp"])
def test_shift_and_scale(affine: str) -> None:
    """The released models shift first and bound the scale; the papers scale first, by an exponential."""
    torch.manual_seed(0)
    model = sr_models.create("srflow", steps=1, affine=affine, **TINY).double().eval()
    injectors = [layer for layer in model.modules() if isinstance(layer, AffineInjector)]
    assert len(injectors) == 3
    for injector in injectors:
        x = torch.randn(2, injector.channels, 3, 5, dtype=torch.float64)
        context = torch.randn(2, injector.context_channels, 3, 5, dtype=torch.float64)
        h: Tensor = torch.randn(2, 2 * injector.channels, 3, 5, dtype=torch.float64)
        injector.net = _Constant(h)
        shift, raw = h[:, 0::2], h[:, 1::2]
        scale = raw.exp() if affine == "exp" else (raw + 2).sigmoid() + 1e-4
        y, log_det = injector(x, context)
        torch.testing.assert_close(y, x * scale + shift if affine == "exp" else (x + shift) * scale)
        torch.testing.assert_close(log_det, scale.log().sum((1, 2, 3)))


class _Constant(torch.nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, _: Tensor) -> Tensor:
        return self.value
