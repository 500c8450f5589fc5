"""Dequantisation and logit: exact inverses, densities of the noise, bounds."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor, nn

from invflow import (
    AffineInjector,
    Flow,
    FlowSequential,
    FlowStep,
    Logit,
    Squeeze,
    UniformDequantization,
    VariationalDequantization,
    ZeroConv2d,
)
from invflow.layers import condition
from invflow.layers.conditioning import takes_shared
from invflow.testing import assert_invertible, assert_log_det

DTYPES = [torch.float64, torch.float32]


def raises(error: type[Exception], message: str):
    return pytest.raises(error, match=re.escape(message))


def values(count: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randint(count, shape, generator=torch.Generator().manual_seed(2)).to(dtype)


def variational(count: int, channels: int = 1) -> VariationalDequantization:
    layer = AffineInjector(channels, ZeroConv2d, context_channels=channels)
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return VariationalDequantization(count, layer).double()


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4), (2, 1, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_uniform_noise_is_added_and_rounded_away(shape, dtype: torch.dtype) -> None:
    layer, x = UniformDequantization(17), values(17, 6, *shape, dtype=dtype)
    z, log_det = layer(x)
    noise = 17 * z - x
    assert z.dtype == log_det.dtype == dtype
    assert noise.min() > -1e-5
    assert noise.max() < 1 + 1e-5
    torch.testing.assert_close(log_det, torch.full((6,), -math.prod(shape) * math.log(17), dtype=dtype))
    back, inverse_log_det = layer.inverse(z)
    assert torch.equal(back, x)
    torch.testing.assert_close(inverse_log_det, -log_det)
    assert not torch.equal(layer(x)[0], z)
    assert layer.output_shapes(shape) == [shape]


@pytest.mark.parametrize(("count", "dtype"), [(65536, torch.float32), (256, torch.float32), (17, torch.float16)])
def test_no_noise_rounds_to_another_value(count: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = UniformDequantization(count), torch.arange(count, dtype=torch.float64)[:, None].to(dtype)
    for noise in (0.0, 1.0):
        monkeypatch.setattr(torch, "rand_like", lambda x, noise=noise: torch.full_like(x, noise))
        assert torch.equal(layer.inverse(layer(x)[0])[0], x)


def test_noise_is_uniform() -> None:
    torch.manual_seed(0)
    z, _ = UniformDequantization(2)(torch.ones(20000, 1))
    noise = 2 * z - 1
    assert noise.mean().item() == pytest.approx(0.5, abs=0.01)
    assert noise.var().item() == pytest.approx(1 / 12, abs=0.003)


def test_integers_become_floating() -> None:
    x = torch.tensor([[0, 255]], dtype=torch.uint8)
    z, _ = UniformDequantization()(x)
    assert z.dtype == torch.float32
    assert torch.equal(UniformDequantization().inverse(z)[0], x.float())


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int16, torch.uint16, torch.uint32, torch.uint64, torch.bool], ids=str
)
def test_every_integer_dtype(dtype: torch.dtype) -> None:
    x = values(2, 3, 4, dtype=torch.int64)
    z, _ = UniformDequantization(2)(x.to(dtype))
    assert torch.equal(UniformDequantization(2).inverse(z)[0], x.float())


@pytest.mark.parametrize("layer", [UniformDequantization(16), Logit(0.4)], ids=["dequantisation", "logit"])
def test_one_graph_of_a_compiler(layer: nn.Module) -> None:
    x = torch.tensor([[0.0, 1.0]])
    z, log_det = torch.compile(layer, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(layer.inverse(z)[0], x)
    torch.testing.assert_close(log_det, layer(x)[1])


def test_states_out_of_range_become_the_nearest_value() -> None:
    x, _ = UniformDequantization(4).inverse(torch.tensor([[-3.0, 0.0, 0.3, 1.0, 7.0]]))
    assert x.tolist() == [[0.0, 0.0, 1.0, 3.0, 3.0]]


@pytest.mark.parametrize("build", [UniformDequantization, variational])
def test_the_inverse_undoes_what_forward_did(build) -> None:
    layer = build(8)
    assert_invertible(layer, values(8, 3, 1, 4, 2), atol=1e-9)
    assert_invertible(FlowSequential([layer, Squeeze(), FlowStep(4)]).double(), values(8, 3, 1, 4, 2), atol=1e-9)


@pytest.mark.parametrize("layer", [UniformDequantization(8), variational(8), Logit()], ids=lambda x: type(x).__name__)
def test_a_conditioned_inverse_needs_no_context(layer: nn.Module) -> None:
    z = torch.rand(3, 1, 2, 2).double()
    assert torch.equal(condition(layer, None)(z, slice(0, 3)), layer.inverse(z)[0])  # type: ignore[arg-type]
    assert takes_shared(layer)


def test_the_density_of_variational_noise_is_one() -> None:
    """log_det is -D log K - log q(u | x). Over a grid of u, q sums up to 1."""
    layer, count = variational(8), 4000
    noise = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    for value in (0.0, 3.0, 7.0):
        z = ((value + noise) / 8).view(-1, 1, 1, 1)
        x, log_det = layer.inverse(z)
        assert (x == value).all()
        assert (log_det - math.log(8)).exp().mean().item() == pytest.approx(1, abs=1e-3)


def test_variational_log_det_is_that_of_its_noise() -> None:
    layer, x = variational(8, 2), values(8, 4, 2, 3, 2)
    torch.manual_seed(1)
    z, log_det = layer(x)
    torch.manual_seed(1)
    epsilon = torch.randn_like(x)
    v, flow_log_det = layer.flow(epsilon, 2 * (x + 0.5) / 8 - 1)
    torch.testing.assert_close(z, (x + v.sigmoid()) / 8)
    density = torch.distributions.Normal(0, 1).log_prob(epsilon) - torch.log(v.sigmoid() * (1 - v.sigmoid()))
    torch.testing.assert_close(log_det, -12 * math.log(8) - density.sum((1, 2, 3)) + flow_log_det)


def test_dequantisation_bounds_the_probability() -> None:
    """Two values of known probability: the mean log-density is below its logarithm, and less so after training."""
    chances = torch.tensor([0.3, 0.7])
    layers = [VariationalDequantization(2, AffineInjector(1, ZeroConv2d, context_channels=1)), Logit(0.01), FlowStep(1)]
    flow = Flow(layers, event_shape=(1, 1, 1))
    torch.manual_seed(0)
    x = torch.multinomial(chances, 256, replacement=True).float().view(-1, 1, 1, 1)
    entropy = -(chances * chances.log2()).sum().item()
    optimizer, found = torch.optim.Adam(flow.parameters(), lr=0.1), []
    for _ in range(30):
        loss = flow.bits_per_dim(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert min(found) > entropy - 0.1
    assert sum(found[-5:]) < sum(found[:5]) - 0.5


def test_memory_invert_stores_the_variational_layer() -> None:
    found = []
    for memory in ("store", "invert"):
        torch.manual_seed(1)
        flow = FlowSequential([variational(4), Squeeze(), FlowStep(4), FlowStep(4)], memory=memory).double().eval()
        x = values(4, 2, 1, 4, 4)
        if memory == "store":
            z, log_det = flow(x)
        else:
            with pytest.warns(UserWarning, match=r"layer 0: it draws random numbers"):
                z, log_det = flow(x)
        found.append(torch.autograd.grad(z.square().sum() + log_det.sum(), list(flow.parameters())))
    torch.testing.assert_close(*found)


def test_variational_networks_are_trained() -> None:
    layer = variational(4)
    z, log_det = layer(values(4, 2, 1, 2, 2))
    (z.square().sum() + log_det.sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in layer.parameters())


def test_dequantisation_needs_whole_numbers_in_range() -> None:
    layer = UniformDequantization(16)
    advice = "for images in [0, 1], pass (x * 15).round()"
    with raises(ValueError, f"UniformDequantization: x must hold values 0 to 15, got 0.0 to 16.0; {advice}"):
        layer(torch.arange(17.0)[None])
    with raises(ValueError, "x must hold values 0 to 15, got -1 to 3"):
        layer(torch.arange(-1, 4)[None])
    with raises(ValueError, f"UniformDequantization: x must hold whole numbers 0 to 15, got fractions; {advice}"):
        layer(torch.rand(2, 3))
    with raises(ValueError, "x must hold values 0 to 15, got nan to nan"):
        layer(torch.tensor([[math.nan, 1.0]]))
    with raises(TypeError, "UniformDequantization: torch.bfloat16 has too few digits for 16 values: use float32"):
        layer(torch.zeros(1, 2, dtype=torch.bfloat16))
    with raises(TypeError, "x must have an integer or a floating-point dtype, got torch.complex64"):
        layer(torch.zeros(1, 2, dtype=torch.complex64))
    with raises(TypeError, "UniformDequantization: x must be a torch.Tensor, got list"):
        layer([1, 2])  # type: ignore[arg-type]
    for count in (1, 65537):
        with raises(ValueError, f"UniformDequantization: values must be between 2 and 65536, got {count}"):
            UniformDequantization(count)


@pytest.mark.parametrize(("given", "name"), [(16.5, "16.5"), (True, "True"), (nn.Identity(), "Identity")], ids=str)
def test_values_that_are_no_number_of_values(given, name: str) -> None:
    with raises(TypeError, f"UniformDequantization: values must be a whole number, got {name}"):
        UniformDequantization(given)


def test_flows_that_cannot_make_noise() -> None:
    with raises(TypeError, "VariationalDequantization: flow, Conv2d, has no inverse method"):
        VariationalDequantization(4, nn.Conv2d(1, 1, 1))
    with raises(ValueError, "VariationalDequantization: flow must return shape (2, 1, 4, 4), got (2, 4, 2, 2)"):
        VariationalDequantization(4, Squeeze())(torch.zeros(2, 1, 4, 4))


class TestLogit:
    @pytest.mark.parametrize("alpha", [0.0, 1e-6, 0.05])
    @pytest.mark.parametrize("shape", [(4,), (2, 3), (1, 2, 2)], ids=str)
    def test_log_det(self, alpha: float, shape) -> None:
        layer, x = Logit(alpha), 0.01 + 0.98 * torch.rand(3, *shape, dtype=torch.float64)
        z, log_det = layer(x)
        torch.testing.assert_close(z, torch.logit(alpha + (1 - 2 * alpha) * x))
        back, inverse_log_det = layer.inverse(z)
        torch.testing.assert_close(back, x)
        torch.testing.assert_close(inverse_log_det, -log_det)
        assert layer.output_shapes(shape) == [shape]

    def test_the_jacobian(self) -> None:
        assert_log_det(Logit(0.05), torch.rand(2, 1, 2, 3, dtype=torch.float64))
        assert_invertible(Logit(0.05), torch.rand(2, 1, 2, 3, dtype=torch.float64))

    def test_half_states_are_computed_in_float32(self) -> None:
        x = torch.rand(2, 50).half()
        z, log_det = Logit()(x)
        expected, expected_log_det = Logit()(x.double())
        assert z.dtype == torch.float16
        assert log_det.dtype == torch.float32
        torch.testing.assert_close(z.double(), expected, atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(log_det.double(), expected_log_det, atol=1e-3, rtol=1e-5)

    def test_errors(self) -> None:
        with raises(ValueError, "Logit: alpha must be at least 0 and below 0.5, got 0.5"):
            Logit(0.5)
        with raises(ValueError, "Logit: alpha + (1 - 2 alpha) x must be between 0 and 1, got 0.05 to 1.85; scale x"):
            Logit()(torch.tensor([[0.0, 2.0]]))
        with raises(ValueError, "must be between 0 and 1, got 0 to 0.5"):
            Logit(0.0)(torch.tensor([[0.0, 0.5]]))
        with raises(TypeError, "Logit: x must have a floating-point dtype, got torch.int64"):
            Logit()(torch.tensor([[0, 1]]))
