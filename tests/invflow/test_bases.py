"""Base distributions by themselves; with the layers of a flow they are in test_flow.py."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from invflow import ClassNormal, DiagonalNormal


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("base", [DiagonalNormal((64,)), ClassNormal(2, (64,))], ids=lambda base: type(base).__name__)
def test_densities_of_half_precision_are_rounded_once(base: nn.Module, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    base = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.normal_()
    z = torch.randn(4, 64).to(dtype)
    found = base.to(dtype).log_prob(z)
    torch.testing.assert_close(found, base.double().log_prob(z.double()).float(), rtol=1e-5, atol=1e-4)
