"""The kernels in double precision and in the two half precisions."""

import pytest
import torch
from hypothesis import given
from op_cases import OPS, OPS_GIVEN_H, drawn_couplings, drawn_steps, step_of
from under_test import INTERPRETED, combined, each_kernels, fuzz

from invflow import AffineForm, affine_coupling, channel_affine, flow_step

HALVES = [torch.float16, torch.bfloat16]
each_half = pytest.mark.parametrize("dtype", HALVES, ids=["float16", "bfloat16"])
each_op = pytest.mark.parametrize("case", OPS, ids=lambda case: case.name)
each_op_given_h = pytest.mark.parametrize("case", OPS_GIVEN_H, ids=lambda case: case.name)


def roundings(dtype):
    """Return half a unit in the last place, and a little for float32 results on the other side of a tie.

    Triton's interpreter cuts float32 off to bfloat16 instead of rounding it.
    """
    return 1.01 if INTERPRETED and dtype == torch.bfloat16 else 0.51


def values_and_gradients(call, tensors, backend):
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    results = [result for result in call(*leaves, backend=backend) if result.requires_grad]
    grads = [torch.linspace(0.5, 1.5, result.numel()).to(result).view(result.shape) for result in results]
    return [*results, *torch.autograd.grad(results, leaves, grads, materialize_grads=True)]


def assert_same_in_float64(kernels, call, tensors):
    tensors = [tensor.double() for tensor in tensors]
    actual, expected = (values_and_gradients(call, tensors, backend) for backend in (kernels.backend, "reference"))
    for found, truth in zip(actual, expected, strict=True):
        assert found.dtype == torch.float64
        size = truth.abs().max().item() if truth.numel() else 0.0
        torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12 * max(1.0, size))


@each_kernels
@fuzz(60)
@given(drawn=drawn_couplings())
def test_coupling_in_float64(kernels, drawn):
    def call(x, h, backend):
        return affine_coupling(x, h, drawn.form, start=drawn.start, inverse=drawn.inverse, backend=backend)

    x, h = (
        drawn.random(i, n, device=kernels.device)
        for i, n in enumerate((drawn.channels, drawn.form.outputs * drawn.count))
    )
    assert_same_in_float64(kernels, call, [x, h])


@each_kernels
@fuzz(60)
@given(drawn=drawn_steps())
def test_flow_step_in_float64(kernels, drawn):
    matrix = torch.eye(drawn.channels) + torch.linspace(-0.5, 0.5, drawn.channels**2).view(drawn.channels, -1)
    device, matrix = kernels.device, matrix.to(kernels.device)
    tensors = [drawn.random(0, drawn.channels, device=device), matrix, matrix[0]]
    if drawn.count:
        tensors.append(drawn.random(1, drawn.form.outputs * drawn.count, drawn.shared[0], device))
    if drawn.injector_form:
        tensors.append(drawn.random(2, drawn.injector_form.outputs * drawn.channels, drawn.shared[1], device))
    call = step_of(
        drawn.count > 0,
        drawn.injector_form is not None,
        coupling_form=drawn.form,
        injector_form=drawn.injector_form,
        start=drawn.start,
        inverse=drawn.inverse,
    )
    assert_same_in_float64(kernels, call, tensors)


@each_kernels
@each_op
def test_gradients_are_those_of_finite_differences(case, kernels):
    inputs = [tensor.requires_grad_() for tensor in case.inputs(torch.float64, device=kernels.device)]
    assert torch.autograd.gradcheck(case.on(kernels.backend), inputs, fast_mode=INTERPRETED)


