"""What is measured: every case gives its implementations, its result in float64, and the bytes and flops it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import invflow

__all__ = ["DIRECTIONS", "SHAPES", "Case", "flow_step"]

#: (batch, channels, height, width): the states of SRFlow at 4x and 8x with 160 pixel crops, and one whole HD image.
SHAPES = ((4, 12, 80, 80), (16, 12, 80, 80), (4, 48, 40, 40), (16, 48, 40, 40), (16, 192, 20, 20), (1, 12, 540, 960))

DIRECTIONS = ("forward", "inverse", "forward+backward")


@dataclass(frozen=True)
class Case:
    """One operator at one size.

    Attributes:
        name: what it is called in tables.
        implementations: name -> function without arguments that computes the case once and returns its results.
        exact: the same in float64.
        bytes: least traffic to and from memory: inputs read once, outputs written once.
        flops: of the matrix product.
    """

    name: str
    implementations: dict[str, Callable[[], list[Tensor]]]
    exact: Callable[[], list[Tensor]]
    bytes: int
    flops: int


class _Given(nn.Module):
    """A coupling network that has already been evaluated."""

    def __init__(self, h: Tensor) -> None:
        super().__init__()
        self.h = h

    def forward(self, x: Tensor) -> Tensor:
        return self.h


def _composition(x: Tensor, h: Tensor, bias: Tensor, log_scale: Tensor, weight: Tensor, inverse: bool) -> list[Tensor]:
    """A flow step as flow libraries write it: actnorm, 1x1 convolution and coupling one after the other, determinant
    and inverse anew in every call."""
    half, pixels = x.shape[1] // 2, x.shape[2] * x.shape[3]
    shift, raw = h[:, 0::2], h[:, 1::2]
    scale = torch.sigmoid(raw + 2.0) + 1e-4
    log_det = scale.log().sum((1, 2, 3)) + pixels * (log_scale.sum() + torch.linalg.slogdet(weight).logabsdet)
    if inverse:
        x = torch.cat([x[:, :half], x[:, half:] / scale - shift], 1)
        x = F.conv2d(x, torch.linalg.inv(weight.double()).to(x.dtype)[:, :, None, None])
        return [x * (-log_scale).exp()[:, None, None] - bias[:, None, None], -log_det]
    x = (x + bias[:, None, None]) * log_scale.exp()[:, None, None]
    x = F.conv2d(x, weight[:, :, None, None])
    return [torch.cat([x[:, :half], (x[:, half:] + shift) * scale], 1), log_det]


def flow_step(shape: tuple[int, int, int, int], direction: str, names: list[str]) -> Case:
    """A flow step whose coupling parameters are given: actnorm, 1x1 convolution, coupling.

    Args:
        shape: of the state.
        direction: one of :data:`DIRECTIONS`.
        names: implementations: backends of invflow, ``composition`` (plain PyTorch), ``compile`` (that, compiled).
    """
    batch, channels, height, width = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    h = torch.randn(batch, 2 * (channels - channels // 2), height, width, generator=generator)
    step = invflow.FlowStep(channels, coupling=invflow.AffineCoupling(channels, _Given(h)))
    step.actnorm.initialize(x)
    step.eval()
    inverse, training = direction == "inverse", direction == "forward+backward"
    x.requires_grad_(training)
    h.requires_grad_(training)

    def run(compute: Callable[[], list[Tensor]], inputs: list[Tensor]) -> list[Tensor]:
        """The results and, in training, their gradients with respect to state, h and parameters."""
        if not training:
            with torch.no_grad():
                return compute()
        results = compute()
        return [*results, *torch.autograd.grad(results, inputs, [torch.ones_like(result) for result in results])]

    def with_step(backend: str) -> Callable[[], list[Tensor]]:
        parameters = [step.actnorm.bias, step.actnorm.log_scale, step.conv1x1.weight]

        def compute() -> list[Tensor]:
            with invflow.use_backend(backend):
                return list(step.inverse(x) if inverse else step(x))

        return lambda: run(compute, [x, h, *parameters])

    def with_composition(composition: Callable[..., list[Tensor]], dtype: torch.dtype) -> Callable[[], list[Tensor]]:
        originals = (x, h, step.actnorm.bias, step.actnorm.log_scale, step.conv1x1.weight)
        inputs = [tensor.detach().to(dtype).requires_grad_(training) for tensor in originals]
        return lambda: run(lambda: composition(*inputs, inverse), inputs)

    implementations: dict[str, Callable[[], list[Tensor]]] = {}
    for name in names:
        if name == "composition":
            implementations[name] = with_composition(_composition, torch.float32)
        elif name == "compile":
            implementations[name] = with_composition(torch.compile(_composition), torch.float32)
        else:
            implementations[name] = with_step(name)
    elements = batch * channels * height * width
    # state in and out, and h for half of the channels, which has two numbers for each; in training the same again
    traffic = (2 * elements + h.numel()) * 4 * (3 if training else 1)
    return Case(
        name=f"flow_step {'x'.join(map(str, shape))} {direction}",
        implementations=implementations,
        exact=with_composition(_composition, torch.float64),
        bytes=traffic,
        flops=2 * channels * elements * (3 if training else 1),
    )
