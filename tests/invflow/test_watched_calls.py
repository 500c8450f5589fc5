"""A call that somebody watches or replaces is made: hooks, compiled modules, overridden methods, wrappers."""

from __future__ import annotations

import types
from collections import Counter

import pytest
import torch
from layer_cases import CONTEXT_CHANNELS, coupling, injector
from torch import nn
from torch.nn.modules import module as global_hooks
from torch.nn.utils import parametrize

from invflow import (
    ActNorm,
    AffineCoupling,
    AffineInjector,
    FlowSequential,
    FlowStep,
    InvertibleConv1x1,
    InvertibleConv1x1LU,
)

PARTS = ("actnorm", "conv1x1", "injector", "coupling")
STEPS = 3


def a_step() -> FlowStep:
    step = FlowStep(
        4, injector=injector(4), coupling=coupling(4, context_channels=CONTEXT_CHANNELS), conv1x1=InvertibleConv1x1LU(4)
    )
    with torch.no_grad():
        for parameter in step.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    step.actnorm.mark_initialized()
    return step


def a_flow() -> FlowSequential:
    return FlowSequential([a_step() for _ in range(STEPS)]).double()


def inputs():
    return torch.randn(2, 4, 3, 2, dtype=torch.float64), torch.randn(2, CONTEXT_CHANNELS, 3, 2, dtype=torch.float64)


def results_of(flow, x, context):
    """Latent, log_det, gradients and the inverse."""
    leaf = x.clone().requires_grad_()
    z, log_det = flow(leaf, context)
    grads = torch.autograd.grad(z.square().sum() - log_det.sum(), [leaf, *flow.parameters()])
    return [z.detach(), log_det.detach(), *grads, *(result.detach() for result in flow.inverse(z.detach(), context))]


def register(module, kind, called):
    """Register a hook of this kind that counts its calls under the module's name."""

    def hook(watched, *_):
        called[watched] += 1

    return getattr(module, f"register_{kind}")(hook)


MODULE_HOOKS = ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook")
GLOBAL_HOOKS = ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook")


@pytest.mark.parametrize("kind", MODULE_HOOKS)
@pytest.mark.parametrize("place", ["step", *PARTS])
def test_a_hook_is_called_once_a_pass_and_nothing_else_changes(kind, place):
    flow, (x, context) = a_flow(), inputs()
    expected = results_of(flow, x, context)
    watched = flow[1] if place == "step" else getattr(flow[1], place)
    called: Counter = Counter()
    handle = register(watched, kind, called)
    torch.testing.assert_close(results_of(flow, x, context), expected)
    assert called == {watched: 1}
    handle.remove()
    called.clear()
    results_of(flow, x, context)
    assert not called


@pytest.mark.parametrize("kind", GLOBAL_HOOKS)
def test_a_global_hook_sees_every_step_and_part(kind):
    flow, (x, context) = a_flow(), inputs()
    expected = results_of(flow, x, context)
    called: Counter = Counter()

    def hook(watched, *_):
        called[watched] += 1

    names = {"full_backward_hook": "register_module_full_backward_hook"}
    handle = getattr(global_hooks, names.get(kind, f"register_module_{kind}"))(hook)
    try:
        found = results_of(flow, x, context)
    finally:
        handle.remove()
    torch.testing.assert_close(found, expected)
    seen = [module for step in flow for module in (step, *(getattr(step, name) for name in PARTS))]
    assert [called[module] for module in seen] == [1] * len(seen)


def test_hooks_change_what_a_step_and_a_part_return():
    flow, (x, context) = a_flow(), inputs()
    z, log_det = flow(x, context)
    flow[2].register_forward_hook(lambda module, args, result: (2 * result[0], result[1] + 1))
    torch.testing.assert_close(flow(x, context), (2 * z, log_det + 1))
    step = flow[0]
    before = step(x, context)
    step.coupling.register_forward_hook(lambda module, args, result: (3 * result[0], result[1]))
    torch.testing.assert_close(step(x, context), (3 * before[0], before[1]))


