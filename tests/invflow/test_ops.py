"""The kernels against their references: values and gradients, over shapes, layouts and extreme scales."""

import dataclasses
import math
import pickle

import pytest
import torch
from accuracy import assert_as_accurate, assert_kernel_is_accurate, log_det_magnitude
from hypothesis import given
from op_cases import drawn_affines, drawn_couplings
from under_test import INTERPRETED, SLOW, combined, each_kernels, fuzz

from invflow import AffineForm, affine_coupling, channel_affine, flow_step
from invflow.ops import affine_coupling_reference, channel_affine_reference, flow_step_reference
from invflow.ops._reference import _product as product_of_matrices


def affine_magnitudes(x, matrix, shift, grad_y):
    """The Euclidean norms of the terms of the largest of each sum that ``channel_affine`` and its gradients are.

    Twice that for the gradient of the matrix, the longest sum: a matrix product rounds its partial sums too, in an
    order that depends on the shape.
    """
    x, matrix, shift, grad_y = (tensor.double().square() for tensor in (x, matrix, shift, grad_y))
    squares = {
        "y": channel_affine(x, matrix, shift),
        "gradient of input 0": channel_affine(grad_y, matrix.t(), 0 * shift),
        "gradient of input 1": 4 * torch.einsum("bohw,bihw->oi", grad_y, x),
        "gradient of input 2": grad_y.sum((0, 2, 3)),
    }
    return {name: values.max().sqrt().item() for name, values in squares.items() if values.numel()}


@each_kernels
@fuzz(100)
@given(drawn=drawn_affines())
def test_channel_affine(kernels, drawn):
    generator = torch.Generator().manual_seed(drawn.seed)
    matrix = torch.randn(drawn.channels, drawn.channels, generator=generator).to(kernels.device)
    matrix = matrix.t() if drawn.seed % 2 else matrix
    shift = torch.randn(2 * drawn.channels, generator=generator).to(kernels.device)[::2]
    x, grad_y = (drawn.random(i, drawn.channels, device=kernels.device) for i in range(2))

    def call(*inputs, backend):
        return {"y": channel_affine(*inputs, backend=backend)}

    magnitudes = affine_magnitudes(x, matrix, shift, grad_y)
    assert_kernel_is_accurate(kernels.backend, call, (x, matrix, shift), (grad_y,), magnitudes)


@each_kernels
@fuzz(100)
@given(drawn=drawn_couplings())
def test_affine_coupling(kernels, drawn):
    counts = (drawn.channels, drawn.form.outputs * drawn.count, drawn.channels)
    x, h, grad_y = (drawn.random(i, count, device=kernels.device) for i, count in enumerate(counts))
    grad_log_det = torch.arange(1.0, 2 * drawn.batch + 1, device=kernels.device)[::2]
    grad_log_det = grad_log_det[:1].expand(drawn.batch) if drawn.layouts[2] == "expanded" else grad_log_det

    def call(x, h, backend):
        y, log_det = affine_coupling(x, h, drawn.form, start=drawn.start, inverse=drawn.inverse, backend=backend)
        return {"y": y} if drawn.form.scale == "none" else {"y": y, "log_det": log_det}

    magnitudes = {"log_det": log_det_magnitude(drawn.form, h)}
    # without a scale the log-determinant is a constant
    grads = (grad_y, grad_log_det)[: 1 if drawn.form.scale == "none" else 2]
    assert_kernel_is_accurate(kernels.backend, call, (x, h), grads, magnitudes)


@each_kernels
@pytest.mark.parametrize("used", ["y", "log_det"])
def test_gradient_of_only_one_result(used, kernels):
    def call(x, h, backend):
        y, log_det = affine_coupling(x, h, backend=backend)
        return {"y": y} if used == "y" else {"log_det": log_det}

    x, h = (torch.randn(2, channels, 4, 5, device=kernels.device) for channels in (3, 6))
    grad = torch.randn_like(x) if used == "y" else torch.ones((), device=kernels.device).expand(2)
    assert_kernel_is_accurate(kernels.backend, call, (x, h), (grad,))


