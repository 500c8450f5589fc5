"""NCSR: SRFlow with layers conditioned on the noise that was added to the images (Kim and Son, Noise Conditional Flow
Model for Learning the Super-Resolution Space, NTIRE 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from invflow import AffineCoupling, FlowStep
from invflow.layers import condition
from invflow.layers.conditioning import context_for
from invflow.layers.protocol import ConditionedInverse, Shape
from sr_models.flow.base import Base
from sr_models.flow.condition_sharing import LevelContext
from sr_models.flow.model import SuperResolutionFlow
from sr_models.models.assembly import (
    conditional_coupling,
    conditional_injector,
    conditional_step,
    flow_levels,
)
from sr_models.models.config import FlowConfig
from sr_models.models.encoder import encoder_of
from sr_models.models.publication import Publication, Shapes, read_number
from sr_models.networks.coupling import CouplingNet, ResidualNet, ShallowNet
from sr_models.networks.rrdb import RRDBEncoder
from sr_models.registry import register_model
from sr_models.training.recipe import Recipe

__all__ = ["NCSRConfig", "NoiseConditionalStep", "build_ncsr"]


@dataclass(frozen=True)
class NCSRConfig(FlowConfig):
    """Architecture of NCSR; the defaults are the published one at 4x.

    Attributes:
        scale: 2, 4 or 8. There is one level more than halvings of the scale: 2, 3 or 4.
        variant: ``""``, as published, or ``"R"``: the levels and networks of SRFlow-DA-R, a level fewer and deeper
            networks. The noise-conditional layers stay shallow.
        steps: conditional flow steps (K): one number for every level, or one a level.
        noise_steps: for every level, how many of its last steps have a noise-conditional layer (S).
        noise_channels: channels of the noise: 3, one a colour, or 1.
        noise_std: largest standard deviation of the training noise, images in [0, 1].
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
    steps: int | tuple[int, ...] = 16
    noise_steps: tuple[int, ...] = (0, 16, 16)
    noise_channels: int = 3
    noise_std: float = 0.05
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
        object.__setattr__(self, "noise_steps", _checked(self.noise_steps, self.level_steps))
        if self.noise_channels not in (1, 3):
            raise ValueError(f"noise_channels must be 1 or 3, got {self.noise_channels}")

    @property
    def levels(self) -> int:
        """Number of levels (L): the last one works at half the low resolution, or at the low resolution."""
        return super().levels - (self.variant == "R")


_NETS: dict[str, type[CouplingNet]] = {"": ShallowNet, "R": ResidualNet}


def _checked(noise_steps: Any, steps: Sequence[int]) -> tuple[int, ...]:
    """Return ``noise_steps`` as a tuple; ``steps`` are those of every level."""
    found = tuple(noise_steps) if isinstance(noise_steps, list | tuple) else ()
    if len(found) != len(steps) or not all(
        isinstance(count, int) and 0 <= count <= most for count, most in zip(found, steps, strict=True)
    ):
        allowed = f"0..{steps[0]}" if len(set(steps)) == 1 else ", ".join(f"0..{most}" for most in steps)
        raise ValueError(f"noise_steps (S) must be {len(steps)} numbers in {allowed}, one a level, got {noise_steps}")
    return found


class NoiseConditionalStep(nn.Module):
    """A conditional flow step with a coupling in between whose network sees the noise instead of the features:
    actnorm, 1x1 convolution, injector, noise coupling, coupling (Kim and Son, 2021, section 3.2).

    Args:
        step: actnorm, convolution and injector.
        noise: sees the noise; ``None`` leaves it out.
        coupling: sees the features.

    Shape:
        x (B, C, H, W) and a context of the features' channels, followed by the noise's. Without the latter the noise
        coupling is left out.
    """

    takes_shared_context = True

    def __init__(self, step: FlowStep, noise: AffineCoupling | None, coupling: AffineCoupling) -> None:
        super().__init__()
        self.step, self.noise, self.coupling = step, noise, coupling

    def forward(self, x: Tensor, context: Tensor | LevelContext) -> tuple[Tensor, Tensor]:
        features, noise = self._parts(context)
        x, log_det = self.step(x, context_for(self.step, features))
        if self.noise is not None and noise is not None:
            x, part = self.noise(x, noise)
            log_det = log_det + part
        z, part = self.coupling(x, context_for(self.coupling, features))
        return z, log_det + part

    def inverse(self, z: Tensor, context: Tensor | LevelContext) -> tuple[Tensor, Tensor]:
        features, noise = self._parts(context)
        z, log_det = self.coupling.inverse(z, context_for(self.coupling, features))
        if self.noise is not None and noise is not None:
            z, part = self.noise.inverse(z, noise)
            log_det = log_det + part
        x, part = self.step.inverse(z, context_for(self.step, features))
        return x, log_det + part

    def output_shapes(self, shape: Shape) -> list[Shape]:
        return self.step.output_shapes(shape)

    def conditioned_inverse(self, context: LevelContext) -> ConditionedInverse:
        features = context.without_noise()
        coupling = condition(self.coupling, features)
        noise = None if self.noise is None or context.noise is None else (self.noise, context.noise)
        step = condition(self.step, features)

        def inverse(z: Tensor, images: slice) -> Tensor:
            z = coupling(z, images)
            if noise is not None:
                z, _ = noise[0].inverse(z, noise[1][images])
            return step(z, images)

        return inverse

    def _parts(self, context: Tensor | LevelContext) -> tuple[Tensor | LevelContext, Tensor | None]:
        if isinstance(context, LevelContext):
            return context.without_noise(), context.noise
        count = self.coupling.context_channels
        return context[:, :count], context[:, count:] if context.shape[1] > count else None


