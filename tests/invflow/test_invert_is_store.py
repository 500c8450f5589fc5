"""FlowSequential(memory="invert") is memory="store" under whatever torch offers, or says that it cannot be."""

import copy
import gc
import threading
import warnings
import weakref

import numpy as np
import pytest
import torch
from foreign_layers import Cut, Doubling
from layer_cases import CONTEXT_CHANNELS, coupling, injector, latents_of, weighted_sum
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from invflow import ActNorm, AffineCoupling, AffineForm, FlowSequential, FlowStep, InvertibleConv1x1, Split

CHANNELS = 4
HALF = CHANNELS // 2


def step(net=None, **options):
    if net is None:
        return FlowStep(CHANNELS, coupling=coupling(CHANNELS), **options)
    return FlowStep(CHANNELS, coupling=AffineCoupling(CHANNELS, net), **options)


def conv(inputs=HALF, outputs=CHANNELS):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def prepared(layers, dtype=torch.float64):
    """A flow in training mode whose actnorms are initialised, and whose parameters are random."""
    flow = FlowSequential(layers).to(dtype)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    for part in flow.modules():
        if isinstance(part, ActNorm):
            part.mark_initialized()
    return flow


class Observed:
    """What a training step leaves: values and gradients, buffers, and how often hooks ran."""

    def __init__(self, build, memory, use=lambda flow, x, context: flow(x, context)):
        torch.manual_seed(3)
        self.flow = build()
        self.flow.memory = memory
        self.extra = getattr(self.flow, "extra", [])
        dtype = next(self.flow.parameters()).dtype
        self.x = torch.randn(3, CHANNELS, 4, 4, dtype=dtype, requires_grad=True)
        self.context = torch.randn(3, CONTEXT_CHANNELS, 4, 4, dtype=dtype, requires_grad=True)
        self.calls = {}
        with warnings.catch_warnings(record=True) as self.warnings:
            warnings.simplefilter("always")
            z, self.log_det = use(self.flow, self.x, self.context)
            self.latents = latents_of(z)
            loss = weighted_sum([*self.latents, self.log_det])
            loss.backward()

    def tensors(self):
        named = [*self.flow.named_parameters(), ("x", self.x), ("context", self.context)]
        named += [(f"extra {i}", tensor) for i, tensor in enumerate(self.extra)]
        found = {f"gradient of {name}": tensor.grad for name, tensor in named if tensor.grad is not None}
        found |= {f"buffer {name}": buffer for name, buffer in self.flow.named_buffers()}
        found |= {f"latent {i}": latent.detach() for i, latent in enumerate(self.latents)}
        return found | {"log_det": self.log_det.detach()}


def assert_same(build, tolerance=1e-9, says=None, **options):
    store, invert = Observed(build, "store", **options), Observed(build, "invert", **options)
    assert store.tensors().keys() == invert.tensors().keys()
    torch.testing.assert_close(invert.tensors(), store.tensors(), rtol=tolerance, atol=tolerance)
    messages = [str(warning.message) for warning in invert.warnings]
    if says is None:
        assert not messages
    else:
        assert any(says in message for message in messages), messages
    return store, invert


# Flows: what networks are made of, and what they use


def plain():
    return prepared([step(), step(), step()])


def conditional():
    full = [
        FlowStep(CHANNELS, injector=injector(CHANNELS), coupling=coupling(CHANNELS, context_channels=CONTEXT_CHANNELS))
        for _ in range(3)
    ]
    return prepared([*full, Split(CHANNELS), FlowStep(2)])


def nested():
    inner = FlowSequential([step(), FlowSequential([step(), Doubling()], memory="invert")], memory="invert")
    return prepared([inner, step(), FlowSequential([step(), Cut(CHANNELS, 1)])])


def shared_network():
    net = conv()
    return prepared([step(net), InvertibleConv1x1(CHANNELS), step(net), step(net)])


def with_net(make, count=3):
    return lambda: prepared([step(), *(step(make()) for _ in range(count))])


class Closure(nn.Module):
    """A network that uses tensors which are not its own."""

    def __init__(self, *tensors):
        super().__init__()
        self.conv = conv()
        self.tensors = tensors

    def forward(self, x):
        return self.conv(x) * (1 + 0.1 * sum(self.tensors[1:], self.tensors[0]))


