"""States of every rank: vectors, sequences, images, volumes; contexts of their pixels, or one for all of them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import pytest
import torch
from copies import Copies
from layer_cases import latents_of, weighted_sum
from torch import Tensor, nn

import invflow
from invflow import (
    ActNorm,
    AffineCoupling,
    AffineForm,
    AffineInjector,
    CheckerboardCoupling,
    FlowSequential,
    FlowStep,
    HaarSqueeze,
    InvertibleConv1x1,
    InvertibleConv1x1LU,
    Permutation,
    SplineCoupling,
    Split,
    Squeeze,
    ZeroConv2d,
    affine_coupling,
    channel_affine,
    flow_step,
    gaussian_split,
)
from invflow.layers import Inverse, condition, fold
from invflow.ops import affine_coupling_reference, channel_affine_reference, flow_step_reference
from invflow.ops._pixels import as_image
from invflow.testing import assert_invertible, assert_log_det

C, K = 4, 3
SPATIAL = {2: (), 3: (4,), 4: (4, 2), 5: (2, 2, 4)}
each_rank = pytest.mark.parametrize("rank", SPATIAL)


class Net(nn.Module):
    """A network as users write it for states of a rank."""

    def __init__(self, rank: int, inputs: int, outputs: int) -> None:
        super().__init__()
        kinds: dict[int, Callable[..., nn.Module]] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
        part = nn.Linear if rank == 2 else lambda i, o: kinds[rank](i, o, 3, padding=1)
        self.first, self.last = part(inputs, 5), part(5, outputs)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.last(self.first(torch.cat(inputs, 1)).tanh())


def coupling(rank: int, context: int = 0, form: AffineForm | None = None) -> AffineCoupling:
    return AffineCoupling(C, Net(rank, C // 2 + context, C), context_channels=context, form=form)


def injector(rank: int) -> AffineInjector:
    return AffineInjector(C, Net(rank, K, 2 * C), context_channels=K)


def full_step(rank: int) -> FlowStep:
    return FlowStep(C, injector=injector(rank), coupling=coupling(rank, K))


def flow(rank: int, memory: str = "store") -> FlowSequential:
    """Two steps, a split whose latent leaves, and what goes on: nested, and with a context for all."""
    inner = FlowSequential([Split(C, Net(rank, C // 2, C)), ActNorm(C // 2)], memory=memory)
    return FlowSequential([full_step(rank), full_step(rank), inner], memory=memory)


def multi_scale(rank: int) -> FlowSequential:
    wide = 2 ** (rank - 2)
    step = FlowStep(wide, coupling=AffineCoupling(wide, Net(rank, wide // 2, wide)))
    return FlowSequential([Squeeze(), step, Split(wide, Net(rank, wide // 2, wide)), ActNorm(wide // 2)])


def additive(rank: int) -> AffineCoupling:
    """Return a coupling of the first channels, of which one more passes."""
    return AffineCoupling(C, Net(rank, 3, 1), form=AffineForm("none"), stop=1)


def checkerboard(rank: int) -> CheckerboardCoupling:
    return CheckerboardCoupling(C, Net(rank, C + K, 2 * C), context_channels=K, passes="odd")


def spline(rank: int) -> SplineCoupling:
    return SplineCoupling(C, Net(rank, 1 + K, 3 * 8), bins=3, context_channels=K, start=1)


#: Layers for states of a rank; whether they take a context; the channels of the state.
LAYERS: dict[str, tuple[Callable[[int], nn.Module], bool, int]] = {
    "actnorm": (lambda rank: ActNorm(C), False, C),
    "conv1x1": (lambda rank: InvertibleConv1x1(C), False, C),
    "conv1x1-lu": (lambda rank: InvertibleConv1x1LU(C), False, C),
    "coupling": (lambda rank: coupling(rank, form=AffineForm("exp", packing="split")), False, C),
    "coupling-conditional": (lambda rank: coupling(rank, K), True, C),
    "coupling-additive": (additive, False, C),
    "coupling-volume-preserving": (
        lambda rank: coupling(rank, K, AffineForm("atan_exp", volume_preserving=True)),
        True,
        C,
    ),
    "checkerboard": (checkerboard, True, C),
    "spline": (spline, True, C),
    "permutation": (lambda rank: Permutation(C, seed=0), False, C),
    "haar": (lambda rank: HaarSqueeze(), False, 1),
    "haar-bands-first": (lambda rank: HaarSqueeze(bands_first=True), False, 1),
    "injector": (injector, True, C),
    "split": (lambda rank: Split(C, Net(rank, C // 2, C)), False, C),
    "step": (lambda rank: FlowStep(C), False, C),
    "step-full": (full_step, True, C),
    "squeeze": (lambda rank: Squeeze(), False, 1),
    "sequential": (flow, True, C),
    "multi-scale": (multi_scale, False, 1),
}
#: Layers of pixels; a vector has none.
SPATIAL_ONLY = {"squeeze", "haar", "haar-bands-first", "multi-scale", "checkerboard"}
CASES = [(name, rank) for name, rank in itertools.product(LAYERS, SPATIAL) if rank > 2 or name not in SPATIAL_ONLY]
each_case = pytest.mark.parametrize(("name", "rank"), CASES, ids=lambda value: str(value))
each_conditional = pytest.mark.parametrize(
    ("name", "rank"), [case for case in CASES if LAYERS[case[0]][1]], ids=lambda value: str(value)
)


def built(name: str, rank: int) -> nn.Module:
    torch.manual_seed(1)
    layer = LAYERS[name][0](rank).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    for part in layer.modules():
        if isinstance(part, ActNorm):
            part.mark_initialized()
    return layer


def state(rank: int, channels: int = C, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, *SPATIAL[rank], dtype=torch.float64)


def inputs_of(name: str, rank: int) -> tuple[Tensor, Tensor | None]:
    _, conditional, channels = LAYERS[name]
    return state(rank, channels), state(rank, K) if conditional else None


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


OPERATORS = {
    "channel_affine": (lambda x, h, matrix, shift, **options: channel_affine(x, matrix, shift, **options)),
    "affine_coupling": (lambda x, h, matrix, shift, **options: affine_coupling(x, h[:, :C], **options)[0]),
    "flow_step": (lambda x, h, matrix, shift, **options: flow_step(x, matrix, shift, h[:, :C], h, **options)[0]),
    "gaussian_split": (lambda x, h, matrix, shift, **options: gaussian_split(x, h, **options)[0]),
}
REFERENCES = {
    "channel_affine": lambda x, h, matrix, shift: channel_affine_reference(x, matrix, shift),
    "affine_coupling": lambda x, h, matrix, shift: affine_coupling_reference(x, h[:, :C])[0],
    "flow_step": lambda x, h, matrix, shift: flow_step_reference(x, matrix, shift, h[:, :C], h)[0],
}


def arguments(rank, dtype=torch.float32):
    tensors = torch.randn(3, C, *SPATIAL[rank]), torch.randn(3, 2 * C, *SPATIAL[rank]), torch.randn(C, C)
    return [tensor.to(dtype) for tensor in (*tensors, torch.randn(C))]


@each_rank
@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_see_the_pixels_of_any_state_as_those_of_an_image(operator, rank):
    call, (x, h, matrix, shift) = OPERATORS[operator], arguments(rank)
    image, h_image = (tensor.reshape(*tensor.shape[:2], -1, 1) for tensor in (x, h))
    expected = call(image, h_image, matrix, shift, backend="reference").reshape(x.shape)
    for backend in ("reference", "cpu"):
        torch.testing.assert_close(call(x, h, matrix, shift, backend=backend), expected)
    if operator in REFERENCES:
        torch.testing.assert_close(REFERENCES[operator](x, h, matrix, shift), expected)


@each_rank
@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_under_transforms_and_without_values(operator, rank):
    call, given = OPERATORS[operator], arguments(rank)
    expected = call(*given)
    x, h, matrix, shift = given
    mapped = torch.vmap(lambda x, h: call(x[None], h[None], matrix, shift)[0])
    torch.testing.assert_close(mapped(x, h), expected, rtol=1e-4, atol=1e-5)
    on_meta = call(*(tensor.to("meta") for tensor in given))
    assert on_meta.shape == x.shape


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


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "some channels": lambda x: torch.cat([x, x], 1)[:, C // 2 : C // 2 + C],
    "some channels of channels last": lambda x: torch.cat([x, x], 1).movedim(1, -1).contiguous().movedim(-1, 1)[:, 1:5],
    "every other sample": lambda x: torch.cat([x, x])[::2],
}


@each_rank
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_stay_views_and_results_keep_them(layout, rank):
    x = LAYOUTS[layout](torch.randn(4, C, *SPATIAL[rank]))
    with Copies() as copies:
        image = as_image(x)
    assert copies.count == 0
    assert image.data_ptr() == x.data_ptr()
    assert image.dim() == 4
    assert torch.equal(image.reshape(x.shape), x)
    h, matrix, shift = (torch.randn(4, C, *SPATIAL[rank]), torch.eye(C), torch.zeros(C))
    expected = x.movedim(1, -1).contiguous().movedim(-1, 1) if "last" in layout else x.contiguous()
    expected = x.contiguous() if rank == 2 else expected
    for result in (channel_affine(x, matrix, shift), affine_coupling(x, h)[0]):
        assert result.stride() == expected.stride()


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_part_of_a_volume_is_copied_once_in_its_layout(layout):
    x = LAYOUTS[layout](torch.randn(2, C, 4, 4, 4))[:, :, 1:3, :, :3]
    with Copies() as copies:
        image = as_image(x)
    assert copies.count == 1
    assert (image.stride(1) == 1) == (layout == "channels last")
    expected = x.flatten(2).unsqueeze(2)
    assert torch.equal(image, expected)


@pytest.mark.parametrize("rank", [3, 5])
def test_squeeze_keeps_the_layout_of_other_ranks(rank):
    x = LAYOUTS["channels last"](torch.randn(2, C, *SPATIAL[rank]))
    y, _ = Squeeze()(x)
    assert torch.equal(y, Squeeze()(x.contiguous())[0])
    back, _ = Squeeze().inverse(y)
    for result in (y, back):
        assert result.movedim(1, -1).is_contiguous()


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