def _detect(shapes: Shapes) -> dict[str, int] | None:
    """Read the noise's channels off the noise networks, which no other model has."""
    inputs = [
        shape[1] for name, shape in shapes.items() if name.endswith(".affine.fAffine_std.0.weight") and len(shape) == 4
    ]
    # the first level has the fewest channels, 12, of which the networks see half
    return {"noise_channels": min(inputs) - 6} if inputs else None


def _read_options(options: Mapping[str, Any]) -> dict[str, Any]:
    flow = options["network_G"]["flow"]
    return {
        "noise_steps": flow["S"],
        "noise_std": read_number(options, "std", float),
        "noise_channels": read_number(flow, "std_channels", default=3),
    }


def _unevaluated(model: SuperResolutionFlow) -> dict[str, Tensor]:
    """Noise networks as published files have them in every coupling, with or without noise."""
    found: dict[str, Tensor] = {}
    for level, layers in enumerate(model._levels()):
        for index, layer in enumerate(layers):
            coupling = layer.coupling if isinstance(layer, FlowStep | NoiseConditionalStep) else None
            if coupling is None or (isinstance(layer, NoiseConditionalStep) and layer.noise is not None):
                continue
            with torch.device("meta"):
                noise = conditional_coupling(
                    coupling.channels, model.noise_channels, model.config.hidden_channels, ShallowNet
                )
            prefix = f"levels.{level}.layers.{index}.noise."
            found |= {prefix + name: tensor for name, tensor in noise.state_dict().items()}
    return found


# The preset "tiny" of SRFlow-DA with noise-conditional layers, so that its weights are a start. There is noise in the
# first level too: what leaves the flow there has most of it. With one channel the layers are told how much there is.
_TINY = {
    "variant": "R",
    "steps": 5,
    "noise_steps": (5, 1),
    "noise_channels": 1,
    "noise_std": 0.01,
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


# No noise but that which it is conditioned on; the released training never freezes the encoder.
_RECIPE = Recipe(steps=220_000, batch_size=18, encoder_frozen=0.0, noise_std=0.0)
_TINY_RECIPE = Recipe(steps=20_000, batch_size=64, lr=1e-3, encoder_frozen=0.0, noise_std=0.0)


def _is_published(config: NCSRConfig) -> bool:
    return config.largest_gain == 0 and not config.variant


@register_model(
    "ncsr",
    config=NCSRConfig,
    presets={
        "released": {
            2: {"noise_steps": (16, 16)},
            4: {},
            8: {"steps": 20, "noise_steps": (0, 0, 16, 16), "noise_std": 0.03},
        },
        "tiny": {2: {**_TINY, "noise_steps": (5,)}, 4: _TINY},
    },
    recipes={
        "released": {
            2: _RECIPE,
            4: _RECIPE,
            8: Recipe(steps=250_000, batch_size=1, encoder_frozen=0.0, noise_std=0.0),
        },
        "tiny": {2: _TINY_RECIPE, 4: _TINY_RECIPE},
    },
    published=Publication(
        "NCSR",
        detect=_detect,
        covers=_is_published,
        read_options=_read_options,
        names={"step.": "", "noise.net.": "affine.fAffine_std."},
        unevaluated=_unevaluated,
        not_in_file={
            "noise_steps": "which steps see the noise",
            "noise_std": "how strong the noise of training is",
        },
    ),
)
def build_ncsr(config: NCSRConfig) -> SuperResolutionFlow:
    """SRFlow with noise-conditional layers (Kim and Son, NTIRE 2021)."""
    encoder = encoder_of(config)

    def steps(level: int, channels: int) -> list[nn.Module]:
        count, noisy = config.level_steps[level], config.noise_steps[level]
        return [_step(config, encoder, channels, noisy, k >= count - noisy) for k in range(count)]

    levels = flow_levels(config.levels, config.scale.bit_length() - 2, config.transition_steps, steps)
    return SuperResolutionFlow(
        config.scale,
        encoder,
        levels,
        noise_channels=config.noise_channels,
        noise_steps=config.noise_steps,
        noise_std=config.noise_std,
        base=config.base,
    )


def _step(config: NCSRConfig, encoder: RRDBEncoder, channels: int, noisy: int, active: bool) -> nn.Module:
    sizes = (channels, encoder.context_channels, config.hidden_channels, config.limited(_NETS[config.variant]))
    if not noisy:
        return conditional_step(*sizes)
    shallow = config.limited(ShallowNet)
    return NoiseConditionalStep(
        FlowStep(channels, injector=conditional_injector(*sizes)),
        conditional_coupling(channels, config.noise_channels, config.hidden_channels, shallow) if active else None,
        conditional_coupling(*sizes),
    )