def captured_leaf():
    shift = torch.randn(1, CHANNELS, 1, 1, dtype=torch.float64, requires_grad=True)
    flow = prepared([step(Closure(shift)), step(), step(Closure(shift))])
    flow.extra = [shift]
    return flow


def captured_parameter_of_another_module():
    other = nn.Linear(1, 1).double()
    flow = prepared([step(), step(Closure(other.weight)), step(Closure(other.bias))])
    flow.extra = list(other.parameters())
    return flow


def hypernetwork():
    code = torch.randn(CHANNELS, dtype=torch.float64, requires_grad=True)
    made = code.tanh()[:, None, None]
    flow = prepared([step(), step(Closure(made)), step(), step(Closure(made))])
    made.retain_grad()
    flow.extra = [code, made]
    return flow


def dropout():
    return nn.Sequential(conv(HALF, 8), nn.Dropout2d(0.4), conv(8, CHANNELS))


class StochasticDepth(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = conv(), conv()

    def forward(self, x):
        return self.first(x) + (torch.rand(()) < 0.5) * self.second(x)


class Codebook(nn.Module):
    """A moving average of what it sees, written as many do: through ``.data``."""

    def __init__(self):
        super().__init__()
        self.conv = conv()
        self.register_buffer("mean", torch.zeros(HALF))

    def forward(self, x):
        if self.training:
            self.mean.data.mul_(0.5).add_(x.detach().mean((0, 2, 3)), alpha=0.5)
        return self.conv(x - self.mean[:, None, None])


class ReplacedBuffer(Codebook):
    def forward(self, x):
        self.mean = 0.5 * self.mean + x.detach().mean((0, 2, 3))
        return self.conv(x - self.mean[:, None, None])


class PowerIteration(nn.Module):
    """Spectral normalisation as it was written before torch had one: the vector is a frozen parameter."""

    def __init__(self):
        super().__init__()
        self.conv = conv()
        self.u = nn.Parameter(torch.randn(CHANNELS), requires_grad=False)

    def forward(self, x):
        weight = self.conv.weight.flatten(1)
        v = nn.functional.normalize(weight.data.T @ self.u.data, dim=0)
        self.u.data = nn.functional.normalize(weight.data @ v, dim=0)
        norm = self.u @ weight @ v
        return nn.functional.conv2d(x, self.conv.weight / norm, self.conv.bias, padding=1)


class Reentrant(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant
        self.body = nn.Sequential(conv(HALF, 8), nn.ReLU(), conv(8, CHANNELS))

    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=self.reentrant)


class NumberAsLogDet(Doubling):
    def forward(self, x, context=None):
        return x.flip(1), 0

    def inverse(self, z, context=None):
        return z.flip(1), 0


class ScalarLogDet(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x, context=None):
        return x * self.scale.exp(), self.scale * x[0].numel()

    def inverse(self, z, context=None):
        return z * (-self.scale).exp(), -self.scale * z[0].numel()


@pytest.mark.parametrize(
    "build",
    [
        plain,
        conditional,
        nested,
        shared_network,
        captured_leaf,
        captured_parameter_of_another_module,
        with_net(lambda: nn.Sequential(conv(HALF, 8), nn.BatchNorm2d(8).eval(), conv(8, CHANNELS)).eval()),
        with_net(lambda: nn.utils.weight_norm(conv())),
        with_net(lambda: parametrizations.weight_norm(conv())),
        with_net(lambda: Reentrant(False)),
        lambda: prepared([step(), NumberAsLogDet(), step(), ScalarLogDet()]),
        lambda: prepared([NumberAsLogDet(), ScalarLogDet(), step()]),
    ],
    ids=lambda build: getattr(build, "__name__", "net"),
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_layers_that_are_inverted(build):
    assert_same(build)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (with_net(lambda: nn.Sequential(conv(HALF, 8), nn.BatchNorm2d(8), conv(8, CHANNELS))), "coupling.net.1."),
        (with_net(lambda: nn.Sequential(nn.InstanceNorm2d(HALF, track_running_stats=True), conv())), "coupling.net.0."),
        (with_net(lambda: nn.utils.spectral_norm(conv())), "coupling.net.weight_"),
        (with_net(lambda: parametrizations.spectral_norm(conv())), "coupling.net.parametrizations.weight.0._"),
        (with_net(Codebook), "coupling.net.mean"),
        (with_net(ReplacedBuffer), "coupling.net.mean"),
        (with_net(PowerIteration), "coupling.net.u"),
        (with_net(dropout), "layer 1: it draws random numbers"),
        (with_net(StochasticDepth), "layer 1: it draws random numbers"),
        (with_net(lambda: Reentrant(True)), "layer 1: it uses torch.utils.checkpoint with use_reentrant=True"),
        (hypernetwork, "layer 1: it uses a tensor that was computed before, by UnsqueezeBackward0"),
    ],
    ids=[
        "batch_norm",
        "instance_norm",
        "spectral_norm",
        "parametrized_spectral_norm",
        "codebook",
        "replaced_buffer",
        "power_iteration",
        "dropout",
        "stochastic_depth",
        "reentrant_checkpoint",
        "hypernetwork",
    ],
)
@pytest.mark.filterwarnings("ignore:.*spectral_norm.* is deprecated:FutureWarning")
def test_layers_that_are_stored_and_named(build, says):
    assert_same(build, says=says)


