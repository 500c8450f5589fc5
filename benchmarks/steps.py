"""Whole flow steps with their coupling network: ours, written by hand in plain PyTorch, and of other flow libraries."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import invflow
from benchmarks.compositions import affine, coupled
from benchmarks.spec import Case, Spec

__all__ = ["HIDDEN", "LIBRARIES", "coupling_network", "missing_libraries", "step_with_network"]

#: Other flow libraries, by the name of the package, which is imported where it is measured.
LIBRARIES = {"normflows": "normflows", "freia": "FrEIA", "nflows": "nflows"}

#: Channels between the convolutions of a coupling's network.
HIDDEN = 64

#: A call of a step: its results, and the tensors whose gradients a training step computes.
_Step = tuple[Callable[[], list[Tensor]], list[Tensor]]


def missing_libraries(names: list[str]) -> list[str]:
    """Return those of some implementations that are of a library that is not installed."""
    return [name for name in names if name in LIBRARIES and find_spec(LIBRARIES[name]) is None]


class CouplingNetwork(nn.Sequential):
    """3x3, 1x1 and 3x3 convolutions; several inputs are joined along the channels."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return super().forward(inputs[0] if len(inputs) == 1 else torch.cat(inputs, 1))


class _ScaledConv2d(nn.Conv2d):
    """The last convolution as its authors write it: with an output scale, in plain PyTorch."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.log_scale = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (3 * self.log_scale).exp()[:, None, None]


def coupling_network(inputs: int, outputs: int, last: Callable[[int, int], nn.Conv2d]) -> CouplingNetwork:
    """Build the network of SRFlow's couplings, as a user of the library does.

    Args:
        inputs, outputs: numbers of channels.
        last: makes the last convolution.
    """
    end = last(HIDDEN, outputs)
    nn.init.normal_(end.weight, std=0.01)
    first = nn.Conv2d(inputs, HIDDEN, 3, padding=1)
    return CouplingNetwork(first, nn.ReLU(), nn.Conv2d(HIDDEN, HIDDEN, 1), nn.ReLU(), end)


def step_with_network(spec: Spec, names: list[str]) -> Case:
    """Return the case of a whole step, with the implementations of these names."""
    _, channels, *_ = spec.shape
    inverse, training = spec.direction == "inverse", spec.direction == "forward+backward"
    torch.manual_seed(0)
    x = torch.randn(spec.shape)
    half, outputs = channels // 2, 2 * (channels - channels // 2)
    net = coupling_network(half, outputs, invflow.ZeroConv2d)
    step = invflow.FlowStep(channels, coupling=invflow.AffineCoupling(channels, net))
    step.actnorm.initialize(x)
    step.eval()
    with_own_net = copy.deepcopy(step)
    assert with_own_net.coupling is not None
    with_own_net.coupling.net = invflow.coupling_net(half, outputs, hidden=HIDDEN)
    with_own_net.coupling.net.load_state_dict(net.state_dict())
    plain = coupling_network(half, outputs, _ScaledConv2d)
    plain.load_state_dict(net.state_dict())
    parameters = [step.actnorm.bias, step.actnorm.log_scale, step.conv1x1.weight]

    def leaf(tensor: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return tensor.detach().to(dtype).requires_grad_(training)

    def ours(step: invflow.FlowStep, backend: str = "auto", *, compiled: bool = False) -> _Step:
        state, method = leaf(x), step.inverse if inverse else step
        compute = _compiled(method) if compiled else method

        def call() -> list[Tensor]:
            with invflow.use_backend(backend):
                return list(compute(state))

        assert step.coupling is not None
        of_step = [step.actnorm.bias, step.actnorm.log_scale, step.conv1x1.weight]
        return call, [state, *step.coupling.net.parameters(), *of_step]

    def composition(dtype: torch.dtype, *, compiled: bool = False) -> _Step:
        state, own = leaf(x, dtype), copy.deepcopy(plain).to(dtype)
        given = [leaf(tensor, dtype) for tensor in parameters]
        compute = _compiled(_composition) if compiled else _composition
        return lambda: compute(state, given, own, inverse), [state, *own.parameters(), *given]

    def folded() -> _Step:
        state, own = leaf(x), copy.deepcopy(plain)
        given = [leaf(tensor) for tensor in parameters]
        inputs = [state, *own.parameters(), *given]
        if training:
            compute = _compiled(_folded)
            return lambda: compute(state, given, own, inverse), inputs
        # nobody who folds matrices for inference does so in every call
        maps, apply = _channel_map(given, inverse), _compiled(_with_map)
        return lambda: apply(state, maps, own, inverse), inputs

    def of_library(name: str, module: nn.Module, dtype: torch.dtype) -> _Step:
        state, own = leaf(x, dtype), copy.deepcopy(module).to(dtype)
        trained = [tensor for tensor in own.parameters() if tensor.requires_grad]
        return lambda: _CALLS[name](own, state, inverse), [state, *trained]

    def run(step: _Step) -> Callable[[], list[Tensor]]:
        compute, inputs = step

        def call() -> list[Tensor]:
            if not training:
                with torch.no_grad():
                    return compute()
            results = compute()
            return [*results, *torch.autograd.grad(results, inputs, [torch.ones_like(result) for result in results])]

        return call

    implementations, exact_of = {}, {}
    for name in names:
        if name in LIBRARIES:
            module = _MAKERS[name](spec.shape)
            _CALLS[name](module, x, False)  # an actnorm is initialised from the first batch
            module.eval()
            implementations[name] = run(of_library(name, module, torch.float32))
            exact_of[name] = run(of_library(name, module, torch.float64))
        elif name in ("composition", "compile"):
            implementations[name] = run(composition(torch.float32, compiled=name == "compile"))
        elif name == "folded-compile":
            implementations[name] = run(folded())
        elif name in ("ours-compile", "coupling_net"):
            used = with_own_net if name == "coupling_net" else step
            implementations[name] = run(ours(used, compiled=name == "ours-compile"))
        else:
            implementations[name] = run(ours(step, name))
    return Case(
        name=spec.name,
        implementations=implementations,
        exact=run(composition(torch.float64)),
        exact_of=exact_of,
        device=spec.device,
    )


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)


def _composition(x: Tensor, parameters: list[Tensor], net: nn.Module, inverse: bool) -> list[Tensor]:
    """Actnorm, convolution and coupling one after the other, as flow libraries do it."""
    bias, log_scale, weight = parameters
    half = x.shape[1] // 2
    if inverse:
        x, coupling_log_det = coupled(x, net(x[:, :half]), True)
        x, log_det = affine(x, bias, log_scale, weight, True)
    else:
        x, log_det = affine(x, bias, log_scale, weight, False)
        x, coupling_log_det = coupled(x, net(x[:, :half]), False)
    return [x, log_det + coupling_log_det]


def _channel_map(parameters: list[Tensor], inverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Matrix, shift and log-determinant for a pixel, of actnorm and convolution together."""
    bias, log_scale, weight = parameters
    log_det = log_scale.sum() + torch.linalg.slogdet(weight).logabsdet
    if inverse:
        matrix = (-log_scale).exp()[:, None] * torch.linalg.inv(weight.double()).to(weight.dtype)
        return matrix, -bias, -log_det
    matrix = weight * log_scale.exp()
    return matrix, matrix @ bias, log_det


