"""The inverse and determinant of a 1x1 convolution's weight: right, differentiable, computed once for every value."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from invflow import FlowSequential, FlowStep, InvertibleConv1x1, InvertibleConv1x1LU, Squeeze
from invflow.layers import _derived


@pytest.fixture
def factorizations(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The weights that have been factorised since the test began."""
    seen: list[Tensor] = []
    factorize = _derived._factorize

    def counted(weight: Tensor, owner: object) -> object:
        seen.append(weight.detach().clone())
        return factorize(weight, owner)

    monkeypatch.setattr(_derived, "_factorize", counted)
    return seen


def inverse_and_log_abs_det(layer: InvertibleConv1x1) -> tuple[Tensor, Tensor]:
    return layer.inverse_matrix(), layer.log_abs_det()


def assert_right(layer: InvertibleConv1x1) -> None:
    exact = layer.weight.detach().double()
    inverse, log_abs_det = inverse_and_log_abs_det(layer)
    torch.testing.assert_close(inverse.detach(), torch.linalg.inv(exact), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(log_abs_det.detach(), torch.linalg.slogdet(exact).logabsdet, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 2, 12, 33])
def test_values(channels: int) -> None:
    layer = InvertibleConv1x1(channels)
    with torch.no_grad():
        layer.weight.add_(0.2 * torch.randn(channels, channels) / channels)
    assert_right(layer)


def test_computed_once_for_all_calls(factorizations: list[Tensor]) -> None:
    step = FlowStep(6)
    x = torch.randn(2, 6, 3, 3)
    for _ in range(3):
        z, _ = step(x)
        step.inverse(z)
    with torch.no_grad():
        step.inverse(z)
    assert len(factorizations) == 1


def optimizer_step(layer: InvertibleConv1x1) -> None:
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    layer.weight.grad = torch.randn_like(layer.weight)
    optimizer.step()


def edit_through_data(layer: InvertibleConv1x1) -> None:
    layer.weight.data.mul_(1.5)


def load(layer: InvertibleConv1x1) -> None:
    layer.load_state_dict(InvertibleConv1x1(5).state_dict())


def replace(layer: InvertibleConv1x1) -> None:
    layer.weight = torch.nn.Parameter(2 * layer.weight.detach())


def to_double_and_back(layer: InvertibleConv1x1) -> None:
    layer.double()
    assert_right(layer)
    layer.float()


@pytest.mark.parametrize("change", [optimizer_step, edit_through_data, load, replace, to_double_and_back])
def test_recomputed_after_every_kind_of_change(change: Callable, factorizations: list[Tensor]) -> None:
    layer = InvertibleConv1x1(5)
    assert_right(layer)
    change(layer)
    assert_right(layer)
    assert len(factorizations) >= 2


def test_gradients() -> None:
    weight = torch.randn(4, 4, dtype=torch.float64) + 2 * torch.eye(4, dtype=torch.float64)
    layer = InvertibleConv1x1(4).double()
    layer.weight = torch.nn.Parameter(weight)
    g = torch.randn(4, 4, dtype=torch.float64)

    def objective(inverse: Tensor, log_abs_det: Tensor) -> Tensor:
        return (g * inverse).sum() + 3 * log_abs_det

    (actual,) = torch.autograd.grad(objective(*inverse_and_log_abs_det(layer)), layer.weight, create_graph=True)
    exact = weight.clone().requires_grad_()
    value = objective(torch.linalg.inv(exact), torch.linalg.slogdet(exact).logabsdet)
    (expected,) = torch.autograd.grad(value, exact, create_graph=True)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    (actual_second,) = torch.autograd.grad(actual.square().sum(), layer.weight)
    (expected_second,) = torch.autograd.grad(expected.square().sum(), exact)
    torch.testing.assert_close(actual_second, expected_second, rtol=1e-9, atol=1e-10)