def test_a_network_that_changes_a_buffer_in_evaluation_mode_too_is_named():
    assert_same(lambda: with_net(PowerIteration)().eval(), says="an evaluation changes its coupling.net.u")


def test_a_network_with_statistics_in_a_nested_flow_is_named():
    def build():
        inner = FlowSequential([step(), step(nn.Sequential(nn.BatchNorm2d(HALF), conv()))])
        return prepared([step(), inner, step()])

    _, invert = assert_same(build, says="stores what the backward pass needs of 1 of its 4 layers. layer 1: layer 1: ")
    assert len(invert.warnings) == 1


# Circumstances


def on_cpu(flow, x, context):
    with torch.autograd.graph.save_on_cpu():
        return flow(x, context)


def copies(flow, x, context):
    with torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone):
        return flow(x, context)


def anomaly(flow, x, context):
    with torch.autograd.detect_anomaly(check_nan=True):
        return flow(x, context)


def twice(flow, x, context):
    z, log_det = flow(x, context)
    weighted_sum([*latents_of(z), log_det]).backward(retain_graph=True)
    return z, log_det


def after_another_backward(flow, x, context):
    z, log_det = flow(x, context)
    torch.autograd.grad(log_det.sum(), list(flow[-1].parameters()), retain_graph=True)
    return z, log_det


def in_place_on_log_det(flow, x, context):
    z, log_det = flow(x, context)
    log_det += 1
    log_det *= 2
    return z, log_det


def of_a_non_leaf(flow, x, context):
    z, log_det = flow(x.exp(), context.sin())
    return z, log_det + x.sum() + context.sum()


def only_the_first_latent(flow, x, context):
    z, log_det = flow(x, context)
    return latents_of(z)[0], log_det.detach()


def only_log_det(flow, x, context):
    z, log_det = flow(x, context)
    return [latent.detach() for latent in latents_of(z)], log_det


def frozen_start(flow, x, context):
    for parameter in flow[0].parameters():
        parameter.requires_grad_(False)
    return flow(x.detach(), context.detach())


def only_the_context(flow, x, context):
    return flow.requires_grad_(False)(x.detach(), context)


def in_another_module(flow, x, context):
    return FlowSequential([flow, Doubling()], memory="invert")(x, context)


