"""FlowSequential(memory="invert"): the gradients of memory="store", in constant memory."""

import os
import re
import subprocess
import sys

import pytest
import torch
from layer_cases import (
    CONTEXT_CHANNELS,
    LAYERS,
    LAYERS_BY_NAME,
    LayerCase,
    coupling,
    injector,
    latents_of,
    two_scales,
    weighted_sum,
)
from processes import PATIENCE
from torch import nn

from invflow import ActNorm, AffineCoupling, FlowSequential, FlowStep, InvertibleConv1x1, Split, Squeeze


class Doubling(nn.Module):
    """A layer of somebody else, that knows nothing but the protocol."""

    channels = 4

    def forward(self, x, context=None):
        return 2 * x, x.new_full((len(x),), x[0].numel() * 0.6931471805599453)

    def inverse(self, z, context=None):
        return z / 2, z.new_full((len(z),), -z[0].numel() * 0.6931471805599453)


def full_step(channels=4):
    return FlowStep(
        channels,
        injector=injector(channels),
        coupling=coupling(channels, context_channels=CONTEXT_CHANNELS),
    )


def mixed():
    nested = FlowSequential([full_step(), InvertibleConv1x1(4)])
    return FlowSequential(
        [ActNorm(4), full_step(), full_step(), Doubling(), injector(4), nested, FlowStep(4), coupling(4), Split(4)]
    )


def several_scales():
    return FlowSequential([Squeeze(), FlowStep(4, coupling=coupling(4)), Split(4), Squeeze(), two_scales_inner()])


def two_scales_inner():
    return FlowSequential([FlowStep(8, coupling=coupling(8)), Split(8), ActNorm(4)])


FLOWS = [
    LayerCase("mixed", mixed, (4, 3, 2), CONTEXT_CHANNELS),
    LayerCase("two-scales", two_scales, (1, 4, 4)),
    LayerCase("several-scales", several_scales, (1, 4, 4)),
    *(
        LayerCase(case.name, lambda case=case: FlowSequential([case.construct()]), case.shape, case.context_channels)
        for case in LAYERS
    ),
]
each_flow = pytest.mark.parametrize("case", FLOWS, ids=lambda case: case.name)


def gradients(flow, x, context, memory, loss=lambda z, log_det: weighted_sum([*z, log_det])):
    """Latents, log_det, and the gradients of x, context and every parameter."""
    flow.memory = memory
    leaves = [x.clone().requires_grad_(), None if context is None else context.clone().requires_grad_()]
    z, log_det = flow(*leaves)
    inputs = [leaf for leaf in leaves if leaf is not None] + list(flow.parameters())
    found = torch.autograd.grad(loss(latents_of(z), log_det), inputs, allow_unused=True)
    return [
        *latents_of(z),
        log_det,
        *(torch.zeros_like(i) if g is None else g for i, g in zip(inputs, found, strict=True)),
    ]


@each_flow
def test_gradients_are_those_of_store(case):
    flow = case.build(torch.float64)
    inputs = case.inputs(3, torch.float64)
    torch.testing.assert_close(
        gradients(flow, *inputs, "invert"), gradients(flow, *inputs, "store"), rtol=1e-10, atol=1e-10
    )


@each_flow
@pytest.mark.parametrize("used", ["first latent", "log_det"])
def test_gradients_of_some_of_the_outputs(case, used):
    flow, inputs = case.build(torch.float64), case.inputs(2, torch.float64)

    def loss(z, log_det):
        # a sum over all keeps the graph where this output does not depend on anything
        return (z[0].sin().sum() if used == "first latent" else log_det.square().sum()) + 0 * z[-1].sum()

    torch.testing.assert_close(
        gradients(flow, *inputs, "invert", loss), gradients(flow, *inputs, "store", loss), rtol=1e-10, atol=1e-10
    )


def test_one_context_for_several_states():
    case = FLOWS[0]
    flow, (x, context) = case.build(torch.float64), case.inputs(6, torch.float64)
    torch.testing.assert_close(
        gradients(flow, x, context[:2], "invert"), gradients(flow, x, context[:2], "store"), rtol=1e-10, atol=1e-10
    )
    repeated = context[:2].repeat_interleave(3, 0)
    torch.testing.assert_close(flow(x, context[:2]), flow(x, repeated))


