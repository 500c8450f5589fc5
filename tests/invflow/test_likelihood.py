"""Likelihoods against torch.distributions and against numbers that can be computed by hand."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal

from invflow import Split, bits_per_dim, standard_normal_log_prob


@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 2, 4, 5), (0, 2, 3, 3)], ids=str)
def test_standard_normal(shape):
    z = torch.randn(shape, dtype=torch.float64)
    expected = Normal(torch.zeros_like(z), 1.0).log_prob(z)
    while expected.dim() > 1:
        expected = expected.sum(-1)
    torch.testing.assert_close(standard_normal_log_prob(z), expected)


def test_several_latents_add_up():
    latents = [torch.randn(3, 2, 4, 4), torch.randn(3, 6, 2, 2)]
    torch.testing.assert_close(standard_normal_log_prob(latents), sum(map(standard_normal_log_prob, latents)))
    torch.testing.assert_close(standard_normal_log_prob(tuple(latents)), standard_normal_log_prob(latents))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_latents_are_summed_in_float32(dtype):
    z = torch.randn(2, 3, 64, 64).to(dtype)
    log_prob = standard_normal_log_prob(z)
    assert log_prob.dtype == torch.float32
    torch.testing.assert_close(log_prob.double(), standard_normal_log_prob(z.double()), rtol=1e-5, atol=0)


def test_split_is_a_conditional_gaussian():
    layer = Split(4).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.3)
    x = torch.randn(3, 4, 3, 2, dtype=torch.float64)
    (epsilon, kept), log_det = layer(x)
    h = layer.net(kept)
    prior = Independent(Normal(h[:, 0::2], h[:, 1::2].exp()), 3)
    torch.testing.assert_close(standard_normal_log_prob(epsilon) + log_det, prior.log_prob(x[:, 2:]))


def test_bits_per_dim():
    # a uniform density over 256 values of each of 10 elements costs 8 bits an element
    log_prob = torch.full((2,), -10 * math.log(256.0), dtype=torch.float64)
    torch.testing.assert_close(bits_per_dim(log_prob, 10), torch.full((2,), 8.0, dtype=torch.float64))
