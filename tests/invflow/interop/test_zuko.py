"""zuko: our layers in its flows, and its transforms in ours."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from interop_checks import assert_copies, assert_learns, assert_works_in_flow, moons, multiscale, scramble, step

import invflow

zuko = pytest.importorskip("zuko", reason="zuko is not installed: make peers")

from invflow.interop.zuko import LazyFlow, layer_of  # noqa: E402


def base(size: int, dtype: torch.dtype = torch.float32) -> zuko.lazy.UnconditionalDistribution:
    zeros, ones = torch.zeros(size, dtype=dtype), torch.ones(size, dtype=dtype)
    return zuko.lazy.UnconditionalDistribution(zuko.distributions.DiagNormal, zeros, ones, buffer=True)


def test_trains_and_samples_with_contexts() -> None:
    torch.manual_seed(0)
    layer = invflow.FlowSequential([step(2, context_channels=3) for _ in range(3)])
    flow, x, c = zuko.lazy.Flow([LazyFlow(layer, (2,))], base(2)), moons(32), torch.randn(32, 3)
    assert_learns(lambda: -flow(c).log_prob(x).mean(), flow.parameters())
    samples, log_prob = flow(c[:4]).rsample_and_log_prob((5,))
    assert samples.shape == (5, 4, 2)
    torch.testing.assert_close(flow(c[:4]).log_prob(samples), log_prob, atol=1e-4, rtol=1e-4)
    assert_copies(flow, lambda made: made(c).log_prob(x))


def test_several_latents() -> None:
    torch.manual_seed(0)
    layer = scramble(multiscale())
    flow = zuko.lazy.Flow([LazyFlow(layer, (1, 4, 4))], base(16, torch.float64))
    samples, log_prob = flow().rsample_and_log_prob((6,))
    assert samples.shape == (6, 1, 4, 4)
    assert flow().event_shape == (1, 4, 4)
    own = invflow.Flow(layer, event_shape=(1, 4, 4)).log_prob(samples)
    torch.testing.assert_close(log_prob, own, atol=1e-10, rtol=0)


@pytest.mark.parametrize("call", [lambda made: made.rsample((3,)), lambda made: made.log_prob(torch.zeros(3, 2))])
def test_nothing_waits_for_the_garbage_collection(call) -> None:
    # a graph with all activations would wait with it
    flow = zuko.lazy.Flow(LazyFlow(step(2), (2,)), base(2))
    gc.disable()
    try:
        distribution = flow()
        held = weakref.ref(distribution.transform.inv)
        call(distribution)
        del distribution
        assert held() is None
    finally:
        gc.enable()


def test_beside_its_own_transforms() -> None:
    torch.manual_seed(0)
    theirs = zuko.flows.NSF(2, 3, transforms=1, hidden_features=[8]).transform
    flow = zuko.lazy.Flow([LazyFlow(step(2, context_channels=3), (2,)), theirs], base(2))
    x, c = moons(16), torch.randn(16, 3)
    assert_learns(lambda: -flow(c).log_prob(x).mean(), flow.parameters())


@pytest.mark.parametrize("kind", ["NSF", "MAF", "NICE", "NCSF", "GF"])
@pytest.mark.parametrize("context_channels", [0, 2])
def test_its_transforms_are_layers(kind: str, context_channels: int) -> None:
    torch.manual_seed(0)
    lazy = getattr(zuko.flows, kind)(3, context_channels, transforms=2, hidden_features=[8]).double().transform
    context = torch.randn(4, context_channels).double() if context_channels else None
    layer = layer_of(lazy)
    # GF is inverted by bisection
    assert_works_in_flow(layer, 0.5 * torch.randn(4, 3).double(), context, atol=1e-5 if kind == "GF" else 1e-8)


def test_a_flow_of_its_layers_trains_and_samples() -> None:
    torch.manual_seed(0)
    lazy = zuko.flows.NSF(2, 3, transforms=1, hidden_features=[8]).transform
    flow = invflow.Flow([layer_of(lazy), step(2, context_channels=3)], event_shape=(2,))
    x, c = moons(32), torch.randn(32, 3)
    assert_learns(lambda: -flow(x, c).mean(), flow.parameters())
    samples = flow.sample(5, c[:4])
    assert samples.shape == (5, 4, 2)
    assert_copies(flow, lambda made: made(x, c))


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"got NSF: give flow\.transform"):
        layer_of(zuko.flows.NSF(2))
    with pytest.raises(ValueError, match="channels"):
        LazyFlow(step(3), (2,))
