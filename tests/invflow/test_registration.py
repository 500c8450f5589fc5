"""The operators as PyTorch sees them: registration, fake tensors, export, compilation of whole flows."""

import pytest
import torch
from layer_cases import LAYERS_BY_NAME, latents_of, weighted_sum
from op_cases import LAYOUTS, OPS, laid_out
from under_test import SLOW, each_kernels

import invflow
from invflow.backends import cpu

COUPLING_SETTINGS = [
    (1, "sigmoid", 1e-4, "shift_then_scale", "cross", False),
    (0, "exp", 0.0, "scale_then_shift", "split", True),
]
STEP_SETTINGS = [
    (1, "sigmoid", 1e-4, "shift_then_scale", "cross", "exp", 0.0, "scale_then_shift", "split", inverse)
    for inverse in (False, True)
]
OPERATORS = ("channel_affine", "affine_coupling", "flow_step")
REGISTERED = tuple(name + suffix for name in OPERATORS for suffix in ("", "_backward"))


def arguments_of(name, x, extra):
    """Arguments of the registered operator; ``extra`` makes tensors of the layout under test."""
    batch, channels = x.shape[:2]
    matrix, shift = torch.randn(channels, channels, device=x.device), torch.randn(channels, device=x.device)
    ones = torch.ones((), device=x.device)
    if name == "channel_affine":
        return [(x, matrix, shift)]
    if name == "channel_affine_backward":
        return [(extra(channels), x, matrix)]
    if name.startswith("flow_step"):
        grads = (extra(channels), ones.repeat(batch)) if name.endswith("_backward") else ()
        parts = [(extra(4), extra(2 * channels)), (extra(4), None), (None, extra(2 * channels)), (None, None)]
        return [(*grads, x, matrix, shift, *hs, *settings) for hs in parts for settings in STEP_SETTINGS]
    first = (x, extra(4)) if name == "affine_coupling" else (extra(channels), ones.expand(batch), x, extra(4))
    return [(*first, *settings) for settings in COUPLING_SETTINGS]


SHAPES = [(2, 3, 4, 5), (1, 3, 1, 1), (2, 4, 1, 3), (0, 3, 2, 2)]


@each_kernels
@pytest.mark.parametrize("name", REGISTERED)
@pytest.mark.parametrize("layout", ["channels_last"] if SLOW else LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES[:1] if SLOW else SHAPES, ids=str)
def test_opcheck(name, layout, shape, kernels):
    def random(channels):
        return laid_out(layout, torch.randn(shape[0], channels, *shape[2:], device=kernels.device))

    operator = getattr(torch.ops.invflow, name).default
    for arguments in arguments_of(name, random(shape[1]), random):
        torch.library.opcheck(operator, (*arguments, kernels.backend))


@each_kernels
@pytest.mark.parametrize("case", OPS, ids=lambda case: case.name)
def test_compiled_operators_are_those_that_were_compiled(case, kernels):
    torch.compiler.reset()
    call = case.on(kernels.backend)
    found = []
    for function in (call, torch.compile(call, backend="aot_eager", fullgraph=True)):
        leaves = [tensor.requires_grad_() for tensor in case.inputs(device=kernels.device)]
        results = function(*leaves)
        found.append([*results, *torch.autograd.grad(weighted_sum(list(results)), leaves)])
    torch.testing.assert_close(*found)


def test_every_registered_operator_is_checked():
    registered = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("invflow::")]
    assert sorted(registered) == sorted(f"invflow::{name}" for name in REGISTERED)


class _AsModule(torch.nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, *inputs):
        return self.call(*inputs)


@pytest.mark.parametrize("case", OPS, ids=lambda case: case.name)
@pytest.mark.parametrize("requires_grad", [False, True], ids=["inference", "training"])
def test_export_keeps_the_operator(case, requires_grad):
    inputs = tuple(tensor.requires_grad_(requires_grad) for tensor in case.inputs())
    exported = torch.export.export(_AsModule(case.on("cpu")), inputs)
    operators = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert any(operator.startswith("invflow.") for operator in operators), operators
    torch.testing.assert_close(exported.module()(*inputs), case.on("cpu")(*inputs), rtol=0, atol=0)


def test_export_with_dynamic_shapes():
    case = LAYERS_BY_NAME["sequential-two-scales"]
    layer = case.build().eval()
    size = {0: torch.export.Dim("batch"), 2: 4 * torch.export.Dim("rows"), 3: 4 * torch.export.Dim("columns")}
    exported = torch.export.export(layer, (torch.randn(2, 1, 8, 12),), dynamic_shapes=[size])
    x = torch.randn(3, 1, 16, 8)
    torch.testing.assert_close(exported.module()(x), layer(x))


