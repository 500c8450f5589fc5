"""One test a row of docs/torch-features.md: features of PyTorch around a flow of four steps."""

from __future__ import annotations

import copy
import pickle
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from layer_cases import CONTEXT_CHANNELS, actnorms, coupling, injector
from processes import run_python
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import invflow
from invflow import FlowSequential, FlowStep, InvertibleConv1x1LU
from invflow.testing import log_det_by_autograd

PAGE = Path(__file__).parents[2] / "docs" / "torch-features.md"


def a_flow(steps=4, initialized=True, memory="store", conv1x1=None):
    flow = FlowSequential(
        [
            FlowStep(
                4,
                injector=injector(4),
                coupling=coupling(4, context_channels=CONTEXT_CHANNELS),
                conv1x1=None if conv1x1 is None else conv1x1(4),
            )
            for _ in range(steps)
        ],
        memory=memory,
    )
    if initialized:
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        for part in actnorms(flow):
            part.mark_initialized()
    return flow


def inputs(batch=2, height=4, width=6):
    return torch.randn(batch, 4, height, width), torch.randn(batch, CONTEXT_CHANNELS, height, width)


def loss_of(flow, x, context):
    z, log_det = flow(x, context)
    return z.square().mean() - log_det.mean() / x[0].numel()


def gradients_of(flow, x, context, call=None):
    loss = loss_of(call or flow, x, context)
    return torch.autograd.grad(loss, list(flow.parameters()))


both_memories = pytest.mark.parametrize("memory", ["store", "invert"])


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


@pytest.mark.slow
@both_memories
def test_compile_a_training_step(memory):
    flow, batch = a_flow(memory=memory), inputs()
    compiled = torch.compile(flow, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients_of(flow, *batch, compiled), gradients_of(flow, *batch))


@pytest.mark.slow
@pytest.mark.parametrize("shared", ["contexts", "nothing"])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_compile_with_dynamic_shapes(direction, shared):
    flow = a_flow(2)
    if shared == "nothing":
        flow = FlowSequential(FlowStep(4, coupling=coupling(4)) for _ in range(3)).eval()
    function = flow if direction == "forward" else flow.inverse
    compiled = torch.compile(function, dynamic=True, fullgraph=True, backend="aot_eager")
    for size in ((2, 4, 6), (3, 8, 4), (5, 6, 10)):
        batch = inputs(*size)
        torch.testing.assert_close(compiled(*batch), function(*batch))


def test_compile_one_form_for_several_couplings():
    form = invflow.AffineForm("bounded_exp", bound=1.5)
    flow = FlowSequential(FlowStep(4, coupling=coupling(4, form)) for _ in range(3)).eval()
    x = torch.randn(2, 4, 6, 8)
    compiled = torch.compile(flow, dynamic=True, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), flow(x))


def test_compile_with_marked_dimensions():
    flow, batch = a_flow(2), inputs()
    graphs = []
    compiled = torch.compile(flow, backend=lambda graph, _: graphs.append(graph) or graph)
    for tensor in batch:
        for dimension in (0, 2, 3):
            torch._dynamo.mark_dynamic(tensor, dimension)
    compiled(*batch)
    other = inputs(5, 8, 10)
    torch.testing.assert_close(compiled(*other), flow(*other))
    assert len(graphs) == 1


def test_compile_each_step():
    flow, batch = a_flow(), inputs()
    batch[0].requires_grad_()  # as the states between the steps do
    expected = gradients_of(flow, *batch)
    graphs = []

    def backend(graph, examples):
        graphs.append(graph)
        return graph

    for step in flow:
        step.compile(backend=backend)
    torch.testing.assert_close(gradients_of(flow, *batch), expected)
    assert len(graphs) == 1


LOAD = """
import torch
for name in {names}:
    program = torch.export.load(f"{folder}/{{name}}.pt2")
    inputs, expected = torch.load(f"{folder}/{{name}}.pt")
    torch.testing.assert_close(program.module()(*inputs), expected, msg=lambda text: f"{{name}}: {{text}}")
"""