def test_hooks_on_parts_of_a_first_batch():
    torch.manual_seed(1)
    watched = FlowSequential(FlowStep(4, coupling=coupling(4)) for _ in range(STEPS))
    torch.manual_seed(1)
    plain = FlowSequential(FlowStep(4, coupling=coupling(4)) for _ in range(STEPS))
    called: Counter = Counter()
    for step in watched:
        register(step.actnorm, "forward_hook", called)
    x = torch.randn(4, 4, 3, 2)
    torch.testing.assert_close(watched(x), plain(x))
    torch.testing.assert_close(watched.state_dict(), plain.state_dict())
    assert sum(called.values()) == STEPS


def counting_graphs():
    graphs: list = []
    return graphs, lambda graph, examples: graphs.append(graph) or graph


@pytest.mark.parametrize("place", ["step", *PARTS])
def test_a_module_that_was_compiled_runs_compiled(place):
    torch.compiler.reset()
    flow, (x, context) = a_flow(), inputs()
    expected = results_of(flow, x, context)
    graphs, backend = counting_graphs()
    for step in flow:
        (step if place == "step" else getattr(step, place)).compile(backend=backend)
    torch.testing.assert_close(results_of(flow, x, context), expected)
    assert graphs


def test_steps_of_one_kind_are_compiled_once():
    torch.compiler.reset()
    flow, (x, context) = a_flow(), inputs()
    graphs, backend = counting_graphs()
    for step in flow:
        step.compile(backend=backend, fullgraph=True)
    with torch.no_grad():
        flow(x, context)
    assert len(graphs) == 1


def test_a_part_replaced_by_its_compiled_version():
    torch.compiler.reset()
    flow, (x, context) = a_flow(), inputs()
    expected = results_of(flow, x, context)
    graphs, backend = counting_graphs()
    flow[1].coupling = torch.compile(flow[1].coupling, backend=backend)
    torch.testing.assert_close(results_of(flow, x, context), expected)
    assert graphs


class DoublingCoupling(AffineCoupling):
    def forward(self, x, context=None):
        y, log_det = super().forward(x, context)
        return 2 * y, log_det + y[0].numel() * torch.tensor(2.0, dtype=y.dtype).log()

    def inverse(self, z, context=None):
        x, log_det = super().inverse(z / 2, context)
        return x, log_det - x[0].numel() * torch.tensor(2.0, dtype=x.dtype).log()


class ShrinkingCoupling(AffineCoupling):
    def raw_output(self, passed, context=None):
        return super().raw_output(passed, context) / 2


class ShrinkingInjector(AffineInjector):
    def raw_output(self, context):
        return super().raw_output(context) / 2


class NegatingInjector(AffineInjector):
    def forward(self, x, context=None):
        y, log_det = super().forward(x, context)
        return -y, log_det

    def inverse(self, z, context=None):
        return super().inverse(-z, context)


class NegatingActNorm(ActNorm):
    def forward(self, x, context=None):
        y, log_det = super().forward(x, context)
        return -y, log_det

    def inverse(self, z, context=None):
        return super().inverse(-z, context)


class BoundedActNorm(ActNorm):
    def _parameters_as(self, dtype):
        bias, log_scale = super()._parameters_as(dtype)
        return bias, log_scale.tanh()

    def log_det(self, x):
        return (x.shape[2] * x.shape[3] * self.log_scale.tanh().sum()).to(x.dtype).repeat(len(x))


class NegatingConv(InvertibleConv1x1):
    def forward(self, x, context=None):
        y, log_det = super().forward(x, context)
        return -y, log_det

    def inverse(self, z, context=None):
        return super().inverse(-z, context)


class Swap(nn.Module):
    """A permutation that is no convolution of ours and knows no other method."""

    channels = 4

    def forward(self, x, context=None):
        return x.flip(1), x.new_zeros(len(x))

    def inverse(self, z, context=None):
        return z.flip(1), z.new_zeros(len(z))


