"""Forms by their formulas: every scale, additive couplings, volume-preserving ones, and what their networks return."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from layer_cases import ADDITIVE, VOLUME_PRESERVING, coupling, injector
from torch import Tensor
from under_test import each_kernels

from invflow import (
    AffineCoupling,
    AffineForm,
    AffineInjector,
    CheckerboardCoupling,
    FlowStep,
    affine_coupling,
    flow_step,
)
from invflow.testing import assert_invertible, assert_log_det

FORMULAS: dict[str, tuple[AffineForm, Callable[[float], float]]] = {
    "sigmoid": (AffineForm(eps=0.01), lambda r: math.log(1 / (1 + math.exp(-r - 2)) + 0.01)),
    "exp": (AffineForm("exp"), lambda r: r),
    "a tanh(r / a)": (AffineForm("bounded_exp", bound=3.0), lambda r: 3 * math.tanh(r / 3)),
    "a tanh(r)": (AffineForm("tanh_exp", bound=3.0), lambda r: 3 * math.tanh(r)),
    "0.636 a atan(r / a)": (AffineForm("bounded_atan_exp", bound=3.0), lambda r: 3 * 0.636 * math.atan(r / 3)),
    "0.318 atan(2 r)": (AffineForm("bounded_atan_exp", bound=0.5), lambda r: 0.318 * math.atan(2 * r)),
    "0.636 a atan(r)": (AffineForm("atan_exp", bound=3.0), lambda r: 3 * 0.636 * math.atan(r)),
}


def tensors(kernels: object, *channels: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, c, 3, 7, generator=generator).to(kernels.device) for c in channels]


@each_kernels
@pytest.mark.parametrize("name", FORMULAS)
def test_every_scale_is_its_formula(name: str, kernels) -> None:
    form, log_scale = FORMULAS[name]
    raw = torch.linspace(-9, 9, 41, dtype=torch.float64, device=kernels.device).view(41, 1, 1, 1)
    expected = torch.tensor([log_scale(r) for r in raw.flatten().tolist()], dtype=torch.float64)
    h = torch.cat([torch.zeros_like(raw), raw], 1)
    for backend in (kernels.backend, "reference"):
        y, log_det = affine_coupling(torch.ones_like(raw), h, form, backend=backend)
        torch.testing.assert_close(log_det.cpu(), expected, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(y.flatten().cpu(), expected.exp(), rtol=1e-12, atol=0)


@each_kernels
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("order", ["shift_then_scale", "scale_then_shift"])
@pytest.mark.parametrize("packing", ["cross", "split"])
def test_additive_maps_take_as_many_channels_as_they_transform(packing, order, inverse: bool, kernels) -> None:
    x, h = tensors(kernels, 5, 3)
    y, log_det = affine_coupling(
        x, h, AffineForm("none", order=order, packing=packing), start=1, inverse=inverse, backend=kernels.backend
    )
    expected = x.clone()
    expected[:, 1:4] += -h if inverse else h
    assert torch.equal(y, expected)
    assert log_det.tolist() == [0.0, 0.0]


@each_kernels
def test_a_volume_preserving_map_takes_the_mean_over_channels_from_each_log_scale(kernels) -> None:
    x, h = tensors(kernels, 5, 6)
    form = AffineForm("tanh_exp", order="scale_then_shift", packing="split", bound=1.5, volume_preserving=True)
    y, log_det = affine_coupling(x, h, form, start=2, backend=kernels.backend)
    log_scale = 1.5 * h[:, 3:].tanh()
    log_scale = log_scale - log_scale.mean(1, keepdim=True)
    torch.testing.assert_close(y[:, 2:], x[:, 2:] * log_scale.exp() + h[:, :3])
    assert log_det.tolist() == [0.0, 0.0]
    back, log_det = affine_coupling(y, h, form, start=2, inverse=True, backend=kernels.backend)
    torch.testing.assert_close(back, x)
    assert log_det.tolist() == [0.0, 0.0]


@each_kernels
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("channels", [5, 40])
def test_steps_of_mixed_forms_are_their_references(channels: int, inverse: bool, kernels) -> None:
    count = channels // 2
    x, of_coupling, of_injector = tensors(kernels, channels, count, 2 * channels)
    matrix = torch.linalg.qr(torch.randn(channels, channels, generator=torch.Generator().manual_seed(1)))[0]
    matrix, shift = matrix.to(kernels.device), torch.zeros(channels, device=kernels.device)
    found = []
    for backend in (kernels.backend, "reference"):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, matrix, shift, of_coupling, of_injector)]
        y, log_det = flow_step(
            *leaves, coupling_form=ADDITIVE, injector_form=VOLUME_PRESERVING, inverse=inverse, backend=backend
        )
        gradients = torch.autograd.grad(y.sin().sum() + log_det.sum(), leaves)
        found.append([y, *gradients])
        assert log_det.abs().max() < 1e-4
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@each_kernels
def test_a_shared_additive_output_has_the_gradient_of_all_its_samples(kernels) -> None:
    (x,), (h,) = tensors(kernels, 5), tensors(kernels, 3)
    x = x.repeat(3, 1, 1, 1)
    found = []
    for backend in (kernels.backend, "reference"):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, h)]
        y, log_det = affine_coupling(*leaves, ADDITIVE, inverse=True, backend=backend)
        found.append(torch.autograd.grad(y.sin().sum() + log_det.sum(), leaves))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("form", [ADDITIVE, VOLUME_PRESERVING], ids=["additive", "volume-preserving"])
def test_layers_keep_the_volume(form: AffineForm) -> None:
    torch.manual_seed(0)
    x, context = torch.randn(2, 4, 2, 3, dtype=torch.float64), torch.randn(2, 3, 2, 3, dtype=torch.float64)
    board = CheckerboardCoupling(4, torch.nn.Conv2d(4, 4 * form.outputs, 1), form=form)
    for layer in (coupling(4, form), injector(4, form), board):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        assert layer.double()(x, context)[1].tolist() == [0.0, 0.0]
        assert_invertible(layer, x, context)
        assert_log_det(layer, x[:1], context[:1])


def test_networks_of_the_wrong_width_are_refused_by_name() -> None:
    x = torch.zeros(1, 4, 2, 2)
    for layer, expected in (
        (AffineCoupling(4, torch.nn.Identity(), form=AffineForm("none"), stop=1), 1),
        (AffineInjector(4, torch.nn.Identity(), context_channels=3, form=AffineForm("none")), 4),
        (CheckerboardCoupling(4, torch.nn.Conv2d(4, 8, 1), form=AffineForm("none")), 4),
    ):
        with pytest.raises(ValueError, match=f"{type(layer).__name__}: net must return {expected} channels, got"):
            layer(x, torch.zeros(1, 3, 2, 2))
    step = FlowStep(4, coupling=AffineCoupling(4, torch.nn.Conv2d(2, 4, 1), form=AffineForm("none")))
    with pytest.raises(ValueError, match="AffineCoupling: net must return 2 channels"):
        step(x)


def test_errors_of_operators_count_the_channels_of_the_form() -> None:
    x, form = torch.zeros(1, 3, 2, 2), AffineForm("none")
    with pytest.raises(ValueError, match="h must have at most 3 channels for x with 3 channels, got 4"):
        affine_coupling(x, torch.zeros(1, 4, 2, 2), form)
    with pytest.raises(ValueError, match=r"start must be in 0\.\.1 for x with 3 channels and h with 2, got 2"):
        affine_coupling(x, torch.zeros(1, 2, 2, 2), form, start=2)
    with pytest.raises(ValueError, match="injector must have 3 channels, got 2"):
        flow_step(x, torch.eye(3), torch.zeros(3), None, torch.zeros(1, 2, 2, 2), injector_form=form)
    with pytest.raises(TypeError, match="volume_preserving must be True or False, got int"):
        AffineForm(volume_preserving=1)  # type: ignore[arg-type]
