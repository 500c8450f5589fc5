"""ActNorm's initialisation from data."""

import copy

import pytest
import torch
from layer_cases import coupling

from invflow import ActNorm, FlowSequential, FlowStep, Squeeze


def batch(*shape, dtype=torch.float32):
    """Channels with different means and spreads."""
    shape = shape or (4, 3, 5, 6)
    size = torch.arange(1.0, shape[1] + 1)[:, None, None]
    return (torch.randn(shape) * size + 10 * size).to(dtype)


def is_fresh(layer):
    return not layer.initialized and not layer.bias.any() and not layer.log_scale.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_first_training_batch_comes_out_with_mean_zero_and_variance_one(dtype):
    layer, x = ActNorm(3), batch(dtype=dtype)
    layer.to(torch.float64 if dtype == torch.float64 else torch.float32)
    y, log_det = layer(x)
    assert y.dtype == dtype
    assert layer.initialized
    # the mean of values of 30 that are rounded to dtype, and the 1e-6 in the formula
    tolerance = max(1e-5, torch.finfo(dtype).eps)
    per_channel = y.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(per_channel.mean(1), torch.zeros(3).double(), rtol=0, atol=tolerance)
    torch.testing.assert_close(per_channel.var(1, correction=0), torch.ones(3).double(), rtol=0, atol=tolerance)
    torch.testing.assert_close(log_det.double(), 30 * layer.log_scale.double().sum().expand(4))


def test_formula():
    layer, x = ActNorm(3).double(), batch(dtype=torch.float64)
    layer(x)
    mean, std = x.mean((0, 2, 3)), x.transpose(0, 1).flatten(1).std(1, correction=0)
    torch.testing.assert_close(layer.bias.data, -mean)
    torch.testing.assert_close(layer.log_scale.data, -torch.log(std + 1e-6))


def test_only_the_first_batch_counts():
    layer = ActNorm(3)
    layer(batch())
    before = copy.deepcopy(layer.state_dict())
    layer(100 * batch())
    torch.testing.assert_close(dict(layer.state_dict()), dict(before), rtol=0, atol=0)


def test_evaluation_mode_and_inverse_never_initialise():
    layer, x = ActNorm(3), batch()
    for call in (layer.eval(), layer.inverse):
        y, log_det = call(x)
        assert is_fresh(layer)
        torch.testing.assert_close(y, x, rtol=0, atol=0)
        assert not log_det.any()
    layer.train().inverse(x)
    assert is_fresh(layer)
    layer(x)
    assert layer.initialized


def test_an_empty_batch_leaves_it_to_the_next():
    layer = ActNorm(3)
    layer(torch.zeros(0, 3, 4, 4))
    assert is_fresh(layer)
    layer(batch())
    assert layer.initialized


def test_mark_initialized_keeps_the_values():
    layer = ActNorm(3)
    layer.mark_initialized()
    y, _ = layer(batch())
    assert layer.initialized
    assert not layer.bias.any()
    layer.initialize(batch())
    assert layer.bias.all()
    assert y.shape == (4, 3, 5, 6)


@pytest.mark.parametrize("shape", [(4, 2, 3, 3), (1, 2, 1, 1)], ids=["constant", "one pixel"])
def test_a_constant_channel_or_a_single_pixel_stays_finite(shape):
    layer, x = ActNorm(2), torch.full(shape, 7.0)
    y, log_det = layer(x)
    assert y.isfinite().all()
    assert log_det.isfinite().all()
    torch.testing.assert_close(y, torch.zeros_like(y))
    back, _ = layer.inverse(y)
    torch.testing.assert_close(back, x)
    (y.sum() + log_det.sum()).backward()
    assert layer.bias.grad.isfinite().all()
    assert layer.log_scale.grad.isfinite().all()


def test_initialisation_is_not_part_of_the_gradient():
    layer, x = ActNorm(3), batch().requires_grad_()
    layer(x)[0].sum().backward()
    torch.testing.assert_close(x.grad, layer.log_scale.detach().exp()[:, None, None].expand_as(x))


def test_every_actnorm_of_a_flow_sees_the_output_of_the_one_before():
    flow = FlowSequential([Squeeze(), FlowStep(12, coupling=coupling(12)), FlowStep(12), ActNorm(12)])
    x = batch(4, 3, 8, 8)
    z, _ = flow(x)
    per_channel = z.transpose(0, 1).flatten(1)
    torch.testing.assert_close(per_channel.mean(1), torch.zeros(12), rtol=0, atol=1e-4)
    torch.testing.assert_close(per_channel.std(1, correction=0), torch.ones(12), rtol=1e-4, atol=0)


def test_under_autocast_and_no_grad_it_initialises_as_well_as_without():
    layers = [ActNorm(3), ActNorm(3)]
    x = batch()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        layers[0](x)
    layers[1](x)
    torch.testing.assert_close(dict(layers[0].state_dict()), dict(layers[1].state_dict()), rtol=0, atol=0)
