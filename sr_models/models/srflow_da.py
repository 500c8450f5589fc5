"""SRFlow-DA: SRFlow with fewer levels and steps, and deeper coupling networks (Jo et al., SRFlow-DA: Super-Resolution
Using Normalizing Flow With Deep Convolutional Block, NTIRE 2021)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

from torch import nn

from invflow import FlowSequential, Split, Squeeze
from sr_models.flow.base import Base
from sr_models.flow.model import SuperResolutionFlow
from sr_models.models.assembly import NetClass, conditional_step, flow_levels, transition
from sr_models.models.config import FlowConfig
from sr_models.models.encoder import encoder_of
from sr_models.models.publication import Detection, Publication, Shapes, has_part
from sr_models.networks.coupling import CouplingNet, DeepConvNet, ResidualNet, ResidualUnitNet
from sr_models.registry import register_model
from sr_models.training.recipe import Recipe

__all__ = ["SRFlowDAConfig", "build_srflow_da"]


@dataclass(frozen=True)
class SRFlowDAConfig(FlowConfig):
    """Architecture of SRFlow-DA; the defaults are the published one.

    Attributes:
        scale: 2, 4 or 8.
        variant: ``""``; ``"R"``, residual networks; ``"D"``, deeper ones; ``"S"``, a single level with several splits.
        steps: conditional flow steps (K): one number for every level, or one a level.
        transition_steps: steps of actnorm and 1x1 convolution only, at the start of a level.
        hidden_channels: width of the coupling and injector networks.
        features: channels of the encoder's trunk.
        growth: growth channels of the encoder's dense blocks.
        blocks: RRDB blocks of the encoder.
        stacked_blocks: blocks whose outputs condition every level, besides the level's own features.
        base: image that is added to what the flow models: ``"none"``, as published, ``"bicubic"``, the enlarged
            low-resolution image, or ``"image"``, that of the encoder.
        largest_gain: the most by which the inverse of a coupling or injector amplifies, more than 1; 0: no limit but
            that of the form, as published.
        largest_shift: their largest absolute shift, more than 0, where ``largest_gain`` is not 0.
    """

    scale: int = 4
    variant: str = ""
    steps: int | tuple[int, ...] = 6
    transition_steps: int = 2
    hidden_channels: int = 64
    features: int = 64
    growth: int = 32
    blocks: int = 23
    stacked_blocks: tuple[int, ...] = (1, 8, 15, 22)
    base: Base = "none"
    largest_gain: float = 0.0
    largest_shift: float = 8.0

    def __post_init__(self) -> None:
        if self.variant not in _NETS:
            raise ValueError(f"variant must be one of {', '.join(map(repr, _NETS))}, got {self.variant!r}")
        super().__post_init__()

    @property
    def net(self) -> NetClass:
        """Class of the networks, or a function that builds limited ones."""
        return self.limited(_NETS[self.variant])

    @property
    def levels(self) -> int:
        """Number of levels (L): the last one works at the low resolution's size."""
        return 1 if self.variant == "S" else self.scale.bit_length() - 1


_NETS: dict[str, type[CouplingNet]] = {"": DeepConvNet, "R": ResidualNet, "D": ResidualUnitNet, "S": DeepConvNet}
_SMALL = {
    "steps": 4,
    "transition_steps": 1,
    "hidden_channels": 32,
    "features": 32,
    "growth": 16,
    "blocks": 3,
    "stacked_blocks": (0, 2),
}


# For a file of 6 MB in float16, and seconds on a CPU.
_TINY = {
    "variant": "R",
    "steps": 5,
    "transition_steps": 1,
    "hidden_channels": 40,
    "features": 48,
    "growth": 16,
    "blocks": 4,
    "stacked_blocks": (),
    "base": "image",
    "largest_gain": 4.0,
    "largest_shift": 8.0,
}


_TINY_RECIPE = Recipe(steps=20_000, batch_size=64, lr=1e-3, encoder_frozen=0.0, noise_std=1 / 255)
_RECIPES = {
    "released": {2: Recipe(), 4: Recipe(), 8: Recipe(batch_size=16)},
    "tiny": {2: _TINY_RECIPE, 4: _TINY_RECIPE},
}