@each_kernels
@pytest.mark.parametrize("wanted", [0, 1])
def test_gradient_of_only_one_input_of_the_coupling(wanted, kernels):
    inputs = [torch.randn(2, channels, 4, 5, device=kernels.device) for channels in (3, 6)]
    found = []
    for backend in (kernels.backend, "reference"):
        leaves = [tensor.clone().requires_grad_(i == wanted) for i, tensor in enumerate(inputs)]
        y, log_det = affine_coupling(*leaves, backend=backend)
        (y.sin().sum() + log_det.sum()).backward()
        assert leaves[1 - wanted].grad is None
        found.append(leaves[wanted].grad)
    torch.testing.assert_close(*found)


SCALES = [
    AffineForm("sigmoid"),
    AffineForm("sigmoid", eps=0.0),
    AffineForm("exp"),
    AffineForm("bounded_exp"),
    AffineForm("bounded_exp", bound=60.0),
]
# They differ from the last of these in one function.
OTHER_BOUNDS = [
    AffineForm("tanh_exp", bound=5.0),
    AffineForm("bounded_atan_exp", bound=0.5),
    AffineForm("atan_exp", bound=60.0),
]


def name_of(value):
    return f"{value.scale}-{value.parameter}" if isinstance(value, AffineForm) else str(value)


each_scale = pytest.mark.parametrize("form", [*SCALES, *OTHER_BOUNDS], ids=name_of)


def of_every_raw(form, raw, backend, inverse=False):
    """scale (or 1 / scale), log_det and their gradients, an element a sample, as functions of the raw scale."""
    raw = raw.view(-1, 1, 1, 1).requires_grad_()
    h = torch.cat([torch.zeros_like(raw), raw], 1)
    y, log_det = affine_coupling(torch.ones_like(raw), h, form, inverse=inverse, backend=backend)
    (slope,) = torch.autograd.grad(log_det.sum(), raw, retain_graph=True)
    (gradient,) = torch.autograd.grad(y.sum(), raw)
    return {"y": y.flatten(), "log_det": log_det, "slope": slope.flatten(), "gradient": gradient.flatten()}


@each_kernels
@pytest.mark.parametrize(
    ("form", "inverse", "largest"),
    [
        *combined(SCALES, [False, True], [2.0, 12.0, 80.0, 300.0]),
        *((form, number % 2 == 0, 12.0) for number, form in enumerate(OTHER_BOUNDS)),
    ],
    ids=name_of,
)
def test_scales_are_accurate_element_by_element(form, inverse, largest, kernels):
    # in the interpreter every sample is a program
    raw = torch.linspace(-largest, largest, 61 if INTERPRETED else 4001, device=kernels.device)
    exact = of_every_raw(form, raw.double(), "reference", inverse)
    plain = of_every_raw(form, raw.clone(), "reference", inverse)
    actual = of_every_raw(form, raw.clone(), kernels.backend, inverse)
    for name, expected in exact.items():
        # relative to each element, for values that float32 represents with all its digits; no gradient of an infinite y
        normal = plain[name].isfinite() & plain["y"].isfinite() & (expected.abs() > torch.finfo(torch.float32).tiny)
        ones = torch.ones_like(expected[normal])
        ratios = [(values[name].double() / expected)[normal].float() for values in (actual, plain)]
        if name in ("y", "log_det"):
            assert actual[name][plain[name].isfinite()].isfinite().all(), name
        assert_as_accurate(*ratios, ones, f"{name}, relative")


@each_kernels
@each_scale
def test_infinite_raw_scales_give_the_limits_of_plain_pytorch(form, kernels):
    raw = torch.tensor([-math.inf, math.inf], device=kernels.device)
    for name in ("y", "log_det"):
        found = [of_every_raw(form, raw.clone(), backend)[name] for backend in (kernels.backend, "reference")]
        torch.testing.assert_close(*found, msg=lambda text, name=name: f"{name}: {text}")


@each_kernels
@pytest.mark.parametrize(
    ("form", "inverse", "poisoned", "pixel"),
    # the pixel lies in a vector, or in the rest
    [
        *combined(SCALES, [False, True], ["x", "shift", "raw"], [0, 20]),
        *((form, False, "raw", 0) for form in OTHER_BOUNDS),
    ],
    ids=name_of,
)
def test_nan_propagates_as_in_plain_pytorch(form, inverse, poisoned, pixel, kernels):
    x, h = (torch.randn(2, channels, 1, 21, device=kernels.device) for channels in (1, 2))
    target = x if poisoned == "x" else h[:, int(poisoned == "raw") :]
    target[1, 0, 0, pixel] = math.nan
    found = []
    for backend in (kernels.backend, "reference"):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, h)]
        y, log_det = affine_coupling(*leaves, form, inverse=inverse, backend=backend)
        gradients = torch.autograd.grad(y.sum() + log_det[0], leaves)
        found.append([tensor.isnan() for tensor in (y, log_det, *gradients)])
    assert found[0][0].sum() == 1
    assert found[0][1].tolist() == [False, poisoned == "raw"]
    torch.testing.assert_close(*found)


