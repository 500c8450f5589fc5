"""Channel maps that a flow derives together: those that every step derives alone, on the CPU and as on a GPU."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

import invflow
import invflow.layers._derived
import invflow.layers._together
from invflow import AffineCoupling, FlowSequential, FlowStep, InvertibleConv1x1LU, Squeeze
from invflow.layers import FactorStore, _group, _late, _together


class Net(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return 0.1 * self.conv(x)


def step(channels: int, **settings: nn.Module) -> FlowStep:
    made = FlowStep(
        channels, coupling=AffineCoupling(channels, Net(channels // 2, 2 * (channels - channels // 2))), **settings
    )
    with torch.no_grad():
        made.actnorm.bias.normal_(std=0.1)
        made.actnorm.log_scale.normal_(std=0.1)
        made.actnorm.mark_initialized()
    return made


def flow(memory: str = "store", dtype: torch.dtype = torch.float64) -> FlowSequential:
    torch.manual_seed(0)
    inner = FlowSequential([step(12), step(12), step(12, conv1x1=InvertibleConv1x1LU(12))])
    return FlowSequential([step(3), step(3), Squeeze(), inner, step(12), step(12)], memory=memory).to(dtype)


def alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FlowStep, "map_sources", lambda step: None)


@pytest.fixture(params=["cpu", "as on a GPU"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let the layers believe that looking at a value would wait."""
    if request.param != "cpu":
        for module in (invflow.layers._derived, invflow.layers._together):
            monkeypatch.setattr(module, "reads_freely", lambda tensor: False)
    return request.param