class Inverse(nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, z, context):
        return self.flow.inverse(z, context)


@pytest.fixture
def exported(tmp_path):
    """A function that saves exported programs and returns the code that loads and runs them elsewhere."""

    def export(modules, backend):
        batch = inputs()
        for name, module in modules.items():
            with torch.no_grad(), invflow.use_backend(backend):
                expected = module(*batch)
                sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
                program = torch.export.export(module, batch, dynamic_shapes=(sizes, sizes))
            torch.export.save(program, tmp_path / f"{name}.pt2")
            torch.save((batch, expected), tmp_path / f"{name}.pt")
        return LOAD.format(names=list(modules), folder=tmp_path)

    return export


def test_export_runs_where_invflow_is_imported(exported):
    flow = a_flow(2).eval()
    code = exported({"forward": flow, "inverse": Inverse(flow)}, "auto")
    assert run_python("import invflow\n" + code).returncode == 0
    assert run_python(code).returncode != 0


@pytest.mark.slow
def test_export_of_the_reference_runs_anywhere(exported):
    flows = {"full": a_flow(2).eval(), "lu": a_flow(2, conv1x1=InvertibleConv1x1LU).eval()}
    done = run_python(exported(flows | {f"{name} inverse": Inverse(flow) for name, flow in flows.items()}, "reference"))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_aot_inductor(tmp_path):
    flow, batch = a_flow(2).eval(), inputs()
    package = str(tmp_path / "flow.pt2")
    torch._inductor.aoti_compile_and_package(torch.export.export(flow, batch), package_path=package)
    torch.testing.assert_close(tuple(torch._inductor.aoti_load_package(package)(*batch)), flow(*batch))


def test_functional_call_and_ensembles():
    flows, batch = [a_flow(2) for _ in range(3)], inputs()
    parameters, buffers = torch.func.stack_module_state(flows)
    found = torch.vmap(lambda p, b: torch.func.functional_call(flows[0], (p, b), batch))(parameters, buffers)
    expected = [flow(*batch) for flow in flows]
    torch.testing.assert_close(found, tuple(map(torch.stack, zip(*expected, strict=True))))


def test_gradients_of_every_sample():
    flow, batch = a_flow(2), inputs(3)
    parameters = dict(flow.named_parameters())

    def loss(values, x, context):
        return loss_of(lambda *args: torch.func.functional_call(flow, values, args), x[None], context[None])

    found = torch.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, *batch)
    for sample in range(3):
        expected = gradients_of(flow, *(tensor[sample : sample + 1] for tensor in batch))
        torch.testing.assert_close([grad[sample] for grad in found.values()], list(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("transform", [torch.func.jacrev, torch.func.jacfwd])
def test_jacobians_of_forward_and_inverse(transform):
    flow, (x, context) = a_flow(2).double(), (tensor.double() for tensor in inputs(1, 2, 2))
    z, log_det = flow(x, context)
    forward = transform(lambda state: flow(state, context)[0].flatten())(x).flatten(1)
    back = transform(lambda state: flow.inverse(state, context)[0].flatten())(z).flatten(1)
    torch.testing.assert_close(torch.linalg.slogdet(forward).logabsdet, log_det[0])
    torch.testing.assert_close(forward @ back, torch.eye(len(forward), dtype=torch.float64))
    torch.testing.assert_close(log_det_by_autograd(flow, x, context), log_det)


def test_second_derivatives():
    flow, (x, context) = a_flow(2).double(), (tensor.double() for tensor in inputs(1, 2, 2))
    assert torch.autograd.gradgradcheck(lambda state: flow(state, context), x.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    flow, (x, context) = a_flow(), inputs()
    with torch.autocast("cpu", dtype):
        z, log_det = flow(x, context)
        back, _ = flow.inverse(z, context)
    loss = z.square().mean() - log_det.mean()
    loss.backward()
    assert z.dtype == log_det.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in flow.parameters())
    torch.testing.assert_close(back, x, rtol=0, atol=1e-2)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.2), (torch.float16, 0.02)])
