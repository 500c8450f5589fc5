"""Cases to measure: each gives its implementations, its result in float64, and the bytes and flops that it needs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import invflow
from benchmarks.compositions import affine, coupled
from benchmarks.spec import Case, Spec
from benchmarks.steps import LIBRARIES, coupling_network, step_with_network
from invflow.layers import PendingCoupling

__all__ = ["DIRECTIONS", "IMPLEMENTATIONS", "SHAPES", "STEPS", "Case", "Spec", "build", "runnable", "specs_of"]

#: (batch, channels, height, width): the states of SRFlow at 4x and 8x with 160 pixel crops, and one whole HD image.
SHAPES = ((4, 12, 80, 80), (16, 12, 80, 80), (4, 48, 40, 40), (16, 48, 40, 40), (16, 192, 20, 20), (1, 12, 540, 960))

DIRECTIONS = ("forward", "inverse", "forward+backward")

#: Numbers of flow steps of the case "training".
STEPS = (4, 16, 64)

#: By operator: backends of invflow, and the implementations that they are compared with.
IMPLEMENTATIONS = {
    "flow_step": (*invflow.BACKENDS, "composition", "compile"),
    "flow_step_with_network": (
        *invflow.BACKENDS,
        "coupling_net",
        "ours-compile",
        "composition",
        "compile",
        "folded-compile",
        *LIBRARIES,
    ),
    "training": ("store", "invert"),
}


def runnable(operator: str, device: str) -> list[str]:
    """Return the implementations of an operator that can run on a device here."""
    x = torch.empty(1, 1, 1, 1, device=device)
    names = IMPLEMENTATIONS[operator]
    # other libraries are measured if they are asked for
    names = tuple(name for name in names if name not in LIBRARIES)
    return [name for name in names if name not in invflow.BACKENDS or invflow.can_run(name, "flow_step", x)]


def specs_of(operator: str, device: str = "cpu") -> Iterator[Spec]:
    """Yield the cases of an operator."""
    if operator == "training":
        for steps in STEPS:
            yield Spec(operator, (8, 12, 80, 80), "forward+backward", steps, device=device)
        return
    for direction in DIRECTIONS:
        for shape in SHAPES:
            yield Spec(operator, shape, direction, device=device)


def build(spec: Spec, names: list[str]) -> Case:
    """Return the case with the implementations of these names."""
    with torch.device(spec.device):
        return _BUILDERS[spec.operator](spec, names)


class _Given(nn.Module):
    """A coupling network that has already been evaluated."""

    def __init__(self, h: Tensor) -> None:
        super().__init__()
        self.h = h

    def forward(self, x: Tensor) -> Tensor:
        return self.h


def _composition(x: Tensor, h: Tensor, bias: Tensor, log_scale: Tensor, weight: Tensor, inverse: bool) -> list[Tensor]:
    """Everything between two coupling networks in plain PyTorch, one operator after the other, as flow libraries do it.

    Encoding, these are the coupling of one step, and actnorm and convolution of the next. Decoding, all are of one.
    """
    x, coupling_log_det = coupled(x, h, inverse)
    x, log_det = affine(x, bias, log_scale, weight, inverse)
    return [x, log_det + coupling_log_det]


def _flow_step(spec: Spec, names: list[str]) -> Case:
    batch, channels, height, width = spec.shape
    inverse, training = spec.direction == "inverse", spec.direction == "forward+backward"
    torch.manual_seed(0)
    x = torch.randn(spec.shape)
    outputs = 2 * (channels - channels // 2)
    h = torch.randn(batch, outputs, height, width)
    step = invflow.FlowStep(channels, coupling=invflow.AffineCoupling(channels, _Given(h)))
    step.actnorm.initialize(x)
    step.eval()
    assert step.coupling is not None
    pending = PendingCoupling(h, step.coupling.form, step.coupling.start)
    x.requires_grad_(training)
    h.requires_grad_(training)

    def run(compute: Callable[[], list[Tensor]], inputs: list[Tensor]) -> list[Tensor]:
        """Return the results and, in training, the gradients of state, h and parameters."""
        if not training:
            with torch.no_grad():
                return compute()
        results = compute()
        return [*results, *torch.autograd.grad(results, inputs, [torch.ones_like(result) for result in results])]

    def with_step(backend: str) -> Callable[[], list[Tensor]]:
        inputs = [x, h, step.actnorm.bias, step.actnorm.log_scale, step.conv1x1.weight]

        def compute() -> list[Tensor]:
            with invflow.use_backend(backend):
                return list(step.inverse(x) if inverse else step.forward_fused(x, None, pending)[:2])

        return lambda: run(compute, inputs)

    def with_composition(dtype: torch.dtype, compiled: bool = False) -> Callable[[], list[Tensor]]:
        def leaf(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype).requires_grad_(training)

        given = [leaf(tensor) for tensor in (h, step.actnorm.bias, step.actnorm.log_scale, step.conv1x1.weight)]
        state = leaf(x)
        composition: Callable[..., list[Tensor]] = _composition
        if compiled:
            torch.compiler.reset()
            composition = torch.compile(composition, dynamic=False)
        return lambda: run(lambda: composition(state, *given, inverse), [state, *given])

    implementations = {}
    for name in names:
        compared = name in ("composition", "compile")
        implementations[name] = with_composition(torch.float32, name == "compile") if compared else with_step(name)
    elements = batch * channels * height * width
    return Case(
        name=spec.name,
        implementations=implementations,
        exact=with_composition(torch.float64),
        # state in and out, and h for half of the channels, which has two numbers for each; in training the same again
        bytes=(2 * elements + h.numel()) * 4 * (3 if training else 1),
        flops=2 * channels * elements * (3 if training else 1),
        device=spec.device,
    )


def _training(spec: Spec, names: list[str]) -> Case:
    """Return the case of a training step of a conditional flow.

    Its flow steps share their networks, so that the parameters do not grow with the number of steps.
    """
    batch, channels, height, width = spec.shape
    torch.manual_seed(0)
    half, conditional = channels // 2, 16
    coupling = invflow.AffineCoupling(
        channels,
        coupling_network(half + conditional, 2 * (channels - half), invflow.ZeroConv2d),
        context_channels=conditional,
    )
    injector = invflow.AffineInjector(
        channels, coupling_network(conditional, 2 * channels, invflow.ZeroConv2d), context_channels=conditional
    )
    flow = invflow.FlowSequential(
        invflow.FlowStep(channels, coupling=coupling, injector=injector) for _ in range(spec.steps)
    )
    x, context = torch.randn(spec.shape), torch.randn(batch, conditional, height, width)
    with torch.no_grad():
        flow(x, context)  # initialises the actnorms

    def train(flow: invflow.FlowSequential, memory: Any, dtype: torch.dtype) -> Callable[[], list[Tensor]]:
        def compute() -> list[Tensor]:
            flow.memory = memory
            z, log_det = flow(x.to(dtype), context.to(dtype))
            loss = z.square().sum() / 2 - log_det.sum()
            return [loss, *torch.autograd.grad(loss, list(flow.parameters()))]

        return compute

    return Case(
        name=spec.name,
        implementations={name: train(flow, name, torch.float32) for name in names},
        # the tests show that both agree in float64, where storing would take twice the memory
        exact=train(copy.deepcopy(flow).double(), "invert", torch.float64),
        device=spec.device,
    )


_BUILDERS: dict[str, Callable[[Spec, list[str]], Case]] = {
    "flow_step": _flow_step,
    "flow_step_with_network": step_with_network,
    "training": _training,
}
