"""The registry of layers under test: a case added to ``LAYERS`` is held to every property of ``test_layers.py``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from invflow import (
    ActNorm,
    AffineCoupling,
    AffineForm,
    AffineInjector,
    CheckerboardCoupling,
    ContextPrior,
    FlowSequential,
    FlowStep,
    HaarSqueeze,
    InvertibleConv1x1,
    InvertibleConv1x1LU,
    Permutation,
    SplineCoupling,
    Split,
    Squeeze,
    ZeroConv2d,
)
from invflow.ops._affine_form import OrderName, PackingName, ScaleName

CONTEXT_CHANNELS = 3

# The other bounded scales differ from the last of these in one function, which the operators' tests try.
_SCALES: tuple[ScaleName, ...] = ("sigmoid", "exp", "bounded_exp")
FORMS = [
    AffineForm(scale, order=order, packing=packing)
    for scale, order, packing in itertools.product(_SCALES, *map(get_args, (OrderName, PackingName)))
]
BOUNDED = AffineForm("bounded_atan_exp", "scale_then_shift", bound=0.5)
ADDITIVE, VOLUME_PRESERVING = AffineForm("none"), AffineForm("bounded_atan_exp", volume_preserving=True)
# The operators have tests with every form. Of layers, every form is one of the coupling or of the injector, and either
# has every pair of a scale, an order and a packing.
FORMS_OF_LAYERS: dict[str, list[AffineForm]] = {"coupling": [], "injector": []}
for places in itertools.product(range(3), range(2), range(2)):
    FORMS_OF_LAYERS[("coupling", "injector")[sum(places) % 2]].append(FORMS[4 * places[0] + 2 * places[1] + places[2]])


def form_name(form: AffineForm) -> str:
    return f"{form.scale}-{form.order}-{form.packing}"


class Net(nn.Module):
    """A small smooth network of the state, the context, or both."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(inputs, 6, 3, padding=1)
        self.last = ZeroConv2d(6, outputs)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.last(self.hidden(torch.cat(inputs, 1)).tanh())


def coupling(
    channels: int, form: AffineForm | None = None, context_channels: int = 0, stop: int | None = None
) -> AffineCoupling:
    changed = channels - channels // 2 if stop is None else stop
    outputs = 2 if form is None else form.outputs
    net = Net(channels - changed + context_channels, outputs * changed)
    return AffineCoupling(channels, net, context_channels=context_channels, form=form, stop=stop)


def checkerboard(channels: int, passes: Literal["even", "odd"], context_channels: int = 0) -> CheckerboardCoupling:
    net = Net(channels + context_channels, 2 * channels)
    return CheckerboardCoupling(channels, net, context_channels=context_channels, passes=passes)


def spline(channels: int, context_channels: int = 0, bins: int = 5, stop: int | None = None) -> SplineCoupling:
    changed = channels - channels // 2 if stop is None else stop
    net = Net(channels - changed + context_channels, changed * (3 * bins - 1))
    return SplineCoupling(channels, net, bins=bins, context_channels=context_channels, stop=stop)


def injector(channels: int, form: AffineForm | None = None) -> AffineInjector:
    net = Net(CONTEXT_CHANNELS, (2 if form is None else form.outputs) * channels)
    return AffineInjector(channels, net, context_channels=CONTEXT_CHANNELS, form=form)


def prior(channels: int, form: AffineForm | None = None) -> ContextPrior:
    return ContextPrior(channels, Net(CONTEXT_CHANNELS, 2 * channels), context_channels=CONTEXT_CHANNELS, form=form)


def two_scales() -> FlowSequential:
    """Squeeze, step and split, twice, nested: latents leave at both scales."""
    inner = FlowSequential([Squeeze(), FlowStep(8, coupling=coupling(8)), Split(8), ActNorm(4)])
    return FlowSequential([Squeeze(), FlowStep(4, coupling=coupling(4)), Split(4), inner])


