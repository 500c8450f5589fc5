"""Folded flows as programs: TorchScript, torch.export and ONNX compute what the flow does, in both directions.

Sizes and batches differ from those of the example. What was saved runs in a process without ``invflow``.
"""

from __future__ import annotations

import collections
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accuracy import assert_as_accurate
from layer_cases import ADDITIVE, CONTEXT_CHANNELS, FORMS, VOLUME_PRESERVING, Net, actnorms, coupling, injector
from missing_packages import run_without
from torch import Tensor, nn

from invflow import (
    ActNorm,
    AffineForm,
    FlowSequential,
    FlowStep,
    InvertibleConv1x1,
    InvertibleConv1x1LU,
    Split,
    Squeeze,
    use_backend,
)
from invflow.layers import Inverse

# tests of kernels, in this folder too, run on machines that have torch and little else
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

DYNAMIC = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}


def all_forms() -> FlowSequential:
    """Couplings of every form, between full and LU weights."""
    convolutions = (InvertibleConv1x1, InvertibleConv1x1LU)
    return FlowSequential(
        FlowStep(4, coupling=coupling(4, form), conv1x1=convolutions[number % 2](4))
        for number, form in enumerate([*FORMS, ADDITIVE, VOLUME_PRESERVING])
    )


def conditional() -> FlowSequential:
    """Injectors, and couplings that see the context too, of some forms: their maps are those of the couplings above."""
    return FlowSequential(
        FlowStep(3, injector=injector(3, form), coupling=coupling(3, form, CONTEXT_CHANNELS)) for form in FORMS[::5]
    )


def multi_scale() -> FlowSequential:
    """Latents leave at two scales and from two kinds of splits."""
    form = AffineForm("exp", order="scale_then_shift")
    inner = FlowSequential([Squeeze(3), ActNorm(18), FlowStep(18, coupling=coupling(18, form)), Split(18, Net(9, 18))])
    return FlowSequential([Squeeze(), FlowStep(4), FlowStep(4, coupling=coupling(4)), Split(4), inner, FlowStep(9)])


#: How to build a flow, its channels, and those of its context.
FLOWS = {
    "forms": (all_forms, 4, 0),
    "conditional": (conditional, 3, CONTEXT_CHANNELS),
    "multi-scale": (multi_scale, 1, 0),
}
each_flow = pytest.mark.parametrize("name", FLOWS)
each_direction = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


class Exported:
    """A folded flow in one direction: the module to export, example arguments, and arguments of another size."""

    def __init__(self, name: str, inverse: bool, scale: float = 0.05) -> None:
        build, self.channels, self.context_channels = FLOWS[name]
        torch.manual_seed(1)
        self.flow = build()
        for part in actnorms(self.flow):
            part.mark_initialized()
        with torch.no_grad():
            for parameter in self.flow.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=scale)
        self.inverse = inverse
        self.folded = self.flow.folded()
        self.module: nn.Module = Inverse(self.folded) if inverse else self.folded
        # no side may be 1 at any scale: a program is made for sides of 1, or for all others
        self.example = self.arguments(2, 12, 24)
        self.others = [self.arguments(3, 24, 12), self.arguments(1, 18, 30)]

    def arguments(self, batch: int, height: int, width: int) -> tuple[Any, ...]:
        x = torch.randn(batch, self.channels, height, width)
        context = torch.randn(batch, self.context_channels, height, width)
        with torch.no_grad():
            state = self.folded(x, context)[0] if self.inverse else x
        return (state, context) if self.context_channels else (state,)

    def dynamic_shapes(self) -> tuple[Any, ...]:
        return tuple([DYNAMIC] * len(given) if isinstance(given, list) else DYNAMIC for given in self.example)

    def check(self, found: Any, arguments: tuple[Any, ...]) -> None:
        """Assert that a result is at most twice as wrong as that of the flow itself in plain PyTorch."""
        method = self.flow.inverse if self.inverse else self.flow
        with torch.no_grad(), use_backend("reference"):
            plain = flat(method(*arguments))
        self.flow.double()
        with torch.no_grad():
            exact = flat((self.flow.inverse if self.inverse else self.flow)(*map(double, arguments)))
        self.flow.float()
        # a log-determinant sums as many terms of order one as a sample has elements
        terms = sum(tensor[0].numel() for tensor in flat(arguments))
        for actual, reference, wanted in zip(flat(found), plain, exact, strict=True):
            assert_as_accurate(actual, reference, wanted, magnitude=math.sqrt(terms) if wanted.dim() == 1 else 0.0)


def flat(values: Any) -> list[Tensor]:
    """All tensors in tuples and lists, in order."""
    return [values] if isinstance(values, Tensor) else [tensor for value in values for tensor in flat(value)]


def double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) else [tensor.double() for tensor in value]


# --- TorchScript ---


@pytest.fixture
def _no_tracer_warnings():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit", Warning)
        warnings.simplefilter("error", torch.jit.TracerWarning)
        yield


@each_flow
@each_direction
@pytest.mark.usefixtures("_no_tracer_warnings")
def test_torchscript(name: str, inverse: bool) -> None:
    case = Exported(name, inverse)
    program = torch.jit.trace(case.module, case.example, strict=False)
    for arguments in (case.example, *case.others):
        case.check(program(*arguments), arguments)


