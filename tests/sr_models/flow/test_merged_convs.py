"""Merged convolutions: several networks' convolutions of the features at once, each handed out once."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sr_models.flow.merged_convs import MergedConvs


def of_features(net: nn.Module) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """The weight of two passed channels, that of three features, and the bias; a linear layer cannot be split."""
    if not isinstance(net, nn.Conv2d):
        return None
    passed, features = net.weight.split((2, 3), 1)
    return passed, features, net.bias


def test_networks_that_were_announced_take_their_part_once() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 3, 4, 5)
    nets = [nn.Conv2d(5, 4, 3, padding=1), nn.Linear(1, 1), nn.Conv2d(5, 6, 3, padding=1)]
    calls: list[int] = []

    def conv(weight: Tensor, bias: Tensor | None) -> Tensor:
        calls.append(len(weight))
        return F.conv2d(features, weight, bias, padding=1)

    merged = MergedConvs(nets, of_features, conv, 2 * 4 * 5)
    for net in (nets[0], nets[2]):
        assert isinstance(net, nn.Conv2d)
        taken = merged.take(net)
        assert taken is not None
        weight, result = taken
        assert weight.data_ptr() == net.weight.data_ptr()
        assert weight.shape == (net.out_channels, 2, 3, 3)
        torch.testing.assert_close(result, F.conv2d(features, net.weight[:, 2:], net.bias, padding=1))
    assert calls == [10]
    for net in (*nets, nn.Conv2d(5, 4, 3, padding=1)):  # taken, impossible to split, never announced
        assert merged.take(net) is None
    assert calls == [10]


def test_convolutions_that_differ_are_not_merged() -> None:
    features = torch.randn(1, 3, 4, 4)
    nets = [nn.Conv2d(5, 4, 3), nn.Conv2d(5, 4, 3, bias=False), nn.Conv2d(5, 4, 3).requires_grad_(False)]
    merged = MergedConvs(nets, of_features, partial(F.conv2d, features, padding=1), 16)
    assert merged.take(nets[0]) is not None
    assert merged.take(nets[1]) is None
    assert merged.take(nets[2]) is not None
