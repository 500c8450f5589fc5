"""The contract of layers: somebody else's layer composes, and what a subclass overrides is not bypassed."""

from __future__ import annotations

import re

import pytest
import torch
from foreign_layers import Cut, Doubling, Shift, Unshuffle
from layer_cases import CONTEXT_CHANNELS, LAYERS, LAYERS_BY_NAME, coupling, injector, latents_of, weighted_sum
from torch import Tensor, nn

from invflow import ActNorm, AffineCoupling, FlowSequential, FlowStep, Split, Squeeze
from invflow.layers import Conditionable, Fusable, Reversible, condition
from invflow.testing import assert_invertible, assert_log_det, log_det_by_autograd


def foreign_flow() -> FlowSequential:
    """Foreign layers at the ends of steps, nested, and with several latents: 1 + 3 + 1 + 1 of them."""
    inner = FlowSequential([FlowStep(8, coupling=coupling(8)), Cut(8, 3), Doubling(), FlowStep(5)])
    layers = [Unshuffle(), FlowStep(4), Cut(4, 1), FlowStep(3), Squeeze(), Cut(12, 1, 2, 1), inner, Shift(5, 3)]
    return FlowSequential(layers).double()


def inputs(batch: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 1, 8, 4, dtype=torch.float64), torch.randn(batch, 3, 2, 1, dtype=torch.float64)


def test_shapes_are_those_of_the_latents() -> None:
    flow = foreign_flow()
    z, _ = flow(*inputs())
    assert flow.num_latents == 6
    assert flow.latent_shapes(1, 8, 4) == [tuple(latent.shape[1:]) for latent in z]
    assert flow.output_shapes((1, 8, 4)) == flow.latent_shapes(1, 8, 4)


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_every_layer_knows_its_shapes(case) -> None:
    layer = case.build()
    z, _ = layer(*case.inputs())
    assert layer.output_shapes(case.shape) == [tuple(latent.shape[1:]) for latent in latents_of(z)]
    assert layer.num_latents == len(latents_of(z))


def test_inverse_and_log_det() -> None:
    flow = foreign_flow()
    assert_invertible(flow, *inputs())
    assert_log_det(flow, *inputs(1))