def test_skip_connections():
    case = FLOWS[0]
    flow, (x, context) = case.build(torch.float64), case.inputs(2, torch.float64)
    found = []
    for memory in ("store", "invert"):
        flow.memory = memory
        leaf, condition = x.clone().requires_grad_(), context.clone().requires_grad_()
        before = leaf.sin()
        z, log_det = flow(before, condition)
        after = torch.cat(z, 1) * before + condition[:, :1]
        z, again = flow(after, condition)
        (weighted_sum(z) + (log_det * again).sum() + (before * after).sum()).backward()
        found.append([leaf.grad, condition.grad, *(p.grad.clone() for p in flow.parameters() if p.grad is not None)])
        flow.zero_grad()
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_only_parameters_need_gradients():
    case = FLOWS[0]
    flow, inputs = case.build(), case.inputs()
    flow.memory = "invert"
    z, log_det = flow(*inputs)
    (weighted_sum(z) + log_det.sum()).backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())


def test_frozen_parameters_get_no_gradient():
    case = FLOWS[0]
    flow, inputs = case.build(torch.float64), case.inputs(2, torch.float64)
    frozen = list(flow.parameters())[::2]
    for parameter in frozen:
        parameter.requires_grad_(False)
    found = []
    for memory in ("store", "invert"):
        flow.memory = memory
        z, log_det = flow(*inputs)
        (weighted_sum(z) + log_det.sum()).backward()
        found.append([parameter.grad for parameter in flow.parameters()])
        flow.zero_grad()
    assert [grad is None for grad in found[1]] == [grad is None for grad in found[0]]
    torch.testing.assert_close(
        *[[grad for grad in grads if grad is not None] for grads in found], rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("trained", ["parameters", "state", "context"])
def test_a_network_is_evaluated_once_a_pass(trained):
    case = FLOWS[0]
    flow, inputs = case.build(), case.inputs()
    flow.memory = "invert"
    flow.requires_grad_(trained == "parameters")
    for tensor, name in zip(inputs, ("state", "context"), strict=True):
        tensor.requires_grad_(trained == name)
    calls = {}
    for name, part in flow.named_modules():
        if name.endswith("net"):
            part.register_forward_hook(lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1}))
    z, log_det = flow(*inputs)
    assert set(calls.values()) == {1}
    (weighted_sum(z) + log_det.sum()).backward()
    assert set(calls.values()) == {2}
    assert len(calls) == sum(
        isinstance(part, AffineCoupling | Split) or "Injector" in type(part).__name__ for part in flow.modules()
    )


def test_actnorms_initialise_from_the_same_states():
    def built():
        torch.manual_seed(3)
        return FlowSequential([FlowStep(4, coupling=coupling(4)) for _ in range(3)])

    x = torch.randn(4, 4, 5, 5) * 3 + 1
    one_by_one, fused, inverted = built(), built(), built()
    inverted.memory = "invert"
    state = x
    for layer in one_by_one:
        state, _ = layer(state)
    torch.testing.assert_close(fused(x)[0], state)
    torch.testing.assert_close(inverted(x)[0], state)
    torch.testing.assert_close(inverted.state_dict(), fused.state_dict())
    assert all(layer.actnorm.initialized for layer in inverted)