@each_kernels
@pytest.mark.parametrize("form", [AffineForm(eps=0.0), AffineForm(), AffineForm("exp"), AffineForm("bounded_exp")])
def test_log_det_of_extreme_scales_in_float64(form, kernels):
    raw = torch.linspace(-600, 600, 61 if INTERPRETED else 5001, dtype=torch.float64, device=kernels.device)
    raw = raw.view(-1, 1, 1, 1)
    h = torch.cat([torch.zeros_like(raw), raw], 1)
    for inverse in (False, True):
        found = [
            affine_coupling(torch.ones_like(raw), h, form, inverse=inverse, backend=name)
            for name in (kernels.backend, "reference")
        ]
        # where the sigmoid has underflowed, its reference is the logarithm of nothing
        torch.testing.assert_close(*(log_det for _, log_det in found), rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(*(y for y, _ in found), rtol=1e-13, atol=1e-300)


@each_kernels
@each_op_given_h
@each_half
def test_half_precision_is_rounded_once(case, dtype, kernels):
    """Computed in float32: what comes out is the exact result for the rounded input, rounded."""
    # parameters of the channel map stay float32
    inputs = [tensor.to(dtype) if tensor.dim() == 4 else tensor for tensor in case.inputs(device=kernels.device)]
    results = case.on(kernels.backend)(*inputs)
    exact = case.on("reference")(*(tensor.double() for tensor in inputs))
    for result, truth in zip(results, exact, strict=True):
        assert result.dtype == (dtype if result.dim() == 4 else torch.float32)
        # half a unit for the rounding; the rest for float32 results on the other side of a tie
        rounding = roundings(dtype) * torch.finfo(dtype).eps if result.dim() == 4 else 5e-6
        torch.testing.assert_close(result.double(), truth, rtol=rounding, atol=1e-6)


@each_kernels
@each_op_given_h
@each_half
def test_gradients_in_half_precision_are_rounded_once(case, dtype, kernels):
    inputs = [tensor.to(dtype) if tensor.dim() == 4 else tensor for tensor in case.inputs(device=kernels.device)]
    found = []
    for backend, precision in ((kernels.backend, None), ("reference", torch.float64)):
        leaves = [tensor.to(precision or tensor.dtype).requires_grad_() for tensor in inputs]
        results = case.on(backend)(*leaves)
        # numbers that every dtype has
        grads = [torch.arange(result.numel()).view(result.shape).remainder(3).to(result) for result in results]
        found.append(torch.autograd.grad(results, leaves, grads))
    for actual, truth, tensor in zip(*found, inputs, strict=True):
        assert actual.dtype == tensor.dtype
        rounding = roundings(actual.dtype) * torch.finfo(actual.dtype).eps
        torch.testing.assert_close(actual.double(), truth, rtol=rounding, atol=1e-5)


@each_kernels
@each_half
@pytest.mark.parametrize("factor", [1.0, 1.5, 1 / 3, 3e-5, 7e4], ids=str)
def test_every_half_number_is_read_and_rounded_as_by_pytorch(dtype, factor, kernels):
    """All 65536: subnormal, infinite and not a number too, with results rounded to nearest: ties (of 1.5) to even."""
    if dtype == torch.bfloat16 and INTERPRETED:
        pytest.skip("Triton's interpreter cuts float32 off to bfloat16 instead of rounding it")
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).view(1, 1, 256, 256).to(kernels.device)
    matrix, shift = torch.tensor([[factor]], device=kernels.device), torch.zeros(1, device=kernels.device)
    y = channel_affine(x, matrix, shift, backend=kernels.backend)
    expected = (x.float() * matrix).to(dtype)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    assert y.isnan().sum() == x.isnan().sum() > 0


@each_kernels
@pytest.mark.parametrize(("dtype", "inverse", "width"), combined(HALVES, [False, True], [1, 7, 64, 1000]), ids=str)
def test_half_state_with_h_of_another_dtype(dtype, inverse, width, kernels):
    x = torch.randn(2, 5, 3, width).to(kernels.device, dtype)
    matrix, shift = torch.randn(5, 5, device=kernels.device), torch.randn(5, device=kernels.device)
    for h_dtype in (torch.float64, torch.float32, *HALVES):
        coupling = torch.randn(2, 4, 3, width).to(kernels.device, h_dtype)
        injector = torch.randn(1, 10, 3, width).to(kernels.device, h_dtype)
        y, log_det = flow_step(x, matrix, shift, coupling, injector, inverse=inverse, backend=kernels.backend)
        exact, exact_log_det = flow_step(
            *(tensor.double() for tensor in (x, matrix, shift, coupling, injector)),
            inverse=inverse,
            backend="reference",
        )
        assert (y.dtype, log_det.dtype) == (dtype, torch.float32)
        rounding = roundings(dtype) * torch.finfo(dtype).eps
        torch.testing.assert_close(y.double(), exact, rtol=rounding, atol=2e-5)
        torch.testing.assert_close(log_det.double(), exact_log_det, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_gradient_of_a_shared_output_in_half_precision_is_rounded_once(dtype):
    x, shared, grad = torch.randn(64, 2, 3, 3), torch.randn(1, 4, 3, 3).to(dtype), torch.randn(64, 2, 3, 3)

    def gradient(h):
        h = h.clone().requires_grad_()
        affine_coupling(x, h, backend="reference")[0].backward(grad)
        return h.grad

    assert torch.equal(gradient(shared), gradient(shared.float()).to(dtype))
