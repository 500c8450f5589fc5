"""Folded layers: as exact as the layers they are made of, without parameters, caches and operators of ours."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
from accuracy import assert_as_accurate
from foreign_layers import Cut, Doubling, Shift
from layer_cases import CONTEXT_CHANNELS, LAYERS, LAYERS_BY_NAME, LayerCase, Net, coupling, injector, latents_of
from layer_cases import two_scales as build_two_scales
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from invflow import (
    ActNorm,
    AffineCoupling,
    FlowSequential,
    FlowStep,
    InvertibleConv1x1,
    InvertibleConv1x1LU,
    Split,
    Squeeze,
    ZeroConv2d,
    use_backend,
)
from invflow.layers import Inverse, fold
from invflow.layers.folded import FoldedMap
from invflow.testing import assert_invertible, assert_log_det

each_layer = pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def results(layer: nn.Module, x: Tensor, context: Tensor | None, latents: list[Tensor]) -> list[Tensor]:
    """Everything that the layer computes, in both directions; the inverse starts from the given latents."""
    with torch.no_grad():
        z, log_det = layer(x, context)
        back, inverse_log_det = layer.inverse(latents if len(latents) > 1 else latents[0], context)
    return [*latents_of(z), log_det, back, inverse_log_det]


def ready(layer: nn.Module) -> nn.Module:
    """The layer with its actnorms initialised and random values in all that starts at zero."""
    for part in layer.modules():
        if isinstance(part, ActNorm):
            part.mark_initialized()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return layer


@each_layer
def test_a_folded_layer_is_the_layer(case: LayerCase) -> None:
    layer = case.build(torch.float64)
    x, context = case.inputs(3, torch.float64)
    latents = [latent.detach() for latent in latents_of(layer(x, context)[0])]
    found, expected = results(layer.folded(), x, context, latents), results(layer, x, context, latents)
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)


@each_layer
def test_float32_is_at_most_twice_as_wrong(case: LayerCase) -> None:
    layer, exact = case.build(), case.build(torch.float64)
    x, context = case.inputs(3, enlarge=3)
    wide = x.double(), None if context is None else context.double()
    latents = [latent.detach().float() for latent in latents_of(exact(*wide)[0])]
    with use_backend("reference"):
        plain = results(layer, x, context, latents)
    found = results(layer.folded(), x, context, latents)
    expected = results(exact, *wide, [latent.double() for latent in latents])
    for actual, reference, wanted in zip(found, plain, expected, strict=True):
        assert_as_accurate(actual, reference, wanted)


@each_layer
def test_it_keeps_the_contract(case: LayerCase) -> None:
    layer = case.build(torch.float64).folded()
    x, context = case.inputs(dtype=torch.float64)
    assert_invertible(layer, x, context)
    assert_log_det(layer, x, context)
    composed = FlowSequential([layer, Doubling()])
    assert_invertible(composed, x, context)
    assert_invertible(case.build().folded(), *case.inputs(enlarge=2))


@each_layer
def test_nothing_in_it_is_trained_and_nothing_outside_changes(case: LayerCase) -> None:
    layer = case.build()
    before = copy.deepcopy(layer.state_dict())
    flags = [(parameter.requires_grad, id(parameter)) for parameter in layer.parameters()]
    draws = torch.random.get_rng_state()
    folded = layer.folded()
    assert torch.equal(torch.random.get_rng_state(), draws)
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert not any(module.training for module in folded.modules())
    assert all(module.training for module in layer.modules())
    assert flags == [(parameter.requires_grad, id(parameter)) for parameter in layer.parameters()]
    torch.testing.assert_close(layer.state_dict(), before, rtol=0, atol=0)
    assert all(tensor.is_contiguous() for tensor in folded.state_dict().values())
    # a copy: later training of the layer does not reach it
    x, context = case.inputs()
    latents = latents_of(layer(x, context)[0])
    was = results(folded, x, context, latents)
    with torch.no_grad():
        for tensor in (*layer.parameters(), *layer.buffers()):
            tensor.fill_(0)
    for actual, wanted in zip(results(folded, x, context, latents), was, strict=True):
        assert torch.equal(actual, wanted)


class Recorder(TorchDispatchMode):
    """Collects the namespaces of all operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.namespaces: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.namespaces.add(func.namespace)
        return func(*args, **(kwargs or {}))


@each_layer
def test_it_calls_no_operator_but_those_of_pytorch(case: LayerCase) -> None:
    layer = case.build()
    x, context = case.inputs()
    latents = [latent.detach() for latent in latents_of(layer(x, context)[0])]
    with Recorder() as recorder:
        results(layer.folded(), x, context, latents)
    assert recorder.namespaces == {"aten"}


