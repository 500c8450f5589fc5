"""Flow: a distribution made of layers and a base, whose density is one and whose samples have it."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from foreign_layers import Cut, Doubling, Shift
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributions import Normal
from torch.fx.experimental.proxy_tensor import make_fx

import invflow
from invflow import (
    AffineCoupling,
    AffineInjector,
    CheckerboardCoupling,
    ClassNormal,
    DiagonalNormal,
    Flow,
    FlowSequential,
    FlowStep,
    SplineCoupling,
    Split,
    Squeeze,
    StandardNormal,
    UniformDequantization,
    ZeroConv2d,
)

EVENT = (1, 4, 4)


def raises(error: type[Exception], message: str):
    return pytest.raises(error, match=re.escape(message))


def randomized(module: nn.Module, scale: float = 0.2) -> nn.Module:
    """The module with parameters moved from where they begin, in float64 and evaluation mode."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return module.double().eval()


def conditional_layers(channels: int, context_channels: int) -> list[nn.Module]:
    coupling = AffineCoupling(channels, ZeroConv2d, context_channels=context_channels)
    injector = AffineInjector(channels, ZeroConv2d, context_channels=context_channels)
    return [FlowStep(channels, injector=injector, coupling=coupling), Shift(channels, context_channels)]


def small_flow(base: nn.Module | None = None) -> Flow:
    layers = [Squeeze(), FlowStep(4, coupling=AffineCoupling(4, ZeroConv2d)), Split(4), Doubling()]
    return randomized(Flow(layers, base, event_shape=EVENT))


def grid(low: float, high: float, count: int, dims: int) -> tuple[Tensor, float]:
    """Middles of the cells of a grid, and the volume of one."""
    edges = torch.linspace(low, high, count + 1, dtype=torch.float64)
    middles = (edges[1:] + edges[:-1]) / 2
    points = torch.cartesian_prod(*[middles] * dims).reshape(-1, dims)
    return points, ((high - low) / count) ** dims


@pytest.mark.parametrize("base", [StandardNormal(), DiagonalNormal((2, 1, 1)), ClassNormal(3, (2, 1, 1))])
def test_the_density_of_two_dimensions_is_one(base: nn.Module) -> None:
    layers = [FlowStep(2, coupling=AffineCoupling(2, ZeroConv2d)) for _ in range(2)]
    flow = randomized(Flow(layers, base))
    points, cell = grid(-12, 12, 200, 2)
    labels = [None, 1] if isinstance(base, ClassNormal) else [None]
    with torch.no_grad():
        for y in labels:
            assert flow.log_prob(points[:, :, None, None], y=y).exp().sum() * cell == pytest.approx(1, abs=1e-4)


def test_the_density_of_one_dimension_is_that_of_the_samples() -> None:
    flow = randomized(Flow([invflow.ActNorm(1), invflow.Logit(0.0)], event_shape=(1, 1, 1)))
    points, cell = grid(-3, 3, 3000, 1)
    with torch.no_grad():
        low, high = flow.transform[0].inverse(torch.tensor([0.0, 1.0]).double().view(2, 1, 1, 1))[0].flatten()
        inside = points[(points > low) & (points < high)]
        density = flow.log_prob(inside.view(-1, 1, 1, 1)).exp()
    assert density.sum() * cell == pytest.approx(1, abs=5e-3)
    samples = flow.sample(4000, generator=torch.Generator().manual_seed(0)).flatten()
    assert samples.mean().item() == pytest.approx((density * inside).sum().item() * cell, abs=0.01)


def test_log_prob_is_that_of_latents_and_base() -> None:
    flow, x = small_flow(DiagonalNormal((2, 2, 2))), torch.randn(3, *EVENT).double()
    (leaving, last), log_det = flow.transform(x)
    expected = Normal(0, 1).log_prob(leaving).sum((1, 2, 3)) + log_det
    expected = expected + Normal(flow.base.mean, flow.base.log_std.exp()).log_prob(last).sum((1, 2, 3))
    torch.testing.assert_close(flow.log_prob(x), expected)
    torch.testing.assert_close(flow(x), expected)
    torch.testing.assert_close(flow.bits_per_dim(x), -expected / (16 * math.log(2)))
    assert flow.float().log_prob(x.float()).dtype == torch.float32


