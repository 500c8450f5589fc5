"""Loss of a training step: L1 of the encoder's image, or the negative log-likelihood of noisy crops."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sr_models.flow.model import SuperResolutionFlow
from sr_models.flow.noise import NoisyPair, clean_condition, noisy_pair
from sr_models.networks.precision import network_dtype, network_precision
from sr_models.randomness import random_stream
from sr_models.training.config import TrainingConfig

__all__ = ["Objective", "Phase", "advice", "phases"]

#: A colour of a crop whose standard deviation is less than a grey level carries nothing.
_BLANK = 1 / 255


class Phase(NamedTuple):
    """Successive training steps that train the same parameters.

    Attributes:
        loss: ``"l1"`` or ``"nll"``.
        steps: the steps of the whole run that belong to it.
        encoder: whether the encoder learns.
        flow: whether the levels learn.
    """

    loss: str
    steps: range
    encoder: bool
    flow: bool


def phases(config: TrainingConfig) -> list[Phase]:
    """List the phases of a run in order, none of them empty."""
    begin, end = config.encoder_steps, config.recipe.steps
    thaw = bisect_left(range(end), config.recipe.encoder_frozen, lo=begin, key=config.flow_progress)
    parts = [
        Phase("l1", range(begin), encoder=True, flow=False),
        Phase("nll", range(begin, thaw), encoder=False, flow=True),
        Phase("nll", range(thaw, end), encoder=True, flow=True),
    ]
    return [phase for phase in parts if phase.steps]


class Objective(nn.Module):
    """Compute the loss of a batch of crops, as a module, so that it can be distributed and compiled.

    Args:
        model: receives the gradients.
        config: settings of the run.
    """

    def __init__(self, model: SuperResolutionFlow, config: TrainingConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self._l1, self._bits = _l1, _bits

    def compile_losses(self) -> None:
        """Compile what the model computes, but not the noise: its streams are plain Python, new at every step."""
        self._l1, self._bits = torch.compile(_l1), torch.compile(_bits)

    def prepare(self, phase: Phase) -> None:
        """Let only the parameters of a phase learn."""
        for learns, parameters in zip((phase.encoder, phase.flow), self.model.parameters_of_parts(), strict=True):
            for parameter in parameters.values():
                parameter.requires_grad_(learns)

    def forward(self, hr: Tensor, lr: Tensor, crops: Sequence[int], loss: str) -> Tensor:
        """Return the mean loss of the crops, a scalar in float32, or images of a model to compare with them.

        :class:`~sr_models.training.image_losses.ImageLosses` compares them.

        Args:
            hr: (B, 3, H, W) in [0, 1].
            lr: (B, 3, h, w) in [0, 1].
            crops: number of every crop among those of the run, which determines its noise.
            loss: ``"l1"`` or ``"nll"``. ``"pixel"`` returns the images (B, 3, H, W) of zeros, ``"sample"`` samples at
                the model's temperature, clamped to [0, 1].
        """
        if loss in ("pixel", "sample"):
            return self.decoded(lr, crops if loss == "sample" else None)
        return self.loss_of(loss, *self.inputs(hr, lr, crops, loss))

    def inputs(self, hr: Tensor, lr: Tensor, crops: Sequence[int], loss: str) -> NoisyPair:
        """Return the crops with the noise of a step: what :meth:`loss_of` takes. Arguments as in ``forward``."""
        if loss == "l1":
            return NoisyPair(hr, lr, None)
        recipe = self.config.recipe
        # every crop has a stream of its own, so that its noise does not depend on how batches are divided
        streams = [random_stream(self.config.seed, "noise", crop) for crop in crops]
        return noisy_pair(self.model, hr, lr, recipe.noise_std, streams, width=recipe.noise_width)

    def decoded(self, lr: Tensor, crops: Sequence[int] | None) -> Tensor:
        """Decode zeros, or random latents of the crops of these numbers, to images (B, 3, H, W) in [0, 1]."""
        shapes = self.model.latent_shapes(*lr.shape[2:])
        latents = [lr.new_zeros(len(lr), *shape) for shape in shapes]
        if crops is not None:
            for index, crop in enumerate(crops):
                stream = random_stream(self.config.seed, "latents", crop)
                for latent, shape in zip(latents, self.model.drawn_shapes(*lr.shape[2:]), strict=False):
                    drawn = torch.randn(shape, generator=stream, dtype=torch.float32, device="cpu")
                    latent[index] = (self.model.temperature * drawn).to(lr)
        with network_precision(network_dtype(self.config.precision, lr.device), lr.device):
            return self.model.decode(latents, lr, clean_condition(self.model, lr)).clamp(0, 1)

    def loss_of(self, loss: str, hr: Tensor, lr: Tensor, noise: Tensor | None) -> Tensor:
        """Return the mean loss of noisy crops, a scalar in float32, of which a device computes all by itself."""
        with network_precision(network_dtype(self.config.precision, hr.device), hr.device):
            return self._l1(self.model, hr, lr) if loss == "l1" else self._bits(self.model, hr, lr, noise)


def _l1(model: SuperResolutionFlow, hr: Tensor, lr: Tensor) -> Tensor:
    return (model.image(lr) - hr).abs().mean()


def _bits(model: SuperResolutionFlow, hr: Tensor, lr: Tensor, noise: Tensor | None) -> Tensor:
    return model.encode(hr, lr, noise).bits_per_dim.mean()


def advice(config: TrainingConfig, model: SuperResolutionFlow, hr: Tensor, step: int) -> str:
    """Say what to do about losses or gradients that are not finite.

    Args:
        config: settings of the run.
        model: the model.
        hr: images (B, 3, H, W) of a batch whose loss was not finite.
        step: the step of that batch.
    """
    if step < config.encoder_steps:
        return f"lower encoder_lr ({config.encoder_lr})"
    noiseless = not (config.recipe.noise_std or config.recipe.noise_width or model.noise_channels)
    if noiseless and bool((hr.std((2, 3), correction=0) < _BLANK).any()):
        return "the batch has a blank crop, whose likelihood has no bound without noise; set noise_std"
    if step == config.encoder_steps:
        return "the flow has learned nothing yet, so lr is not the reason; choose other images or another seed"
    clip = config.recipe.gradient_clip
    return f"lower lr ({config.recipe.lr}) or {f'lower gradient_clip ({clip})' if clip else 'set gradient_clip'}"