def results(model: FlowSequential, inverse: bool) -> list[Tensor]:
    model.zero_grad()
    x = torch.randn(2, 12, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = (x if inverse else nn.functional.pixel_shuffle(x, 2)).requires_grad_()
    z, log_det = (model.inverse if inverse else model)(x)
    (z.sin().sum() + log_det.square().sum()).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    return [z, log_det, x.grad, *gradients]


@pytest.mark.parametrize("memory", ["store", "invert"])
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_values_and_gradients(device: str, memory: str, inverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = flow(memory)
    together = results(model, inverse)
    with monkeypatch.context() as patch:
        alone(patch)
        expected = results(model, inverse)
    torch.testing.assert_close(together, expected, rtol=1e-10, atol=1e-10)


def factorizations(patch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    seen: list[tuple[int, ...]] = []
    factorize = _group.factorize

    def counted(weight: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(tuple(weight.shape))
        return factorize(weight)

    for module in (invflow.layers._derived, _group):
        patch.setattr(module, "factorize", counted)
    return seen


@pytest.mark.parametrize("memory", ["store", "invert"])
def test_one_factorisation_for_a_size(device: str, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = factorizations(monkeypatch)
    results(flow(memory), inverse=False)
    assert sorted(seen) == [(2, 3, 3), (4, 12, 12)]


def test_inference_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = flow().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        z, log_det = model(x)
        for module in (invflow.layers._derived, _together):
            monkeypatch.setattr(module, "reads_freely", lambda tensor: False)
        seen = factorizations(monkeypatch)
        torch.testing.assert_close(model(x), (z, log_det))
        torch.testing.assert_close(model.inverse(z), (x, -log_det))
    assert sorted(seen) == [(2, 3, 3), (2, 3, 3), (4, 12, 12), (4, 12, 12)]


def test_double_backward(device: str) -> None:
    model, x = flow(), torch.randn(1, 3, 2, 2, dtype=torch.float64)
    weight = model[0].conv1x1.weight

    def second() -> Tensor:
        z, log_det = model(x)
        (first,) = torch.autograd.grad(z.sin().sum() + log_det.sum(), weight, create_graph=True)
        return torch.autograd.grad(first.square().sum(), weight)[0]

    together = second()
    with pytest.MonkeyPatch.context() as patch:
        alone(patch)
        torch.testing.assert_close(together, second(), rtol=1e-9, atol=1e-9)


def test_an_actnorm_that_initialises_is_derived_after_that() -> None:
    model = flow()
    fresh = FlowStep(3).double()
    model.layers[1] = fresh
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    first = model(x)
    assert fresh.actnorm.initialized
    torch.testing.assert_close(model(x), first)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("shape", [(300, 12), (4, 12, 5, 5)], ids=["vectors", "images"])
@pytest.mark.parametrize("initialised", [0, 2], ids=["fresh", "with a fresh end"])
def test_a_first_batch_learns(device: str, initialised: int, shape: tuple[int, ...], backend: str) -> None:
    """The maps of earlier steps are derived before the last one initialises."""
    model, x = FlowSequential([FlowStep(12) for _ in range(4)]).double(), 3 + 2 * torch.randn(shape).double()
    with invflow.use_backend(backend):
        for layer in list(model)[:initialised]:
            layer(x)
        z, log_det = model(x)
        gradients = torch.autograd.grad(z.square().sum() - log_det.sum(), list(model.parameters()))
        z, log_det = model(x)
        expected = torch.autograd.grad(z.square().sum() - log_det.sum(), list(model.parameters()))
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("memory", ["store", "invert"])
def test_an_actnorm_of_several_steps_initialises_for_all(device: str, memory: str) -> None:
    fresh = FlowStep(3).double()
    others = [FlowStep(3).double() for _ in range(2)]
    for each in others:
        each.actnorm = fresh.actnorm
    model = FlowSequential([fresh, *others], memory=memory)
    x = 3 + torch.randn(4, 3, 8, 8, dtype=torch.float64)
    first = model(x)
    torch.testing.assert_close(model(x), first)
    assert not model(x)[0].equal(x)


def test_an_actnorm_that_stands_before_its_step(device: str) -> None:
    steps = [FlowStep(3).double(), FlowStep(3).double()]
    model = FlowSequential([steps[1].actnorm, *steps])
    x = 3 + torch.randn(4, 3, 8, 8, dtype=torch.float64)
    first = model(x)
    torch.testing.assert_close(model(x), first)


def test_parameters_that_a_layer_writes_to_in_the_call(device: str) -> None:
    model, x = flow(), torch.randn(1, 3, 4, 4, dtype=torch.float64)

    class Writing(nn.Module):
        def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                model[5].conv1x1.weight.mul_(2)
                model[6].actnorm.bias.add_(1)
            return x, x.new_zeros(len(x))

        inverse = forward

    expected, _ = model(x)
    model.layers.insert(3, Writing())
    z, _ = model(x)
    model.layers.pop(3)
    torch.testing.assert_close(z, model(x)[0])
    assert not torch.allclose(z, expected)


def test_parameters_that_change_between_calls(device: str) -> None:
    model, x = flow(), torch.randn(1, 3, 4, 4, dtype=torch.float64)
    for _ in range(2):
        z, log_det = model(x)
        with pytest.MonkeyPatch.context() as patch:
            alone(patch)
            torch.testing.assert_close((z, log_det), model(x))
        for parameter in model.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))


@contextmanager
def broken(model: FlowSequential, value: float) -> Iterator[None]:
    weight = model[3][1].conv1x1.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[1] = value
    yield
    with torch.no_grad():
        weight.copy_(kept)


@pytest.mark.parametrize(("value", "problem"), [(0.0, "singular"), (torch.nan, "not finite")])
@pytest.mark.parametrize("memory", ["store", "invert"])
def test_a_weight_without_inverse_on_the_cpu(value: float, problem: str, memory: str) -> None:
    model = flow(memory)
    for call, channels in ((model, 3), (model.inverse, 12)):
        with (
            broken(model, value),
            pytest.raises(ValueError, match=f"layer 3: layer 1: InvertibleConv1x1 with 12 .*: weight is {problem}"),
        ):
            call(torch.randn(1, channels, 4, 4, dtype=torch.float64))
        call(torch.randn(1, channels, 4, 4, dtype=torch.float64))


def as_on_a_gpu(patch: pytest.MonkeyPatch) -> None:
    for module in (invflow.layers._derived, _together):
        patch.setattr(module, "reads_freely", lambda tensor: False)


@pytest.mark.parametrize(("value", "problem"), [(0.0, "singular"), (torch.nan, "not finite")])
@pytest.mark.parametrize("look", ["next call", "waiting"])
def test_a_weight_without_inverse_where_looking_would_wait(
    value: float, problem: str, look: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_a_gpu(monkeypatch)
    model, x = flow(), torch.randn(1, 3, 4, 4, dtype=torch.float64)
    later: Callable[[], object] = (lambda: model(x)) if look == "next call" else lambda: _late.look_at_weights(model)
    with broken(model, value):
        _, log_det = model(x)
        assert not log_det.isfinite().any()
        with pytest.raises(
            _late.UnusableWeightError,
            match=f"^layer 3: layer 1: InvertibleConv1x1 with 12 channels: weight is {problem}",
        ):
            later()
    later()
    assert model(x)[1].isfinite().all()
    _late.look_at_weights(model)


def test_a_single_layer_without_inverse_where_looking_would_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_gpu(monkeypatch)
    layer, x = step(3), torch.randn(1, 3, 4, 4)
    with torch.no_grad():
        layer.conv1x1.weight.zero_()
    assert not layer(x)[1].isfinite().any()
    with pytest.raises(_late.UnusableWeightError, match=r"^InvertibleConv1x1 with 3 channels: weight is singular"):
        layer(x)


def test_copies_keep_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_gpu(monkeypatch)
    model = flow()
    with broken(model, 0.0):
        model(torch.randn(1, 3, 4, 4, dtype=torch.float64))
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            _late.look_at_weights(copied)


def test_a_nested_flow_that_inverts_reconstructs(recwarn: pytest.WarningsRecorder) -> None:
    model = flow()
    model[3].memory = "invert"
    assert all(value is not None for value in results(model, inverse=False)[3:])
    assert not [warning for warning in recwarn if "memory='invert'" in str(warning.message)]


def test_a_store_keeps_factors_in_place(device: str) -> None:
    model, x, store = flow(), torch.randn(1, 3, 4, 4, dtype=torch.float64), FactorStore()
    assert FactorStore.serves(FlowSequential([step(3), step(3)]))
    assert not FactorStore.serves(model)  # one of its steps has a weight made of others
    with store:
        torch.testing.assert_close(model(x), flow()(x))
    kept = {key: [tensor.data_ptr() for tensor in given[1:]] for key, given in store._kept.items()}
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    store.refresh()
    for weights, inverse, log_abs_det in store._kept.values():
        exact = torch.stack(weights).detach()
        torch.testing.assert_close(inverse, torch.linalg.inv(exact))
        torch.testing.assert_close(log_abs_det, torch.linalg.slogdet(exact).logabsdet)
    with store:
        inside = model(x)
        inside[1].sum().backward()
    assert not any(tensor.requires_grad for given in store._kept.values() for tensor in given[1:])
    torch.testing.assert_close(inside, model(x))
    assert kept == {key: [tensor.data_ptr() for tensor in given[1:]] for key, given in store._kept.items()}