def several_threads(flow, x, context):
    z, log_det = flow(x, context)
    loss = weighted_sum([*latents_of(z), log_det])
    threads = [threading.Thread(target=loss.backward, kwargs={"retain_graph": True}) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return z, log_det


@pytest.mark.parametrize("build", [plain, conditional, nested, shared_network], ids=lambda build: build.__name__)
@pytest.mark.parametrize(
    "use",
    [
        on_cpu,
        copies,
        twice,
        after_another_backward,
        in_place_on_log_det,
        of_a_non_leaf,
        only_the_first_latent,
        only_log_det,
        frozen_start,
        in_another_module,
        several_threads,
        lambda flow, x, context: checkpoint(flow, x, context, use_reentrant=False),
        lambda flow, x, context: checkpoint(flow, x, context, use_reentrant=True),
        lambda flow, x, context: copy.deepcopy(flow)(x, context),
        lambda flow, x, context: flow(x.to(memory_format=torch.channels_last), context),
        lambda flow, x, context: flow(x[:0], context[:0]),
    ],
    ids=lambda use: use.__name__,
)
def test_circumstances(build, use):
    assert_same(build, use=use)


def test_everything_frozen_but_the_context():
    assert_same(conditional, use=only_the_context)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_anomaly_detection():
    assert_same(conditional, use=anomaly, says="Anomaly Detection")


@pytest.mark.parametrize("build", [plain, conditional, shared_network], ids=lambda build: build.__name__)
def test_autocast(build):
    def use(flow, x, context):
        with torch.autocast("cpu", torch.bfloat16):
            return flow(x, context)

    assert_same(lambda: build().float(), use=use, tolerance=0.1)


class Float32Part(nn.Module):
    """A network that computes a part of itself in float32 under autocast."""

    def __init__(self):
        super().__init__()
        self.first, self.mix = conv(), nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x):
        h = self.first(x)
        with torch.autocast("cpu", enabled=False):
            return self.mix(h.float().movedim(1, 3)).movedim(3, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_backward_pass_is_not_rounded_by_autocast(dtype):
    def use(flow, x, context):
        with torch.autocast("cpu", dtype):
            return flow(x, context)

    # the output is stored, so that a single reconstruction is exact but for float32
    assert_same(lambda: prepared([step(), step(Float32Part())]).float(), use=use, tolerance=2e-4)


class OfTwoModes(nn.Module):
    """A network that computes something else in evaluation mode, and draws nothing for it."""

    def __init__(self):
        super().__init__()
        self.net = conv()

    def forward(self, x):
        return self.net(x) * (1.0 if self.training else 0.5)


@pytest.mark.parametrize(
    ("net", "training"),
    [
        (lambda: nn.Sequential(conv(HALF, 8), nn.BatchNorm2d(8), conv(8, CHANNELS)), False),
        (dropout, False),
        (OfTwoModes, False),
        (OfTwoModes, True),
    ],
    ids=["batch_norm", "dropout", "in_evaluation", "in_training"],
)
def test_networks_are_evaluated_in_the_mode_of_the_forward_pass(net, training):
    def use(flow, x, context):
        z, log_det = flow.train(training)(x, context)
        flow.train(not training)
        return z, log_det

    _, invert = assert_same(with_net(net), use=use)
    assert all(part.training is not training for part in invert.flow.modules())


def test_the_context_may_be_a_structure_of_tensors():
    class Of(nn.Module):
        """Adds one of the contexts."""

        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, x, context=None):
            return x + context[self.name].mean(1, keepdim=True), 0

        def inverse(self, z, context=None):
            return z - context[self.name].mean(1, keepdim=True), 0

    def use(flow, x, context):
        return flow(x, {"a": context, "b": context.sin(), "name": "c", "none": None})

    assert_same(lambda: prepared([Of("a"), step(), Of("b"), Of("a")]), use=use)


# Hooks


@pytest.mark.parametrize("build", [plain, conditional, shared_network, captured_leaf], ids=lambda b: b.__name__)
def test_hooks_on_tensors_run_once_a_backward_pass(build):
    def use(flow, x, context):
        flow.calls = []

        def note(name, grad):
            flow.calls.append(name)
            return 3 * grad

        for name, tensor in [*flow.named_parameters(), ("x", x), ("context", context), *enumerate(flow_extra(flow))]:
            tensor.register_hook(lambda grad, name=name: note(name, grad))
            tensor.register_post_accumulate_grad_hook(lambda tensor, name=name: flow.calls.append((name, "after")))
        return flow(x, context)

    store, invert = assert_same(build, use=use)
    assert sorted(map(str, invert.flow.calls)) == sorted(map(str, store.flow.calls))
    assert len(set(map(str, invert.flow.calls))) == len(invert.flow.calls)


def flow_extra(flow):
    return getattr(flow, "extra", [])