def test_gradients_are_those_of_store() -> None:
    flow, given, found = foreign_flow(), inputs(), []
    flow(*given)  # initialises the actnorms
    for memory in ("store", "invert"):
        flow.memory = memory
        leaves = [tensor.clone().requires_grad_() for tensor in given]
        z, log_det = flow(*leaves)
        found.append(torch.autograd.grad(weighted_sum([*z, log_det]), [*leaves, *flow.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


class SliceOfContext:
    """Context for :func:`invflow.layers.condition`, made of a tensor."""

    def __init__(self, context: Tensor) -> None:
        self.context = context

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.context.shape)

    def joined(self) -> Tensor:
        return self.context

    def network(self, net: nn.Module):
        def output(passed: Tensor | None, part: slice) -> Tensor:
            context = self.context[part]
            if passed is None:
                return net(context)
            return net(passed, context.repeat_interleave(len(passed) // len(context), 0))

        return output


@pytest.mark.parametrize("graph", [True, False], ids=["graph", "no graph"])
@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_a_conditioned_inverse_is_the_inverse(case, graph: bool) -> None:
    layer = case.build(torch.float64)
    x, context = case.inputs(6, torch.float64)
    context = torch.zeros(6, 0, *case.shape[1:]) if context is None else context
    z = latents_of(layer(x, context[::2].repeat_interleave(2, 0))[0])
    with torch.set_grad_enabled(graph):
        inverse = condition(layer, SliceOfContext(context[::2]))
        for part, states in ((slice(0, 1), slice(0, 2)), (slice(1, 3), slice(2, 6)), (slice(0, 3), slice(0, 6))):
            given = [latent[states] for latent in z]
            torch.testing.assert_close(inverse(given if len(given) > 1 else given[0], part), x[states])


def test_a_foreign_layer_is_conditioned_on_one_context_a_state() -> None:
    layer, (_, context) = Shift(2, 3).double(), inputs(3)
    z = torch.randn(6, 2, 2, 1, dtype=torch.float64)
    expected, _ = layer.inverse(z, context.repeat_interleave(2, 0))
    inverse = condition(layer, SliceOfContext(context))
    torch.testing.assert_close(inverse(z[2:], slice(1, 3)), expected[2:])
    torch.testing.assert_close(inverse(z[:2], slice(0, 1)), expected[:2])


def test_the_walk_says_what_every_layer_takes() -> None:
    flow = foreign_flow()
    x, context = inputs()
    z, log_det = flow(x, context)
    state, total, rest, seen = z[-1], 0.0, list(z[:-1]), []
    for step in flow.walk_inverse(rest):
        seen.append((step.position, len(step.leaving)))
        assert step.layer is flow[step.position]
        state, part = step.layer.inverse(step.input(state), context)
        total = total + part
    assert seen == [(7, 0), (6, 1), (5, 3), (4, 0), (3, 0), (2, 1), (1, 0), (0, 0)]
    assert rest == []
    torch.testing.assert_close(state, x)
    torch.testing.assert_close(total, -log_det)


# Layers that break the contract


class NoShapes(Cut):
    output_shapes = None


class FewerThanItSays(Doubling):
    num_latents = 2


def raises(error: type[Exception], message: str):
    return pytest.raises(error, match=re.escape(message))


def test_a_layer_without_shapes_counts_as_shape_preserving() -> None:
    assert FlowSequential([Doubling(), Squeeze()]).latent_shapes(3, 4, 6) == [(12, 2, 3)]


def test_a_layer_of_several_latents_without_shapes_is_named() -> None:
    flow = FlowSequential([Doubling(), NoShapes(4, 1)])
    flow.inverse(flow(torch.randn(1, 4, 2, 2))[0])
    with raises(TypeError, "layer 1: NoShapes has 2 latents and needs a method output_shapes(shape)"):
        flow.latent_shapes(4, 2, 2)


def test_a_layer_that_returns_other_latents_than_it_says_is_named() -> None:
    with raises(ValueError, "layer 1: FewerThanItSays must return a list of 2 latents, got a tensor"):
        FlowSequential([Doubling(), FewerThanItSays()])(torch.randn(1, 4, 2, 2))

    class MoreThanItSays(Cut):
        num_latents = 2

    with raises(ValueError, "layer 0: MoreThanItSays must return a list of 2 latents, got 3"):
        FlowSequential([MoreThanItSays(4, 1, 1)])(torch.randn(1, 4, 2, 2))


def test_a_layer_whose_shapes_lose_elements_is_named() -> None:
    with raises(
        ValueError, "layer 0: Unshuffle: output_shapes must keep the number of elements, got [(12, 2, 2)] for (3, 5, 4)"
    ):
        FlowSequential([Unshuffle()]).latent_shapes(3, 5, 4)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (ActNorm(4), "ActNorm: x must have 4 channels, got shape (3, 4, 6)"),
        (FlowStep(4), "FlowStep: x must have 4 channels, got shape (3, 4, 6)"),
        (Split(4), "Split: x must have 4 channels, got shape (3, 4, 6)"),
        (Squeeze(4), "Squeeze: height and width must be divisible by 4, got (4, 6)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_shape_that_a_layer_does_not_take_is_named(layer, message) -> None:
    with raises(ValueError, f"layer 1: {message}"):
        FlowSequential([Doubling(), layer]).latent_shapes(3, 4, 6)


def test_shapes_that_are_wrong_fail_the_assertion_for_layers() -> None:
    class Wrong(Unshuffle):
        def output_shapes(self, shape):
            return [shape]

    class None_(Unshuffle):
        output_shapes = None

    x = torch.randn(1, 1, 2, 2)
    with raises(AssertionError, "Wrong: output_shapes((1, 2, 2)) must be [(4, 1, 1)], got [(1, 2, 2)]"):
        assert_invertible(Wrong(), x)
    with raises(AssertionError, "None_: output_shapes((1, 2, 2)) must be [(4, 1, 1)], got [(1, 2, 2)]"):
        assert_invertible(None_(), x)
    with raises(AssertionError, "FewerThanItSays: num_latents must be 1, got 2"):
        assert_invertible(FewerThanItSays(), x)


# Subclasses: a capability says how forward and inverse may be evaluated otherwise, so it ends where one is overridden


class Scaled:
    """Overrides both methods of the layer that follows in the bases, and knows nothing of capabilities."""

    def forward(self, x, context=None):
        z, log_det = super().forward(x, context)
        return 3 * z, log_det + 1.0986122886681098 * x[0].numel()

    def inverse(self, z, context=None):
        x, log_det = super().inverse(z / 3, context)
        return x, log_det - 1.0986122886681098 * x[0].numel()


class ScaledStep(Scaled, FlowStep):
    pass


class ScaledCoupling(Scaled, AffineCoupling):
    pass


class ScaledSequence(Scaled, FlowSequential):
    pass


def scaled_step() -> nn.Module:
    return ScaledStep(4, injector=injector(4), coupling=coupling(4, context_channels=CONTEXT_CHANNELS))


def scaled_coupling() -> nn.Module:
    return ScaledCoupling(4, coupling(4, context_channels=CONTEXT_CHANNELS).net, context_channels=CONTEXT_CHANNELS)


def scaled_sequence() -> nn.Module:
    return ScaledSequence([FlowStep(4, injector=injector(4)), FlowStep(4, coupling=coupling(4))])


@pytest.mark.parametrize("build", [scaled_step, scaled_coupling, scaled_sequence])
def test_a_subclass_that_overrides_the_maps_is_not_bypassed(build) -> None:
    layer = build()
    layers = [FlowStep(4, coupling=coupling(4)), layer, FlowStep(4, coupling=coupling(4))]
    flow = FlowSequential(layers).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for part in flow.modules():
        if isinstance(part, ActNorm):
            part.mark_initialized()
    x = torch.randn(2, 4, 3, 2, dtype=torch.float64)
    context = torch.randn(2, CONTEXT_CHANNELS, 3, 2, dtype=torch.float64)
    expected = x
    for each in layers:
        expected, _ = each(expected, context)
    torch.testing.assert_close(flow(x, context)[0], expected)
    assert_invertible(flow, x, context)
    conditioned = condition(flow, SliceOfContext(context))
    torch.testing.assert_close(conditioned(expected, slice(0, 2)), x)
    found = []
    for memory in ("store", "invert"):
        flow.memory = memory
        z, log_det = flow(x, context)
        found.append(torch.autograd.grad(weighted_sum([z, log_det]), list(flow.parameters())))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_a_replaced_forward_is_not_bypassed() -> None:
    steps = [FlowStep(4, coupling=coupling(4)) for _ in range(2)]
    calls, flow = [], FlowSequential(steps).eval()
    x = torch.randn(1, 4, 2, 2)
    expected, _ = flow(x)
    own = steps[1].forward
    steps[1].forward = lambda *args: calls.append(len(args)) or own(*args)
    torch.testing.assert_close(flow(x)[0], expected)
    assert calls == [2]


def test_capabilities_are_what_the_protocols_say() -> None:
    step = FlowStep(4, coupling=coupling(4))
    assert isinstance(step, Fusable)
    assert isinstance(step, Reversible)
    assert isinstance(step, Conditionable)
    assert not isinstance(Doubling(), Fusable | Reversible | Conditionable)


@pytest.mark.parametrize("samples", [1, 2, 4])
def test_the_log_determinant_of_states_that_share_a_context(samples):
    layer = LAYERS_BY_NAME["injector-exp-shift_then_scale-cross"].build(torch.float64)
    x, context = torch.randn(4, 2, 2, 3, dtype=torch.float64), torch.randn(samples, 3, 2, 3, dtype=torch.float64)
    assert_log_det(layer, x, context)
    assert_invertible(layer, x, context)
    torch.testing.assert_close(log_det_by_autograd(layer, x, context), layer(x, context)[1])


def test_a_context_whose_batch_does_not_divide_is_named():
    layer = LAYERS_BY_NAME["injector-exp-shift_then_scale-cross"].build(torch.float64)
    x, context = torch.randn(4, 2, 2, 3, dtype=torch.float64), torch.randn(3, 3, 2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="context must have a batch of 4 or a divisor"):
        log_det_by_autograd(layer, x, context)


class LogDetOf(torch.nn.Module):
    """The identity with a log-determinant of the wrong kind."""

    def __init__(self, log_det):
        super().__init__()
        self.log_det = log_det

    def forward(self, x, context=None):
        return x, self.log_det

    inverse = forward


@pytest.mark.parametrize(("log_det", "given"), [(0, "int"), (torch.zeros(()), r"\(\)"), (torch.zeros(1), r"\(1,\)")])
def test_a_log_determinant_that_is_not_one_a_sample_is_named(log_det, given):
    x = torch.randn(2, 1, 2, 2, dtype=torch.float64)
    for check in (assert_log_det, assert_invertible):
        with pytest.raises(AssertionError, match=rf"log_det .*must have shape \(2,\), got {given}"):
            check(LogDetOf(log_det), x)


def test_the_log_determinant_of_no_states():
    layer, x = LAYERS_BY_NAME["actnorm"].build(torch.float64), torch.randn(0, 3, 2, 2, dtype=torch.float64)
    assert assert_log_det(layer, x) == 0.0


class Scaled(nn.Module):
    """Factor e, with a log-determinant of one number for all samples; latents in a tuple, if there are several."""

    def __init__(self, kind: str, split: bool = False) -> None:
        super().__init__()
        self.kind, self.num_latents = kind, 1 + split
        self.factor = nn.Parameter(torch.ones((), dtype=torch.float64))

    def output_shapes(self, shape):
        channels, *size = shape
        return [shape] if self.num_latents == 1 else [(1, *size), (channels - 1, *size)]

    def forward(self, x, context=None):
        z = x * self.factor.exp()
        log_det = {"int": x[0].numel(), "number": x[0].numel() * self.factor}[self.kind]
        return (z if self.num_latents == 1 else (z[:, :1], z[:, 1:])), log_det

    def inverse(self, z, context=None):
        z = z if isinstance(z, Tensor) else torch.cat(tuple(z), 1)
        return z * (-self.factor).exp(), {"int": -z[0].numel(), "number": -z[0].numel() * self.factor}[self.kind]


@pytest.mark.parametrize("memory", ["store", "invert"])
@pytest.mark.parametrize("kind", ["int", "number"])
@pytest.mark.parametrize("others", ["none", "steps"])
def test_log_determinants_of_one_number_and_tuples_of_latents(kind, memory, others):
    steps = [] if others == "none" else [FlowStep(3), FlowStep(2)]
    layers = [*steps[:1], Scaled(kind), Scaled(kind, split=True), *steps[1:]]
    flow = FlowSequential(layers, memory=memory).double().eval()
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    assert_invertible(flow, x)
    assert_log_det(flow, x)
    z, log_det = flow(x)
    assert log_det.shape == (4,)
    (weighted_sum(latents_of(z)) + log_det.sum()).backward()
    assert all(layer.factor.grad.isfinite() for layer in layers if isinstance(layer, Scaled))


def test_a_tuple_of_a_layer_of_one_latent_is_named():
    layer = Scaled("int")
    layer.forward = lambda x, context=None: ((x, x), 0)
    with pytest.raises(ValueError, match="layer 1: Scaled must return a list of 1 latents, got 2"):
        FlowSequential([FlowStep(3), layer]).double()(torch.randn(2, 3, 2, 2, dtype=torch.float64))