@dataclass(frozen=True)
class LayerCase:
    """A layer, the (C, H, W) it is tested on, and how many channels of context it takes."""

    name: str
    construct: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    context_channels: int = 0

    def build(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The layer with random parameters, its actnorms initialised; the same ones in every call."""
        with torch.random.fork_rng():
            torch.manual_seed(1)
            layer = self.construct()
            with torch.no_grad():
                for parameter in layer.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for part in actnorms(layer):
            part.mark_initialized()
        return layer.to(dtype)

    def inputs(
        self, batch: int = 2, dtype: torch.dtype = torch.float32, enlarge: int = 1
    ) -> tuple[Tensor, Tensor | None]:
        """A state and its context, values drawn in float32 so that they are the same in every wider dtype."""
        generator = torch.Generator().manual_seed(2)
        channels, height, width = self.shape
        size = (height * enlarge, width * enlarge)
        x = torch.randn(batch, channels, *size, generator=generator).to(dtype)
        if not self.context_channels:
            return x, None
        return x, torch.randn(batch, self.context_channels, *size, generator=generator).to(dtype)


def actnorms(layer: nn.Module) -> list[ActNorm]:
    return [part for part in layer.modules() if isinstance(part, ActNorm)]


def networks(layer: nn.Module) -> list[nn.Module]:
    return [part for part in layer.modules() if isinstance(part, nn.Conv2d)]


def latents_of(z: Tensor | list[Tensor]) -> list[Tensor]:
    return [z] if isinstance(z, Tensor) else list(z)


def reads_the_state(layer: nn.Module) -> int:
    """Number of networks that look at the state."""
    kinds = AffineCoupling | CheckerboardCoupling | SplineCoupling | Split
    return sum(isinstance(part, kinds) and part.net is not None for part in layer.modules())


LAYERS = [
    LayerCase("actnorm", lambda: ActNorm(3), (3, 3, 2)),
    LayerCase("actnorm-one-channel", lambda: ActNorm(1), (1, 2, 3)),
    LayerCase("conv1x1", lambda: InvertibleConv1x1(5), (5, 2, 3)),
    LayerCase("conv1x1-one-channel", lambda: InvertibleConv1x1(1), (1, 2, 3)),
    LayerCase("conv1x1-lu", lambda: InvertibleConv1x1LU(5), (5, 2, 3)),
    LayerCase("squeeze", lambda: Squeeze(), (3, 4, 2)),
    LayerCase("squeeze-3", lambda: Squeeze(3), (1, 3, 6)),
    LayerCase("split", lambda: Split(4), (4, 3, 2)),
    LayerCase("split-odd", lambda: Split(5), (5, 2, 3)),
    LayerCase("split-with-network", lambda: Split(3, Net(1, 4)), (3, 2, 3)),
    LayerCase("split-unequal", lambda: Split(5, kept=1), (5, 2, 3)),
    LayerCase("split-without-prior", lambda: Split(5, None, kept=3), (5, 2, 3)),
    LayerCase("prior", lambda: prior(3), (3, 2, 3), CONTEXT_CHANNELS),
    LayerCase("prior-bounded", lambda: prior(2, BOUNDED), (2, 3, 2), CONTEXT_CHANNELS),
    *(
        LayerCase(f"coupling-{form_name(form)}", lambda form=form: coupling(4, form), (4, 2, 3))
        for form in FORMS_OF_LAYERS["coupling"]
    ),
    *(
        LayerCase(f"injector-{form_name(form)}", lambda form=form: injector(2, form), (2, 2, 3), CONTEXT_CHANNELS)
        for form in FORMS_OF_LAYERS["injector"]
    ),
    LayerCase("coupling-odd", lambda: coupling(5), (5, 2, 3)),
    LayerCase(
        "coupling-conditional", lambda: coupling(4, context_channels=CONTEXT_CHANNELS), (4, 3, 2), CONTEXT_CHANNELS
    ),
    LayerCase(
        "coupling-of-the-first", lambda: coupling(5, None, CONTEXT_CHANNELS, stop=3), (5, 2, 3), CONTEXT_CHANNELS
    ),
    LayerCase("coupling-no-eps", lambda: coupling(4, AffineForm(eps=0.0)), (4, 3, 2)),
    LayerCase("coupling-tight-bound", lambda: coupling(4, AffineForm("bounded_exp", bound=0.1)), (4, 3, 2)),
    LayerCase("coupling-volume-preserving", lambda: coupling(5, VOLUME_PRESERVING), (5, 3, 2)),
    LayerCase("checkerboard", lambda: checkerboard(2, "odd", CONTEXT_CHANNELS), (2, 3, 2), CONTEXT_CHANNELS),
    LayerCase("spline", lambda: spline(3, CONTEXT_CHANNELS, bins=3, stop=1), (3, 2, 3), CONTEXT_CHANNELS),
    LayerCase("permutation", lambda: Permutation(5), (5, 2, 3)),
    LayerCase("haar", HaarSqueeze, (3, 4, 2)),
    LayerCase("haar-bands-first", lambda: HaarSqueeze(bands_first=True), (2, 2, 6)),
    LayerCase("haar-means", lambda: HaarSqueeze(bands_first=True, means=True), (2, 4, 2)),
    LayerCase("step-transition", lambda: FlowStep(3), (3, 3, 2)),
    LayerCase("step-injector", lambda: FlowStep(3, injector=injector(3)), (3, 3, 2), CONTEXT_CHANNELS),
    LayerCase("step-coupling", lambda: FlowStep(4, coupling=coupling(4)), (4, 2, 3)),
    LayerCase(
        "step-full",
        lambda: FlowStep(
            4,
            injector=injector(4),
            coupling=coupling(4, context_channels=CONTEXT_CHANNELS),
            conv1x1=InvertibleConv1x1LU(4),
        ),
        (4, 3, 2),
        CONTEXT_CHANNELS,
    ),
    LayerCase("step-of-the-first", lambda: FlowStep(5, coupling=coupling(5, stop=2)), (5, 2, 3)),
    LayerCase(
        "step-additive",
        lambda: FlowStep(3, injector=injector(3, ADDITIVE), coupling=coupling(3, ADDITIVE)),
        (3, 2, 3),
        CONTEXT_CHANNELS,
    ),
    LayerCase(
        "sequential",
        lambda: FlowSequential(FlowStep(4, injector=injector(4), coupling=coupling(4)) for _ in range(2)),
        (4, 2, 3),
        CONTEXT_CHANNELS,
    ),
    LayerCase("sequential-two-scales", two_scales, (1, 4, 4)),
]

LAYERS_BY_NAME = {case.name: case for case in LAYERS}


def weighted_sum(tensors: list[Tensor]) -> Tensor:
    """A scalar that every element of every tensor moves differently; the weights are the same in every dtype."""
    total = torch.zeros((), dtype=torch.float64, device=tensors[0].device)
    for tensor in tensors:
        weights = torch.linspace(-1.0, math.pi, tensor.numel(), dtype=torch.float64).cos().view(tensor.shape)
        total = total + (tensor.double() * weights.to(tensor.device)).sum()
    return total
