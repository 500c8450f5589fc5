"""The inverse and determinant of a 1x1 convolution's weight: right, differentiable, computed once for every value."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.utils.prune
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


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_only_values_that_can_be_compared_are_kept(device: str) -> None:
    cache, tensor, calls = _derived.ValueCache(), torch.ones(2, device=device), []
    for _ in range(2):
        cache([tensor], lambda: calls.append(1))
    assert len(calls) == (1 if device == "cpu" else 2)


def test_values_that_change_while_they_are_read_are_not_kept() -> None:
    cache, tensor = _derived.ValueCache(), torch.ones(2)

    def other_thread_writes() -> Tensor:
        tensor.data.mul_(2)
        return tensor.clone()

    cache([tensor], other_thread_writes)
    tensor.data.fill_(1)
    assert torch.equal(cache([tensor], tensor.clone), tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("conv", [InvertibleConv1x1, InvertibleConv1x1LU])
def test_nobody_is_given_what_a_cache_holds(conv: type, dtype: torch.dtype) -> None:
    layer, z = conv(3).to(dtype), torch.randn(2, 3, 2, 2, dtype=dtype)
    with torch.no_grad():
        expected, weights = layer.inverse(z), copy.deepcopy(layer.state_dict())
        for inverse in (False, True):
            found = layer.channel_map(None, None, torch.float64, inverse=inverse)
            for tensor in (found.matrix, found.shift, found.log_abs_det):
                tensor.add_(1)
        for tensor in (layer.inverse_matrix(), layer.matrix()):
            tensor.mul_(2)
        if conv is InvertibleConv1x1:
            layer.log_abs_det().add_(1)
        torch.testing.assert_close(layer.inverse(z), expected, rtol=0, atol=0)
    torch.testing.assert_close(dict(layer.state_dict()), dict(weights), rtol=0, atol=0)


def weight_normed(conv: InvertibleConv1x1) -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        torch.nn.utils.weight_norm(conv, "weight")


def spectral_normed(conv: InvertibleConv1x1) -> None:
    torch.nn.utils.spectral_norm(conv, "weight")
    conv(torch.randn(1, conv.channels, 1, 1))  # its first estimate of the norm is drawn at random


def pruned(conv: InvertibleConv1x1) -> None:
    torch.nn.utils.prune.custom_from_mask(
        conv, "weight", mask=torch.eye(conv.channels) + torch.eye(conv.channels).roll(1, 0)
    )


def upper_pruned(conv: InvertibleConv1x1LU) -> None:
    torch.nn.utils.prune.l1_unstructured(conv, "upper", amount=2)


@pytest.mark.parametrize("compute", [weight_normed, spectral_normed, pruned, upper_pruned])
@pytest.mark.parametrize("in_step", [False, True], ids=["alone", "in a step"])
def test_a_weight_that_a_hook_computes_is_followed(compute: Callable, in_step: bool) -> None:
    conv = (InvertibleConv1x1LU if compute is upper_pruned else InvertibleConv1x1)(5)
    layer = FlowStep(5, conv1x1=conv) if in_step else conv
    x = torch.randn(3, 5, 4, 4)
    layer(x)
    compute(conv)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    for call in (layer, layer.inverse, layer):
        optimizer.zero_grad()
        z, log_det = call(x)
        (z.square().mean() - log_det.mean() / 80).backward()
        assert all(parameter.grad.any() for parameter in conv.parameters())
        optimizer.step()
        with torch.no_grad():
            back, inverse_log_det = layer.inverse(x)  # before any forward pass runs the hook
            layer.eval()
            z, log_det = layer(back)
            layer.train()
        torch.testing.assert_close(z, x, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(log_det, -inverse_log_det, rtol=1e-4, atol=1e-4)


def test_a_subclass_that_makes_its_own_matrix_is_consistent() -> None:
    class Scaled(InvertibleConv1x1):
        factor = 2.0

        def matrix(self) -> Tensor:
            return self.factor * self.weight.double()

    step, x = FlowStep(4, conv1x1=Scaled(4)).eval(), torch.randn(2, 4, 3, 3)
    with torch.no_grad():
        for factor in (2.0, 3.0):
            step.conv1x1.factor = factor
            z, log_det = step(x)
            torch.testing.assert_close(log_det, torch.full((2,), 9 * 4.0 * torch.tensor(factor).log().item()))
            torch.testing.assert_close(step.inverse(z)[0], x)


def test_a_state_of_another_size_meanwhile_does_not_change_a_log_determinant() -> None:
    class Scalar:
        """Lets another thread ask for another size while the first multiplies."""

        def __rmul__(self, pixels: int) -> Tensor:
            result = torch.tensor(float(pixels))
            if pixels == 4:
                found.log_det(torch.empty(1, 1, 3, 3))
            return result

    found = _derived.ChannelMap(torch.eye(1), torch.zeros(1), Scalar())  # type: ignore[arg-type]
    assert found.log_det(torch.empty(1, 1, 2, 2)).item() == 4
    assert found.log_det(torch.empty(1, 1, 3, 3)).item() == 9
