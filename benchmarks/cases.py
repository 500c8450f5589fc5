"""Cases to measure: each gives its implementations, its result in float64, and the bytes and flops that it needs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import invflow
from benchmarks.spec import Case, Spec
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
    "flow_step_with_network": (*invflow.BACKENDS, "composition", "compile"),
    "training": ("store", "invert"),
}


def runnable(operator: str, device: str) -> list[str]:
    """Return the implementations of an operator that can run on a device here."""
    x = torch.empty(1, 1, 1, 1, device=device)
    names = IMPLEMENTATIONS[operator]
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
        return _training(spec, names) if spec.operator == "training" else _flow_step(spec, names)


class _Given(nn.Module):
    """A coupling network that has already been evaluated."""

    def __init__(self, h: Tensor) -> None:
        super().__init__()
        self.h = h

    def forward(self, x: Tensor) -> Tensor:
        return self.h


class _Net(nn.Sequential):
    """The network of SRFlow's couplings: 3x3, 1x1 and 3x3 convolutions, 64 hidden channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        last = invflow.ZeroConv2d(64, outputs)
        nn.init.normal_(last.weight, std=0.01)
        super().__init__(nn.Conv2d(inputs, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.ReLU(), last)

    def forward(self, *inputs: Tensor) -> Tensor:
        return super().forward(inputs[0] if len(inputs) == 1 else torch.cat(inputs, 1))


def _coupled(x: Tensor, h: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """SRFlow's affine coupling of the second half of the channels, as its authors write it."""
    half = x.shape[1] // 2
    shift, raw = h[:, 0::2], h[:, 1::2]
    scale = torch.sigmoid(raw + 2.0) + 1e-4
    changed = x[:, half:] / scale - shift if inverse else (x[:, half:] + shift) * scale
    log_det = scale.log().sum((1, 2, 3))
    return torch.cat([x[:, :half], changed], 1), -log_det if inverse else log_det


def _affine(x: Tensor, bias: Tensor, log_scale: Tensor, weight: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """Actnorm and 1x1 convolution, determinant and inverse anew in every call."""
    log_det = x.shape[2] * x.shape[3] * (log_scale.sum() + torch.linalg.slogdet(weight).logabsdet)
    if inverse:
        x = F.conv2d(x, torch.linalg.inv(weight.double()).to(x.dtype)[:, :, None, None])
        return x * (-log_scale).exp()[:, None, None] - bias[:, None, None], -log_det
    x = (x + bias[:, None, None]) * log_scale.exp()[:, None, None]
    return F.conv2d(x, weight[:, :, None, None]), log_det


def _given_composition(
    x: Tensor, h: Tensor, bias: Tensor, log_scale: Tensor, weight: Tensor, inverse: bool
) -> list[Tensor]:
    """Everything between two coupling networks in plain PyTorch, one operator after the other, as flow libraries do it.

    Encoding, these are the coupling of one step, and actnorm and convolution of the next. Decoding, all are of one.
    """
    x, coupling_log_det = _coupled(x, h, inverse)
    x, log_det = _affine(x, bias, log_scale, weight, inverse)
    return [x, log_det + coupling_log_det]


def _network_composition(
    x: Tensor, bias: Tensor, log_scale: Tensor, weight: Tensor, net: nn.Module, inverse: bool
) -> list[Tensor]:
    """A whole flow step with its network: actnorm, convolution, coupling."""
    half = x.shape[1] // 2
    if inverse:
        x, coupling_log_det = _coupled(x, net(x[:, :half]), True)
        x, log_det = _affine(x, bias, log_scale, weight, True)
    else:
        x, log_det = _affine(x, bias, log_scale, weight, False)
        x, coupling_log_det = _coupled(x, net(x[:, :half]), False)
    return [x, log_det + coupling_log_det]


def _flow_step(spec: Spec, names: list[str]) -> Case:
    batch, channels, height, width = spec.shape
    with_network = spec.operator == "flow_step_with_network"
    inverse, training = spec.direction == "inverse", spec.direction == "forward+backward"
    torch.manual_seed(0)
    x = torch.randn(spec.shape)
    outputs = 2 * (channels - channels // 2)
    h = torch.randn(batch, outputs, height, width)
    net: nn.Module = _Net(channels // 2, outputs) if with_network else _Given(h)
    step = invflow.FlowStep(channels, coupling=invflow.AffineCoupling(channels, net))
    step.actnorm.initialize(x)
    step.eval()
    assert step.coupling is not None
    pending = None if with_network else PendingCoupling(h, step.coupling.form, step.coupling.start)
    x.requires_grad_(training)
    h.requires_grad_(training)

    def run(compute: Callable[[], list[Tensor]], inputs: list[Tensor]) -> list[Tensor]:
        """Return the results and, in training, the gradients of state, h (or the network) and parameters."""
        if not training:
            with torch.no_grad():
                return compute()
        results = compute()
        return [*results, *torch.autograd.grad(results, inputs, [torch.ones_like(result) for result in results])]

    def with_step(backend: str) -> Callable[[], list[Tensor]]:
        between = [*net.parameters()] if with_network else [h]
        inputs = [x, *between, step.actnorm.bias, step.actnorm.log_scale, step.conv1x1.weight]

        def compute() -> list[Tensor]:
            with invflow.use_backend(backend):
                if inverse:
                    return list(step.inverse(x))
                return list(step(x)) if with_network else list(step.forward_fused(x, None, pending)[:2])

        return lambda: run(compute, inputs)

    def with_composition(dtype: torch.dtype, compiled: bool = False) -> Callable[[], list[Tensor]]:
        def leaf(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype).requires_grad_(training)

        affine = [leaf(tensor) for tensor in (step.actnorm.bias, step.actnorm.log_scale, step.conv1x1.weight)]
        state = leaf(x)
        composition: Callable[..., list[Tensor]] = _network_composition if with_network else _given_composition
        if compiled:
            torch.compiler.reset()
            composition = torch.compile(composition, dynamic=False)
        if with_network:
            own = copy.deepcopy(net).to(dtype)
            return lambda: run(lambda: composition(state, *affine, own, inverse), [state, *own.parameters(), *affine])
        given = leaf(h)
        return lambda: run(lambda: composition(state, given, *affine, inverse), [state, given, *affine])

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
        bytes=0 if with_network else (2 * elements + h.numel()) * 4 * (3 if training else 1),
        flops=0 if with_network else 2 * channels * elements * (3 if training else 1),
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
        channels, _Net(half + conditional, 2 * (channels - half)), context_channels=conditional
    )
    injector = invflow.AffineInjector(channels, _Net(conditional, 2 * channels), context_channels=conditional)
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