_LAYER = re.compile(r"flowUpsamplerNet\.layers\.(\d+)\.(\w+)\.")


def _detect_deep(shapes: Shapes, *, one_level: bool) -> dict[str, str] | None:
    """Recognise networks of six convolutions, in one level with splits in it, or in levels with splits between them.

    A squeeze, which has a number but no tensors, follows every split between levels.
    """
    if not any(".affine.fAffine.10." in name for name in shapes):
        return None
    numbers = {int(match[1]): match[2] == "conv" for name in shapes if (match := _LAYER.match(name))}
    last = max(numbers)
    inside = any(split and (number == last or number + 1 in numbers) for number, split in numbers.items())
    return {} if inside == one_level else None


def _has_no_limit(config: SRFlowDAConfig) -> bool:
    return config.largest_gain == 0


@register_model(
    "srflow-da",
    config=SRFlowDAConfig,
    presets={
        "released": {2: {}, 4: {}, 8: {}},
        "small": {2: _SMALL, 4: _SMALL, 8: _SMALL},
        "tiny": {2: _TINY, 4: _TINY},
    },
    recipes=_RECIPES,
    published=Publication("SRFlow-DA", detect=partial(_detect_deep, one_level=False), covers=_has_no_limit),
)
def build_srflow_da(config: SRFlowDAConfig) -> SuperResolutionFlow:
    """SRFlow with fewer levels and steps and deep convolutional couplings (Jo et al., NTIRE 2021)."""
    encoder = encoder_of(config)
    build = _one_level if config.variant == "S" else _levels
    return SuperResolutionFlow(config.scale, encoder, build(config, encoder.context_channels), base=config.base)


_VARIANTS = {
    "R": "SRFlow-DA with a skip connection in every network",
    "D": "SRFlow-DA with one step a level and networks of 38 convolutions",
    "S": "SRFlow-DA with one level",
}
# A coupling changes half of the channels: a single step in a single level would leave the other half as it is.
_STEPS = {"R": {2: 6, 4: 6, 8: 6}, "D": {2: 2, 4: 1, 8: 1}, "S": {2: 6, 4: 12, 8: 18}}
_DETECT: dict[str, Detection] = {
    "R": has_part(".affine.fAffine2.0.weight"),
    "D": has_part(".affine.fAffine2.0.0.weight"),
    "S": partial(_detect_deep, one_level=True),
}
for _variant, _summary in _VARIANTS.items():
    _released = {scale: {"variant": _variant, "steps": steps} for scale, steps in _STEPS[_variant].items()}
    register_model(
        f"srflow-da-{_variant.lower()}",
        config=SRFlowDAConfig,
        presets={"released": _released},
        summary=_summary,
        recipes=_RECIPES,
        published=Publication(f"SRFlow-DA-{_variant}", detect=_DETECT[_variant], covers=_has_no_limit),
    )(build_srflow_da)


def _levels(config: SRFlowDAConfig, context_channels: int) -> list[FlowSequential]:
    """A split after every level but the last."""

    def steps(level: int, channels: int) -> list[nn.Module]:
        sizes = channels, context_channels, config.hidden_channels
        return [conditional_step(*sizes, config.net) for _ in range(config.level_steps[level])]

    return flow_levels(config.levels, config.levels - 1, config.transition_steps, steps)


def _one_level(config: SRFlowDAConfig, context_channels: int) -> list[FlowSequential]:
    """At the low resolution, with a split after the first of every six steps."""
    channels = 3 * config.scale**2
    layers = [Squeeze(config.scale), *transition(channels, config.transition_steps)]
    for step in range(config.level_steps[0]):
        layers.append(conditional_step(channels, context_channels, config.hidden_channels, config.net))
        if step % 6 == 0:
            split = Split(channels)
            layers.append(split)
            channels = split.kept
    return [FlowSequential(layers)]