FLOWS = ["step-full", "sequential", "sequential-two-scales"]


def trained_once(function, layer, x, context):
    """Latents, log_det and all gradients."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    z, log_det = function(x, context)
    weighted_sum([*latents_of(z), log_det]).backward()
    return [*latents_of(z), log_det, x.grad, *(parameter.grad for parameter in layer.parameters())]


@pytest.mark.parametrize("name", FLOWS)
def test_whole_flows_compile_without_a_graph_break(name):
    torch.compiler.reset()
    case = LAYERS_BY_NAME[name]
    layer = case.build()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    expected = trained_once(layer, layer, *case.inputs())
    torch.testing.assert_close(trained_once(compiled, layer, *case.inputs()), expected)
    z, _ = layer(*case.inputs())
    inverse = torch.compile(layer.inverse, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(inverse(z, case.inputs()[1]), layer.inverse(z, case.inputs()[1]))


@pytest.mark.slow
def test_inductor_compiles_a_flow():
    torch.compiler.reset()
    case = LAYERS_BY_NAME["step-coupling"]
    layer = case.build()
    expected = trained_once(layer, layer, *case.inputs())
    compiled = torch.compile(layer, fullgraph=True)
    torch.testing.assert_close(trained_once(compiled, layer, *case.inputs()), expected, rtol=1e-4, atol=1e-5)


def test_compiled_code_follows_a_change_of_backend(kernel_calls):
    torch.compiler.reset()
    compiled = torch.compile(invflow.affine_coupling, backend="aot_eager", fullgraph=True)
    x, h = torch.randn(1, 2, 2, 2), torch.randn(1, 4, 2, 2)
    for backend, calls in (("reference", 0), ("cpu", 1), ("reference", 1), ("auto", 2)):
        with invflow.use_backend(backend):
            compiled(x, h)
        assert kernel_calls["affine_coupling"] == calls


@pytest.fixture
def kernel_calls(monkeypatch):
    """How often each kernel was called."""
    calls = dict.fromkeys(REGISTERED, 0)

    def counting(name):
        kernel = getattr(cpu, name)

        def counted(*args):
            calls[name] += 1
            return kernel(*args)

        return counted

    for name in REGISTERED:
        monkeypatch.setattr(cpu, name, counting(name))
    return calls


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("case", OPS, ids=lambda case: case.name)
def test_training_runs_one_kernel_in_each_direction(case, compiled, kernel_calls):
    torch.compiler.reset()
    call = case.on("auto")
    call = torch.compile(call, backend="aot_eager", fullgraph=True) if compiled else call
    results = call(*(tensor.requires_grad_() for tensor in case.inputs()))
    sum(result.sum() for result in results).backward()
    name = next((name for name in OPERATORS if case.name.startswith(name.split("_")[-1])), "affine_coupling")
    name = "channel_affine" if case.name == "channel_affine" else name
    used = {kernel: count for kernel, count in kernel_calls.items() if count}
    assert used == {name: 1, f"{name}_backward": 1}


@pytest.mark.parametrize("kernel", REGISTERED)
def test_outputs_that_a_kernel_leaves_out_are_nan(kernel, monkeypatch):
    """The suite's own safety net: without it, memory that happens to hold the right values would pass."""

    class Lazy:
        def __getattr__(self, name):
            return lambda *args: None

    monkeypatch.setattr(cpu, "_C", Lazy())
    x, h = torch.randn(1, 2, 2, 2), torch.randn(1, 4, 2, 2)
    results = {
        "channel_affine": lambda: [cpu.channel_affine(x, torch.eye(2), torch.zeros(2))],
        "affine_coupling": lambda: cpu.affine_coupling(x, h, *COUPLING_SETTINGS[0]),
        "affine_coupling_backward": lambda: cpu.affine_coupling_backward(x, x[:, 0, 0, 0], x, h, *COUPLING_SETTINGS[0]),
        "channel_affine_backward": lambda: cpu.channel_affine_backward(x, x, torch.eye(2)),
        "flow_step": lambda: cpu.flow_step(x, torch.eye(2), torch.zeros(2), x, h, *STEP_SETTINGS[0]),
        "flow_step_backward": lambda: cpu.flow_step_backward(
            x, x[:, 0, 0, 0], x, torch.eye(2), torch.zeros(2), x, h, *STEP_SETTINGS[0]
        ),
    }[kernel]()
    assert all(result.isnan().all() for result in results)
