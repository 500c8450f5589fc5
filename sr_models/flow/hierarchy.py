"""Flows that turn an image into its low-resolution image and what is missing there, level by level."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from invflow import FlowSequential, standard_normal_log_prob
from invflow.layers.conditioning import context_for, repeat_context
from sr_models.flow.arguments import check_noise
from sr_models.flow.condition_sharing import LevelContext
from sr_models.flow.decoding import Inversion, Place, state_chunks
from sr_models.flow.encoding import Encoding
from sr_models.flow.latents import TEMPERATURE
from sr_models.flow.layouts import in_fastest_layout
from sr_models.flow.model import SuperResolutionFlow
from sr_models.networks.rrdb import Features
from sr_models.networks.tapped_rrdb import TappedRRDB

__all__ = ["ConditionalFlow", "HierarchicalFlow", "quantised"]

#: Logarithm of the standard deviation of the image that the flow makes, given the low-resolution image.
LOG_STD = -6.0


class ConditionalFlow(nn.Module):
    """Flow of what leaves a level, conditional on features of what stays.

    Args:
        features: computes them from the level's state and the features of deeper levels.
        flow: has their channels as context, and keeps the shape of the state.
    """

    def __init__(self, features: TappedRRDB, flow: FlowSequential) -> None:
        super().__init__()
        self.features = features
        self.flow = flow


class HierarchicalFlow(SuperResolutionFlow):
    r"""Flow without an encoder (Liang et al., Hierarchical Conditional Flow, 2021): x -> (a_0, .., a_{L-1}, y).

    Level l splits off a_l, and goes on with a state y_l. The last one, y, has the shape of the low-resolution image.
    A conditional flow turns a_l into the latent of level l. It sees features of y_l and of those of all deeper levels.
    Encoding therefore evaluates all levels first, and then the conditional flows from the last to the first.

    The last latent is :math:`(y - lr) \, e^6`: given the low-resolution image, y is Gaussian with a standard deviation
    of 0.6 grey levels. In the likelihood, y is rounded to 8 bits, and its gradient is passed on as if it were not.
    Samples have y = ``lr``.

    Args:
        scale: enlargement, 2 to the power of the number of levels.
        levels: as of :class:`SuperResolutionFlow`. Each halves the size, sees no context, and ends with a
            :class:`invflow.Split` without a prior.
        conditional: the conditional flow of every level.
        temperature: that of samples for which none is given.
    """

    def __init__(
        self,
        scale: int,
        levels: Sequence[FlowSequential],
        conditional: Sequence[ConditionalFlow],
        *,
        temperature: float = TEMPERATURE,
    ) -> None:
        super().__init__(scale, None, levels)
        self.conditional = nn.ModuleList(conditional)
        self.temperature = temperature

    def flows(self) -> list[FlowSequential]:
        """List all flows that the model consists of: its levels, and then the conditional flows."""
        return [*self._levels(), *(part.flow for part in self._conditional())]

    def parts_of(self, level: int) -> list[nn.Module]:
        """List the modules that work at the resolution of a level, from 0."""
        return [self.levels[level], self.conditional[level]]

    @property
    def context_channels(self) -> int:
        """Number of channels that condition every level's conditional flow."""
        return self._conditional()[0].features.context_channels

    def _conditional(self) -> list[ConditionalFlow]:
        return [cast(ConditionalFlow, part) for part in self.conditional]

    def level_contexts(self, lr: Tensor, noise: Tensor | None = None) -> list[LevelContext]:
        """Raise ``ValueError``: no level's context is a function of the low-resolution image alone."""
        raise ValueError(f"{self.name} has no contexts of the low-resolution image: they depend on the latents")

    def _encode(self, hr: Tensor, lr: Tensor, noise: Tensor | None) -> Encoding:
        self._check_noise(noise, lr)
        leaving: list[Tensor] = []
        states: list[Tensor] = []
        log_det = hr.new_zeros(hr.shape[0])
        y = hr
        for level in self._levels():
            (rest, y), of_level = level(y)
            log_det = log_det + of_level
            leaving.append(rest)
            states.append(y)
        latents: list[Tensor] = []
        deeper: list[Tensor] = []
        for part, rest, state in reversed(list(zip(self._conditional(), leaving, states, strict=True))):
            features = part.features(in_fastest_layout(state), deeper)
            context = LevelContext(Features(features)).merged_for(part.flow)
            latent, of_level = part.flow(rest, context_for(part.flow, context))
            log_det = log_det + of_level
            latents.insert(0, latent)
            deeper.insert(0, features)
        scale = math.exp(-LOG_STD)
        log_prior = standard_normal_log_prob([*latents, (quantised(y) - lr) * scale])
        log_det = log_det - LOG_STD * (lr[0].numel() if len(lr) else 0)
        latents.append((y - lr) * scale)
        return Encoding(latents, log_det, log_prior, hr[0].numel() if len(hr) else 0)

    def reduce(self, hr: Tensor) -> Tensor:
        """Reduce images to the low-resolution images that the flow makes of them.

        Args:
            hr: (B, 3, scale h, scale w) in [0, 1].

        Returns:
            (B, 3, h, w), neither rounded nor clamped.

        Raises:
            ValueError: sizes that the levels cannot halve, or images in 0..255.
            TypeError: a dtype other than the model's.
        """
        self._check(hr, "hr")
        for level in self._levels():
            (_, hr), _ = level(hr)
        return hr

    def walk_decode(self, invert: Inversion, latents: list[Tensor], lr: Tensor, noise: Tensor | None = None) -> Tensor:
        """Decode latents, each flow by a function of one's own: see :class:`SuperResolutionFlow`.

        Without the last latent, the state of the last level is the low-resolution image. What depends on it alone is
        then computed once for all samples.
        """
        self._check_noise(noise, lr)
        levels, conditional = self._levels(), self._conditional()
        state, count = lr, len(latents[-1])
        if len(latents) > len(levels):
            state = repeat_context(lr, count) + latents.pop() * math.exp(LOG_STD)
        deeper: list[Tensor] = []
        for number in reversed(range(len(levels))):
            part, level = conditional[number], levels[number]
            features = _features(part.features, state, deeper)
            context = LevelContext(Features(features))
            rest = invert(part.flow, latents, context.merged_for(part.flow), Place(number + 1, len(level)))
            state = invert(level, [rest, repeat_context(state, count)], None, Place(number + 1))
            deeper.insert(0, features)
        return state

    def drawn_shapes(self, height: int, width: int) -> list[tuple[int, ...]]:
        """Return shapes (C, H, W) of the latents that samples differ in: all but the last."""
        return self.latent_shapes(height, width)[:-1]

    def layer_pixels(self, height: int, width: int) -> int:
        """Count the pixels that the inverses of all layers make, for a low-resolution image of this size."""
        pixels = super().layer_pixels(height, width)
        for part, (_, high, wide) in zip(self._conditional(), self.drawn_shapes(height, width), strict=True):
            pixels += len(part.flow) * high * wide
        return pixels

    def _check_noise(self, noise: Tensor | None, lr: Tensor) -> None:
        if noise is not None:
            check_noise(noise, lr, 0, self.scale, self.name)


def quantised(image: Tensor) -> Tensor:
    """Round to the 256 values of 8 bits in [0, 1], halves to even; the gradient is that of the identity."""
    return image + (torch.round(image.detach().clamp(0, 1) * 255) / 255 - image.detach())


def _features(network: Callable[..., Tensor], state: Tensor, deeper: Sequence[Tensor]) -> Tensor:
    """Compute features of states (B M, C, H, W), of as many at once as the layers of a flow take.

    Args:
        network: ``network(states, deeper)``.
        state: states.
        deeper: features of deeper levels, (B M, ...) or (B, ...).
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return network(in_fastest_layout(state), deeper)
    images = min((len(features) for features in deeper), default=len(state))
    parts = []
    for of_images, of_states in state_chunks(images, len(state), state):
        near = [features[of_images if len(features) == images else of_states] for features in deeper]
        parts.append(network(in_fastest_layout(state[of_states]), near))
    return parts[0] if len(parts) == 1 else torch.cat(parts)
