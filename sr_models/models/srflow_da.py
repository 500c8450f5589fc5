"""SRFlow-DA: SRFlow with fewer levels and steps, and deeper coupling networks (Jo et al., SRFlow-DA: Super-Resolution
Using Normalizing Flow With Deep Convolutional Block, NTIRE 2021)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from invflow import FlowSequential, Split, Squeeze
from sr_models.flow.model import SuperResolutionFlow
from sr_models.models.assembly import conditional_step, encoder_of, flow_levels, transition
from sr_models.networks.coupling import DeepConvNet, ResidualNet, ResidualUnitNet
from sr_models.registry import check_fields, register_model
from sr_models.training.recipe import Recipe

__all__ = ["SRFlowDAConfig", "build_srflow_da"]


@dataclass(frozen=True)
class SRFlowDAConfig:
    """Architecture of SRFlow-DA; the defaults are the published one.

    Attributes:
        scale: 4 or 8.
        variant: ``""``; ``"R"``, residual networks; ``"D"``, deeper ones; ``"S"``, a single level with several splits.
        steps: conditional flow steps a level (K).
        transition_steps: steps of actnorm and 1x1 convolution only, at the start of a level.
        hidden_channels: width of the coupling and injector networks.
        features: channels of the encoder's trunk.
        growth: growth channels of the encoder's dense blocks.
        blocks: RRDB blocks of the encoder.
        stacked_blocks: blocks whose outputs condition every level, besides the level's own features.
    """

    scale: int = 4
    variant: str = ""
    steps: int = 6
    transition_steps: int = 2
    hidden_channels: int = 64
    features: int = 64
    growth: int = 32
    blocks: int = 23
    stacked_blocks: tuple[int, ...] = (1, 8, 15, 22)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stacked_blocks", tuple(self.stacked_blocks))
        check_fields(self, positive=("steps", "hidden_channels", "features", "growth", "blocks"))
        if self.variant not in _NETS:
            raise ValueError(f"variant must be one of {', '.join(map(repr, _NETS))}, got {self.variant!r}")

    @property
    def levels(self) -> int:
        """Number of levels (L): the last one works at the low resolution's size."""
        return 1 if self.variant == "S" else self.scale.bit_length() - 1


_NETS = {"": DeepConvNet, "R": ResidualNet, "D": ResidualUnitNet, "S": DeepConvNet}
_SMALL = {
    "steps": 4,
    "transition_steps": 1,
    "hidden_channels": 32,
    "features": 32,
    "growth": 16,
    "blocks": 3,
    "stacked_blocks": (0, 2),
}


_RECIPES = {"released": {4: Recipe(), 8: Recipe(batch_size=16)}}


@register_model(
    "srflow-da",
    config=SRFlowDAConfig,
    presets={"released": {4: {}, 8: {}}, "small": {4: _SMALL, 8: _SMALL}},
    recipes=_RECIPES,
)
def build_srflow_da(config: SRFlowDAConfig) -> SuperResolutionFlow:
    """SRFlow with fewer levels and steps and deep convolutional couplings (Jo et al., NTIRE 2021)."""
    encoder = encoder_of(config)
    build = _one_level if config.variant == "S" else _levels
    return SuperResolutionFlow(config.scale, encoder, build(config, encoder.context_channels))


_VARIANTS = {
    "R": "SRFlow-DA with a skip connection in every network",
    "D": "SRFlow-DA with one step a level and networks of 38 convolutions",
    "S": "SRFlow-DA with one level",
}
_STEPS = {"R": {4: 6, 8: 6}, "D": {4: 1, 8: 1}, "S": {4: 12, 8: 18}}
for _variant, _summary in _VARIANTS.items():
    _released = {scale: {"variant": _variant, "steps": steps} for scale, steps in _STEPS[_variant].items()}
    register_model(
        f"srflow-da-{_variant.lower()}",
        config=SRFlowDAConfig,
        presets={"released": _released},
        summary=_summary,
        recipes=_RECIPES,
    )(build_srflow_da)


def _levels(config: SRFlowDAConfig, context_channels: int) -> list[FlowSequential]:
    """A split after every level but the last."""

    def steps(level: int, channels: int) -> list[nn.Module]:
        sizes = channels, context_channels, config.hidden_channels
        return [conditional_step(*sizes, _NETS[config.variant]) for _ in range(config.steps)]

    return flow_levels(config.levels, config.levels - 1, config.transition_steps, steps)


def _one_level(config: SRFlowDAConfig, context_channels: int) -> list[FlowSequential]:
    """At the low resolution, with a split after the first of every six steps."""
    channels = 3 * config.scale**2
    layers = [Squeeze(config.scale), *transition(channels, config.transition_steps)]
    for step in range(config.steps):
        layers.append(conditional_step(channels, context_channels, config.hidden_channels, _NETS[config.variant]))
        if step % 6 == 0:
            split = Split(channels)
            layers.append(split)
            channels = split.kept
    return [FlowSequential(layers)]
