"""NCSR: SRFlow with layers conditioned on the noise that was added to the images (Kim and Son, Noise Conditional Flow
Model for Learning the Super-Resolution Space, NTIRE 2021)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from invflow import AffineCoupling, FlowStep
from invflow.layers import condition
from invflow.layers.protocol import ConditionedInverse, Shape
from sr_models.flow.condition_sharing import LevelContext
from sr_models.flow.model import SuperResolutionFlow
from sr_models.models.assembly import (
    conditional_coupling,
    conditional_injector,
    conditional_step,
    encoder_of,
    flow_levels,
)
from sr_models.networks.coupling import ShallowNet
from sr_models.networks.rrdb import RRDBEncoder
from sr_models.registry import check_fields, register_model
from sr_models.training.recipe import Recipe

__all__ = ["NCSRConfig", "NoiseConditionalStep", "build_ncsr"]


@dataclass(frozen=True)
class NCSRConfig:
    """Architecture of NCSR; the defaults are the published one at 4x.

    Attributes:
        scale: 4 or 8. There is one level more than halvings of the scale: 3 or 4.
        steps: conditional flow steps a level (K).
        noise_steps: for every level, how many of its last steps have a noise-conditional layer (S).
        noise_channels: channels of the noise: 3, one a colour, or 1.
        noise_std: largest standard deviation of the training noise, images in [0, 1].
        transition_steps: steps of actnorm and 1x1 convolution only, at the start of a level.
        hidden_channels: width of the coupling and injector networks.
        features: channels of the encoder's trunk.
        growth: growth channels of the encoder's dense blocks.
        blocks: RRDB blocks of the encoder.
        stacked_blocks: blocks whose outputs condition every level, besides the level's own features.
    """

    scale: int = 4
    steps: int = 16
    noise_steps: tuple[int, ...] = (0, 16, 16)
    noise_channels: int = 3
    noise_std: float = 0.05
    transition_steps: int = 2
    hidden_channels: int = 64
    features: int = 64
    growth: int = 32
    blocks: int = 23
    stacked_blocks: tuple[int, ...] = (1, 8, 15, 22)

    def __post_init__(self) -> None:
        for name in ("stacked_blocks", "noise_steps"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_fields(self, positive=("steps", "hidden_channels", "features", "growth", "blocks"))
        if self.noise_channels not in (1, 3):
            raise ValueError(f"noise_channels must be 1 or 3, got {self.noise_channels}")
        if len(self.noise_steps) != self.levels or not all(0 <= count <= self.steps for count in self.noise_steps):
            raise ValueError(
                f"noise_steps must be {self.levels} numbers in 0..{self.steps}, one a level, got {self.noise_steps}"
            )

    @property
    def levels(self) -> int:
        """Number of levels (L): the last one works at half the low resolution."""
        return self.scale.bit_length()


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

    def __init__(self, step: FlowStep, noise: AffineCoupling | None, coupling: AffineCoupling) -> None:
        super().__init__()
        self.step, self.noise, self.coupling = step, noise, coupling

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        features, noise = self._parts(context)
        x, log_det = self.step(x, features)
        if self.noise is not None and noise.shape[1]:
            x, part = self.noise(x, noise)
            log_det = log_det + part
        z, part = self.coupling(x, features)
        return z, log_det + part

    def inverse(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        features, noise = self._parts(context)
        z, log_det = self.coupling.inverse(z, features)
        if self.noise is not None and noise.shape[1]:
            z, part = self.noise.inverse(z, noise)
            log_det = log_det + part
        x, part = self.step.inverse(z, features)
        return x, log_det + part

    def output_shapes(self, shape: Shape) -> list[Shape]:
        return self.step.output_shapes(shape)

    def conditioned_inverse(self, context: LevelContext) -> ConditionedInverse:
        features = LevelContext(context.features)
        coupling = condition(self.coupling, features)
        noise = None if self.noise is None or context.noise is None else (self.noise, context.noise)
        step = condition(self.step, features)

        def inverse(z: Tensor, images: slice) -> Tensor:
            z = coupling(z, images)
            if noise is not None:
                z, _ = noise[0].inverse(z, noise[1][images])
            return step(z, images)

        return inverse

    def _parts(self, context: Tensor) -> tuple[Tensor, Tensor]:
        count = self.coupling.context_channels
        return context[:, :count], context[:, count:]


@register_model(
    "ncsr",
    config=NCSRConfig,
    presets={"released": {4: {}, 8: {"steps": 20, "noise_steps": (0, 0, 16, 16), "noise_std": 0.03}}},
    # no noise but that which it is conditioned on; the released training never freezes the encoder
    recipes={
        "released": {
            4: Recipe(steps=220_000, batch_size=18, encoder_frozen=0.0, noise_std=0.0),
            8: Recipe(steps=250_000, batch_size=1, encoder_frozen=0.0, noise_std=0.0),
        }
    },
)
def build_ncsr(config: NCSRConfig) -> SuperResolutionFlow:
    """SRFlow with noise-conditional layers (Kim and Son, NTIRE 2021)."""
    encoder = encoder_of(config)

    def steps(level: int, channels: int) -> list[nn.Module]:
        noisy = config.noise_steps[level]
        return [_step(config, encoder, channels, noisy, k >= config.steps - noisy) for k in range(config.steps)]

    levels = flow_levels(config.levels, config.levels - 2, config.transition_steps, steps)
    noise_levels = [count > 0 for count in config.noise_steps]
    return SuperResolutionFlow(
        config.scale, encoder, levels, noise_channels=config.noise_channels, noise_levels=noise_levels
    )


def _step(config: NCSRConfig, encoder: RRDBEncoder, channels: int, noisy: int, active: bool) -> nn.Module:
    sizes = (channels, encoder.context_channels, config.hidden_channels, ShallowNet)
    if not noisy:
        return conditional_step(*sizes)
    return NoiseConditionalStep(
        FlowStep(channels, injector=conditional_injector(*sizes)),
        conditional_coupling(channels, config.noise_channels, config.hidden_channels, ShallowNet) if active else None,
        conditional_coupling(*sizes),
    )