@pytest.mark.parametrize("name", ["step-full", "injector-exp-shift_then_scale-cross", "coupling-conditional"])
def test_a_context_may_serve_several_states(name: str) -> None:
    case = LAYERS_BY_NAME[name]
    layer = case.build(torch.float64)
    x, context = case.inputs(6, torch.float64)
    latents = [x]
    for shared in (context[:2], context[:1], context):
        found = results(layer.folded(), x, shared, latents)
        for actual, wanted in zip(found, results(layer, x, shared, latents), strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)


def test_a_map_of_no_pixels() -> None:
    folded, x = ready(FlowStep(4)).folded(), torch.zeros(2, 4, 0, 3)
    for result, log_det in (folded(x), folded.inverse(x)):
        assert result.shape == x.shape
        assert log_det.tolist() == [0.0, 0.0]


def test_an_empty_batch() -> None:
    flow = ready(build_two_scales())
    x = torch.zeros(0, 1, 4, 4)
    (*latents, last), log_det = flow.folded()(x)
    assert [latent.shape for latent in (*latents, last)] == [latent.shape for latent in flow(x)[0]]
    assert log_det.shape == (0,)
    assert flow.folded().inverse([*latents, last])[0].shape == x.shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    layers = [FlowStep(4), Squeeze(), FlowStep(16, coupling=coupling(16)), Split(16)]
    flow = ready(FlowSequential(layers)).to(dtype)
    x = torch.randn(2, 4, 4, 4).to(dtype)
    folded = flow.folded()
    found, expected = folded(x), flow.double()(x.double())
    assert [latent.dtype for latent in found[0]] == [dtype] * 2
    assert found[1].dtype == torch.float32
    for actual, wanted in zip([*found[0], found[1]], [*expected[0], expected[1]], strict=True):
        torch.testing.assert_close(actual.double(), wanted, rtol=0.1, atol=0.1)
    assert {constant.dtype for constant in folded.layers[0].buffers()} == {torch.float32}