def test_a_training_call_leaves_the_cache_without_a_graph() -> None:
    layer = InvertibleConv1x1(3)
    assert layer.log_abs_det().requires_grad
    with torch.no_grad():
        assert not layer.log_abs_det().requires_grad
    layer.requires_grad_(False)
    assert not layer.inverse_matrix().requires_grad


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_are_independent(duplicate: Callable) -> None:
    layer = InvertibleConv1x1(3)
    assert_right(layer)
    other = duplicate(layer)
    assert other._factorization._entry is None
    edit_through_data(other)
    assert_right(other)
    assert_right(layer)


@pytest.mark.parametrize(
    ("value", "problem"), [(0.0, "singular"), (float("nan"), "not finite"), (float("inf"), "not finite")]
)
def test_a_weight_without_inverse_names_the_layer(value: float, problem: str) -> None:
    layer = InvertibleConv1x1(3)
    with torch.no_grad():
        layer.weight[1] = value
    x = torch.randn(1, 3, 2, 2)
    for call in (layer, layer.inverse):
        with pytest.raises(ValueError, match=f"InvertibleConv1x1 with 3 channels: weight is {problem}"):
            call(x)


def test_a_sequence_names_the_position_of_the_layer() -> None:
    flow = FlowSequential([FlowStep(3), FlowSequential([Squeeze(), FlowStep(12)])])
    with torch.no_grad():
        flow[1][1].conv1x1.weight.zero_()
    for call in (flow, flow.inverse):
        with pytest.raises(
            ValueError, match="layer 1: layer 1: InvertibleConv1x1 with 12 channels: weight is singular"
        ):
            call(torch.randn(1, 12 if call is not flow else 3, 2, 2))


@pytest.mark.parametrize("conv", [InvertibleConv1x1, InvertibleConv1x1LU])
@pytest.mark.parametrize("inverse", [False, True])
def test_a_step_follows_every_change_of_its_parameters(conv: type, inverse: bool) -> None:
    step = FlowStep(5, conv1x1=conv(5)).eval()
    x = torch.randn(2, 5, 3, 3)
    call = step.inverse if inverse else step
    for name, parameter in step.named_parameters():
        with torch.no_grad():
            call(x)
            parameter.data.add_(0.1 * torch.rand_like(parameter))
            remembered = call(x)
        torch.testing.assert_close(remembered, call(x), msg=lambda text, name=name: f"{name}: {text}")
        with torch.no_grad():
            torch.testing.assert_close(call(x.double())[0].float(), remembered[0])


def test_a_step_follows_a_weight_that_is_made_of_other_parameters() -> None:
    step = FlowStep(4).eval()
    torch.nn.utils.parametrizations.orthogonal(step.conv1x1, "weight")
    x = torch.randn(2, 4, 3, 3)
    with torch.no_grad():
        step(x)
        for parameter in step.conv1x1.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        exact = torch.einsum("oc,bchw->bohw", step.conv1x1.weight, x)
        torch.testing.assert_close(step(x)[0], exact)
        torch.testing.assert_close(step.inverse(exact)[0], x)


def test_training_goes_on_after_inference_mode() -> None:
    layer = InvertibleConv1x1(3)
    x = torch.randn(1, 3, 2, 2)
    with torch.inference_mode():
        layer.inverse(x)
    layer(x)[1].sum().backward()
    expected = 4 * torch.linalg.inv(layer.weight.detach().double()).T
    torch.testing.assert_close(layer.weight.grad, expected.float())


def test_a_step_first_called_in_inference_mode_or_under_a_fake_mode_can_be_trained():
    step = FlowStep(4).eval()
    x = torch.randn(2, 4, 3, 3)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        step(mode.from_tensor(x))
    with torch.inference_mode():
        step(x)
    frozen = step.requires_grad_(False)(x.requires_grad_())
    (frozen[0].sum() + frozen[1].sum()).backward()
    trained = step.requires_grad_(True)(x)
    (trained[0].sum() + trained[1].sum()).backward()
    torch.testing.assert_close(trained, frozen)