@each_kernels
@pytest.mark.parametrize("channels", [1, 4, 7, 40])
@pytest.mark.parametrize("pixel", [0, 32, 66])
def test_nan_propagates_through_channel_affine(channels, pixel, kernels):
    x = torch.randn(2, channels, 1, 67, device=kernels.device)
    x[1, 0, 0, pixel] = math.nan
    y = channel_affine(x, torch.randn(channels, channels).to(x), torch.randn(channels).to(x), backend=kernels.backend)
    assert torch.equal(y.isnan(), x.isnan()[:, :1].expand_as(y))


@each_kernels
@each_scale
def test_errors_of_log_scales_do_not_add_up_over_an_image(form, kernels):
    side = 400 if INTERPRETED else 1000
    h = torch.randn(1, 2, side, side, device=kernels.device)
    x = torch.zeros(1, 1, side, side, device=kernels.device)
    found = [
        affine_coupling(x.to(dtype), h.to(dtype), form, backend=backend)[1]
        for backend, dtype in (
            (kernels.backend, torch.float32),
            ("reference", torch.float32),
            ("reference", torch.float64),
        )
    ]
    assert_as_accurate(*found, magnitude=log_det_magnitude(form, h))


@each_kernels
def test_log_det_of_many_channels_rounds_like_independent_terms(kernels):
    h = torch.randn(4 if SLOW else 32, 384, 8, 40, device=kernels.device)
    form = AffineForm("exp")  # the terms are in h as they are: only their sum is rounded
    _, log_det = affine_coupling(torch.zeros_like(h[:, 192:]), h, form, start=0, backend=kernels.backend)
    terms = form.unpack(h.double())[1].flatten(1)
    errors = (log_det.double() - terms.sum(1)) / terms.norm(dim=1)
    # the error of a single sum is a matter of chance
    assert errors.square().mean().sqrt() <= 2 * torch.finfo(torch.float32).eps


@each_kernels
@pytest.mark.parametrize("h_dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("x_dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_h_may_have_another_dtype_than_the_state(x_dtype, h_dtype, kernels):
    x = torch.randn(2, 3, 4, 5, device=kernels.device).to(x_dtype).requires_grad_()
    h = torch.randn(2, 4, 4, 5, device=kernels.device).to(h_dtype).requires_grad_()
    y, log_det = affine_coupling(x, h, backend=kernels.backend)
    exact_y, exact_log_det = affine_coupling(x.double(), h.double(), backend="reference")
    assert y.dtype == x_dtype
    assert log_det.dtype == (torch.float64 if x_dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(y.double(), exact_y, rtol=torch.finfo(x_dtype).eps, atol=1e-6)
    torch.testing.assert_close(log_det.double(), exact_log_det, rtol=1e-5, atol=1e-6)
    (y.sum() + log_det.sum()).backward()
    assert (x.grad.dtype, h.grad.dtype) == (x_dtype, h_dtype)


@each_kernels
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_coupling_of_a_state_without_pixels(kernels, inverse):
    x, h = (torch.zeros(2, 4, 0, 3, device=kernels.device, requires_grad=True) for _ in range(2))
    y, log_det = affine_coupling(x, h, start=1, inverse=inverse, backend=kernels.backend)
    assert y.shape == x.shape
    assert log_det.tolist() == [0.0, 0.0]
    (y.sum() + log_det.sum()).backward()
    assert x.grad.shape == h.grad.shape == x.shape


@each_kernels
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("with_matrix", [False, True])
def test_an_empty_batch_with_a_context_that_is_not(kernels, inverse, with_matrix):
    x = torch.zeros(0, 4, 2, 3, device=kernels.device, requires_grad=True)
    h = torch.zeros(3, 4, 2, 3, device=kernels.device, requires_grad=True)
    settings = {"inverse": inverse, "backend": kernels.backend}
    if with_matrix:
        matrix, shift = (torch.ones(4, 4, device=kernels.device), torch.ones(4, device=kernels.device))
        y, log_det = flow_step(x, matrix, shift, coupling=h, injector=h.repeat(1, 2, 1, 1), **settings)
    else:
        y, log_det = affine_coupling(x, h, start=2, **settings)
    assert (y.shape, log_det.shape) == (x.shape, (0,))
    (y.sum() + log_det.sum()).backward()
    assert x.grad.shape == x.shape
    assert h.grad.tolist() == torch.zeros_like(h).tolist()


@each_kernels
def test_inputs_are_not_written_to(kernels):
    x, h = (torch.randn(2, 4, 3, 3, device=kernels.device) for _ in range(2))
    matrix, shift = torch.randn(4, 4, device=kernels.device), torch.randn(4, device=kernels.device)
    before = [tensor.clone() for tensor in (x, h, matrix, shift)]
    channel_affine(x, matrix, shift, backend=kernels.backend)
    affine_coupling(x, h, backend=kernels.backend)
    affine_coupling(x, h, inverse=True, backend=kernels.backend)
    torch.testing.assert_close([x, h, matrix, shift], before, rtol=0, atol=0)


@each_kernels
def test_saved_inputs_changed_in_place_are_noticed(kernels):
    x, h = (torch.randn(1, channels, 2, 2, device=kernels.device, requires_grad=True) for channels in (2, 4))
    base = x * 1
    y, _ = affine_coupling(base, h, backend=kernels.backend)
    base.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (1, 5, 1, 7)], ids=str)