def test_under_autocast_maps_stay_in_float32() -> None:
    flow = ready(FlowSequential([InvertibleConv1x1(4), ActNorm(4)]))
    x = torch.randn(2, 4, 5, 5)
    expected = flow.folded()(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(flow.folded()(x)[0], expected)


def test_the_layout_of_a_state_is_kept() -> None:
    x = torch.randn(2, 4, 5, 6).contiguous(memory_format=torch.channels_last)
    for layer in (ready(FlowStep(4)), ready(FlowStep(4, coupling=coupling(4)))):
        z, _ = layer.folded()(x)
        assert z.is_contiguous(memory_format=torch.channels_last)


# --- constants and their dtype ---


@each_dtype
def test_constants_keep_their_dtype_on_the_way_through_another(dtype: torch.dtype) -> None:
    step = ready(FlowStep(6, coupling=coupling(6))).to(dtype)
    folded = step.folded()
    before = copy.deepcopy(folded.state_dict())
    there_and_back = folded.half().double().to(dtype)
    for name, constant in there_and_back.layers[0].named_buffers():
        assert constant.dtype == dtype
        assert torch.equal(constant, before[f"layers.0.{name}"])
    assert folded.layers[0].to("meta").matrix.is_meta
    assert folded.layers[0].matrix.dtype == dtype


def test_wider_states_than_constants_are_refused() -> None:
    step, x = ready(FlowStep(3)), torch.randn(1, 3, 2, 2)
    narrow, wide = step.folded(), copy.deepcopy(step).double().folded()
    for method in (narrow, narrow.inverse):
        with pytest.raises(TypeError, match=r"is float64 and the constants are float32; fold the flow in float64"):
            method(x.double())
    # rounded as late as can be
    torch.testing.assert_close(wide(x)[0], narrow(x)[0], rtol=0, atol=0)
    assert wide.float()(x)[0].dtype == torch.float32
    assert_invertible(wide, x.double(), atol=1e-13)


def test_it_can_be_copied_pickled_and_loaded() -> None:
    case = LAYERS_BY_NAME["sequential-two-scales"]
    folded, other = case.build().folded(), ready(build_two_scales()).folded()
    x, _ = case.inputs()
    expected = folded(x)
    other.load_state_dict(folded.state_dict())
    for again in (copy.deepcopy(folded), pickle.loads(pickle.dumps(folded)), other, folded.folded()):
        torch.testing.assert_close(again(x), expected, rtol=0, atol=0)


# --- what is folded into one ---


def test_successive_maps_are_one_convolution() -> None:
    inner = FlowSequential([ActNorm(8), FlowStep(8), FlowStep(8, coupling=coupling(8))])
    flow = ready(FlowSequential([InvertibleConv1x1LU(2), Squeeze(), FlowStep(8), inner, InvertibleConv1x1(8)])).double()
    folded = flow.folded()
    kinds = [type(layer).__name__ for layer in folded]
    assert kinds == ["FoldedMap", "Squeeze", "FoldedMap", "FoldedAffine", "FoldedMap"]
    x = torch.randn(2, 2, 6, 4, dtype=torch.float64)
    latents = [flow(x)[0].detach()]
    for actual, wanted in zip(results(folded, x, None, latents), results(flow, x, None, latents), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-11, atol=1e-11)


def test_many_maps_in_one_are_no_less_exact_than_one_after_the_other() -> None:
    flow = ready(FlowSequential([FlowStep(12) for _ in range(8)]))
    exact = copy.deepcopy(flow).double()
    x = torch.randn(2, 12, 8, 8)
    latents = [exact(x.double())[0].detach().float()]
    with use_backend("reference"):
        plain = results(flow, x, None, latents)
    expected = results(exact, x.double(), None, [latents[0].double()])
    found = results(flow.folded(), x, None, latents)
    for actual, reference, wanted in zip(found, plain, expected, strict=True):
        assert_as_accurate(actual, reference, wanted)


def test_convolutions_of_networks_are_plain() -> None:
    folded = ready(coupling(4)).folded()
    assert {type(module) for module in folded.net.modules()} == {Net, nn.Conv2d}


# --- what cannot be folded ---


@pytest.mark.parametrize(
    ("build", "place"),
    [
        (lambda: ActNorm(4), ""),
        (lambda: FlowStep(4), ""),
        (lambda: FlowSequential([Squeeze(), FlowSequential([FlowStep(4)])]), "layer 1: layer 0: "),
        (lambda: FlowSequential([coupling_with(ActNorm(2))]), "layer 0: 1: "),
        (lambda: FlowSequential([Around(FlowStep(4))]), "layer 0: inner: "),
    ],
    ids=["actnorm", "step", "nested", "in-a-network", "in-a-foreign-layer"],
)
def test_an_actnorm_that_waits_for_its_first_batch_is_refused(build, place: str) -> None:
    layer = build()
    message = rf"^{place}ActNorm with \d channels is not initialised and cannot be folded: pass a batch in training"
    with pytest.raises(RuntimeError, match=message):
        layer.folded()
    for part in layer.modules():
        if isinstance(part, ActNorm):
            part.mark_initialized()
    layer.folded()


def test_a_weight_without_an_inverse_is_refused() -> None:
    flow = ready(FlowSequential([Squeeze(), FlowStep(4)]))
    nn.init.zeros_(flow[1].conv1x1.weight)
    with pytest.raises(ValueError, match=r"^layer 1: InvertibleConv1x1 with 4 channels: weight is singular"):
        flow.folded()


class Around(nn.Module):
    """A foreign layer that calls one of ours and scales its result."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.factor = inner, nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, log_det = self.inner(x, context)
        return self.factor * z, log_det + self.log_det(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_det = self.inner.inverse(z / self.factor, context)
        return x, log_det - self.log_det(z)

    def log_det(self, x: Tensor) -> Tensor:
        return x[0].numel() * self.factor.log()


class InAnAttribute(Around):
    """Ours is also in an attribute that is no module's."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.also = [inner]


def coupling_with(actnorm: ActNorm) -> AffineCoupling:
    class First(nn.Module):
        def forward(self, z: tuple[Tensor, Tensor]) -> Tensor:
            return z[0]

    return AffineCoupling(4, nn.Sequential(nn.Conv2d(2, 2, 1), actnorm, First(), ZeroConv2d(2, 4)))


@pytest.mark.parametrize("kind", [Around, InAnAttribute])
def test_foreign_layers_are_copied_with_ours_in_them_folded(kind: type[Around]) -> None:
    inner = FlowStep(5, injector=injector(5), coupling=coupling(5, context_channels=CONTEXT_CHANNELS))
    flow = FlowSequential([kind(inner), Cut(5, 2), Shift(3, CONTEXT_CHANNELS), Doubling()])
    flow = ready(flow).double()
    x = torch.randn(2, 5, 3, 3, dtype=torch.float64)
    context = torch.randn(2, CONTEXT_CHANNELS, 3, 3, dtype=torch.float64)
    latents = [latent.detach() for latent in flow(x, context)[0]]
    with Recorder() as recorder:
        found = results(flow.folded(), x, context, latents)
    assert recorder.namespaces == {"aten"}
    for actual, wanted in zip(found, results(flow, x, context, latents), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)
    folded = flow.folded()[0]
    assert folded.factor is not flow[0].factor
    if kind is InAnAttribute:
        assert folded.also == [folded.inner]


class Twice(FlowStep):
    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, log_det = super().forward(x, context)
        return 2 * z, log_det


class TwiceFolded(Twice):
    def folded(self) -> nn.Module:
        return Doubling()


class Wrong(Doubling):
    def folded(self) -> tuple[int, int]:
        return 1, 2


def test_a_subclass_is_not_bypassed() -> None:
    message = "Twice overrides forward or inverse and needs a method folded() of its own"
    step = ready(Twice(4))
    for make in (step.folded, lambda: fold(step)):
        with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
            make()
    with pytest.raises(TypeError, match=f"^layer 1: {re.escape(message)}"):
        FlowSequential([Squeeze(), step]).folded()
    assert type(FlowSequential([ready(TwiceFolded(4))]).folded()[0]) is Doubling
    replaced = ready(FlowStep(4))
    replaced.forward = Doubling().forward
    with pytest.raises(TypeError, match=r"^layer 0: FlowStep overrides"):
        FlowSequential([replaced]).folded()
    with pytest.raises(TypeError, match=re.escape("layer 0: Wrong: folded() must return a torch.nn.Module, got tuple")):
        FlowSequential([Wrong()]).folded()


def test_hooks_are_not_left_out_in_silence() -> None:
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        flow = ready(FlowSequential([Squeeze(), FlowStep(4)]))
        handle = getattr(flow[1], register)(lambda *_: None)
        with pytest.raises(TypeError, match=r"^layer 1: FlowStep has forward hooks, which its folded copy would leave"):
            flow.folded()
        handle.remove()
        flow.folded()


# --- bad input ---


def test_errors_name_what_is_wrong() -> None:
    state, split = torch.zeros(2, 3, 2, 2), ready(Split(5)).folded()
    for layer in (ready(FlowStep(4)), ready(coupling(4)), ready(Split(4))):
        with pytest.raises(ValueError, match=r"x must have 4 channels, got shape \(2, 3, 2, 2\)"):
            layer.folded()(state)
    with pytest.raises(ValueError, match=r"context with 3 channels is required, got None"):
        ready(injector(3)).folded()(state)
    with pytest.raises(ValueError, match=r"takes the 2 latents \[epsilon, z\], got a tensor"):
        split.inverse(state)
    with pytest.raises(ValueError, match=r"epsilon must have shape \(2, 2, 2, 2\), got \(1, 2, 2, 2\)"):
        split.inverse([torch.zeros(1, 2, 2, 2), state])


# --- torch's transforms ---


@pytest.mark.slow
@pytest.mark.parametrize("name", ["step-full", "sequential-two-scales"])
def test_it_compiles_whole_and_differentiates(name: str) -> None:
    case = LAYERS_BY_NAME[name]
    folded = case.build(torch.float64).folded()
    x, context = case.inputs(3, torch.float64, enlarge=2)
    latents = [latent.detach() for latent in latents_of(folded(x, context)[0])]
    expected = results(folded, x, context, latents)
    given = latents if len(latents) > 1 else latents[0]
    for dynamic in (False, True):
        torch._dynamo.reset()
        there, back = (
            torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=dynamic)
            for module in (folded, Inverse(folded))
        )
        found = [*latents_of(there(x, context)[0]), there(x, context)[1], *back(given, context)]
        for actual, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)
    ensemble = torch.stack([x, 2 * x])
    mapped = torch.vmap(lambda state: folded(state, context))(ensemble)
    for member, state in enumerate(ensemble):
        z, log_det = folded(state, context)
        torch.testing.assert_close([part[member] for part in latents_of(mapped[0])], latents_of(z))
        torch.testing.assert_close(mapped[1][member], log_det)


def test_constants_are_one_matrix_a_step() -> None:
    folded = ready(FlowStep(4, coupling=coupling(4))).folded()
    maps = [layer for layer in folded if isinstance(layer, FoldedMap)]
    assert [(name, tuple(constant.shape)) for name, constant in maps[0].named_buffers()] == [
        ("matrix", (4, 4)),
        ("shift", (4,)),
        ("inverse_matrix", (4, 4)),
        ("inverse_shift", (4,)),
        ("log_abs_det", ()),
    ]
    assert len(maps) == 1
