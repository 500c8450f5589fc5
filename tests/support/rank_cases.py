"""Layers for states of every rank, with networks as users write them, and states and contexts for them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
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
)

C, K = 4, 3
SPATIAL = {2: (), 3: (4,), 4: (4, 2), 5: (2, 2, 4)}
each_rank = pytest.mark.parametrize("rank", SPATIAL)


class Net(nn.Module):
    """A network as users write it for states of a rank."""

    def __init__(self, rank: int, inputs: int, outputs: int) -> None:
        super().__init__()
        kinds: dict[int, Callable[..., nn.Module]] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
        part = nn.Linear if rank == 2 else lambda i, o: kinds[rank](i, o, 3, padding=1)
        self.first, self.last = part(inputs, 5), part(5, outputs)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.last(self.first(torch.cat(inputs, 1)).tanh())


def coupling(rank: int, context: int = 0, form: AffineForm | None = None) -> AffineCoupling:
    return AffineCoupling(C, Net(rank, C // 2 + context, C), context_channels=context, form=form)


def injector(rank: int) -> AffineInjector:
    return AffineInjector(C, Net(rank, K, 2 * C), context_channels=K)


def full_step(rank: int) -> FlowStep:
    return FlowStep(C, injector=injector(rank), coupling=coupling(rank, K))


def flow(rank: int, memory: str = "store") -> FlowSequential:
    """Two steps, a split whose latent leaves, and what goes on: nested, and with a context for all."""
    inner = FlowSequential([Split(C, Net(rank, C // 2, C)), ActNorm(C // 2)], memory=memory)
    return FlowSequential([full_step(rank), full_step(rank), inner], memory=memory)


def multi_scale(rank: int) -> FlowSequential:
    wide = 2 ** (rank - 2)
    step = FlowStep(wide, coupling=AffineCoupling(wide, Net(rank, wide // 2, wide)))
    return FlowSequential([Squeeze(), step, Split(wide, Net(rank, wide // 2, wide)), ActNorm(wide // 2)])


def additive(rank: int) -> AffineCoupling:
    """Return a coupling of the first channels, of which one more passes."""
    return AffineCoupling(C, Net(rank, 3, 1), form=AffineForm("none"), stop=1)


def checkerboard(rank: int) -> CheckerboardCoupling:
    return CheckerboardCoupling(C, Net(rank, C + K, 2 * C), context_channels=K, passes="odd")


def spline(rank: int) -> SplineCoupling:
    return SplineCoupling(C, Net(rank, 1 + K, 3 * 8), bins=3, context_channels=K, start=1)


#: Layers for states of a rank; whether they take a context; the channels of the state.
LAYERS: dict[str, tuple[Callable[[int], nn.Module], bool, int]] = {
    "actnorm": (lambda rank: ActNorm(C), False, C),
    "conv1x1": (lambda rank: InvertibleConv1x1(C), False, C),
    "conv1x1-lu": (lambda rank: InvertibleConv1x1LU(C), False, C),
    "coupling": (lambda rank: coupling(rank, form=AffineForm("exp", packing="split")), False, C),
    "coupling-conditional": (lambda rank: coupling(rank, K), True, C),
    "coupling-additive": (additive, False, C),
    "coupling-volume-preserving": (
        lambda rank: coupling(rank, K, AffineForm("atan_exp", volume_preserving=True)),
        True,
        C,
    ),
    "checkerboard": (checkerboard, True, C),
    "spline": (spline, True, C),
    "permutation": (lambda rank: Permutation(C, seed=0), False, C),
    "haar": (lambda rank: HaarSqueeze(), False, 1),
    "haar-bands-first": (lambda rank: HaarSqueeze(bands_first=True), False, 1),
    "injector": (injector, True, C),
    "prior": (lambda rank: ContextPrior(C, Net(rank, K, 2 * C), context_channels=K), True, C),
    "split": (lambda rank: Split(C, Net(rank, C // 2, C)), False, C),
    "step": (lambda rank: FlowStep(C), False, C),
    "step-full": (full_step, True, C),
    "squeeze": (lambda rank: Squeeze(), False, 1),
    "sequential": (flow, True, C),
    "multi-scale": (multi_scale, False, 1),
}
#: Layers of pixels; a vector has none.
SPATIAL_ONLY = {"squeeze", "haar", "haar-bands-first", "multi-scale", "checkerboard"}
CASES = [(name, rank) for name, rank in itertools.product(LAYERS, SPATIAL) if rank > 2 or name not in SPATIAL_ONLY]
each_case = pytest.mark.parametrize(("name", "rank"), CASES, ids=lambda value: str(value))
each_conditional = pytest.mark.parametrize(
    ("name", "rank"), [case for case in CASES if LAYERS[case[0]][1]], ids=lambda value: str(value)
)


def built(name: str, rank: int) -> nn.Module:
    torch.manual_seed(1)
    layer = LAYERS[name][0](rank).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    for part in layer.modules():
        if isinstance(part, ActNorm):
            part.mark_initialized()
    return layer


def state(rank: int, channels: int = C, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, *SPATIAL[rank], dtype=torch.float64)


def inputs_of(name: str, rank: int) -> tuple[Tensor, Tensor | None]:
    _, conditional, channels = LAYERS[name]
    return state(rank, channels), state(rank, K) if conditional else None