def _with_map(x: Tensor, maps: tuple[Tensor, Tensor, Tensor], net: nn.Module, inverse: bool) -> list[Tensor]:
    matrix, shift, log_det = maps
    half, log_det = x.shape[1] // 2, x.shape[2] * x.shape[3] * log_det
    if inverse:
        x, coupling_log_det = coupled(x, net(x[:, :half]), True)
        return [F.conv2d(x, matrix[:, :, None, None], shift), log_det + coupling_log_det]
    x = F.conv2d(x, matrix[:, :, None, None], shift)
    x, coupling_log_det = coupled(x, net(x[:, :half]), False)
    return [x, log_det + coupling_log_det]


def _folded(x: Tensor, parameters: list[Tensor], net: nn.Module, inverse: bool) -> list[Tensor]:
    return _with_map(x, _channel_map(parameters, inverse), net, inverse)


def _plain_network(inputs: int, outputs: int) -> CouplingNetwork:
    return coupling_network(inputs, outputs, lambda inputs, outputs: nn.Conv2d(inputs, outputs, 3, padding=1))


def _normflows(shape: tuple[int, ...]) -> nn.Module:
    from normflows.flows.affine.glow import GlowBlock

    return GlowBlock(shape[1], HIDDEN, init_zeros=False)


def _freia(shape: tuple[int, ...]) -> nn.Module:
    from FrEIA.modules import AllInOneBlock

    return AllInOneBlock([shape[1:]], subnet_constructor=_plain_network, permute_soft=True)


def _nflows(shape: tuple[int, ...]) -> nn.Module:
    from nflows.transforms import ActNorm, AffineCouplingTransform, CompositeTransform, OneByOneConvolution

    class Network(CouplingNetwork):
        def forward(self, *inputs: Any) -> Tensor:
            return super().forward(inputs[0])  # without the context, which is None

    channels = shape[1]
    mask = [int(channel >= channels // 2) for channel in range(channels)]
    coupling = AffineCouplingTransform(mask, lambda inputs, outputs: Network(*_plain_network(inputs, outputs)))
    return CompositeTransform([ActNorm(channels), OneByOneConvolution(channels), coupling])


_MAKERS: dict[str, Callable[[tuple[int, ...]], nn.Module]] = {
    "normflows": _normflows,
    "freia": _freia,
    "nflows": _nflows,
}


def _call_freia(module: Any, x: Tensor, inverse: bool) -> list[Tensor]:
    (y,), log_det = module((x,), rev=inverse)
    return [y, log_det]


#: By library: ``call(module, x, inverse)``. The forward call of normflows goes from latents to data.
_CALLS: dict[str, Callable[[Any, Tensor, bool], list[Tensor]]] = {
    "normflows": lambda module, x, inverse: list(module(x) if inverse else module.inverse(x)),
    "freia": _call_freia,
    "nflows": lambda module, x, inverse: list(module.inverse(x) if inverse else module(x)),
}
