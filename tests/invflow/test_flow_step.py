"""The fused step against its reference, against the operators that it fuses, and against its own inverse."""

import pytest
import torch
from accuracy import assert_as_accurate, assert_kernel_is_accurate, log_det_magnitude
from hypothesis import given
from op_cases import drawn_steps, step_of
from under_test import INTERPRETED, each_kernels, fuzz

from invflow import AffineForm, affine_coupling, channel_affine, flow_step


def tensors_of(drawn, dtype=torch.float32, device="cpu"):
    """x, matrix, shift and, where there is one, h of coupling and injector."""
    generator = torch.Generator().manual_seed(drawn.seed)
    channels = drawn.channels
    # about orthogonal, as in a flow: the result is as large as the state
    matrix = torch.randn(channels, channels, generator=generator) / channels**0.5
    shift = torch.randn(channels, generator=generator)
    matrix, shift = matrix.to(device), shift.to(device)
    tensors = [drawn.random(0, channels, device=device), matrix.t() if drawn.seed % 2 else matrix, shift]
    if drawn.count:
        tensors.append(drawn.random(1, drawn.form.outputs * drawn.count, drawn.shared[0], device))
    if drawn.injector_form is not None:
        tensors.append(drawn.random(2, drawn.injector_form.outputs * channels, drawn.shared[1], device))
    return [tensor.to(dtype) for tensor in tensors]


def step_as_drawn(drawn):
    """flow_step as a function of :func:`tensors_of`."""
    return step_of(
        drawn.count > 0,
        drawn.injector_form is not None,
        coupling_form=drawn.form,
        injector_form=drawn.injector_form,
        start=drawn.start,
        inverse=drawn.inverse,
    )


def one_after_the_other(drawn, x, matrix, shift, *hs, backend="reference"):
    """y, log_det and the argument and result of the channel map."""
    hs, log_det = list(hs), x.new_zeros(x.shape[0])
    if drawn.count:
        x, part = affine_coupling(x, hs.pop(0), drawn.form, start=drawn.start, inverse=drawn.inverse, backend=backend)
        log_det = log_det + part

    def inject(x, log_det):
        if drawn.injector_form is None:
            return x, log_det
        y, part = affine_coupling(x, hs[0], drawn.injector_form, inverse=drawn.inverse, backend=backend)
        return y, log_det + part

    if drawn.inverse:
        x, log_det = inject(x, log_det)
    y = channel_affine(x, matrix, shift, backend=backend)
    result, log_det = (y, log_det) if drawn.inverse else inject(y, log_det)
    return result, log_det, x, y


def forms_of(drawn):
    return ([drawn.form] if drawn.count else []) + ([drawn.injector_form] if drawn.injector_form else [])


def magnitudes(drawn, tensors, grads):
    """The Euclidean norms of the terms of the largest of each long sum."""
    leaves = [tensor.double().requires_grad_() for tensor in tensors]
    *results, x, y = one_after_the_other(drawn, *leaves)
    if not x.numel():
        return {}
    (gradient,) = torch.autograd.grad(results[: len(grads)], [y], [grad.double() for grad in grads])
    x, gradient = x.detach().square(), gradient.square()
    return {
        "log_det": sum(log_det_magnitude(form, h) for form, h in zip(forms_of(drawn), tensors[3:], strict=True)),
        # twice, as for channel_affine: a matrix product rounds its partial sums in an order of its own
        "gradient of input 1": 2 * torch.einsum("bohw,bihw->oi", gradient, x).max().sqrt().item(),
        "gradient of input 2": gradient.sum((0, 2, 3)).max().sqrt().item(),
    }


@each_kernels
@fuzz(120)
@given(drawn=drawn_steps())
def test_kernel_is_as_accurate_as_plain_pytorch(kernels, drawn):
    tensors, step = tensors_of(drawn, device=kernels.device), step_as_drawn(drawn)
    # without scales the log-determinant is a constant
    names = ["y", "log_det"] if any(form.scale != "none" for form in forms_of(drawn)) else ["y"]
    grad_y = drawn.random(3, drawn.channels, device=kernels.device)
    grads = [grad_y, torch.linspace(0.5, 1.5, 2 * drawn.batch, device=kernels.device)[::2]][: len(names)]

    def call(*tensors, backend):
        return dict(zip(names, step(*tensors, backend=backend), strict=False))

    assert_kernel_is_accurate(kernels.backend, call, tensors, grads, magnitudes(drawn, tensors, grads))