def test_samples_are_the_inverse_of_latents() -> None:
    flow = small_flow(DiagonalNormal((2, 2, 2)))
    assert flow.latent_shapes() == [(2, 2, 2), (2, 2, 2)]
    generator = torch.Generator().manual_seed(5)
    latents = [0.7 * torch.randn(6, *shape, generator=generator, dtype=torch.float64) for shape in flow.latent_shapes()]
    latents[-1] = flow.base.mean + flow.base.log_std.exp() * latents[-1]
    expected, _ = flow.transform.inverse(latents)
    samples = flow.sample(6, temperature=0.7, generator=torch.Generator().manual_seed(5))
    assert samples.shape == (6, *EVENT)
    assert samples.dtype == torch.float64
    assert not samples.requires_grad
    torch.testing.assert_close(samples, expected)


def test_samples_without_temperature_are_all_the_mode() -> None:
    samples = small_flow().sample(3, temperature=0.0)
    torch.testing.assert_close(samples, samples[:1].expand_as(samples))


def test_another_shape_and_no_samples() -> None:
    flow = small_flow()
    assert flow.sample(2, shape=(1, 6, 8)).shape == (2, 1, 6, 8)
    assert flow.latent_shapes((1, 6, 8)) == [(2, 3, 4), (2, 3, 4)]
    assert flow.sample(0).shape == (0, *EVENT)


def contexts() -> tuple[Flow, Tensor]:
    flow = randomized(Flow(conditional_layers(2, 3), event_shape=(2, 2, 3)))
    return flow, torch.randn(4, 3, 2, 3, dtype=torch.float64)


