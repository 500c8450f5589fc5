"""pyro: our layers in its distributions and its inference, and its transforms in our flows."""

from __future__ import annotations

import pytest
import torch
from interop_checks import assert_copies, assert_learns, assert_works_in_flow, moons, multiscale, scramble, step

import invflow

pyro = pytest.importorskip("pyro", reason="pyro is not installed: make peers")

from pyro import distributions as dist  # noqa: E402
from pyro.distributions import transforms  # noqa: E402
from pyro.infer import SVI, Predictive, Trace_ELBO  # noqa: E402
from pyro.nn import PyroModule  # noqa: E402

from invflow.interop.pyro import ConditionalFlowTransform, FlowTransform, layer_of  # noqa: E402


@pytest.fixture(autouse=True)
def _fresh_parameters() -> None:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def normal(size: int) -> dist.Distribution:
    return dist.Normal(torch.zeros(size), torch.ones(size)).to_event(1)


def test_inference_with_a_registered_module() -> None:
    transform = FlowTransform(invflow.FlowSequential([step(2) for _ in range(3)]), (2,))
    data = moons(64)

    def model(data: torch.Tensor | None) -> torch.Tensor:
        pyro.module("flow", transform)
        with pyro.plate("data", 64):
            return pyro.sample("x", dist.TransformedDistribution(normal(2), [transform]), obs=data)

    svi = SVI(model, lambda data: None, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    found = [svi.step(data) for _ in range(30)]
    assert found[-1] < found[0] - 6
    assert any(name.startswith("flow$$$layer.layers.0") for name in pyro.get_param_store())
    samples = Predictive(model, num_samples=5)(None)["x"]
    assert samples.shape == (5, 64, 2)


def test_a_guide_made_of_a_flow() -> None:
    transform = FlowTransform(invflow.FlowSequential([step(2) for _ in range(2)]), (2,))

    def model() -> None:
        pyro.sample("x", dist.Normal(torch.tensor([3.0, -2.0]), torch.tensor([0.5, 0.1])).to_event(1))

    def guide() -> None:
        pyro.module("guide", transform)
        pyro.sample("x", dist.TransformedDistribution(normal(2), [transform]))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 3e-2}), Trace_ELBO(num_particles=16, vectorize_particles=True))
    found = [svi.step() for _ in range(40)]
    assert sum(found[-5:]) < 0.2 * sum(found[:5])


def test_copies() -> None:
    transform = FlowTransform(step(2), (2,), cache_size=1)
    transform(torch.ones(3, 2))
    assert_copies(transform, lambda made: made(torch.ones(3, 2)))
    assert {transform: 1}[transform] == 1


def test_part_of_a_pyro_module() -> None:
    class Model(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.transform = FlowTransform(step(2), (2,))

        def forward(self) -> torch.Tensor:
            return pyro.sample("x", dist.TransformedDistribution(normal(2), [self.transform]))

    model = Model()
    assert model().shape == (2,)
    assert len(list(model.parameters())) == len(list(step(2).parameters()))


def test_conditional_distributions() -> None:
    torch.manual_seed(0)
    layer = invflow.FlowSequential([step(2, context_channels=3) for _ in range(2)])
    transform = ConditionalFlowTransform(layer, (2,))
    distribution = dist.ConditionalTransformedDistribution(normal(2), [transform])
    x, context = moons(32), torch.randn(32, 3)
    assert_learns(lambda: -distribution.condition(context).log_prob(x).mean(), transform.parameters())
    given = distribution.condition(context[:4])
    samples = given.expand((4,)).sample((5,))
    own = invflow.Flow(layer, event_shape=(2,)).log_prob(samples, context[:4])
    torch.testing.assert_close(given.log_prob(samples), own, atol=1e-4, rtol=1e-4)


def test_several_latents() -> None:
    layer = scramble(multiscale())
    transform = FlowTransform(layer, (1, 4, 4))
    base = dist.Normal(torch.zeros(16).double(), torch.ones(16).double()).to_event(1)
    samples = dist.TransformedDistribution(base, [transform]).sample((3,))
    assert samples.shape == (3, 1, 4, 4)
    own = invflow.Flow(layer, event_shape=(1, 4, 4)).log_prob(samples)
    torch.testing.assert_close(dist.TransformedDistribution(base, [transform]).log_prob(samples), own)


@pytest.mark.parametrize(
    ("made", "context_channels"),
    [
        (lambda: transforms.affine_coupling(3, hidden_dims=[8]), 0),
        (lambda: transforms.spline_coupling(3, hidden_dims=[8]), 0),
        (lambda: transforms.householder(3, 2), 0),
        (lambda: transforms.generalized_channel_permute(channels=3), 0),
        (lambda: transforms.conditional_affine_coupling(3, 2, hidden_dims=[8]), 2),
        (lambda: transforms.conditional_spline(3, 2, hidden_dims=[8]), 2),
    ],
)
def test_its_transforms_are_layers(made, context_channels: int) -> None:
    torch.manual_seed(0)
    transform = made().double()
    image = isinstance(transform, transforms.GeneralizedChannelPermute)
    x = torch.randn(4, 3, *([2, 2] if image else [])).double()
    context = torch.randn(4, context_channels).double() if context_channels else None
    assert_works_in_flow(layer_of(transform), x, context)


def test_errors() -> None:
    layer = layer_of(transforms.conditional_affine_coupling(3, 2, hidden_dims=[8]))
    with pytest.raises(ValueError, match="is conditional: context must not be None"):
        layer(torch.zeros(1, 3))
    with pytest.raises(TypeError, match="got FlowStep"):
        layer_of(step(2))