def test_the_matrix_product_of_the_reference_on_gpus_is_the_convolution(shape, layout):
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout)
    leaves = [x, torch.randn(5, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)]
    expected = channel_affine_reference(*(leaf.requires_grad_() for leaf in leaves))
    actual = product_of_matrices(*leaves)
    assert actual.stride() == expected.stride()
    grad = torch.randn_like(expected)
    torch.testing.assert_close(actual, expected)
    gradients = [torch.autograd.grad(y, leaves, grad) for y in (actual, expected)]
    torch.testing.assert_close(*gradients)


def test_the_matrix_product_of_the_reference_on_gpus_can_be_transformed():
    samples, matrix, shift = torch.randn(4, 2, 5, 3, 3), torch.randn(5, 5), torch.randn(5)
    y = torch.func.vmap(lambda x: product_of_matrices(x, matrix, shift))(samples)
    expected = channel_affine_reference(samples.flatten(0, 1), matrix, shift)
    torch.testing.assert_close(y.flatten(0, 1), expected)
    _, tangent = torch.func.jvp(lambda x: product_of_matrices(x, matrix, shift), (samples[0],), (samples[1],))
    torch.testing.assert_close(tangent, channel_affine_reference(samples[1], matrix, 0 * shift))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_references_return_the_dtype_of_the_state(dtype):
    x, h = (torch.randn(2, channels, 3, 3).to(dtype) for channels in (5, 4))
    inner = torch.promote_types(dtype, torch.float32)
    matrix, shift = torch.eye(5, dtype=inner), torch.zeros(5, dtype=inner)
    assert channel_affine_reference(x, matrix, shift).dtype is dtype
    for y, log_det in (affine_coupling_reference(x, h), flow_step_reference(x, matrix, shift, h)):
        assert (y.dtype, log_det.dtype) == (dtype, inner)


def test_a_coupling_transforms_the_last_channels_by_default():
    x, h = torch.randn(2, 5, 3, 3), torch.randn(2, 4, 3, 3)
    matrix, shift = torch.eye(5), torch.zeros(5)
    for expected, found in (
        (affine_coupling(x, h, start=3), affine_coupling(x, h)),
        (affine_coupling_reference(x, h, start=3), affine_coupling_reference(x, h)),
        (flow_step(x, matrix, shift, h, start=3), flow_step(x, matrix, shift, h)),
        (flow_step_reference(x, matrix, shift, h, start=3), flow_step_reference(x, matrix, shift, h)),
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        torch.testing.assert_close(found[0][:, :3], x[:, :3])


def test_a_form_that_an_earlier_version_pickled_is_understood():
    form = AffineForm("bounded_exp", bound=3.0)
    fields = {field.name: getattr(form, field.name) for field in dataclasses.fields(form)}
    old = AffineForm.__new__(AffineForm)
    old.__setstate__(fields)
    assert old == form
    assert old.for_kernels() == form.for_kernels() == pickle.loads(pickle.dumps(form)).for_kernels()
    assert form.for_kernels() == ("bounded_exp", 3.0, "shift_then_scale", "cross")
