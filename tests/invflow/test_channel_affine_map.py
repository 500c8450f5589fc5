"""Actnorm and 1x1 convolution of a flow step as one map: its own gradients against those of its parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from invflow import ActNorm, InvertibleConv1x1, InvertibleConv1x1LU
from invflow.layers import _derived


def parts(conv_class: type[InvertibleConv1x1], channels: int) -> tuple[ActNorm, InvertibleConv1x1]:
    actnorm, conv = ActNorm(channels), conv_class(channels)
    for parameter in (*actnorm.parameters(), *conv.parameters()):
        torch.nn.init.normal_(parameter, std=0.3) if parameter.dim() == 1 else parameter.data.add_(0.1)
    return actnorm.double(), conv.double()


def results(actnorm: ActNorm, conv: InvertibleConv1x1, inverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    found = conv.channel_map(actnorm.bias, actnorm.log_scale, torch.float64, inverse=inverse)
    return found.matrix, found.shift, found.log_det(torch.empty(1, 1, 2, 3))


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_gradients_are_those_of_the_parts(channels: int, inverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    actnorm, conv = parts(InvertibleConv1x1, channels)
    parameters = [actnorm.bias, actnorm.log_scale, conv.weight]
    found = []
    for fused in (True, False):
        if not fused:
            monkeypatch.setattr(_derived, "is_plain", lambda tensors: False)
        outputs = results(actnorm, conv, inverse)
        torch.manual_seed(1)
        # not randn_like: the two may differ in the order of elements in memory
        grads = [torch.randn(output.shape, dtype=output.dtype) for output in outputs]
        found.append([*outputs, *torch.autograd.grad(outputs, parameters, grads)])
        assert ("_Map" in type(outputs[0].grad_fn).__name__) == fused
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("conv_class", [InvertibleConv1x1, InvertibleConv1x1LU])
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_first_and_second_derivatives(conv_class: type[InvertibleConv1x1], inverse: bool) -> None:
    actnorm, conv = parts(conv_class, 3)
    names = [name for name, _ in conv.named_parameters()]
    values = [actnorm.bias, actnorm.log_scale, *conv.parameters()]

    def compute(bias: Tensor, log_scale: Tensor, *others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        actnorm._parameters.update(bias=bias, log_scale=log_scale)
        conv._parameters.update(zip(names, others, strict=True))
        return results(actnorm, conv, inverse)

    leaves = [value.detach().clone().requires_grad_() for value in values]
    assert torch.autograd.gradcheck(compute, leaves)
    assert torch.autograd.gradgradcheck(compute, leaves)
