"""The operators as PyTorch sees them: registration, fake tensors, export, compilation of whole flows."""

import pytest
import torch
from layer_cases import LAYERS_BY_NAME, latents_of, weighted_sum
from op_cases import LAYOUTS, OPS, laid_out
from under_test import SLOW, each_kernels

import invflow
from invflow.backends import cpu
from invflow.backends.protocol import Call, Form, Settings

FORMS = [("sigmoid", 1e-4, "shift_then_scale", "cross"), ("exp", 0.0, "scale_then_shift", "split")]
#: Coupling form, injector form, start, inverse.
STEP_SETTINGS = [(*FORMS[0], *FORMS[1], 1, inverse) for inverse in (False, True)]
COUPLING_SETTINGS = [(*FORMS[0], *FORMS[1], 1, False), (*FORMS[1], *FORMS[0], 0, True)]
REGISTERED = ("flow_step", "flow_step_backward")


def arguments_of(name, x, extra):
    """Arguments of the registered operator; ``extra`` makes tensors of the layout under test."""
    batch, channels = x.shape[:2]
    matrix, shift = torch.randn(channels, channels, device=x.device), torch.randn(channels, device=x.device)
    ones = torch.ones((), device=x.device)
    grads = [(extra(channels), ones.repeat(batch)), (extra(channels), ones.expand(batch))]
    if not name.endswith("_backward"):
        grads = [(), ()]
    parts = [(extra(4), extra(2 * channels)), (extra(4), None), (None, extra(2 * channels)), (None, None)]
    with_matrix = [(*grads[0], x, matrix, shift, *hs, *settings) for hs in parts for settings in STEP_SETTINGS]
    without = [(*grads[1], x, None, None, extra(4), None, *settings) for settings in COUPLING_SETTINGS]
    return with_matrix + without


SHAPES = [(2, 3, 4, 5), (1, 3, 1, 1), (2, 4, 1, 3), (0, 3, 2, 2)]


@each_kernels
@pytest.mark.parametrize("name", REGISTERED)
@pytest.mark.parametrize("layout", ["channels_last"] if SLOW else LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES[:1] if SLOW else SHAPES, ids=str)
def test_opcheck(name, layout, shape, kernels):
    def random(channels):
        return laid_out(layout, torch.randn(shape[0], channels, *shape[2:], device=kernels.device))

    operator = getattr(torch.ops.invflow, name).default
    place = REGISTERED.index(name) + LAYOUTS.index(layout) + SHAPES.index(shape)
    for number, arguments in enumerate(arguments_of(name, random(shape[1]), random)):
        # a quarter of all: every pair of arguments, a name, a layout and a shape
        if SLOW or (place + number) % 4 == 0:
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
    # test_actnorm.py and test_conv3x3.py check these
    others = ("actnorm_first_batch", "conv3x3", "conv3x3_weight_gradient")
    assert sorted(registered) == sorted(f"invflow::{name}" for name in (*others, *REGISTERED))


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
        assert kernel_calls["flow_step"] == calls


@pytest.fixture
def kernel_calls(monkeypatch):
    """Count the calls of each kernel."""
    calls = dict.fromkeys(REGISTERED, 0)

    def counting(name):
        kernel = getattr(cpu, name)

        def counted(*args):
            calls[name] += 1
            return kernel(*args)

        return counted

    class Extension:
        """Counts ordinary calls too, which need no operator."""

        def __init__(self, extension):
            self.extension = extension

        def __getattr__(self, name):
            return getattr(self.extension, name)

        def forward_of_tensors(self, *args):
            return self.counted("flow_step", self.extension.forward_of_tensors(*args))

        def backward_of_tensors(self, *args):
            return self.counted("flow_step_backward", self.extension.backward_of_tensors(*args))

        def counted(self, name, results):
            calls[name] += isinstance(results, tuple)
            return results

    for name in REGISTERED:
        monkeypatch.setattr(cpu, name, counting(name))
    monkeypatch.setattr(cpu, "extension", Extension(cpu.extension))
    return calls


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("case", OPS, ids=lambda case: case.name)
def test_training_runs_one_kernel_in_each_direction(case, compiled, kernel_calls):
    torch.compiler.reset()
    call = case.on("auto")
    call = torch.compile(call, backend="aot_eager", fullgraph=True) if compiled else call
    results = call(*(tensor.requires_grad_() for tensor in case.inputs()))
    sum(result.sum() for result in results).backward()
    assert kernel_calls == {"flow_step": 1, "flow_step_backward": 1}


@pytest.mark.parametrize("with_matrix", [True, False])
@pytest.mark.parametrize("kernel", REGISTERED)
def test_outputs_that_a_kernel_leaves_out_are_nan(kernel, with_matrix, monkeypatch):
    """The suite's own safety net: without it, memory that happens to hold the right values would pass."""

    class Lazy:
        def __getattr__(self, name):
            return lambda *args: None

    monkeypatch.setattr(cpu, "extension", Lazy())
    x, h = torch.randn(1, 2, 2, 2), torch.randn(1, 4, 2, 2)
    grads = (x, x[:, 0, 0, 0]) if kernel.endswith("_backward") else ()
    matrix, shift, injector = (torch.eye(2), torch.zeros(2), h) if with_matrix else (None, None, None)
    settings = Settings(Form(*FORMS[0]), Form(*FORMS[1]), 0, False)
    results = getattr(cpu, kernel)(*grads, Call(x, matrix, shift, h, injector, settings))
    assert all(result.isnan().all() for result in results if result is not None)
    assert sum(result is not None for result in results) == (2 if not grads else 5 if with_matrix else 2)