def test_half_precision_parameters(dtype, tolerance):
    flow, batch = a_flow().to(dtype), [tensor.to(dtype) for tensor in inputs()]
    z, log_det = flow(*batch)
    assert (z.dtype, log_det.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(flow.inverse(z, batch[1])[0], batch[0], rtol=0, atol=tolerance)


def test_inference_mode_then_training():
    flow, batch = a_flow(), inputs()
    expected = gradients_of(copy.deepcopy(flow), *batch)
    with torch.inference_mode():
        z, _ = flow(*batch)
        flow.inverse(z, batch[1])
    torch.testing.assert_close(gradients_of(flow, *batch), expected)


def test_channels_last():
    flow, (x, context) = a_flow(), inputs()
    z, _ = flow(x.to(memory_format=torch.channels_last), context)
    assert z.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(z, flow(x, context)[0])


def test_deterministic_mode():
    flow, batch = a_flow(), inputs()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = gradients_of(flow, *batch), gradients_of(flow, *batch)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_anomaly_mode():
    flow, batch = a_flow(), inputs()
    expected = gradients_of(flow, *batch)
    with torch.autograd.detect_anomaly(check_nan=True):
        torch.testing.assert_close(gradients_of(flow, *batch), expected)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("around", ["flow", "step"])
@pytest.mark.parametrize("initialized", [True, False])
def test_activation_checkpointing(around, reentrant, initialized):
    torch.manual_seed(1)
    plain = a_flow(initialized=initialized)
    flow, (x, context) = copy.deepcopy(plain), inputs(4)
    leaf = x.clone().requires_grad_()

    def checkpointed(module, *args):
        return checkpoint(module, *args, use_reentrant=reentrant)

    if around == "flow":
        z, log_det = checkpointed(flow, leaf, context)
    else:
        z, log_det = leaf, 0
        for step in flow:
            z, step_log_det = checkpointed(step, z, context)
            log_det = log_det + step_log_det
    (z.square().mean() - log_det.mean() / x[0].numel()).backward()
    expected = gradients_of(plain, x, context)
    torch.testing.assert_close([parameter.grad for parameter in flow.parameters()], list(expected))
    torch.testing.assert_close(flow.state_dict(), plain.state_dict())


@pytest.mark.parametrize("initialized", [True, False])
def test_saved_tensors_on_the_cpu(initialized):
    torch.manual_seed(1)
    flow = a_flow(initialized=initialized)
    plain, batch = copy.deepcopy(flow), inputs(4)
    with torch.autograd.graph.save_on_cpu():
        found = gradients_of(flow, *batch)
    torch.testing.assert_close(found, gradients_of(plain, *batch))


def test_hooks():
    flow, batch = a_flow(), inputs()
    seen = []
    for step in flow:
        step.register_full_backward_hook(lambda module, *_: seen.append("backward"))
        step.coupling.register_forward_hook(lambda module, *_: seen.append("coupling"))
    loss_of(flow, batch[0].requires_grad_(), batch[1]).backward()
    assert sorted(seen) == ["backward"] * 4 + ["coupling"] * 4


def test_backward_hooks_inside_a_network():
    net = invflow.coupling_net(2, 4, hidden=8)
    layer, x, seen = invflow.AffineCoupling(4, net), torch.randn(2, 4, 3, 3, requires_grad=True), []
    for part in net:
        part.register_full_backward_hook(lambda module, *_: seen.append(module))
    with pytest.raises(RuntimeError, match="is being modified inplace"):
        layer(x)
    for part in net:
        if isinstance(part, nn.ReLU):
            part.inplace = False
    sum(result.sum() for result in layer(x)).backward()
    assert seen == list(net)[::-1]


def identity_hook(module, args, result):
    return None


def test_copies_and_pickles_with_hooks():
    flow, batch = a_flow(), inputs()
    flow[1].register_forward_hook(identity_hook)
    flow[2].coupling.register_forward_hook(identity_hook)
    for other in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        assert other[1]._forward_hooks
        torch.testing.assert_close(other(*batch), flow(*batch))


def test_state_dict(tmp_path):
    flow, batch = a_flow(), inputs()
    torch.save(flow.state_dict(), tmp_path / "flow.pt")
    loaded = torch.load(tmp_path / "flow.pt", weights_only=True)
    with torch.device("meta"):
        other = a_flow(initialized=False)
    other.load_state_dict(loaded, assign=True)
    torch.testing.assert_close(other(*batch), flow(*batch))


def test_meta_device_and_flop_counter():
    flow, batch = a_flow(), inputs()
    with FlopCounterMode(display=False) as counter:
        flow(*batch)
    assert counter.get_total_flops() > 0
    z, log_det = flow.to("meta")(*(tensor.to("meta") for tensor in batch))
    assert (z.shape, log_det.shape) == (batch[0].shape, batch[0].shape[:1])


def test_weight_norm_of_networks():
    flow, batch = a_flow(2), inputs()
    expected = flow(*batch)
    for step in flow:
        parametrizations.weight_norm(step.coupling.net.hidden)
    torch.testing.assert_close(flow(*batch), expected)
    assert all(grad.isfinite().all() for grad in gradients_of(flow, *batch))


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW], ids=lambda make: make.__name__)
@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {}], ids=str)
def test_optimizers(make, options):
    flow, batch = a_flow(2), inputs()
    optimizer = make(flow.parameters(), lr=1e-2, **options)
    before = loss_of(flow, *batch).item()
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(flow, *batch).backward()
        optimizer.step()
        with torch.no_grad():
            z, _ = flow(*batch)
            torch.testing.assert_close(flow.inverse(z, batch[1])[0], batch[0], rtol=1e-4, atol=1e-4)
    assert loss_of(flow, *batch).item() < before


