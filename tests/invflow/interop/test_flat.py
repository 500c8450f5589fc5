"""Flat: the latents of a flow as one vector."""

from __future__ import annotations

import re

import pytest
import torch
from interop_checks import assert_copies, multiscale, scramble, step
from torch import nn

import invflow
from invflow.interop import Flat

EVENT = (1, 4, 4)


def test_is_a_layer() -> None:
    torch.manual_seed(0)
    layer, x = scramble(multiscale()), torch.randn(3, *EVENT).double()
    flat = Flat(layer, EVENT)
    z, log_det = flat(x)
    latents, expected = layer(x)
    assert torch.equal(z, torch.cat([latent.flatten(1) for latent in latents], 1))
    assert torch.equal(log_det, expected)
    invflow.testing.assert_invertible(flat, x)
    invflow.testing.assert_log_det(flat, x)
    assert_copies(flat, lambda made: made(x)[0])


def test_a_flow_of_it_has_the_same_density() -> None:
    torch.manual_seed(0)
    layer = scramble(multiscale())
    x = torch.randn(3, *EVENT).double()
    flow = invflow.Flow([Flat(layer, EVENT), invflow.Permutation(16)], event_shape=EVENT)
    torch.testing.assert_close(flow.log_prob(x), invflow.Flow(layer, event_shape=EVENT).log_prob(x))
    assert flow.sample(2).shape == (2, *EVENT)


def test_contexts_and_empty_batches() -> None:
    flat = Flat(step(2, context_channels=3), (2,))
    assert flat(torch.randn(4, 2), torch.randn(4, 3))[0].shape == (4, 2)
    empty = Flat(multiscale(), EVENT).eval()
    z, log_det = empty(torch.zeros(0, *EVENT))
    assert (z.shape, log_det.shape, empty.inverse(z)[0].shape) == ((0, 16), (0,), (0, *EVENT))


def raises(error: type[Exception], message: str):
    return pytest.raises(error, match=re.escape(message))


def test_errors() -> None:
    with raises(TypeError, "Flat: layer must be a torch.nn.Module with an inverse, got Linear"):
        Flat(nn.Linear(2, 2), (2,))
    with raises(ValueError, "height and width must be divisible by 2"):
        Flat(multiscale(), (1, 3, 4))
    flat = Flat(multiscale(), EVENT)
    with raises(ValueError, "Flat: x must have shape (B, *(1, 4, 4)), got (2, 1, 8, 8)"):
        flat(torch.zeros(2, 1, 8, 8))
    with raises(ValueError, "Flat: z must have shape (B, 16), got (2, 15)"):
        flat.inverse(torch.zeros(2, 15))
    with raises(ValueError, "samples must have shape (1, 4, 4), got (1, 8, 8)"):
        flat.output_shapes((1, 8, 8))
