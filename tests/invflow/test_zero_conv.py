"""The convolution that begins at zero: its formula."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import invflow
from invflow.layers.zero_conv import is_3x3


def test_begins_at_zero():
    layer = invflow.ZeroConv2d(3, 5)
    assert not layer(torch.randn(2, 3, 4, 4)).any()


def test_result_is_scaled_by_a_power_of_e():
    torch.manual_seed(0)
    layer = invflow.ZeroConv2d(3, 5).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.5)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    expected = F.conv2d(x, layer.weight, layer.bias, padding=1) * (3 * layer.log_scale).exp()[:, None, None]
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.folded()(x), expected)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({}, True),
        ({"kernel_size": 1}, False),
        ({"padding": 0}, False),
        ({"stride": 2}, False),
        ({"dilation": 2}, False),
        ({"groups": 2}, False),
        ({"padding_mode": "reflect"}, False),
    ],
    ids=str,
)
def test_what_the_fast_convolution_computes(setting, expected):
    assert is_3x3(nn.Conv2d(4, 4, **({"kernel_size": 3, "padding": 1} | setting))) is expected
