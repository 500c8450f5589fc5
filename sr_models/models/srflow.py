"""SRFlow (Lugmayr et al., SRFlow: Learning the Super-Resolution Space with Normalizing Flow, ECCV 2020)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from invflow import AffineForm
from sr_models.flow.base import Base
from sr_models.flow.model import SuperResolutionFlow
from sr_models.models.assembly import conditional_step, flow_levels
from sr_models.models.config import FlowConfig
from sr_models.models.encoder import encoder_of
from sr_models.models.publication import Publication, has_part
from sr_models.networks.coupling import ShallowNet
from sr_models.registry import register_model
from sr_models.training.recipe import Recipe

__all__ = ["SRFlowConfig", "affine_form", "build_srflow"]


@dataclass(frozen=True)
class SRFlowConfig(FlowConfig):
    """Architecture of SRFlow; the defaults are the released one at 4x.

    Attributes:
        scale: 2, 4 or 8. There is one level more than halvings of the scale: 2, 3 or 4.
        steps: conditional flow steps (K): one number for every level, or one a level.
        transition_steps: steps of actnorm and 1x1 convolution only, at the start of a level.
        hidden_channels: width of the coupling and injector networks.
        affine: ``"sigmoid"``, the scale of the released code, or ``"exp"``, that of the paper (equations 5 and 6).
        features: channels of the encoder's trunk.
        growth: growth channels of the encoder's dense blocks.
        blocks: RRDB blocks of the encoder.
        stacked_blocks: blocks whose outputs condition every level, besides the level's own features.
        base: image that is added to what the flow models: ``"none"``, as published, ``"bicubic"``, the enlarged
            low-resolution image, or ``"image"``, that of the encoder.
    """

    scale: int = 4
    steps: int | tuple[int, ...] = 16
    transition_steps: int = 2
    hidden_channels: int = 64
    affine: str = "sigmoid"
    features: int = 64
    growth: int = 32
    blocks: int = 23
    stacked_blocks: tuple[int, ...] = (1, 8, 15, 22)
    base: Base = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        affine_form(self.affine)


def affine_form(affine: str) -> AffineForm:
    """Return the form of couplings and injectors.

    Raises:
        ValueError: neither ``"sigmoid"`` nor ``"exp"``.
    """
    if affine == "sigmoid":
        return AffineForm()
    if affine == "exp":
        return AffineForm("exp", "scale_then_shift")
    raise ValueError(f"affine must be 'sigmoid' or 'exp', got {affine!r}")


_OTHER_BLOCKS = {"stacked_blocks": (1, 3, 5, 7)}
# The released training adds no noise and never freezes the encoder, unlike the paper's (sections 4.1 and 5).
_RELEASED = Recipe(batch_size=16, lr=5e-4, encoder_frozen=0.0, noise_std=0.0)
_RELEASED_SMALL_BATCH = replace(_RELEASED, batch_size=12, lr=2.5e-4)
_PAPER = Recipe(batch_size=16, lr=5e-4)


@register_model(
    "srflow",
    config=SRFlowConfig,
    presets={
        "released": {2: {}, 4: {}, 8: _OTHER_BLOCKS},
        "paper": {2: {"affine": "exp"}, 4: {"affine": "exp"}, 8: {"affine": "exp", **_OTHER_BLOCKS}},
        "faces": {8: {"blocks": 8, **_OTHER_BLOCKS}},
    },
    recipes={
        "released": {2: _RELEASED_SMALL_BATCH, 4: _RELEASED_SMALL_BATCH, 8: _RELEASED},
        "paper": {2: _PAPER, 4: _PAPER, 8: _PAPER},
        "faces": {8: _RELEASED},
    },
    published=Publication(
        "SRFlow", detect=has_part(".affine.fAffine.0.actnorm."), covers=lambda config: config.affine == "sigmoid"
    ),
)
def build_srflow(config: SRFlowConfig) -> SuperResolutionFlow:
    """Flow conditioned on features of the low resolution (Lugmayr et al., ECCV 2020)."""
    encoder = encoder_of(config)
    form = affine_form(config.affine)

    def steps(level: int, channels: int) -> list[nn.Module]:
        sizes = channels, encoder.context_channels, config.hidden_channels
        return [conditional_step(*sizes, ShallowNet, form) for _ in range(config.level_steps[level])]

    levels = flow_levels(config.levels, config.levels - 2, config.transition_steps, steps)
    return SuperResolutionFlow(config.scale, encoder, levels, base=config.base)
