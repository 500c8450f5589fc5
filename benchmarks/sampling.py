"""Drawing samples of one image: the published procedure against condition sharing, with full-size models."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import sr_models
from benchmarks.spec import Case, Spec
from invflow import ActNorm, FlowSequential, FlowStep, ZeroConv2d
from sr_models import SuperResolutionFlow
from sr_models.flow.latents import draw_latents

__all__ = ["ROUNDS", "build", "specs"]

#: Default number of rounds: calls are long enough for a few to tell.
ROUNDS = 5

_LR = 64
_SAMPLES = {"srflow": (1, 10, 100), "srflow-da": (1, 10)}


def specs() -> Iterator[Spec]:
    """Yield the cases, at 4x. The shape is that of the samples."""
    for model, numbers in _SAMPLES.items():
        for number in numbers:
            yield Spec("sampling", (number, 3, 4 * _LR, 4 * _LR), "inverse", model=model)


def build(spec: Spec, names: list[str]) -> Case:
    """Return the case with "one_by_one", which decodes every sample by itself, and "shared", the model's own way.

    Samples decoded by themselves are equal, independent calls. One of them is timed and counts as often as there are
    samples. The result is the first sample.
    """
    model = _randomised(spec.model)
    number, _, height, width = spec.shape
    lr = torch.rand(1, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(1))

    def one_by_one(model: SuperResolutionFlow, lr: Tensor) -> list[Tensor]:
        with torch.inference_mode():
            latents = draw_latents(model.latent_shapes(*lr.shape[2:]), [0], 0.9, 0)
            return [_decode(model, [latent.to(lr) for latent in latents], lr).clamp(0, 1)]

    def shared() -> list[Tensor]:
        return [model.sample(lr, number)[:, 0]]

    implementations: dict[str, Callable[[], list[Tensor]]] = {
        "one_by_one": lambda: one_by_one(model, lr),
        "shared": shared,
    }
    return Case(
        name=spec.name,
        implementations={name: implementations[name] for name in names},
        exact=lambda: one_by_one(copy.deepcopy(model).double(), lr.double()),
        calls={"one_by_one": number},
    )


def _decode(model: SuperResolutionFlow, latents: list[Tensor], lr: Tensor) -> Tensor:
    """Decode by the encoder, then every layer with the joined features: nothing is shared or enlarged late."""
    *rest, x = latents
    for level, context in zip(reversed(list(model.levels)), reversed(model.contexts(lr)), strict=True):
        assert isinstance(level, FlowSequential)
        for step in level.walk_inverse(rest):
            x, _ = step.layer.inverse(step.input(x), context)
    return x


def _randomised(name: str) -> SuperResolutionFlow:
    """Return the full-size model with every part away from its initial identity, and states of moderate size."""
    torch.manual_seed(0)
    model = sr_models.create(name, scale=4)
    with torch.no_grad():
        for module in model.levels.modules():
            if isinstance(module, ZeroConv2d):
                module.weight.normal_(std=0.003)
            if isinstance(module, ActNorm):
                module.bias.normal_(std=0.05)
                module.log_scale.normal_(std=0.05)
                module.mark_initialized()
        for module in model.levels.modules():
            if isinstance(module, FlowStep):
                module.actnorm.log_scale.add_(0.2)  # makes up for the couplings' scales, which are less than 1
    return model.eval()
