"""SRFlow-DA: SRFlow with fewer levels and steps, and deeper coupling networks (Jo et al., SRFlow-DA: Super-Resolution
Using Normalizing Flow With Deep Convolutional Block, NTIRE 2021)."""

from __future__ import annotations

from dataclasses import dataclass

from invflow import AffineCoupling, AffineInjector, FlowSequential, FlowStep, Split, Squeeze
from sr_models.coupling_nets import DeepConvNet
from sr_models.encoder import RRDBEncoder
from sr_models.model import SuperResolutionFlow
from sr_models.registry import register_model

__all__ = ["SRFlowDAConfig", "build_srflow_da"]


@dataclass(frozen=True)
class SRFlowDAConfig:
    """Architecture of SRFlow-DA; the defaults are the published one.

    Attributes:
        scale: 4 or 8. There is one level for every halving but the last: 2 or 3.
        steps: conditional flow steps a level (K).
        transition_steps: steps of actnorm and 1x1 convolution only, at the start of a level.
        hidden_channels: width of the coupling and injector networks.
        features: channels of the encoder's trunk.
        growth: growth channels of the encoder's dense blocks.
        blocks: RRDB blocks of the encoder.
        stacked_blocks: blocks whose outputs condition every level, besides the level's own features.
    """

    scale: int = 4
    steps: int = 6
    transition_steps: int = 2
    hidden_channels: int = 64
    features: int = 64
    growth: int = 32
    blocks: int = 23
    stacked_blocks: tuple[int, ...] = (1, 8, 15, 22)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stacked_blocks", tuple(self.stacked_blocks))
        for name in ("steps", "hidden_channels", "features", "growth", "blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.transition_steps < 0:
            raise ValueError(f"transition_steps must be at least 0, got {self.transition_steps}")

    @property
    def levels(self) -> int:
        """Number of levels (L): the last one works at the low resolution's size."""
        return self.scale.bit_length() - 1


@register_model(
    "srflow-da",
    config=SRFlowDAConfig,
    scales=(4, 8),
    presets={
        "released": {},
        "small": {
            "steps": 4,
            "transition_steps": 1,
            "hidden_channels": 32,
            "features": 32,
            "growth": 16,
            "blocks": 3,
            "stacked_blocks": (0, 2),
        },
    },
)
def build_srflow_da(config: SRFlowDAConfig) -> SuperResolutionFlow:
    """SRFlow with fewer levels and steps and deep convolutional couplings (Jo et al., NTIRE 2021)."""
    encoder = RRDBEncoder(
        config.scale,
        features=config.features,
        growth=config.growth,
        blocks=config.blocks,
        stacked_blocks=config.stacked_blocks,
    )
    levels, channels = [], 3
    for level in range(config.levels):
        channels *= 4
        layers = [
            Squeeze(2),
            *(FlowStep(channels) for _ in range(config.transition_steps)),
            *(_conditional_step(channels, encoder.context_channels, config) for _ in range(config.steps)),
        ]
        if level < config.levels - 1:
            split = Split(channels)
            layers.append(split)
            channels = split.kept
        levels.append(FlowSequential(layers))
    return SuperResolutionFlow(config.scale, encoder, levels)


def _conditional_step(channels: int, context_channels: int, config: SRFlowDAConfig) -> FlowStep:
    passed = channels // 2
    injector = AffineInjector(
        channels,
        DeepConvNet(context_channels, config.hidden_channels, 2 * channels),
        context_channels=context_channels,
    )
    coupling = AffineCoupling(
        channels,
        DeepConvNet(passed + context_channels, config.hidden_channels, 2 * (channels - passed)),
        context_channels=context_channels,
    )
    return FlowStep(channels, injector=injector, coupling=coupling)
