"""A super-resolution flow of one level: what a package needs to bring a model of its own."""

from __future__ import annotations

from dataclasses import dataclass

from invflow import FlowSequential, Squeeze
from sr_models import SuperResolutionFlow, register_model
from sr_models.models.assembly import conditional_step, transition
from sr_models.networks.coupling import DeepConvNet
from sr_models.networks.rrdb import RRDBEncoder


@dataclass(frozen=True)
class OneLevelConfig:
    scale: int = 2
    steps: int = 2
    hidden_channels: int = 8
    features: int = 8
    blocks: int = 1


@register_model("one-level", config=OneLevelConfig, presets={"released": {2: {}, 4: {}}})
def build(config: OneLevelConfig) -> SuperResolutionFlow:
    """A flow at the low resolution."""
    encoder = RRDBEncoder(config.scale, features=config.features, growth=4, blocks=config.blocks, stacked_blocks=(0,))
    channels = 3 * config.scale**2
    steps = [
        conditional_step(channels, encoder.context_channels, config.hidden_channels, DeepConvNet)
        for _ in range(config.steps)
    ]
    level = FlowSequential([Squeeze(config.scale), *transition(channels, 1), *steps])
    return SuperResolutionFlow(config.scale, encoder, [level])
