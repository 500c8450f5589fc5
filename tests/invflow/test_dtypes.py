"""The kernels in double precision and in the two half precisions."""

import pytest
import torch
from hypothesis import given, settings
from op_cases import OPS, drawn_couplings, drawn_steps, step_of

from invflow import AffineForm, affine_coupling, channel_affine, flow_step

HALVES = [torch.float16, torch.bfloat16]
each_half = pytest.mark.parametrize("dtype", HALVES, ids=["float16", "bfloat16"])
each_op = pytest.mark.parametrize("case", OPS, ids=lambda case: case.name)
# Where h is computed from x, it is rounded before the operator sees it.
each_op_given_h = pytest.mark.parametrize(
    "case", [case for case in OPS if case.name != "coupling-of-its-own-state"], ids=lambda case: case.name
)
fuzz = settings(max_examples=60, deadline=None, derandomize=True)


def values_and_gradients(call, tensors, backend):
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    results = [result for result in call(*leaves, backend=backend) if result.requires_grad]
    grads = [torch.linspace(0.5, 1.5, result.numel()).to(result.dtype).view(result.shape) for result in results]
    return [*results, *torch.autograd.grad(results, leaves, grads, materialize_grads=True)]


def assert_same_in_float64(call, tensors):
    actual, expected = (values_and_gradients(call, tensors, backend) for backend in ("cpu", "reference"))
    for found, truth in zip(actual, expected, strict=True):
        assert found.dtype == torch.float64
        size = truth.abs().max().item() if truth.numel() else 0.0
        torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12 * max(1.0, size))


@fuzz
@given(drawn_couplings())
def test_coupling_in_float64(drawn):
    def call(x, h, backend):
        return affine_coupling(x, h, drawn.form, start=drawn.start, inverse=drawn.inverse, backend=backend)

    tensors = drawn.random(0, drawn.channels), drawn.random(1, 2 * drawn.count)
    assert_same_in_float64(call, [tensor.double() for tensor in tensors])


@fuzz
@given(drawn_steps())
def test_flow_step_in_float64(drawn):
    matrix = torch.eye(drawn.channels) + torch.linspace(-0.5, 0.5, drawn.channels**2).view(drawn.channels, -1)
    tensors = [drawn.random(0, drawn.channels), matrix, matrix[0]]
    tensors += [drawn.random(1, 2 * drawn.count, drawn.shared[0])] if drawn.count else []
    tensors += [drawn.random(2, 2 * drawn.channels, drawn.shared[1])] if drawn.injector_form else []
    call = step_of(
        drawn.count > 0,
        drawn.injector_form is not None,
        coupling_form=drawn.form,
        injector_form=drawn.injector_form,
        start=drawn.start,
        inverse=drawn.inverse,
    )
    assert_same_in_float64(call, [tensor.double() for tensor in tensors])


@each_op
def test_gradients_are_those_of_finite_differences(case):
    inputs = [tensor.requires_grad_() for tensor in case.inputs(torch.float64)]
    assert torch.autograd.gradcheck(case.on("cpu"), inputs)


@pytest.mark.parametrize("form", [AffineForm(eps=0.0), AffineForm(), AffineForm("exp"), AffineForm("bounded_exp")])
def test_log_det_of_extreme_scales_in_float64(form):
    raw = torch.linspace(-600, 600, 5001, dtype=torch.float64).view(-1, 1, 1, 1)
    h = torch.cat([torch.zeros_like(raw), raw], 1)
    for inverse in (False, True):
        found = [
            affine_coupling(torch.ones_like(raw), h, form, inverse=inverse, backend=name)
            for name in ("cpu", "reference")
        ]
        # where the sigmoid has underflowed, its reference is the logarithm of nothing
        torch.testing.assert_close(*(log_det for _, log_det in found), rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(*(y for y, _ in found), rtol=1e-13, atol=1e-300)


@each_op_given_h
@each_half
def test_half_precision_is_rounded_once(case, dtype):
    """Computed in float32: what comes out is the exact result for the rounded input, rounded."""
    # parameters of the affine map stay float32
    inputs = [tensor.to(dtype) if tensor.dim() == 4 else tensor for tensor in case.inputs()]
    results = case.on("cpu")(*inputs)
    exact = case.on("reference")(*(tensor.double() for tensor in inputs))
    for result, truth in zip(results, exact, strict=True):
        assert result.dtype == (dtype if result.dim() == 4 else torch.float32)
        # half a unit for the rounding; the rest for float32 results on the other side of a tie
        eps = torch.finfo(result.dtype).eps if result.dim() == 4 else 1e-5
        torch.testing.assert_close(result.double(), truth, rtol=0.51 * eps, atol=1e-6)


@each_op_given_h
@each_half
def test_gradients_in_half_precision_are_rounded_once(case, dtype):
    inputs = [tensor.to(dtype) if tensor.dim() == 4 else tensor for tensor in case.inputs()]
    found = []
    for backend, precision in (("cpu", None), ("reference", torch.float64)):
        leaves = [tensor.to(precision or tensor.dtype).requires_grad_() for tensor in inputs]
        results = case.on(backend)(*leaves)
        # numbers that every dtype has
        grads = [torch.arange(result.numel()).view(result.shape).remainder(3).to(result.dtype) for result in results]
        found.append(torch.autograd.grad(results, leaves, grads))
    for actual, truth, tensor in zip(*found, inputs, strict=True):
        assert actual.dtype == tensor.dtype
        torch.testing.assert_close(actual.double(), truth, rtol=0.51 * torch.finfo(actual.dtype).eps, atol=1e-5)


@each_half
@pytest.mark.parametrize("factor", [1.0, 1 / 3, 3e-5, 7e4], ids=str)
def test_every_half_number_is_read_and_rounded_as_by_pytorch(dtype, factor):
    """All 65536: subnormal, infinite and not a number too, with results rounded to nearest, even ones from a tie."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).view(1, 1, 256, 256)
    y = channel_affine(x, torch.tensor([[factor]]), torch.zeros(1), backend="cpu")
    expected = (x.float() * torch.tensor(factor)).to(dtype)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    assert y.isnan().sum() == x.isnan().sum() > 0


@each_half
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("width", [1, 7, 64, 1000])
def test_half_state_with_h_of_another_dtype(dtype, inverse, width):
    x = torch.randn(2, 5, 3, width).to(dtype)
    matrix, shift = torch.randn(5, 5), torch.randn(5)
    for h_dtype in (torch.float64, torch.float32, *HALVES):
        coupling, injector = torch.randn(2, 4, 3, width).to(h_dtype), torch.randn(1, 10, 3, width).to(h_dtype)
        y, log_det = flow_step(x, matrix, shift, coupling, injector, inverse=inverse, backend="cpu")
        exact, exact_log_det = flow_step(
            *(tensor.double() for tensor in (x, matrix, shift, coupling, injector)),
            inverse=inverse,
            backend="reference",
        )
        assert (y.dtype, log_det.dtype) == (dtype, torch.float32)
        torch.testing.assert_close(y.double(), exact, rtol=0.51 * torch.finfo(dtype).eps, atol=2e-5)
        torch.testing.assert_close(log_det.double(), exact_log_det, rtol=1e-5, atol=1e-4)