def test_samples_of_every_context() -> None:
    """Foreign layers, too, are given the context of every state."""
    flow, context = contexts()
    samples = flow.sample(5, context, generator=torch.Generator().manual_seed(1))
    assert samples.shape == (5, 4, 2, 2, 3)
    noise = torch.randn(20, 2, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected, _ = flow.transform.inverse(noise, context.repeat_interleave(5, 0))
    torch.testing.assert_close(samples, expected.unflatten(0, (4, 5)).transpose(0, 1))


def test_samples_of_contexts_where_a_layer_takes_the_pixels_away() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return x.flatten(1), x.new_zeros(len(x))

        def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return z.view(-1, 2, 2, 3), z.new_zeros(len(z))

        def output_shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
            return [(math.prod(shape),)]

    layers = [AffineCoupling(2, ZeroConv2d, context_channels=3), Flat()]
    flow = randomized(Flow(layers, event_shape=(2, 2, 3)))
    context = torch.randn(4, 3, dtype=torch.float64)
    vectors, images = (
        flow.sample(5, given, generator=torch.Generator().manual_seed(1))
        for given in (context, context[:, :, None, None].expand(-1, -1, 2, 3))
    )
    torch.testing.assert_close(vectors, images)


def test_densities_of_samples_of_every_context() -> None:
    flow, context = contexts()
    samples = flow.sample(5, context)
    log_prob = flow.log_prob(samples, context)
    assert log_prob.shape == flow.bits_per_dim(samples, context).shape == (5, 4)
    torch.testing.assert_close(log_prob, torch.stack([flow.log_prob(part, context) for part in samples]))
    torch.testing.assert_close(flow.bits_per_dim(samples, context), -log_prob / (12 * math.log(2)))


def test_labels_choose_the_distribution() -> None:
    base = ClassNormal(4, (4, 1, 1))
    flow = randomized(Flow([Squeeze(), FlowStep(4)], base, event_shape=EVENT), 1.0)
    x, y = torch.randn(8, *EVENT).double(), torch.arange(8) % 4
    found = flow.log_prob(x, y=y)
    z, log_det = flow.transform(x)
    normal = Normal(base.mean[y].expand_as(z), base.log_std[y].exp().expand_as(z))
    torch.testing.assert_close(found, log_det + normal.log_prob(z).sum((1, 2, 3)))
    of_classes = torch.stack([flow.log_prob(x, y=label) for label in range(4)])
    torch.testing.assert_close(found, of_classes[y, torch.arange(8)])
    torch.testing.assert_close(flow.log_prob(x), of_classes.logsumexp(0) - math.log(4))


def test_labels_under_transforms_and_in_traces() -> None:
    flow = randomized(Flow([Doubling()], ClassNormal(3, (2,))))
    x, y = torch.randn(4, 2).double(), torch.tensor([0, 2, 1, 2])

    def log_prob(x: Tensor, y: Tensor) -> Tensor:
        return flow.log_prob(x, y=y)

    expected = log_prob(x, y)
    torch.testing.assert_close(torch.func.vmap(log_prob)(x[:, None], y[:, None])[:, 0], expected)
    torch.testing.assert_close(make_fx(log_prob)(x, y)(x, y), expected)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert log_prob(mode.from_tensor(x), mode.from_tensor(y)).shape == (4,)


def test_samples_of_labels() -> None:
    base = ClassNormal(3, (4, 1, 1))
    flow = randomized(Flow([Squeeze(), FlowStep(4)], base, event_shape=EVENT), 1.0)
    z, _ = flow.transform(flow.sample(2, y=torch.tensor([2, 0, 2]), temperature=0.0).flatten(0, 1))
    expected = base.mean[torch.tensor([2, 0, 2, 2, 0, 2])].expand_as(z)
    torch.testing.assert_close(z, expected)
    assert flow.sample(2, y=1).shape == (2, *EVENT)
    z, _ = flow.transform(flow.sample(60, temperature=0.0, generator=torch.Generator().manual_seed(1)))
    nearest = (z[:, None, :, :1, :1] - base.mean).square().sum((2, 3, 4)).argmin(1)
    assert set(nearest.tolist()) == {0, 1, 2}
    again = flow.sample(60, temperature=0.0, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(flow.transform(again)[0], z)


def test_labels_of_successive_samples() -> None:
    flow = randomized(Flow([FlowStep(2)], ClassNormal(3, (2, 1, 1)), event_shape=(2, 1, 1)))
    x, y = torch.randn(6, 2, 1, 1).double(), torch.tensor([2, 1])
    torch.testing.assert_close(flow.log_prob(x, y=y), flow.log_prob(x, y=y.repeat_interleave(3)))
    several = flow.log_prob(x.unflatten(0, (2, 3)).transpose(0, 1), y=y)
    torch.testing.assert_close(several, flow.log_prob(x, y=y).unflatten(0, (2, 3)).T)


def test_a_state_dict_goes_round() -> None:
    flow = small_flow(ClassNormal(2, (2, 1, 1)))
    other = Flow([Squeeze(), FlowStep(4, coupling=AffineCoupling(4, ZeroConv2d)), Split(4), Doubling()])
    other.base = ClassNormal(2, (2, 1, 1))
    other.double().eval().load_state_dict(flow.state_dict())
    x = torch.randn(2, *EVENT).double()
    torch.testing.assert_close(other.log_prob(x, y=1), flow.log_prob(x, y=1))
    torch.testing.assert_close(copy.deepcopy(flow).log_prob(x), flow.log_prob(x))


@pytest.mark.filterwarnings("error")
def test_gradients_of_memory_invert_are_those_of_store() -> None:
    found = []
    for memory in ("store", "invert"):
        torch.manual_seed(1)
        layers = [UniformDequantization(8), Squeeze(), FlowStep(4, coupling=AffineCoupling(4, ZeroConv2d)), Split(4)]
        flow = randomized(Flow(layers, DiagonalNormal((2, 1, 1)), memory=memory))
        assert flow.transform.memory == memory
        loss = flow.bits_per_dim(torch.arange(32).view(2, 1, 4, 4) % 8).mean()
        found.append(torch.autograd.grad(loss, list(flow.parameters())))
    torch.testing.assert_close(*found)


def test_layers_are_several_or_one_or_a_sequence() -> None:
    step, doubling = FlowStep(2), Doubling()
    sequence = FlowSequential([step, doubling], memory="invert")
    assert Flow(sequence).transform is Flow(sequence, memory="invert").transform is sequence
    stored = Flow(sequence, memory="store").transform
    assert [*stored] == [step, doubling]
    assert stored.memory == "store"
    assert [*Flow(nn.ModuleList([step, doubling])).transform] == [step, doubling]
    assert [*Flow(layer for layer in (step, doubling)).transform] == [step, doubling]
    assert [*Flow(step).transform] == [step]


@pytest.mark.parametrize("memory", [None, "store", "invert"])
def test_a_sequence_with_a_forward_of_its_own_is_one_layer(memory) -> None:
    """Not its parts, which would be another map."""

    class Twice(FlowSequential):
        def forward(self, x: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
            z, log_det = super().forward(x)
            return super().forward(z)[0], 2 * log_det

        def inverse(self, z: Tensor, context: object = None) -> tuple[Tensor, Tensor]:
            return super().inverse(super().inverse(z)[0])[0], z.new_zeros(len(z))

    layer = Twice([Doubling()])
    x = torch.ones(1, 2)
    flow = Flow(layer, memory=memory)
    torch.testing.assert_close(flow.transform(x)[0], layer(x)[0])


class TestErrors:
    def test_shapes(self) -> None:
        flow = small_flow()
        with raises(ValueError, "x must have shape (N, 1, 4, 4) or (n, B, 1, 4, 4), got (1, 4, 4)"):
            flow.log_prob(torch.zeros(EVENT))
        with raises(ValueError, "x must have shape (N, 1, 4, 4) or (n, B, 1, 4, 4), got (2, 1, 4, 8)"):
            flow.log_prob(torch.zeros(2, 1, 4, 8))
        with raises(TypeError, "x must be a torch.Tensor, got list"):
            flow.log_prob([0.0])  # type: ignore[arg-type]
        with raises(ValueError, "layer 0: Squeeze"):
            Flow([Squeeze()], event_shape=(1, 3, 4))

    @pytest.mark.parametrize("shape", [(), 2, (0, 4), (1, 4.0)], ids=str)
    def test_event_shapes(self, shape) -> None:
        message = f"event_shape must be a shape such as (3, 32, 32), or (2,) for vectors, got {shape!r}"
        with raises(ValueError, message):
            Flow([Squeeze()], event_shape=shape)
        with raises(ValueError, message):
            small_flow().latent_shapes(shape)

    def test_no_shape(self) -> None:
        with raises(
            ValueError, "the flow has no event_shape: give one to Flow(..., event_shape=), or shape= to sample"
        ):
            Flow([Squeeze()]).sample(3)

    @pytest.mark.parametrize("n", [-1, 2.0, True, (3,)], ids=str)
    def test_numbers(self, n) -> None:
        with raises(ValueError, f"n must be a whole number of at least 0, got {n!r}"):
            small_flow().sample(n)

    @pytest.mark.parametrize("temperature", [-0.1, math.nan, math.inf])
    def test_temperatures(self, temperature: float) -> None:
        with raises(ValueError, f"temperature must be finite and at least 0, got {temperature}"):
            small_flow().sample(1, temperature=temperature)

    def test_rows(self) -> None:
        flow, context = contexts()
        with raises(ValueError, "context and y must have as many rows, got 4 and 3"):
            flow.sample(2, context, torch.zeros(3, dtype=torch.long))
        with raises(ValueError, "context must have 15 rows or a divisor of it, got 4"):
            flow.log_prob(torch.zeros(5, 3, 2, 2, 3).double(), context)
        with raises(TypeError, "context must be a torch.Tensor or a SharedContext, got dict"):
            flow.sample(2, {})

    @pytest.mark.parametrize("layer", [AffineCoupling, CheckerboardCoupling, SplineCoupling, AffineInjector])
    @pytest.mark.parametrize("step", [False, True], ids=["layer", "step"])
    def test_contexts_that_networks_would_take(self, layer: type[nn.Module], step: bool) -> None:
        """A network that takes any context is not asked: samples would be wrong."""

        class Takes(nn.Module):
            def forward(self, *inputs: Tensor) -> Tensor:
                outputs = 2 * 23 if layer is SplineCoupling else 4 if layer is AffineCoupling else 8
                return inputs[0].new_zeros(len(inputs[0]), outputs, *inputs[0].shape[2:])

        part = layer(4, Takes(), context_channels=3)
        if step and layer in (AffineCoupling, AffineInjector):
            part = FlowStep(4, **{"coupling" if layer is AffineCoupling else "injector": part})
        flow = Flow([part], event_shape=(4, 2, 3))
        assert flow.sample(2, torch.zeros(5, 3, 2, 3)).shape == (2, 5, 4, 2, 3)
        name = layer.__name__
        with raises(ValueError, f"{name}: context must have 3 channels, got shape (5, 2, 2, 3)"):
            flow.sample(2, torch.zeros(5, 2, 2, 3))
        if layer is not AffineInjector:
            message = f"{name}: context must have the spatial dimensions of the state, (2, 3), got shape (5, 3, 1, 1)"
            with raises(ValueError, message):
                flow.sample(2, torch.zeros(5, 3, 1, 1))
        with raises(ValueError, "context must have a row for each condition, got a tensor without dimensions"):
            flow.sample(2, torch.tensor(1.0))

    def test_labels(self) -> None:
        flow = Flow([Doubling()], ClassNormal(3, (2,)))
        x = torch.zeros(4, 2)
        with raises(ValueError, "ClassNormal: y must be 0 to 2, got 0 to 3"):
            flow.log_prob(x, y=torch.arange(4))
        with raises(TypeError, "ClassNormal: y must be a tensor of integer labels, got torch.float32"):
            flow.log_prob(x, y=torch.zeros(4))
        with raises(ValueError, "y must have 4 rows or a divisor of it, got 3"):
            flow.log_prob(x, y=torch.arange(3))
        with raises(ValueError, "ClassNormal: classes must be at least 1, got 0"):
            ClassNormal(0, (2,))

    @pytest.mark.parametrize("y", [[0, 1], (1, 2), "1"], ids=str)
    def test_labels_in_no_tensor(self, y) -> None:
        flow = Flow([Doubling()], ClassNormal(3, (2,)), event_shape=(2,))
        message = f"y must be a torch.Tensor, or an integer for all samples, got {type(y).__name__}"
        with raises(TypeError, message):
            flow.sample(4, y=y)
        with raises(TypeError, message):
            flow.log_prob(torch.zeros(2, 2), y=y)

    @pytest.mark.parametrize("given", [(), (2, 2), (2, 1), "float"], ids=str)
    def test_densities_of_a_base_of_another_shape(self, given) -> None:
        class Wrong(StandardNormal):
            def log_prob(self, z: Tensor, y: Tensor | None = None) -> Tensor:
                return 0.0 if given == "float" else z.new_zeros(given)  # type: ignore[return-value]

        with raises(ValueError, f"Flow: base, Wrong: log_prob must return shape (2,), one a sample, got {given}"):
            Flow([Doubling()], Wrong()).log_prob(torch.zeros(2, 2))

    def test_complex_samples(self) -> None:
        with raises(TypeError, "x must have a floating-point or an integer dtype, got torch.complex64"):
            Flow([Doubling()]).log_prob(torch.zeros(2, 2, dtype=torch.complex64))

    def test_bases(self) -> None:
        with raises(TypeError, "DiagonalNormal: shape must be that of one latent, such as (2,), got 2"):
            DiagonalNormal(2)  # type: ignore[arg-type]
        with raises(TypeError, "ClassNormal: shape must be that of one latent, such as (2,), got 2"):
            ClassNormal(3, 2)  # type: ignore[arg-type]
        with raises(TypeError, "Flow: base, Linear, has no log_prob method"):
            Flow([Doubling()], nn.Linear(2, 2))
        with raises(ValueError, "DiagonalNormal: latents must have shape (B, *(3, 1, 1)) or broadcast to it"):
            Flow([Doubling()], DiagonalNormal((3, 1, 1))).log_prob(torch.zeros(2, 4, 2, 2))

    def test_layers(self) -> None:
        with raises(TypeError, "FlowSequential: layer 0, ReLU, has no inverse method"):
            Flow([nn.ReLU()])
        flow = Flow([Cut(4, 1, 1), Doubling()], event_shape=(4, 2, 2))
        assert flow.latent_shapes() == [(1, 2, 2), (1, 2, 2), (2, 2, 2)]
        assert flow.sample(2).shape == (2, 4, 2, 2)
