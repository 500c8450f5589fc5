"""The mathematics that every layer in the registry must get right: inverse, log-determinant, gradients."""

import pytest
import torch
from accuracy import ROUND_TRIP, assert_all_as_accurate
from layer_cases import LAYERS, latents_of, weighted_sum

import invflow
from invflow.testing import assert_invertible, assert_log_det

DIRECTIONS = ["forward", "inverse"]

each_layer = pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
both_directions = pytest.mark.parametrize("direction", DIRECTIONS)


def run(layer, direction, state, context):
    """Outputs of either map, the state given and returned as a list of tensors."""
    if direction == "forward":
        z, log_det = layer(state[0], context)
        return [*latents_of(z), log_det]
    x, log_det = layer.inverse(state if len(state) > 1 else state[0], context)
    return [x, log_det]


def state_for(case, layer, direction, x, context):
    """Return the argument of the map of that direction: x, or the latents of x."""
    if direction == "forward":
        return [x]
    with torch.no_grad():
        return latents_of(layer(x, context)[0])


@each_layer
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_round_trip(case, dtype, record_property):
    x, context = case.inputs(batch=3, dtype=dtype)
    error, _ = assert_invertible(case.build(dtype), x, context)
    record_property(f"{ROUND_TRIP} in {dtype}", error)


@each_layer
def test_log_det_is_that_of_the_jacobian(case):
    x, context = case.inputs(dtype=torch.float64)
    assert_log_det(case.build(torch.float64), x, context)


@each_layer
@both_directions
def test_gradients_in_float64(case, direction):
    layer = case.build(torch.float64)
    x, context = case.inputs(batch=1, dtype=torch.float64)
    state = state_for(case, layer, direction, x, context)
    names = [name for name, _ in layer.named_parameters()]
    inputs = [*state, *([] if context is None else [context]), *layer.parameters()]
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]

    def outputs(*tensors):
        state_, rest = list(tensors[: len(state)]), list(tensors[len(state) :])
        context_ = None if context is None else rest.pop(0)
        parameters = {f"layer.{name}": value for name, value in zip(names, rest, strict=True)}
        return torch.func.functional_call(_Run(layer, direction), parameters, (state_, context_))

    assert torch.autograd.gradcheck(outputs, inputs, fast_mode=True)


class _Run(torch.nn.Module):
    def __init__(self, layer, direction):
        super().__init__()
        self.layer = layer
        self.direction = direction

    def forward(self, state, context):
        return tuple(run(self.layer, self.direction, state, context))


def outputs_and_gradients(case, dtype, direction):
    """By name, everything that a training step computes."""
    layer = case.build(dtype)
    _, context = case.inputs(dtype=dtype)
    # the same float32 state for every dtype
    state = state_for(case, case.build(), direction, *case.inputs())
    state = [tensor.to(dtype).detach().requires_grad_() for tensor in state]
    if context is not None:
        context.requires_grad_()
    outputs = run(layer, direction, state, context)
    weighted_sum(outputs).backward()
    found = {f"output {position}": output for position, output in enumerate(outputs)}
    found |= {f"gradient of state {position}": tensor.grad for position, tensor in enumerate(state)}
    if context is not None and context.grad is not None:
        found["gradient of context"] = context.grad
    return found | {f"gradient of {name}": parameter.grad for name, parameter in layer.named_parameters()}


@each_layer
@both_directions
def test_kernels_are_as_accurate_as_plain_pytorch(case, direction):
    with invflow.use_backend("reference"):
        exact = outputs_and_gradients(case, torch.float64, direction)
        plain = outputs_and_gradients(case, torch.float32, direction)
    with invflow.use_backend("cpu"):
        actual = outputs_and_gradients(case, torch.float32, direction)
    assert_all_as_accurate(actual, plain, exact)


@each_layer
def test_gradients_of_every_sample_by_vmap(case):
    layer = case.build()
    x, context = case.inputs(batch=3)
    parameters = dict(layer.named_parameters())

    def loss(parameters, sample, sample_context):
        context_ = None if sample_context is None else sample_context[None]
        z, log_det = torch.func.functional_call(layer, parameters, (sample[None], context_))
        return weighted_sum([*latents_of(z), log_det])

    context_dims = None if context is None else 0
    gradients = torch.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(None, 0, context_dims))(
        parameters, x, context
    )
    for b in range(len(x)):
        sample = x[b].clone().requires_grad_()
        layer.zero_grad()
        loss(parameters, sample, None if context is None else context[b]).backward()
        torch.testing.assert_close(gradients[1][b], sample.grad, rtol=1e-4, atol=1e-4)
        for name, parameter in parameters.items():
            torch.testing.assert_close(gradients[0][name][b], parameter.grad, rtol=1e-4, atol=1e-4)


@each_layer
@both_directions
def test_the_batch_may_be_empty(case, direction):
    layer = case.build().train()
    x, context = case.inputs(batch=0)
    state = [tensor.requires_grad_() for tensor in state_for(case, layer, direction, x, context)]
    *results, log_det = run(layer, direction, state, context)
    assert log_det.shape == (0,)
    assert log_det.dtype == torch.float32
    expected = latents_of(layer(*case.inputs(batch=1))[0]) if direction == "forward" else [case.inputs(batch=1)[0]]
    assert [result.shape for result in results] == [(0, *other.shape[1:]) for other in expected]
    weighted_sum([*results, log_det]).backward()
    assert all(tensor.grad.shape == tensor.shape for tensor in state)
    for name, parameter in layer.named_parameters():
        assert parameter.grad is None or not parameter.grad.any(), name


LAYOUTS = {
    "sliced": lambda t: torch.cat([t, t.flip(0)], 1)[:, ::2],
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "expanded": lambda t: t[:1].expand_as(t),
}


@each_layer
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_does_not_matter(case, layout):
    layer = case.build()
    given = [None if tensor is None else LAYOUTS[layout](tensor).detach() for tensor in case.inputs()]
    contiguous = [None if tensor is None else tensor.contiguous() for tensor in given]
    found = []
    for x, context in (given, contiguous):
        x.requires_grad_()
        z, log_det = layer(x, context)
        (gradient,) = torch.autograd.grad(weighted_sum([*latents_of(z), log_det]), x)
        with torch.no_grad():
            back, _ = layer.inverse(z, context)
        found.append([*latents_of(z), log_det, gradient, back])
    torch.testing.assert_close(*found)


@each_layer
def test_every_sample_is_mapped_on_its_own(case):
    layer = case.build()
    x, context = case.inputs(batch=3)
    z, log_det = layer(x, context)
    for b in range(3):
        one_z, one_log_det = layer(x[b : b + 1], None if context is None else context[b : b + 1])
        expected = [latent[b : b + 1] for latent in latents_of(z)]
        torch.testing.assert_close([*latents_of(one_z), one_log_det], [*expected, log_det[b : b + 1]])


@pytest.mark.parametrize("case", [case for case in LAYERS if not case.context_channels], ids=lambda case: case.name)
def test_a_layer_without_context_ignores_it(case):
    layer = case.build()
    x, _ = case.inputs()
    torch.testing.assert_close(layer(x, torch.randn(1, 2)), layer(x), rtol=0, atol=0)