def test_torchscript_holds_both_directions_without_invflow(tmp_path: Path) -> None:
    case = Exported("multi-scale", False)
    x, *_ = case.others[0]
    latents, log_det = case.folded(x)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit", Warning)
        program = torch.jit.trace_module(case.folded, {"forward": (x,), "inverse": (latents,)}, strict=False)
        program.save(tmp_path / "flow.pt")
    torch.save((x, latents, log_det), tmp_path / "values.pt")
    code = """
import sys, torch
program = torch.jit.load(sys.argv[1] + "/flow.pt")
x, latents, log_det = torch.load(sys.argv[1] + "/values.pt")
for again in range(3):
    found, found_log_det = program(x)
    back, inverse_log_det = program.inverse(latents)
    for actual, wanted in zip([*found, found_log_det, back, -inverse_log_det], [*latents, log_det, x, log_det]):
        torch.testing.assert_close(actual, wanted, atol=1e-4, rtol=1e-4)
"""
    done = run_without(["invflow"], code, str(tmp_path))
    assert not done.returncode, done.stderr


# --- torch.export ---


@each_flow
@each_direction
def test_torch_export(name: str, inverse: bool) -> None:
    case = Exported(name, inverse)
    program = torch.export.export(case.module, case.example, dynamic_shapes=case.dynamic_shapes())
    calls = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [call for call in calls if "invflow" in call or "higher_order" in call]
    for arguments in (case.example, *case.others):
        case.check(program.module()(*arguments), arguments)


def test_an_exported_program_needs_no_invflow(tmp_path: Path) -> None:
    case = Exported("multi-scale", True)
    program = torch.export.export(case.module, case.example, dynamic_shapes=case.dynamic_shapes())
    torch.export.save(program, tmp_path / "flow.pt2")
    torch.save((case.others[0], case.module(*case.others[0])), tmp_path / "values.pt")
    code = """
import sys, torch
program = torch.export.load(sys.argv[1] + "/flow.pt2").module()
arguments, results = torch.load(sys.argv[1] + "/values.pt")
torch.testing.assert_close(program(*arguments), results)
"""
    done = run_without(["invflow"], code, str(tmp_path))
    assert not done.returncode, done.stderr


# --- ONNX ---


def run(model: onnx.ModelProto, arguments: tuple[Any, ...]) -> list[Tensor]:
    """Results of a model in onnxruntime."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    inputs = {name: tensor.numpy() for name, tensor in zip(names, flat(arguments), strict=True)}
    return [torch.from_numpy(result) for result in session.run(None, inputs)]


def exported(case: Exported) -> onnx.ModelProto:
    program = torch.onnx.export(
        case.module, case.example, dynamo=True, dynamic_shapes=case.dynamic_shapes(), verbose=False
    )
    model = program.model_proto
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "multi-scale" else pytest.mark.slow) for n in FLOWS])
@each_direction
def test_onnx(name: str, inverse: bool) -> None:
    case = Exported(name, inverse)
    model = exported(case)
    assert {imported.domain for imported in model.opset_import} == {""}
    for arguments in (case.example, *case.others):
        case.check(run(model, arguments), arguments)


@pytest.mark.slow
@each_direction
def test_onnx_of_the_exporter_that_traces(inverse: bool, tmp_path: Path) -> None:
    case = Exported("multi-scale", inverse)
    names = [f"input{number}" for number in range(len(flat(case.example)))]
    axes = {name: {0: "batch", 2: f"height of {name}", 3: f"width of {name}"} for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            case.module, case.example, tmp_path / "flow.onnx", dynamo=False, input_names=names, dynamic_axes=axes
        )
    model = onnx.load(tmp_path / "flow.onnx")
    for arguments in (case.example, *case.others):
        case.check(run(model, arguments), arguments)


def nodes_of(layers: list[nn.Module]) -> collections.Counter[str]:
    """Count the nodes of the inverse, whose log_det nobody asks for."""
    torch.manual_seed(0)
    flow = FlowSequential(layers)
    for part in actnorms(flow):
        part.mark_initialized()

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.folded = flow.folded()

        def forward(self, z: Tensor) -> Tensor:
            return self.folded.inverse(z)[0]

    program = torch.onnx.export(
        Decoder().eval(), (torch.randn(2, 4, 6, 6),), dynamo=True, dynamic_shapes=(DYNAMIC,), verbose=False
    )
    return collections.Counter(node.op_type for node in program.model_proto.graph.node)


def test_a_step_without_coupling_is_one_convolution() -> None:
    assert nodes_of([FlowStep(4), FlowStep(4), FlowStep(4)]) == {"Conv": 1}
    # two convolutions and tanh of the network, one convolution; slices, sigmoid + eps, quotient, difference, cat
    step = nodes_of([FlowStep(4, coupling=coupling(4))])
    assert step["Conv"] == 3
    assert sum(step.values()) <= 14


# --- what an ordinary flow needs ---


def test_an_ordinary_flow_is_exported_with_its_operators(tmp_path: Path) -> None:
    """So it must be folded for a process without invflow."""
    program = torch.export.export(FlowStep(4).eval(), (torch.randn(2, 4, 6, 6),))
    assert any("invflow" in str(node.target) for node in program.graph.nodes)
    torch.export.save(program, tmp_path / "flow.pt2")
    code = "import sys, torch; torch.export.load(sys.argv[1] + '/flow.pt2')"
    assert run_without(["invflow"], code, str(tmp_path)).returncode