def test_a_removed_hook_does_not_run():
    flow, x = plain(), torch.randn(2, CHANNELS, 3, 3, dtype=torch.float64)
    flow.memory, calls = "invert", []
    handle = flow[1].coupling.net.hidden.weight.register_hook(lambda grad: calls.append(1))
    for _ in range(2):
        flow(x)[1].sum().backward()
    handle.remove()
    flow(x)[1].sum().backward()
    assert len(calls) == 2


MODULES = {
    "layer": lambda flow: flow[1],
    "part": lambda flow: flow[1].coupling,
    "network": lambda flow: flow[1].coupling.net,
}


@pytest.mark.parametrize("where", MODULES)
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_module_hooks(where, kind):
    def use(flow, x, context):
        flow.calls = []
        module = MODULES[where](flow)

        def note(*args):
            flow.calls.append(kind)
            if kind == "full_backward":
                return tuple(None if grad is None else 2 * grad for grad in args[1])
            return None

        getattr(module, f"register_{kind}_hook")(note)
        return flow(x, context)

    says = None if where == "network" else "layer 1: it has hooks"
    store, invert = assert_same(plain, use=use, says=says)
    # a network is evaluated again, as under activation checkpointing
    again = where == "network" and kind.startswith("forward")
    assert len(invert.flow.calls) == (2 if again else 1)
    assert len(store.flow.calls) == 1


def test_hooks_on_all_modules():
    def use(flow, x, context):
        flow.calls = []
        handle = torch.nn.modules.module.register_module_full_backward_hook(
            lambda module, *grads: flow.calls.append(type(module).__name__)
        )
        z, log_det = flow(x, context)
        handle.remove()
        return z, log_det

    for build in (plain, nested):
        store, invert = assert_same(build, use=use, says="layer 0: it has hooks")
        assert sorted(invert.flow.calls) == sorted(store.flow.calls)
        assert "FlowStep" in invert.flow.calls


# Reconstructions that are wrong


class Loses(nn.Module):
    """Its inverse finds another state, from the second sample on."""

    def __init__(self, value):
        super().__init__()
        self.value = value
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, context=None):
        return x * self.scale, self.scale.log() * x[0].numel()

    def inverse(self, z, context=None):
        x = z / self.scale
        if len(x) > 1:
            x = torch.cat([x[:1], torch.full_like(x[1:], self.value)])
        return x, -self.scale.log() * z[0].numel()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_reconstruction_that_is_not_finite_is_an_error(dtype):
    for value in (float("nan"), float("inf")):
        flow = prepared([Doubling(), Doubling(), Loses(value)], dtype)
        flow.memory = "invert"
        x = torch.randn(2, CHANNELS, 3, 3, dtype=dtype, requires_grad=True)
        with pytest.raises(RuntimeError, match="layer 0: its output could not be reconstructed"):
            flow(x)[0].sum().backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_wrong_sample_is_noticed_beside_a_right_one_that_is_larger(dtype):
    flow = prepared([Doubling(), Doubling(), Loses(0.0)], dtype)
    flow.memory = "invert"
    x = torch.randn(2, CHANNELS, 3, 3, dtype=dtype)
    x[0] *= 1e6 if dtype is not torch.float16 else 1e3
    with pytest.warns(UserWarning, match=r"differed from the true one by 1.0e\+00 of its largest"):
        flow(x.requires_grad_())[0].sum().backward()
    store = torch.autograd.grad(flow(x)[0].float().sum(), flow.parameters())
    flow.memory = "store"
    torch.testing.assert_close(torch.autograd.grad(flow(x)[0].float().sum(), flow.parameters()), store)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_single_layer_is_evaluated_from_its_input(dtype):
    def build():
        flow = FlowSequential([AffineCoupling(CHANNELS, conv(), form=AffineForm("exp"))]).to(dtype)
        with torch.no_grad():
            flow[0].net.bias[1::2] = -300.0  # a scale of 0, which has no inverse
        return flow

    _, invert = assert_same(build, tolerance=0)
    assert all(tensor.isfinite().all() for tensor in invert.tensors().values() if "latent" not in str(tensor))


