"""Scales that leave the normal numbers, parameters at their limits, and processors that flush subnormal numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from processes import run_python
from under_test import INTERPRETED, each_kernels

from invflow import AffineForm, affine_coupling, channel_affine, flow_step, gaussian_split
from invflow.backends import cpu

#: Largest exponent whose quotients are tried, relative error allowed, and the size below which results may be zero.
LIMITS = {torch.float32: (170.0, 3e-6, 1e-36), torch.float64: (1400.0, 1e-12, 1e-306)}
FORMS = {
    "exp": AffineForm("exp"),
    "exp, scale first": AffineForm("exp", "scale_then_shift", "split"),
    "sigmoid": AffineForm(eps=0.0),
    "sigmoid, scale first": AffineForm(eps=0.0, order="scale_then_shift"),
    "least eps": AffineForm(eps=1e-30),
    "largest bound": AffineForm("bounded_exp", bound=80.0, order="scale_then_shift"),
    "largest bound of atan": AffineForm("bounded_atan_exp", bound=80.0),
}
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
each_direction = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


def in_long_double(form, raw):
    """The scale and d log(scale) / d raw, in numbers of 15 bits of exponent."""
    raw = raw.astype(np.longdouble)
    if form.scale == "exp":
        return np.exp(raw), np.ones_like(raw)
    if form.scale == "sigmoid":
        sigmoid, rest = 1 / (1 + np.exp(-raw - 2)), 1 / (1 + np.exp(raw + 2))
        scale = sigmoid + np.longdouble(form.eps)
        return scale, sigmoid * rest / scale
    if form.scale == "bounded_atan_exp":
        amplitude = np.longdouble(0.636) * form.bound
        return np.exp(amplitude * np.arctan(raw / form.bound)), 0.636 / (1 + (raw / form.bound) ** 2)
    return np.exp(form.bound * np.tanh(raw / form.bound)), 1 / np.cosh(raw / form.bound) ** 2


def assert_near(found, exact, dtype, what, relative, least):
    largest = np.longdouble(torch.finfo(dtype).max) / 4
    found, comparable = found.detach().double().numpy(), np.abs(exact) < largest
    assert np.isfinite(found[comparable]).all(), f"{what}: not finite where it can be"
    error = np.abs(found.astype(np.longdouble) - exact)
    wrong = comparable & (error > relative * np.abs(exact) + least)
    assert not wrong.any(), f"{what}: {found[wrong][:3]} instead of {exact[wrong][:3]}"


@pytest.mark.skipif(np.finfo(np.longdouble).maxexp < 16384, reason="needs a long double with 15 bits of exponent")
@each_kernels
@each_form
@each_direction
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
def test_results_and_gradients_are_finite_wherever_they_can_be(form, inverse, dtype, kernels):
    largest = LIMITS[dtype][0] if form.scale in ("exp", "sigmoid") else 160.0
    raw = torch.linspace(-largest, largest, 23 if INTERPRETED else 341, dtype=dtype)
    powers = [-30, -12, 0, 12, 30] if dtype == torch.float32 else [-300, -90, 0, 90, 300]
    x = torch.tensor([0.0, *(sign * 10.0**power for power in powers for sign in (1, -1))], dtype=dtype)
    grad = torch.tensor([1.0, 10.0 ** powers[1], 10.0 ** powers[-2]], dtype=dtype)
    x, raw, grad = (tensor.flatten() for tensor in torch.meshgrid(x, raw, grad, indexing="ij"))
    shape, device = (1, 1, 1, -1), kernels.device
    leaves = [x.view(shape), torch.stack([torch.zeros_like(raw), raw]).view(1, 2, 1, -1)]
    leaves = [leaf.to(device).requires_grad_() for leaf in leaves]
    y, log_det = affine_coupling(*leaves, form, inverse=inverse, backend=kernels.backend)
    found = torch.autograd.grad([y, log_det], leaves, [grad.view(shape).to(device), torch.zeros_like(log_det)])
    x, raw, grad = (tensor.numpy().astype(np.longdouble) for tensor in (x, raw, grad))
    scale, slope = in_long_double(form, raw)
    with np.errstate(over="ignore"):
        expected = {
            "y": x / scale if inverse else x * scale,
            "gradient of x": grad / scale if inverse else grad * scale,
            "gradient of raw": -grad * (x / scale) * slope if inverse else grad * (x * scale) * slope,
        }
    # y is a factor of the last, and so is its product with the gradient
    factor = np.abs(expected["y"]) * np.maximum(np.abs(grad), 1)
    expected["gradient of raw"][factor > torch.finfo(dtype).max / 4] = np.inf
    _, relative, least = LIMITS[dtype]
    # the least slope: a sigmoid that is subnormal is lost beside eps
    least_slope = torch.finfo(dtype).tiny / form.eps if form.scale == "sigmoid" and form.eps else least
    relative = 10 * relative if form.scale != "exp" else relative  # exponents are rounded: 80 tanh, and raw + 2
    actual = {"y": y, "gradient of x": found[0], "gradient of raw": found[1][:, 1:]}
    for name, values in actual.items():
        # what the factors of a gradient may lose where they are small: the product and the slope
        smallest = least * (1 + np.abs(grad)) + least_slope * factor if name == "gradient of raw" else least
        assert_near(values.cpu().flatten(), expected[name], dtype, name, relative, smallest)


@each_kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_prior_as_narrow_as_one_likes_standardises_its_mean_to_zero(dtype, kernels):
    x = torch.linspace(-3, 3, 40, device=kernels.device).to(dtype).view(1, 1, 5, 8)
    for log_deviation in (-80.0, -90.0, -120.0, -600.0, 90.0):
        h = torch.cat([x.float(), torch.full_like(x, log_deviation, dtype=torch.float32)], 1)
        epsilon, log_det = gaussian_split(x, h, backend=kernels.backend)
        assert epsilon.tolist() == torch.zeros_like(x).tolist()
        torch.testing.assert_close(log_det.item(), -40 * log_deviation, rtol=1e-6, atol=0)


@each_kernels
@pytest.mark.parametrize("channels", [2, 20])
def test_a_step_divides_by_scales_without_overflow_too(channels, kernels):
    x = torch.randn(2, channels, 3, 5, device=kernels.device) * 1e-5
    h = torch.zeros(2, channels, 3, 5, device=kernels.device)
    h[:, 1::2] = -95.0
    matrix, shift = torch.eye(channels, device=kernels.device) * 1e-30, torch.zeros(channels, device=kernels.device)
    form = AffineForm("exp")
    found = [
        flow_step(*(t.to(dtype) for t in (x, matrix, shift, h)), coupling_form=form, inverse=True, backend=name)[0]
        for name, dtype in ((kernels.backend, torch.float32), ("reference", torch.float64))
    ]
    assert found[1].abs().max() > 1
    torch.testing.assert_close(found[0].double(), found[1], rtol=1e-5, atol=1e-30)


@each_kernels
@each_direction
@pytest.mark.parametrize(
    "form",
    [AffineForm(eps=eps) for eps in (1e-30, 1e-20, 1e-15, 1e-12, 1e-10, 1e-8, 9.9e-5, 1e-4, 1.0, 1e4)]
    + [AffineForm(scale, bound=bound) for scale in ("bounded_exp", "bounded_atan_exp") for bound in (1e-30, 80.0)],
    ids=lambda form: f"{form.scale}-{form.parameter}",
)
def test_log_dets_at_the_limits_of_eps_and_bound(form, inverse, kernels):
    """Sum over many scales: the kernels take the logarithm of products of them."""
    raw = torch.linspace(-100, 60, 3 * 7 * 33, device=kernels.device).view(1, 3, 7, 33)
    h = torch.stack([raw, raw], 2).flatten(1, 2)
    found = [
        affine_coupling(raw.to(dtype), h.to(dtype), form, inverse=inverse, backend=name)
        for name, dtype in ((kernels.backend, torch.float32), ("reference", torch.float64))
    ]
    for actual, exact in zip(*found, strict=True):
        size = exact.abs().max().item()
        torch.testing.assert_close(actual.double(), exact, rtol=2e-5, atol=2e-6 * size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_reference_takes_no_logarithm_of_a_scale_that_underflows(dtype):
    raw = torch.tensor([-30.0, -200.0, -1000.0, 50.0], dtype=dtype)
    for form, expected in ((AffineForm(eps=0.0), (raw + 2).clamp(max=0)), (AffineForm("exp"), raw)):
        torch.testing.assert_close(form.log_scale(raw)[1], expected)


def test_numbers_of_other_types_make_the_same_form():
    forms = {AffineForm(eps=0), AffineForm(eps=0.0), AffineForm(eps=np.float32(0)), AffineForm(eps=np.int64(0))}
    assert len(forms) == 1
    (form,) = forms
    assert type(form.eps) is float
    assert AffineForm("bounded_exp", bound=2) == AffineForm("bounded_exp")


FLUSHED = """
import torch
from invflow import affine_coupling, channel_affine
from invflow.backends import cpu
assert cpu.extension.instruction_set() == {isa!r}
torch.set_num_threads(1)
x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16).view(1, 1, 256, 256)
h = torch.zeros(1, 2, 256, 256)
calls = [
    *(lambda factor=factor: channel_affine(x, torch.full((1, 1), factor), torch.zeros(1), backend="cpu")
      for factor in (1000.0, 1.0, 1e-3)),
    lambda: affine_coupling(x[:, :, ::2], h[:, :, ::2], backend="cpu")[0],
    lambda: affine_coupling(x.mul(0.1).nan_to_num(0, 0, 0), x.repeat(1, 2, 1, 1).clamp(-9, 9), backend="cpu")[0],
]
expected = [call() for call in calls]
assert torch.set_flush_denormal(True)
for call, truth in zip(calls, expected, strict=True):
    found = call()
    assert torch.equal(found.isnan(), truth.isnan())
    assert torch.equal(found.view(torch.int16)[~found.isnan()], truth.view(torch.int16)[~truth.isnan()])
print("same")
"""


@pytest.mark.parametrize("isa", cpu.extension.supported_instruction_sets() if cpu.extension else [])
def test_float16_is_read_and_written_alike_by_a_processor_that_flushes_subnormal_numbers(isa):
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor does not flush")
    done = run_python(FLUSHED.format(isa=isa), INVFLOW_CPU_ISA=isa)
    assert done.stdout == "same\n", done.stderr[-2000:]


@each_kernels
def test_subnormal_states_are_computed_with(kernels):
    x = torch.tensor([1e-40, -1e-41, 1e-39], device=kernels.device).view(1, 1, 1, 3)
    one, zero = torch.ones(1, 1, device=kernels.device), torch.zeros(1, device=kernels.device)
    assert torch.equal(channel_affine(x, one, zero, backend=kernels.backend), x)
    torch.testing.assert_close(channel_affine(x, 1e30 * one, zero, backend=kernels.backend), 1e30 * x)
