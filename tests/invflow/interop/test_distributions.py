"""torch.distributions: our layers as transforms, and transforms as layers."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from interop_checks import assert_learns, assert_works_in_flow, image_net, moons, multiscale, scramble, step
from torch import Tensor, nn
from torch.distributions import Independent, Normal, TransformedDistribution, transforms

import invflow
from invflow.interop.distributions import FlowTransform, layer_of


def normal(*shape: int) -> Independent:
    return Independent(Normal(torch.zeros(shape), torch.ones(shape), validate_args=True), len(shape))


def vector_flow(context_channels: int = 0) -> nn.Module:
    torch.manual_seed(0)
    return invflow.FlowSequential([step(2, context_channels=context_channels) for _ in range(3)])


def test_trains_and_samples() -> None:
    flow, x = vector_flow(), moons(64)
    distribution = TransformedDistribution(normal(2), [FlowTransform(flow, (2,))], validate_args=True)
    assert_learns(lambda: -distribution.log_prob(x).mean(), flow.parameters())
    samples = distribution.sample((5, 3))
    own = invflow.Flow(flow).log_prob(samples.flatten(0, 1)).reshape(5, 3)
    torch.testing.assert_close(distribution.log_prob(samples), own)
    reparametrized = distribution.rsample((4,))
    reparametrized.sum().backward()


@pytest.mark.parametrize("cache_size", [0, 1])
def test_compiled(cache_size: int) -> None:
    torch.compiler.reset()
    flow = scramble(vector_flow()).float().eval()
    transform, z = FlowTransform(flow, (2,), cache_size=cache_size), torch.randn(5, 2)

    def both(z: Tensor) -> tuple[Tensor, Tensor]:
        x = transform(z)
        return x, transform.log_abs_det_jacobian(z, x)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(z), both(z))
        with torch.no_grad():
            next(flow.parameters()).add_(0.1)


def test_expands() -> None:
    distribution = TransformedDistribution(normal(2), [FlowTransform(vector_flow().eval(), (2,))]).expand((3,))
    assert distribution.event_shape == (2,)
    samples = distribution.sample((5,))
    assert samples.shape == (5, 3, 2)
    assert distribution.log_prob(samples).shape == (5, 3)


def test_latents_of_another_shape() -> None:
    flow = scramble(multiscale())
    transform = FlowTransform(flow, (1, 4, 4))
    assert (transform.domain.event_dim, transform.codomain.event_dim) == (1, 3)
    base = Independent(Normal(torch.zeros(16).double(), torch.ones(16).double()), 1)
    distribution = TransformedDistribution(base, [transform], validate_args=True)
    assert distribution.event_shape == (1, 4, 4)
    samples = distribution.sample((2, 3))
    own = invflow.Flow(flow, event_shape=(1, 4, 4)).log_prob(samples.flatten(0, 1))
    torch.testing.assert_close(distribution.log_prob(samples).flatten(), own, atol=1e-10, rtol=0)
    with pytest.raises(ValueError, match=r"expected shape \(\*batch, 16\), got \(2, 1, 4, 4\)"):
        transform(torch.zeros(2, 1, 4, 4))


@pytest.mark.parametrize("cache_size", [0, 1])
def test_nothing_is_remembered_wrongly(cache_size: int) -> None:
    flow = scramble(vector_flow())
    transform, x = FlowTransform(flow, (2,), cache_size=cache_size), moons(8).double()
    with torch.no_grad():
        z = transform.inv(x)
    # asked again with gradients, and again after a step
    log_det = transform.log_abs_det_jacobian(z, x)
    assert log_det.requires_grad
    log_det.sum().backward()
    with torch.no_grad():
        flow[0].actnorm.log_scale += 1
    after = transform.log_abs_det_jacobian(z, x)
    torch.testing.assert_close(after, -flow(x)[1])
    assert (after - log_det).abs().min() > 0.5
    with torch.no_grad():
        x += 1
    torch.testing.assert_close(transform.log_abs_det_jacobian(z, x), -flow(x)[1])


def test_each_evaluation_serves_log_det(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = scramble(vector_flow())
    calls = []
    flow.register_forward_hook(lambda *_: calls.append(1))
    distribution = TransformedDistribution(normal(2), [FlowTransform(flow, (2,))])
    distribution.log_prob(moons(4).double())
    assert len(calls) == 1


def test_cache() -> None:
    transform = FlowTransform(scramble(vector_flow()), (2,))
    assert transform.with_cache(0) is transform
    cached, z = transform.with_cache(1), torch.randn(3, 2).double()
    x = cached(z)
    assert cached.inv(x) is z
    assert transform.inv(x) is not z
    with torch.no_grad():
        expected = cached(z)
        for made in (copy.deepcopy(cached), pickle.loads(pickle.dumps(cached))):
            assert torch.equal(made(z), expected)
    assert transform.inv.inv is transform


@pytest.mark.parametrize("context_dim", [1, 3])
def test_contexts_have_a_batch_shape(context_dim: int) -> None:
    torch.manual_seed(0)
    flow = scramble(invflow.FlowSequential([step(2, image_net, context_channels=3)]))
    context = torch.randn(4, 3, *([5, 5] if context_dim == 3 else [])).double()
    transform, x = FlowTransform(flow, (2, 5, 5), context, context_dim=context_dim), torch.randn(6, 4, 2, 5, 5).double()
    z = transform.inv(x)
    expected, log_det = flow(x.flatten(0, 1), context.repeat(6, *[1] * context_dim))
    torch.testing.assert_close(z.flatten(0, 1), expected)
    torch.testing.assert_close(transform.log_abs_det_jacobian(z, x).flatten(), -log_det)


def test_follows_its_layer() -> None:
    flow = vector_flow().eval()
    transform = FlowTransform(flow, (2,))
    flow.double()
    assert transform(torch.zeros(3, 2).double()).dtype == torch.float64
    flow.to("meta")
    assert transform(torch.zeros(3, 2, device="meta")).device.type == "meta"


def scaled(x: Tensor) -> transforms.Transform:
    return transforms.AffineTransform(torch.full(x.shape[1:], 0.5).double(), torch.full(x.shape[1:], 2.0).double())


@pytest.mark.parametrize(
    "made",
    [
        scaled,
        lambda x: transforms.AffineTransform(1.0, -3.0),
        lambda x: transforms.ComposeTransform([transforms.SigmoidTransform().inv, scaled(x)]).inv.inv.inv,
        lambda x: transforms.IndependentTransform(transforms.TanhTransform(), 1).inv,
        lambda x: (
            transforms.ReshapeTransform(x.shape[1:].numel() * torch.ones(1, dtype=int), x.shape[1:])
            if x.dim() > 2
            else scaled(x)
        ),
    ],
)
@pytest.mark.parametrize("shape", [(3, 4), (2, 4, 2, 2)])
def test_transforms_are_layers(made, shape: tuple[int, ...]) -> None:
    x = 0.1 + 0.8 * torch.rand(shape).double()
    layer = layer_of(made(x))
    z, log_det = layer(x)
    assert log_det.shape == shape[:1]
    assert layer.output_shapes(shape[1:]) == [tuple(z.shape[1:])]
    jacobian = torch.autograd.functional.jacobian(lambda one: layer(one[None])[0].flatten(), x[0])
    expected = torch.linalg.slogdet(jacobian.reshape(z[0].numel(), -1)).logabsdet
    torch.testing.assert_close(log_det[0], expected)
    torch.testing.assert_close(layer.inverse(z)[0], x)
    torch.testing.assert_close(layer.inverse(z)[1], -log_det)


@pytest.mark.parametrize(("method", "expected"), [("forward", (0.5, 0.25)), ("inverse", (2.0, 4.0))])
def test_caches_of_a_transform_are_not_used(method: str, expected: tuple[float, float]) -> None:
    # the same tensor after a change of parameters
    scale = nn.Parameter(torch.tensor(2.0))
    layer, x = layer_of(transforms.AffineTransform(0.0, scale, cache_size=1)), torch.ones(3, 2)
    for value in expected:
        torch.testing.assert_close(getattr(layer, method)(x)[0], torch.full((3, 2), value))
        with torch.no_grad():
            scale *= 2


def test_parameters_of_a_transform_are_trained() -> None:
    scale = nn.Parameter(torch.tensor([0.5, 2.0, 1.0]).double())
    layer = layer_of(transforms.AffineTransform(torch.zeros(3).double(), scale), nn.ParameterList([scale]))
    assert [*layer.parameters()] == [scale]
    assert_works_in_flow(layer, torch.randn(4, 3).double())


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"with an inverse, got Flow: give its layers, flow\.transform"):
        FlowTransform(invflow.glow((2,), steps=1), (2,))
    with pytest.raises(TypeError, match=r"must be a torch\.distributions\.Transform, got FlowStep"):
        layer_of(step(2))
    with pytest.raises(ValueError, match="must be bijective, got AbsTransform"):
        layer_of(transforms.AbsTransform())