def test_a_forward_pass_that_is_not_finite_has_the_gradients_of_store():
    for value in (float("nan"), float("inf")):
        found = []
        for memory in ("store", "invert"):
            torch.manual_seed(0)
            flow = plain()
            flow.memory = memory
            x = torch.randn(2, CHANNELS, 3, 3, dtype=torch.float64)
            x[1, 0, 0, 0] = value
            x.requires_grad_()
            z, log_det = flow(x)
            (z.sum() + log_det.sum()).backward()
            found.append(x.grad)
        torch.testing.assert_close(found[1][0], found[0][0])
        assert not found[1][1].isfinite().all()


class Noisy(nn.Module):
    """A network with a random generator of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.generator = conv(), torch.Generator()

    def forward(self, x):
        return self.conv(x) + torch.rand(x.shape[2:], generator=self.generator).to(x)


def test_a_layer_that_does_not_compute_the_same_again_is_named():
    flow = prepared([step(Noisy())])
    flow.memory = "invert"
    x = torch.randn(2, CHANNELS, 3, 3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="layer 0: its second evaluation differs from the first"):
        flow(x)[0].sum().backward()
    flow = prepared([step(), step(Noisy())])
    flow.memory = "invert"
    with pytest.warns(UserWarning, match="reconstructed state differed"):
        flow(x)[0].sum().backward()
    with pytest.raises(RuntimeError, match="layer 1: its second evaluation differs from the first"):
        flow(x)[0].sum().backward()


# Changes between the two passes


def test_what_changes_between_the_passes_is_named():
    flow = conditional()
    flow.memory = "invert"
    x = torch.randn(2, CHANNELS, 3, 3, dtype=torch.float64, requires_grad=True)
    context = torch.randn(2, CONTEXT_CHANNELS, 3, 3, dtype=torch.float64)

    def after(change):
        z, log_det = flow(x, context)
        with torch.no_grad():
            change(z)
        log_det.sum().backward()

    def freeze(z):
        flow[1].requires_grad_(False)

    for change, message in (
        (lambda z: flow[1].coupling.net.hidden.weight.mul_(1), "layer 1: coupling.net.hidden.weight, needed for"),
        (lambda z: flow[1].actnorm.bias.requires_grad_(False).mul_(1), "layer 1: actnorm.bias, needed for"),
        (lambda z: context.mul_(1), "the context, needed .* is at version 1; expected version 0 instead"),
        (lambda z: z[-1].mul_(1), "modified by an inplace operation"),
        (lambda z: x.mul_(1), "modified by an inplace operation"),
        (freeze, "layer 1: its parameters are not those of the forward pass"),
    ):
        with pytest.raises(RuntimeError, match=message):
            after(change)


def test_a_captured_tensor_that_is_exchanged_is_noticed():
    flow = captured_leaf()
    flow.memory = "invert"
    _, log_det = flow(torch.randn(2, CHANNELS, 3, 3, dtype=torch.float64))
    flow[0].coupling.net.tensors = (flow.extra[0].detach().clone().requires_grad_(),)
    with pytest.raises(RuntimeError, match="layer 0: its parameters are not those of the forward pass"):
        log_det.sum().backward()


def test_a_graph_that_was_released_is_refused():
    flow = plain()
    flow.memory = "invert"
    _, log_det = flow(torch.randn(2, CHANNELS, 3, 3, dtype=torch.float64))
    log_det.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        log_det.sum().backward()


@pytest.mark.parametrize("trained", [False, True])
def test_a_loss_that_is_kept_keeps_no_context(trained):
    flow = conditional()
    flow.memory = "invert"
    owner = np.random.default_rng(0).random((3, CONTEXT_CHANNELS, 4, 4))
    # a tensor is the last to hold this array
    lives = weakref.ref(owner)
    context = torch.from_numpy(owner)
    if trained:
        context.mul_(torch.ones((), dtype=torch.float64, requires_grad=True))
    z, log_det = flow(torch.randn(3, CHANNELS, 4, 4, dtype=torch.float64), context)
    loss = weighted_sum([*latents_of(z), log_det])
    del owner, context, z, log_det
    loss.backward(retain_graph=True)
    assert lives() is not None
    loss.backward()
    gc.collect()
    assert lives() is None