@pytest.mark.parametrize("use_buffers", [False, True])
def test_averaged_model_made_before_the_first_batch(use_buffers):
    flow, batch = a_flow(2, initialized=False), inputs(8)
    average = torch.optim.swa_utils.AveragedModel(
        flow, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5), use_buffers=use_buffers
    )
    flow(*batch)
    average.update_parameters(flow)
    before = [parameter.clone() for parameter in average.parameters()]
    average.train()(*inputs(8))
    torch.testing.assert_close(list(average.parameters()), before, rtol=0, atol=0)


def test_flat_parameters_and_lbfgs():
    flow, batch = a_flow(2), inputs()
    flat = torch.nn.utils.parameters_to_vector(flow.parameters())
    torch.nn.utils.vector_to_parameters(flat, flow.parameters())
    optimizer = torch.optim.LBFGS(flow.parameters(), max_iter=4)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(flow, *batch)
        loss.backward()
        return loss

    before = optimizer.step(closure)
    assert closure() < before


def test_threads():
    flow, batch = a_flow(), inputs()
    z, _ = flow(*batch)
    expected = gradients_of(flow, *batch)
    start = threading.Barrier(4)

    def work(kind):
        start.wait(30)
        if kind == "train":
            return [gradients_of(flow, *batch) for _ in range(5)]
        with torch.no_grad():
            return [flow.inverse(z, batch[1])[0] for _ in range(5)]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, ["train", "sample"] * 2))
    for results in found[::2]:
        for result in results:
            torch.testing.assert_close(result, expected)
    for results in found[1::2]:
        for result in results:
            torch.testing.assert_close(result, batch[0], rtol=1e-4, atol=1e-4)


def test_shared_memory():
    flow, batch = a_flow(), inputs()
    expected = flow(*batch)
    flow.share_memory()
    assert all(parameter.is_shared() for parameter in flow.parameters())
    torch.testing.assert_close(flow(*batch), expected)


def test_the_page_names_every_test():
    named = re.findall(r"`(?:(test_\w+\.py)::)?(test_\w+)`", PAGE.read_text())
    here = [name for name in vars(sys.modules[__name__]) if name.startswith("test_")]
    here.remove("test_the_page_names_every_test")
    assert sorted(name for file, name in named if not file) == sorted(here)
    for file, name in named:
        assert not file or f"\ndef {name}(" in (Path(__file__).parent / file).read_text(), f"{file} has no {name}"
