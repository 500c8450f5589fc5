"""HCFlow: a flow from the image to its low-resolution image, and conditional flows of the rest (Liang et al.,
Hierarchical Conditional Flow: A Unified Framework for Image Super-Resolution and Image Rescaling, ICCV 2021)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from invflow import AffineCoupling, AffineForm, ContextPrior, FlowSequential, FlowStep, Split, Squeeze
from sr_models.flow.hierarchy import ConditionalFlow, HierarchicalFlow
from sr_models.flow.latents import TEMPERATURE
from sr_models.models.config import check_steps
from sr_models.models.hcflow_files import detect_hcflow, hcflow_name, hcflow_options
from sr_models.models.publication import Publication
from sr_models.networks.coupling import ShallowNet
from sr_models.networks.tapped_rrdb import TappedRRDB
from sr_models.registry import register_model
from sr_models.training.recipe import Recipe

__all__ = ["HCFLOW_FORM", "HCFlowConfig", "build_hcflow", "hcflow_step", "hierarchy"]

#: The published scale is exp(0.318 atan(2 r)).
HCFLOW_FORM = AffineForm("bounded_atan_exp", bound=0.5)
#: Published temperatures that differ from the usual one.
_TEMPERATURES = {8: 0.8}


@dataclass(frozen=True)
class HCFlowConfig:
    """Architecture of HCFlow; the defaults are the released one at 4x.

    Attributes:
        scale: a power of two, at least 2. Every level halves the size; the last one is that of the low resolution.
        steps: flow steps of the levels: one number for every level, or one a level.
        conditional_steps: the same of the conditional flows.
        hidden_channels: width of the coupling networks of the levels.
        conditional_hidden_channels: width of those of the conditional flows.
        features: channels of the trunk of the networks that compute features; the flows see twice as many.
        growth: growth channels of their dense blocks.
        blocks: their RRDB blocks before and after the tap.
    """

    scale: int = 4
    steps: int | tuple[int, ...] = 13
    conditional_steps: int | tuple[int, ...] = 13
    hidden_channels: int = 64
    conditional_hidden_channels: int = 64
    features: int = 64
    growth: int = 32
    blocks: tuple[int, int] = (7, 7)

    def __post_init__(self) -> None:
        if not isinstance(self.scale, int) or self.scale < 2 or self.scale & (self.scale - 1):
            raise ValueError(f"scale must be a power of two, at least 2, got {self.scale!r}")
        for name in ("steps", "conditional_steps"):
            object.__setattr__(self, name, check_steps(name, getattr(self, name), self.levels))
        for name in ("hidden_channels", "conditional_hidden_channels", "features", "growth"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if len(self.blocks) != 2 or not all(isinstance(count, int) and count >= 1 for count in self.blocks):
            raise ValueError(f"blocks must be two whole numbers of at least 1, got {self.blocks}")

    @property
    def levels(self) -> int:
        """Number of levels (L)."""
        return self.scale.bit_length() - 1

    def steps_of(self, level: int) -> tuple[int, int]:
        """Return the numbers of flow steps of a level, from 0, and of its conditional flow."""
        steps, conditional = (
            count if isinstance(count, int) else count[level] for count in (self.steps, self.conditional_steps)
        )
        return steps, conditional


_SMALL = {
    "steps": 4,
    "conditional_steps": 4,
    "hidden_channels": 32,
    "conditional_hidden_channels": 32,
    "features": 32,
    "growth": 16,
    "blocks": (2, 2),
}


# The published loss counts bits per pixel, which decides what the limits of the gradient mean.
_RECIPE = Recipe(
    steps=300_000,
    batch_size=16,
    lr=2.5e-4,
    beta2=0.99,
    encoder_frozen=0.0,
    noise_std=0.0,
    noise_width=1 / 64,
    gradient_clip=100.0,
    value_clip=5.0,
    nll_weight=3.0,
)
_FACES = replace(
    _RECIPE,
    steps=350_000,
    milestones=[20 / 35, 25 / 35, 28 / 35, 31 / 35, 34 / 35],
    noise_width=1 / 256,
)


@register_model(
    "hcflow",
    config=HCFlowConfig,
    recipes={"released": {4: _RECIPE, 8: _FACES}, "small": {4: _RECIPE, 8: _FACES}},
    presets={"released": {4: {}, 8: {"blocks": (5, 5)}}, "small": {4: _SMALL, 8: _SMALL}},
    published=Publication(
        "HCFlow_SR",
        detect=detect_hcflow,
        read_options=hcflow_options,
        naming=hcflow_name,
        prefix="flow.level0_condFlow.",
    ),
)
def build_hcflow(config: HCFlowConfig) -> HierarchicalFlow:
    """Hierarchical flow whose levels are conditioned on each other (Liang et al., ICCV 2021)."""

    def steps(channels: int, hidden_channels: int, count: int) -> list[nn.Module]:
        return [hcflow_step(channels, 0, hidden_channels) for _ in range(count)]

    return hierarchy(config, Squeeze(2), steps)


def hierarchy(
    config: HCFlowConfig,
    squeeze: nn.Module,
    level_steps: Callable[[int, int, int], list[nn.Module]],
    *,
    prior: AffineForm | None = None,
    halfway: bool = True,
) -> HierarchicalFlow:
    """Build a hierarchical flow.

    Args:
        config: its sizes.
        squeeze: halves the size at the start of every level.
        level_steps: ``level_steps(channels, hidden_channels, count)``: the steps of a level.
        prior: form of the priors, as of :class:`invflow.ContextPrior`; ``None``: its default.
        halfway: as of :class:`~sr_models.networks.tapped_rrdb.TappedRRDB`.
    """
    levels, conditional = [], []
    channels, width = 3, config.features * (2 if halfway else 1)
    for level in range(config.levels):
        channels *= 4
        kept = 3 if level == config.levels - 1 else channels // 2
        steps, conditional_steps = config.steps_of(level)
        layers = level_steps(channels, config.hidden_channels, steps)
        levels.append(FlowSequential([copy.deepcopy(squeeze), *layers, Split(channels, None, kept=kept)]))
        features = TappedRRDB(
            kept,
            [width] * (config.levels - 1 - level),
            features=config.features,
            growth=config.growth,
            blocks=config.blocks,
            halfway=halfway,
        )
        sizes = channels - kept, width
        layers = [hcflow_step(*sizes, config.conditional_hidden_channels) for _ in range(conditional_steps)]
        layers.append(ContextPrior(sizes[0], context_channels=width, form=prior))
        conditional.append(ConditionalFlow(features, FlowSequential(layers)))
        channels = kept
    return HierarchicalFlow(config.scale, levels, conditional, temperature=_TEMPERATURES.get(config.scale, TEMPERATURE))


def hcflow_step(channels: int, context_channels: int, hidden_channels: int) -> FlowStep:
    """Build a step of actnorm, 1x1 convolution and coupling."""
    passed = channels // 2
    net = ShallowNet(passed + context_channels, hidden_channels, 2 * (channels - passed))
    for conv in (part for part in net.layers[:-1] if isinstance(part, nn.Conv2d) and not part.weight.is_meta):
        nn.init.xavier_normal_(conv.weight, gain=0.1)
    return FlowStep(
        channels, coupling=AffineCoupling(channels, net, context_channels=context_channels, form=HCFLOW_FORM)
    )