@each_kernels
@fuzz(60)
@given(drawn=drawn_steps())
def test_one_pass_equals_the_operators_one_after_the_other(kernels, drawn):
    tensors = tensors_of(drawn, torch.float64, kernels.device)
    y, log_det = step_as_drawn(drawn)(*tensors, backend=kernels.backend)
    expected, expected_log_det, *_ = one_after_the_other(drawn, *tensors, backend=kernels.backend)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-11)
    torch.testing.assert_close(log_det, expected_log_det, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("width", [192, 193], ids=["whole vectors", "remainder"])
@pytest.mark.parametrize("batches", [(2, 2), (4, 2)], ids=["own", "shared"])
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_large_states_are_as_accurate_as_plain_pytorch(inverse, batches, width):
    """More than the caches hold: results are written past them, several tiles a sample and thread."""
    channels, (batch, shared) = 6, batches
    generator = torch.Generator().manual_seed(0)
    size = (2000 // batch, width)
    x = torch.randn(batch, channels, *size, generator=generator)
    coupling = torch.randn(shared, channels, *size, generator=generator)
    matrix, shift = torch.linalg.qr(torch.randn(channels, channels, generator=generator))[0], torch.ones(channels)
    assert x.nbytes > 4 * 2**20
    grads = [torch.randn(x.shape, generator=generator), torch.ones(batch)]

    def call(*tensors, backend):
        return dict(zip(("y", "log_det"), flow_step(*tensors, inverse=inverse, backend=backend), strict=True))

    terms = batch * size[0] * width
    magnitudes = dict.fromkeys(("log_det", "gradient of input 1", "gradient of input 2"), 4 * terms**0.5)
    assert_kernel_is_accurate("cpu", call, [x, matrix, shift, coupling], grads, magnitudes)
    y, _ = flow_step(x, matrix, shift, backend="cpu")
    torch.testing.assert_close(y, channel_affine(x, matrix, shift, backend="reference"), rtol=1e-5, atol=1e-5)


@each_kernels
def test_long_sums_round_as_little_as_plain_pytorch(kernels):
    """Over 192 channels, a sum from first to last has one and a half times the error of one of sums."""
    channels = 192
    x, shift = torch.randn(4, channels, 20, 20, device=kernels.device), torch.zeros(channels, device=kernels.device)
    matrix = torch.linalg.qr(torch.randn(channels, channels, device=kernels.device))[0]
    exact = channel_affine(x.double(), matrix.double(), shift.double(), backend="reference")

    def error(backend):
        return (channel_affine(x, matrix, shift, backend=backend) - exact).norm().item()

    assert error(kernels.backend) <= 1.2 * error("reference")


@each_kernels
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_gradients_of_networks_that_serve_different_numbers_of_samples(dtype, inverse, kernels):
    """2 and 3 of 6: the samples that share a coupling and those that share an injector overlap."""
    x, coupling, injector = (
        torch.randn(batch, count, 40, 50, device=kernels.device).to(dtype) for batch, count in ((6, 4), (3, 4), (2, 8))
    )
    matrix, shift = torch.randn(4, 4, device=kernels.device), torch.randn(4, device=kernels.device)
    found = []
    for backend, precision in ((kernels.backend, dtype), ("reference", torch.float64)):
        compute = torch.float64 if precision == torch.float64 else torch.float32
        leaves = [tensor.to(precision).requires_grad_() for tensor in (x, coupling, injector)]
        y, log_det = flow_step(
            leaves[0], matrix.to(compute), shift.to(compute), *leaves[1:], inverse=inverse, backend=backend
        )
        found.append(torch.autograd.grad([y, log_det], leaves, [torch.ones_like(y), torch.ones_like(log_det)]))
    for actual, truth in zip(*found, strict=True):
        rounding = max(torch.finfo(dtype).eps, 1e-13)
        torch.testing.assert_close(actual.double(), truth, rtol=rounding, atol=10 * rounding)


@each_kernels
@pytest.mark.parametrize("channels", [2, 3, 7, 12, 24, 25, 48, 96, 192, 260])
@pytest.mark.parametrize("start", [0, None], ids=["first half", "last half"])
def test_inverse_step_undoes_a_step(channels, start, kernels):
    """coupling, M x + v, injector; then inverse injector and M^-1, then the inverse coupling."""
    x, injector, coupling = (
        torch.randn(2, count, 5, 9, device=kernels.device) for count in (channels, 2 * channels, 2 * (channels // 2))
    )
    matrix = torch.linalg.qr(torch.randn(channels, channels, device=kernels.device))[0]
    shift = torch.randn(channels, device=kernels.device)
    forms = {"coupling_form": AffineForm("bounded_exp"), "injector_form": AffineForm("exp", packing="split")}

    def back_and_forth(backend):
        z, log_det = flow_step(x, matrix, shift, coupling, injector, start=start, backend=backend, **forms)
        assert not torch.equal(z, x)
        back, inverse_log_det = flow_step(
            z, matrix.t(), -matrix.t() @ shift, None, injector, inverse=True, backend=backend, **forms
        )
        back, coupling_log_det = flow_step(
            back, torch.eye(channels).to(x), 0 * shift, coupling, start=start, inverse=True, backend=backend, **forms
        )
        torch.testing.assert_close(inverse_log_det + coupling_log_det, -log_det, rtol=1e-5, atol=1e-5)
        return back

    # the injector's scales make roundings fifty times larger: a fixed bound is met or not by chance
    assert_as_accurate(back_and_forth(kernels.backend), back_and_forth("reference"), x.double())


@each_kernels
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("inputs", ["both", "coupling", "injector", "none"])
def test_log_det_is_that_of_the_jacobian(inverse, inputs, kernels):
    """slogdet of the whole Jacobian, less the channel map's, which is the caller's."""
    like = {"dtype": torch.float64, "device": kernels.device}
    x, matrix, shift = torch.randn(1, 3, 2, 2, **like), torch.randn(3, 3, **like), torch.randn(3, **like)
    coupling = torch.randn(1, 4, 2, 2, **like) if inputs in ("both", "coupling") else None
    injector = torch.randn(1, 6, 2, 2, **like) if inputs in ("both", "injector") else None

    def step(x, backend="reference"):
        return flow_step(x, matrix, shift, coupling, injector, inverse=inverse, backend=backend)

    jacobian = torch.autograd.functional.jacobian(lambda x: step(x)[0], x).reshape(12, 12)
    expected = torch.linalg.slogdet(jacobian).logabsdet - 4 * torch.linalg.slogdet(matrix).logabsdet
    for backend in (kernels.backend, "reference"):
        torch.testing.assert_close(step(x, backend)[1], expected[None], rtol=1e-12, atol=1e-12)


@each_kernels
def test_round_trip_of_many_steps_is_as_good_as_plain_pytorch(kernels):
    channels, count = 48, 8 if INTERPRETED else 64
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, channels, 10, 10, generator=generator).to(kernels.device)
    steps = []
    for _ in range(count):
        matrix = torch.linalg.qr(torch.randn(channels, channels, generator=generator))[0]
        matrix = matrix * torch.empty(channels, 1).uniform_(0.8, 1.25, generator=generator)
        inverse = torch.linalg.inv(matrix.double())
        shift = torch.randn(channels, generator=generator)
        h = torch.randn(2, channels, 10, 10, generator=generator)
        step = (matrix, shift, inverse.float(), -(inverse @ shift.double()).float(), h)
        steps.append([tensor.to(kernels.device) for tensor in step])

    def round_trip(backend):
        z = x
        for matrix, shift, *_, h in steps:
            z, _ = flow_step(z, matrix, shift, h, backend=backend)
        for *_, inverse, inverse_shift, h in reversed(steps):
            z = channel_affine(z, inverse, inverse_shift, backend=backend)
            z, _ = affine_coupling(z, h, inverse=True, backend=backend)
        return (z - x).square().mean().sqrt().item()

    # the largest of 9600 errors, which the steps amplify up to 20 times more than the others, is a matter of chance
    assert round_trip(kernels.backend) <= 2 * round_trip("reference")
    assert round_trip("reference") < 0.01  # of states of size 1: nothing was compared but roundings
