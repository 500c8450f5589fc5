"""FlowSequential(memory="invert") is memory="store" under whatever torch offers, or says that it cannot be."""

import copy
import threading

import pytest
import torch
from foreign_layers import Doubling
from inverted_flows import (
    CHANNELS,
    HALF,
    Closure,
    assert_same,
    captured_leaf,
    conditional,
    conv,
    nested,
    plain,
    prepared,
    shared_network,
    step,
    with_net,
)
from layer_cases import latents_of, weighted_sum
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from invflow import FlowSequential

# Networks


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


def test_fake_tensors():
    flow, x = plain(), torch.randn(2, CHANNELS, 3, 3, dtype=torch.float64)
    flow.memory = "invert"
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        z, log_det = flow(mode.from_tensor(x))
        log_det.sum().backward()
    assert z.shape == x.shape
    assert all(parameter.grad is not None for parameter in flow[1].actnorm.parameters())


def test_a_traced_program_runs_without_gradients():
    flow, (x, y) = plain().eval(), torch.randn(2, 2, CHANNELS, 3, 3, dtype=torch.float64)
    flow.memory = "invert"
    program = torch.jit.trace(flow, x, check_trace=False)
    with torch.no_grad():
        torch.testing.assert_close(program(y), flow(y))


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
