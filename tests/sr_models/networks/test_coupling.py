"""Networks of couplings and injectors in training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sr_models.networks.coupling import CouplingNet, DeepConvNet, ResidualNet, ResidualUnitNet, ShallowNet


@pytest.mark.parametrize("kind", [DeepConvNet, ResidualNet, ResidualUnitNet, ShallowNet])
def test_backward_hooks_of_all_convolutions_are_called(kind: type[CouplingNet]) -> None:
    torch.manual_seed(0)
    net, x = kind(3, 4, 6), torch.randn(2, 3, 5, 5, requires_grad=True)
    net(x)  # initialises
    (expected,) = torch.autograd.grad(net(x).sin().sum(), x)
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    called: list[nn.Module] = []

    def hook(module: nn.Module, of_x: tuple[Tensor, ...], of_y: tuple[Tensor, ...]) -> None:
        called.append(module)

    for conv in convs:
        conv.register_full_backward_hook(hook)
    (found,) = torch.autograd.grad(net(x).sin().sum(), x)
    torch.testing.assert_close(found, expected)
    assert called == convs[::-1]
