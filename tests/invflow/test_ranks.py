"""States of every rank: vectors, sequences, images, volumes; contexts of their pixels, or one for all of them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import pytest
import torch
from layer_cases import latents_of, weighted_sum
from rank_cases import (
    SPATIAL,
    C,
    K,
    Net,
    built,
    checkerboard,
    each_case,
    each_conditional,
    each_rank,
    full_step,
    injector,
    inputs_of,
    spline,
    state,
)
from torch import Tensor, nn

import invflow
from invflow import (
    ActNorm,
    HaarSqueeze,
    Permutation,
    Split,
    Squeeze,
    ZeroConv2d,
    affine_coupling,
    channel_affine,
    flow_step,
)
from invflow.layers import Inverse, condition, fold
from invflow.testing import assert_invertible, assert_log_det


@each_case
def test_round_trip_and_log_det_are_those_of_the_map(name, rank):
    layer, (x, context) = built(name, rank), inputs_of(name, rank)
    assert_invertible(layer, x, context)
    assert_log_det(layer, x, context)


@each_conditional
@pytest.mark.parametrize("samples", [1, 2], ids=["shared", "own"])
def test_a_context_without_pixels_is_that_context_at_every_pixel(name, rank, samples):
    layer, x = built(name, rank), state(rank)
    context = torch.randn(samples, K, dtype=torch.float64)
    assert_invertible(layer, x, context)
    full = context.reshape(samples, K, *[1] * (rank - 2)).repeat(1, 1, *SPATIAL[rank])
    for actual, expected in zip(outputs(layer, x, context), outputs(layer, x, full), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14)
    for actual, expected in zip(outputs(fold(layer), x, context), outputs(layer, x, context), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def outputs(layer, x, context, inverse=False):
    z, log_det = layer.inverse(x, context) if inverse else layer(x, context)
    return [*latents_of(z), log_det]


def step_of(layer, x, context, inverse=False):
    """Outputs, and the gradients of state, context and parameters."""
    state = [tensor.detach().clone().requires_grad_() for tensor in latents_of(x)]
    context = None if context is None else context.detach().clone().requires_grad_()
    layer.zero_grad(set_to_none=True)
    results = outputs(layer, state if len(state) > 1 else state[0], context, inverse)
    weighted_sum(results).backward()
    leaves = [*state, *([] if context is None else [context]), *layer.parameters()]
    return [*(result.detach() for result in results), *(leaf.grad for leaf in leaves)]


def assert_equal_steps(actual, expected, tolerance=1e-10):
    for one, other in zip(actual, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@each_case
def test_gradients_are_those_of_plain_pytorch(name, rank):
    layer, (x, context) = built(name, rank), inputs_of(name, rank)
    z = [latent.detach() for latent in latents_of(layer(x, context)[0])]
    for given, inverse in ((x, False), (z, True)):
        with invflow.use_backend("cpu"):
            actual = step_of(layer, given, context, inverse)
        with invflow.use_backend("reference"):
            assert_equal_steps(actual, step_of(layer, given, context, inverse))


@each_rank
def test_gradients_are_those_of_differences(rank):
    x, h = state(rank, batch=1).requires_grad_(), state(rank, batch=1).requires_grad_()
    injected = state(rank, 2 * C, batch=1).requires_grad_()
    matrix, shift = torch.randn(C, C).double().requires_grad_(), torch.randn(C).double().requires_grad_()

    for inverse in (False, True):
        assert torch.autograd.gradcheck(
            lambda *tensors, inverse=inverse: flow_step(*tensors, inverse=inverse),
            (x, matrix, shift, h, injected),
            fast_mode=True,
        )


@each_rank
@pytest.mark.parametrize("pixels", [True, False], ids=["context of pixels", "context of samples"])
def test_inverted_memory_changes_nothing(rank, pixels):
    x, context = state(rank), state(rank, K) if pixels else torch.randn(1, K, dtype=torch.float64)
    layer = built("sequential", rank)
    stored = step_of(layer, x, context)
    layer.memory = layer.layers[2].memory = "invert"
    assert_equal_steps(step_of(layer, x, context), stored)


@each_case
def test_folded_layers_and_inverses_as_modules_compute_the_same(name, rank):
    layer, (x, context) = built(name, rank), inputs_of(name, rank)
    with torch.no_grad():
        expected = outputs(layer, x, context)
        folded = fold(layer)
        z = expected[:-1] if len(expected) > 2 else expected[0]
        assert_equal_steps(outputs(folded, x, context), expected)
        assert_equal_steps(outputs(folded, z, context, inverse=True), outputs(layer, z, context, inverse=True))
        assert_equal_steps(outputs(Inverse(layer), z, context), outputs(layer, z, context, inverse=True))
    assert folded.output_shapes(tuple(x.shape[1:])) == [tuple(latent.shape[1:]) for latent in expected[:-1]]


class Whole:
    """The simplest shared context: its work is done for whole networks, sample by sample."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.shape = tensor, tuple(tensor.shape)

    def joined(self) -> Tensor:
        return self.tensor

    def network(self, net: nn.Module) -> Callable[[Tensor | None, slice], Tensor]:
        def output(passed: Tensor | None, part: slice) -> Tensor:
            given = self.tensor[part]
            return net(given) if passed is None else net(passed, given.repeat_interleave(len(passed) // len(given), 0))

        return output


@each_conditional
def test_inverses_conditioned_on_a_shared_context(name, rank):
    layer, context = built(name, rank), state(rank, K)
    z = [latent.detach() for latent in latents_of(layer(state(rank, batch=6), context)[0])]
    z = z if len(z) > 1 else z[0]
    with torch.no_grad():
        expected, _ = layer.inverse(z, context)
        torch.testing.assert_close(condition(layer, Whole(context))(z, slice(None)), expected)
        torch.testing.assert_close(layer.inverse(z, Whole(context))[0], expected)


@each_rank
def test_the_first_batch_initialises(rank):
    layer, x = ActNorm(C).double(), 3 * state(rank, batch=5) + 2
    y, _ = layer.train()(x)
    others = [0, *range(2, rank)]
    torch.testing.assert_close(y.mean(others), torch.zeros(C).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(y.std(others, correction=0), torch.ones(C).double(), rtol=0, atol=1e-5)


@each_case
def test_a_batch_may_be_empty(name, rank):
    layer, (x, context) = built(name, rank), inputs_of(name, rank)
    context = None if context is None else context[:0]
    *latents, log_det = outputs(layer, x[:0].requires_grad_(), context)
    assert log_det.shape == (0,)
    weighted_sum([*latents, log_det]).backward()
    back, _ = layer.inverse(latents if len(latents) > 1 else latents[0], context)
    assert back.shape == (0, *x.shape[1:])


@each_rank
def test_squeeze_numbers_channels_by_blocks(rank):
    n, x = rank - 2, state(rank)
    if not n:
        return
    y, _ = Squeeze()(x)
    for place, offsets in enumerate(itertools.product(range(2), repeat=n)):
        picked = x[(..., *(slice(offset, None, 2) for offset in offsets))]
        assert torch.equal(y[:, place :: 2**n], picked)


def test_compiled_steps_have_the_gradients_of_eager_ones():
    layer, x, context = built("step-full", 5), state(5), torch.randn(1, K, dtype=torch.float64)
    expected = step_of(layer, x, context)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert_equal_steps(step_of(compiled, x, context), expected)


def test_exported_programs_have_the_rank_of_the_state():
    layer = built("step", 3).eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(layer, (state(3),), dynamic_shapes={"x": {0: batch}})
    x = state(3, batch=5)
    assert_equal_steps(exported.module()(x), layer(x))


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


ERRORS = [
    (lambda: channel_affine(zeros(4), torch.eye(4), zeros(4)), "x must have at least 2 dimensions (batch, channels, "),
    (
        lambda: affine_coupling(zeros(2, 4, 6), zeros(2, 4, 5)),
        "h must have shape (2 or a divisor, an even number, 6) for x of shape (2, 4, 6), got (2, 4, 5)",
    ),
    (
        lambda: affine_coupling(zeros(2, 4), zeros(2, 4, 1)),
        "h must have shape (2 or a divisor, an even number) for x of shape (2, 4), got (2, 4, 1)",
    ),
    (
        lambda: injector(3)(zeros(2, 4, 6), zeros(2, 3, 5)),
        "AffineInjector: context must have shape (2 or a divisor, 3, 6) or (2 or a divisor, 3) for x of shape "
        "(2, 4, 6), got (2, 3, 5)",
    ),
    (
        lambda: injector(2)(zeros(2, 4), zeros(2, 5)),
        "AffineInjector: context must have shape (2 or a divisor, 3) for x of shape (2, 4), got (2, 5)",
    ),
    (
        lambda: full_step(3)(zeros(2, 4, 6), Whole(zeros(2, 3))),
        "AffineInjector: context must have shape (2 or a divisor, 3, 6) for x of shape (2, 4, 6), got (2, 3)",
    ),
    (lambda: HaarSqueeze()(zeros(2, 4)), "HaarSqueeze: a state must have 1 to 3 spatial dimensions, got 0"),
    (lambda: HaarSqueeze()(zeros(2, 4, 5)), "HaarSqueeze: spatial dimensions must be even, got (5,)"),
    (lambda: HaarSqueeze()(zeros(1, 1, 2, 2, 2, 2)), "HaarSqueeze: a state must have 1 to 3 spatial dimensions, got 4"),
    (lambda: checkerboard(3)(zeros(2, 4), zeros(2, 3)), "a state must have at least one spatial dimension, got none"),
    (lambda: spline(2)(zeros(2, 4), zeros(2, 5)), "SplineCoupling: context must have shape (2 or a divisor, 3) for x"),
    (lambda: Permutation(3)(zeros(2, 4)), "Permutation: x must have 3 channels, got shape (2, 4)"),
    (lambda: Squeeze()(zeros(2, 4)), "Squeeze: x must have spatial dimensions, whose pixels become channels; a vector"),
    (lambda: Squeeze().inverse(zeros(2, 4)), "Squeeze: z must have spatial dimensions"),
    (lambda: Squeeze().output_shapes((4,)), "a vector of shape (4,) has none"),
    (lambda: Squeeze()(zeros(2, 4, 5)), "Squeeze: the length must be divisible by 2, got 5"),
    (lambda: Squeeze()(zeros(1, 1, 2, 4, 3)), "Squeeze: depth, height and width must be divisible by 2, got (2, 4, 3)"),
    (lambda: Squeeze().inverse(zeros(2, 4, 2, 2, 2)), "Squeeze: channels of z must be divisible by 8, got 4"),
    (
        lambda: Split(4)(zeros(2, 4, 6)),
        "Split: its default network takes images, (batch, 2, height, width), got z of shape (2, 2, 6): pass net=",
    ),
    (lambda: Split(4, Net(2, 2, 6))(zeros(2, 4)), "Split: net must return shape (2, 4), got (2, 6)"),
    (lambda: Split(4, Net(2, 2, 4)).inverse([zeros(2, 3), zeros(2, 2)]), "epsilon must have shape (2, 2), got (2, 3)"),
    (lambda: ActNorm(3)(zeros(2, 4)), "ActNorm: x must have 3 channels, got shape (2, 4)"),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_errors_name_what_was_given_and_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_the_default_network_of_a_split_takes_images():
    assert isinstance(Split(4).net, ZeroConv2d)
    assert_invertible(Split(4).double(), state(4))