class Wrapped(nn.Module):
    """A layer around another one, as adapters of other packages make them."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, context=None):
        y, log_det = self.inner(x, context)
        return y + 1, log_det

    def inverse(self, z, context=None):
        return self.inner.inverse(z - 1, context)


def as_class(cls, **options):
    def replace(step, name):
        part = getattr(step, name)
        part.__class__ = cls

    return replace


REPLACED = {
    "coupling with its own forward": ("coupling", as_class(DoublingCoupling)),
    "coupling with its own raw_output": ("coupling", as_class(ShrinkingCoupling)),
    "injector with its own forward": ("injector", as_class(NegatingInjector)),
    "injector with its own raw_output": ("injector", as_class(ShrinkingInjector)),
    "actnorm with its own forward": ("actnorm", as_class(NegatingActNorm)),
    "actnorm with its own parameters": ("actnorm", as_class(BoundedActNorm)),
    "convolution with its own forward": (
        "conv1x1",
        lambda step, name: setattr(step, name, NegatingConv(4).to(torch.float64)),
    ),
    "another package's permutation": ("conv1x1", lambda step, name: setattr(step, name, Swap())),
    "wrapped coupling": ("coupling", lambda step, name: setattr(step, name, Wrapped(step.coupling))),
    "wrapped injector": ("injector", lambda step, name: setattr(step, name, Wrapped(step.injector))),
    "wrapped actnorm": ("actnorm", lambda step, name: setattr(step, name, Wrapped(step.actnorm))),
}


def one_after_the_other(step, x, context):
    """What the parts compute by themselves, forward and back."""
    total = 0
    for name in PARTS:
        x, log_det = getattr(step, name)(x, context)
        total = total + log_det
    back, back_total = x, 0
    for name in reversed(PARTS):
        back, log_det = getattr(step, name).inverse(back, context)
        back_total = back_total + log_det
    return x, total, back, back_total


@pytest.mark.parametrize("case", REPLACED)
def test_a_step_computes_what_its_parts_compute(case):
    name, replace = REPLACED[case]
    step, (x, context) = a_step().double(), inputs()
    before = step(x, context)[0]
    replace(step, name)
    z, log_det, back, back_log_det = one_after_the_other(step, x, context)
    assert not torch.allclose(z, before)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close((*step(x, context), *step.inverse(z, context)), (z, log_det, back, back_log_det))
    flow = FlowSequential([a_step().double(), step, a_step().double()])
    state, first = flow[0](x, context)
    state, second = step(state, context)
    state, third = flow[2](state, context)
    torch.testing.assert_close(flow(x, context), (state, first + second + third))


class OneContext:
    """A context of two samples that shares no work."""

    def __init__(self, context):
        self.context = context

    @property
    def shape(self):
        return tuple(self.context.shape)

    def joined(self):
        return self.context

    def network(self, net):
        def output(passed, part):
            context = self.context[part]
            return net(context) if passed is None else net(passed, context)

        return output


@pytest.mark.parametrize("case", REPLACED)
def test_an_inverse_of_shared_contexts_is_that_of_the_parts(case):
    name, replace = REPLACED[case]
    step, (x, context) = a_step().double(), inputs()
    replace(step, name)
    expected = one_after_the_other(step, x, context)
    inverse = step.conditioned_inverse(OneContext(context))
    torch.testing.assert_close(inverse(expected[0], slice(0, 2)), x)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("method", ["forward", "inverse"])
def test_a_method_that_was_replaced_on_an_instance_is_called(name, method):
    step, (x, context) = a_step().double(), inputs()
    part, calls = getattr(step, name), []
    original = getattr(part, method)
    setattr(part, method, types.MethodType(lambda self, *args: calls.append(name) or original(*args), part))
    expected = one_after_the_other(step, x, context)
    calls.clear()
    torch.testing.assert_close((*step(x, context), *step.inverse(expected[0], context)), expected)
    assert calls == [name]


def test_a_step_whose_forward_was_replaced_is_called():
    flow, (x, context) = a_flow(), inputs()
    calls = []
    original = flow[1].forward
    flow[1].forward = lambda *args: calls.append(1) or original(*args)
    flow(x, context)
    assert calls == [1]


def test_a_parametrized_part_stays_fused_and_right():
    flow, (x, context) = a_flow(), inputs()
    parametrize.register_parametrization(flow[1].actnorm, "log_scale", nn.Tanh())
    parametrize.register_parametrization(flow[1].coupling.net.hidden, "weight", nn.Tanh())
    z, log_det, back, back_log_det = one_after_the_other(flow[1], x, context)
    torch.testing.assert_close((*flow[1](x, context), *flow[1].inverse(z, context)), (z, log_det, back, back_log_det))


def test_a_part_without_an_inverse_is_named():
    step, (x, context) = a_step().double(), inputs()
    step.coupling = torch.nn.Identity()
    with pytest.raises(TypeError, match="FlowStep: coupling, Identity, has no inverse method"):
        step.inverse(x, context)
