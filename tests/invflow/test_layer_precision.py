"""Effects of dtype, autocast and the number of threads on a layer."""

import pytest
import torch
from layer_cases import LAYERS, latents_of, networks, reads_the_state, weighted_sum

import invflow
from invflow.testing import assert_invertible

HALVES = [torch.float16, torch.bfloat16]

each_layer = pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
each_half = pytest.mark.parametrize("dtype", HALVES, ids=["float16", "bfloat16"])

# One map of the state and no network: the result is rounded to half precision once.
SINGLE_MAPS = [case for case in LAYERS if not networks(case.build()) and "sequential" not in case.name]


@each_layer
@each_half
def test_half_states_keep_their_dtype_and_log_det_is_float32(case, dtype):
    layer = case.build(dtype)
    x, context = case.inputs(dtype=dtype)
    x.requires_grad_()
    z, log_det = layer(x, context)
    back, inverse_log_det = layer.inverse(z, context)
    assert {tensor.dtype for tensor in (*latents_of(z), back)} == {dtype}
    assert log_det.dtype == inverse_log_det.dtype == torch.float32
    assert back.shape == x.shape
    assert (back - x).abs().max() <= 60 * torch.finfo(dtype).eps
    weighted_sum([*latents_of(z), log_det]).backward()
    for tensor in (x, *layer.parameters()):
        assert tensor.grad.dtype == dtype
        assert tensor.grad.isfinite().all()


@pytest.mark.parametrize("case", SINGLE_MAPS, ids=lambda case: case.name)
@each_half
@pytest.mark.parametrize("parameters", ["half", "float32"])
def test_half_states_are_computed_in_float32(case, dtype, parameters):
    layer = case.build(dtype if parameters == "half" else torch.float32)
    x, _ = case.inputs(dtype=dtype)
    (z, log_det), (exact, exact_log_det) = layer(x), layer.double()(x.double())
    # rounding to nearest errs by half an eps; the rest is for float32 results that fall on the other side of a tie
    for latent, expected in zip(latents_of(z), latents_of(exact), strict=True):
        torch.testing.assert_close(latent.double(), expected, rtol=0.51 * torch.finfo(dtype).eps, atol=1e-6)
    torch.testing.assert_close(log_det.double(), exact_log_det, rtol=1e-6, atol=1e-6)


@each_layer
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_autocast_leaves_the_state_in_its_precision(case, backend):
    layer = case.build()
    x, context = case.inputs()
    with torch.autocast("cpu", torch.bfloat16), invflow.use_backend(backend):
        z, log_det = layer(x, context)
        back, inverse_log_det = layer.inverse(z, context)
        if reads_the_state(layer) <= 1:
            # networks run in bfloat16, but both directions hand them the same input
            assert_invertible(layer, x, context)
    assert {tensor.dtype for tensor in (*latents_of(z), back, log_det, inverse_log_det)} == {torch.float32}
    if not networks(layer):
        with invflow.use_backend(backend):
            plain_z, plain_log_det = layer(x, context)
        torch.testing.assert_close([*latents_of(z), log_det], [*latents_of(plain_z), plain_log_det], rtol=0, atol=0)


@each_layer
def test_training_under_autocast_gives_float32_gradients(case):
    layer = case.build()
    x, context = case.inputs()
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        z, log_det = layer(x, context)
        loss = weighted_sum([*latents_of(z), log_det])
    loss.backward()
    for tensor in (x, *layer.parameters()):
        assert tensor.grad.dtype == torch.float32
        assert tensor.grad.isfinite().all()


@each_layer
def test_number_of_threads_does_not_change_a_bit(case):
    layer = case.build()
    x, context = case.inputs(enlarge=24)
    x.requires_grad_()
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        with invflow.use_backend("cpu"):
            z, log_det = layer(x, context)
            (gradient,) = torch.autograd.grad(weighted_sum([*latents_of(z), log_det]), x)
            with torch.no_grad():
                back, inverse_log_det = layer.inverse(z, context)
        found.append([*latents_of(z), log_det, gradient, back, inverse_log_det])
    torch.testing.assert_close(*found, rtol=0, atol=0)


@each_layer
def test_a_layer_is_built_in_the_default_dtype(case):
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        layer = case.construct()
        x, context = case.inputs(dtype=torch.float64)
        z, log_det = layer(x, context)
    finally:
        torch.set_default_dtype(default)
    state = [*layer.parameters(), *layer.buffers(), *latents_of(z), log_det]
    assert {tensor.dtype for tensor in state if tensor.is_floating_point()} == {torch.float64}