def test_parameters_changed_before_the_backward_pass_are_noticed():
    flow, inputs = FLOWS[0].build(), FLOWS[0].inputs()
    flow.memory = "invert"
    _, log_det = flow(*inputs)
    with torch.no_grad():
        next(flow.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        log_det.sum().backward()


def test_exchanged_parameters_are_noticed():
    flow, inputs = FLOWS[0].build(), FLOWS[0].inputs()
    flow.memory = "invert"
    others = {name: parameter.detach().clone().requires_grad_() for name, parameter in flow.named_parameters()}
    _, log_det = torch.func.functional_call(flow, others, inputs)
    with pytest.raises(RuntimeError, match="parameters are not those of the forward pass"):
        log_det.sum().backward()


def test_a_second_derivative_is_refused():
    flow, (x, context) = FLOWS[0].build(), FLOWS[0].inputs()
    flow.memory = "invert"
    x.requires_grad_()
    _, log_det = flow(x, context)
    with pytest.raises(RuntimeError, match="no second derivative; use memory='store'"):
        torch.autograd.grad(log_det.sum(), x, create_graph=True)


def test_transforms_store():
    flow, (x, context) = FLOWS[0].build(torch.float64), FLOWS[0].inputs(2, torch.float64)
    found = []
    for memory in ("store", "invert"):
        flow.memory = memory
        found.append(torch.func.grad(lambda x: flow(x, context)[1].sum())(x))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("fullgraph", [False, True])
def test_compiled(fullgraph):
    torch.compiler.reset()
    case = LAYERS_BY_NAME["sequential"]
    flow, inputs = case.build(), case.inputs()
    expected = gradients(flow, *inputs, "store")
    flow.memory = "invert"
    compiled = torch.compile(flow, backend="aot_eager", fullgraph=fullgraph)
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    z, log_det = compiled(*leaves)
    found = torch.autograd.grad(weighted_sum([z, log_det]), [*leaves, *flow.parameters()])
    torch.testing.assert_close([z, log_det, *found], expected)


def test_autocast_is_the_same_in_the_backward_pass():
    flow, inputs = FLOWS[0].build(), FLOWS[0].inputs()
    dtypes = set()
    for name, part in flow.named_modules():
        if name.endswith("hidden"):
            part.register_forward_hook(lambda module, args, result: dtypes.add(result.dtype))
    flow.memory = "invert"
    with torch.autocast("cpu", torch.bfloat16):
        z, log_det = flow(*inputs)
    (weighted_sum(z) + log_det.sum()).backward()
    assert dtypes == {torch.bfloat16}


class Drifting(Doubling):
    """Inverse of what it is not quite."""

    def inverse(self, z, context=None):
        x, log_det = super().inverse(z)
        return x * 1.01, log_det


def test_drift_is_noticed_and_bounded():
    flow = FlowSequential([Drifting() for _ in range(8)], memory="invert")
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    distances = []
    for _ in range(4):
        with pytest.warns(UserWarning, match="reconstructed state differed") as caught:
            flow(x)[0].sum().backward()
        # one warning for the input and for every stored state that was missed, the last of them the most cautious
        distances.append(int(re.findall(r"after every (\d+) layers", str(caught[-1].message))[-1]))
        if distances[-1] == 1:
            break
    assert distances[0] < 8
    assert distances[-1] == 1


def test_no_drift_is_reported_for_a_real_flow(recwarn):
    torch.manual_seed(1)
    flow = FlowSequential([FlowStep(12, coupling=coupling(12)) for _ in range(16)], memory="invert")
    z, log_det = flow(torch.randn(2, 12, 8, 8))
    (z.square().sum() + log_det.sum()).backward()
    assert not recwarn.list


def test_unknown_memory():
    with pytest.raises(ValueError, match="memory must be 'store' or 'invert', got 'none'"):
        FlowSequential([ActNorm(2)], memory="none")


PEAK = """
import re, sys, torch
sys.path.insert(0, "tests/support")
from invflow import AffineCoupling, AffineInjector, FlowSequential, FlowStep

torch.manual_seed(0)
torch.set_num_threads(1)

class Net(torch.nn.Sequential):
    def forward(self, *inputs):
        return super().forward(torch.cat(inputs, 1))

def net(inputs, outputs):
    last = torch.nn.Conv2d(16, outputs, 3, padding=1)
    torch.nn.init.zeros_(last.weight)
    return Net(torch.nn.Conv2d(inputs, 16, 3, padding=1), torch.nn.ReLU(), last)

# the same networks in all steps, so that what parameters take does not grow
parts = {
    "injector": AffineInjector(12, net(4, 24), context_channels=4),
    "coupling": AffineCoupling(12, net(10, 12), context_channels=4),
}
flow = FlowSequential((FlowStep(12, **parts) for _ in range(int(sys.argv[1]))), memory=sys.argv[2])
x, context = torch.randn(4, 12, 160, 160), torch.randn(4, 4, 160, 160)

def kilobytes(key):
    return int(re.search(key + r":\\s+(\\d+) kB", open("/proc/self/status").read()).group(1))

def train():
    z, log_det = flow(x, context)
    (z.square().mean() - log_det.mean()).backward()

train()
open("/proc/self/clear_refs", "w").write("5")  # the peak so far is forgotten
before = kilobytes("VmRSS")
train()
print(kilobytes("VmHWM") - before)
"""


def peak(steps, memory):
    """KiB that a training step needs, in a process of its own, whose freed memory goes back to the system at once."""
    command = [sys.executable, "-c", PEAK, str(steps), memory]
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0", "MALLOC_TRIM_THRESHOLD_": "0"}
    environment = {**os.environ, **malloc}
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_steps():
    few, many = peak(4, "invert"), peak(64, "invert")
    print(f"peak above the start: {few / 1024:.1f} MiB for 4 steps, {many / 1024:.1f} MiB for 64 steps")
    assert many < 1.02 * few
    assert peak(16, "store") > 2 * few  # the measurement sees activations
