"""The super-resolution flow: an encoder and levels of invertible layers that encode, decode and sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from invflow import FlowSequential, standard_normal_log_prob
from invflow.layers.conditioning import context_for
from invflow.layers.folding import copy_folded, folding
from sr_models.flow.arguments import check_image, check_latents, check_noise, check_pair, resized_noise
from sr_models.flow.base import Base, add_base, check_base, enlarge_bicubic
from sr_models.flow.condition_sharing import LevelContext
from sr_models.flow.consistency import Consistency
from sr_models.flow.decoding import Inversion, Place, decode_flow
from sr_models.flow.encoding import Encoding
from sr_models.flow.explosions import OnExplode, Watch
from sr_models.flow.graphs import GraphedDecoding
from sr_models.flow.latents import TEMPERATURE
from sr_models.flow.layouts import in_fastest_layout
from sr_models.flow.progress import layer_pixels
from sr_models.flow.sampling import draw_samples
from sr_models.flow.shapes import LevelShapes, level_shapes, smallest_shapes
from sr_models.flow.value_range import check_range_once
from sr_models.networks.precision import Precision
from sr_models.networks.rrdb import RRDBEncoder

__all__ = ["SuperResolutionFlow"]


class SuperResolutionFlow(nn.Module):
    r"""Conditional flow p(hr | lr) (Lugmayr et al., SRFlow, 2020, figure 2).

    An encoder computes features of the low-resolution image. Level l of the flow works at 1 / 2^l of the high
    resolution, with the features of that resolution as context. Other models are subclasses, as
    :class:`sr_models.flow.hierarchy.HierarchicalFlow`, which has no encoder.

    Args:
        scale: enlargement, a power of two.
        encoder: computes features of the low-resolution image; ``None`` in a model of another kind.
        levels: one :class:`invflow.FlowSequential` a level, of any layers that know their ``output_shapes``. A level
            works at the resolution to which its first layer that changes it brings the state, a squeeze as a rule.
        noise_channels: channels of the noise that conditions the model as well; 0: none.
        noise_steps: for every level, the number of its flow steps that the noise conditions. If there are any, the
            level's context ends with the noise's channels.
        noise_std: largest standard deviation of the noise in training, images in [0, 1].
        base: image that the flow does not model, and that is added to what it does: ``"none"``, the ``"bicubic"``
            enlargement of the low-resolution image, or the ``"image"`` of :meth:`image`. The log-determinant stays the
            same.

    Attributes:
        name: name of the registered model, set by :func:`sr_models.create`.
        config: config of the registered model, set by :func:`sr_models.create`.
        temperature: that of samples for which none is given. The file of a model may set it.
    """

    name: str
    config: Any
    temperature: float = TEMPERATURE

    def __init__(
        self,
        scale: int,
        encoder: RRDBEncoder | None,
        levels: Sequence[FlowSequential],
        *,
        noise_channels: int = 0,
        noise_steps: Sequence[int] = (),
        noise_std: float = 0.0,
        base: Base = "none",
    ) -> None:
        super().__init__()
        check_base(base)
        self.scale = scale
        self.encoder = encoder
        self.levels = nn.ModuleList(levels)
        self.noise_channels = noise_channels
        self.noise_steps = tuple(noise_steps) or (0,) * len(levels)
        self.noise_std = noise_std
        self.base = base
        # arguments whose values were looked at on an accelerator
        self._looked_at: set[str] = set()
        self._graphed = GraphedDecoding()

    def _levels(self) -> list[FlowSequential]:
        return [cast(FlowSequential, level) for level in self.levels]

    def flows(self) -> list[FlowSequential]:
        """List all flows that the model consists of: its levels."""
        return self._levels()

    def parts_of(self, level: int) -> list[nn.Module]:
        """List the modules that work at the resolution of a level, from 0, those of the encoder left out."""
        return [self.levels[level]]

    def parameters_of_parts(self) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
        """Return the parameters of the encoder, if there is one, and all others, by name."""
        both: tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]] = {}, {}
        for name, parameter in self.named_parameters():
            both[0 if name.startswith("encoder.") else 1][name] = parameter
        return both

    @property
    def context_channels(self) -> int:
        """Number of channels that condition every level, those of noise left out."""
        return self._encoder().context_channels

    def _encoder(self) -> RRDBEncoder:
        if self.encoder is None:
            raise ValueError(f"{self.name} has no encoder of the low-resolution image")
        return self.encoder

    @property
    def lr_multiple(self) -> int:
        """Number that must divide height and width of a low-resolution image, so that every level can halve them.

        Raises:
            TypeError: a layer of several latents without a method ``output_shapes``.
            ValueError: layers that do not fit each other.
        """
        return smallest_shapes(self.level_shapes)[0]

    def contexts(self, lr: Tensor, noise: Tensor | None = None) -> list[Tensor]:
        """Compute the context of each level, from first to last: (B, context channels, H/2^l, W/2^l).

        The features come first. The channels of the noise follow, if it is given, in the levels that it conditions.

        Args:
            lr: (B, 3, h, w) in [0, 1].
            noise: as in :meth:`encode`.

        Raises:
            ValueError: a size that the levels cannot halve, or noise of a wrong shape.
        """
        return [context.joined() for context in self.level_contexts(lr, noise)]

    def level_contexts(self, lr: Tensor, noise: Tensor | None = None) -> list[LevelContext]:
        """Compute the contexts of :meth:`contexts` before features are enlarged and joined; arguments as there."""
        multiple, smallest = smallest_shapes(self.level_shapes)
        if lr.shape[2] % multiple or lr.shape[3] % multiple:
            raise ValueError(f"lr must have height and width divisible by {multiple}, got {tuple(lr.shape[2:])}")
        factors = [shapes.state[1] / multiple for shapes in smallest]
        if noise is not None:
            check_noise(noise, lr, self.noise_channels, self.scale, self.name)
        maps = self._encoder().features(lr, factors)
        return [
            LevelContext(
                maps[factor],
                None if noise is None or not noisy else resized_noise(noise, maps[factor].own, self.noise_channels),
            )
            for factor, noisy in zip(factors, self.noise_steps, strict=True)
        ]

    def image(self, lr: Tensor) -> Tensor:
        """Predict the high-resolution image by the encoder alone, as L1 pretraining trains it.

        A flow with a base has an encoder that predicts the difference to the bicubic enlargement.

        Args:
            lr: (B, 3, h, w) in [0, 1], of any size.

        Returns:
            (B, 3, scale h, scale w), unclamped.

        Raises:
            ValueError: a model without an encoder.
        """
        image = self._encoder().image(lr)
        return image if self.base == "none" else enlarge_bicubic(lr, self.scale) + image

    def base_image(self, lr: Tensor, contexts: Sequence[LevelContext]) -> Tensor | None:
        """Compute the image (B, 3, scale h, scale w) that the flow does not model; ``None`` without a base.

        Args:
            lr: (B, 3, h, w) in [0, 1].
            contexts: what :meth:`level_contexts` computes of ``lr``, whose features it uses.
        """
        if self.base == "none":
            return None
        base = enlarge_bicubic(lr, self.scale)
        if self.base == "bicubic":
            return base
        finest = contexts[0].features.own
        known = (finest, finest.shape[2] // lr.shape[2]) if finest.shape[2] >= lr.shape[2] else None
        return base + self._encoder().image(lr, known)

    def encode(self, hr: Tensor, lr: Tensor, noise: Tensor | None = None) -> Encoding:
        """Compute latents and likelihood of high-resolution images.

        Args:
            hr: (B, 3, scale h, scale w) in [0, 1].
            lr: (B, 3, h, w) in [0, 1].
            noise: condition of a noise-conditional model. It is the noise (B, ``noise_channels``, scale h, scale w)
                that was added to ``hr``, or its standard deviation (B, 1, 1, 1). ``None`` leaves the layers out.

        Raises:
            ValueError: shapes that do not fit each other, a size that the levels cannot halve, or images in 0..255.
            TypeError: a dtype other than the model's.
        """
        self._check(lr, "lr")
        self._check(hr, "hr")
        check_pair(hr, lr, self.scale)
        return self._encode(in_fastest_layout(hr), in_fastest_layout(lr), noise)

    def _encode(self, hr: Tensor, lr: Tensor, noise: Tensor | None) -> Encoding:
        """Encode images that fit each other."""
        latents: list[Tensor] = []
        log_det = hr.new_zeros(hr.shape[0])
        contexts = self.level_contexts(lr, noise)
        base = self.base_image(lr, contexts)
        x = hr if base is None else hr - base
        for level, context in zip(self._levels(), contexts, strict=True):
            z, level_log_det = level(x, context_for(level, context.merged_for(level)))
            log_det = log_det + level_log_det
            *factored, x = z if isinstance(z, list) else [z]
            latents += factored
        latents.append(x)
        return Encoding(latents, log_det, standard_normal_log_prob(latents), hr[0].numel() if len(hr) else 0)

    def decode(self, latents: Sequence[Tensor], lr: Tensor, noise: Tensor | None = None) -> Tensor:
        """Decode latents to images, unclamped.

        Args:
            latents: latents in encode order.
            lr: (B, 3, h, w) in [0, 1].
            noise: as in :meth:`encode`.

        Returns:
            (B, 3, scale h, scale w).

        Raises:
            ValueError: latents of the wrong number or shape, or an image in 0..255.
            TypeError: a dtype other than the model's.
        """
        self._check(lr, "lr")
        check_latents(latents, lr, self.latent_shapes(lr.shape[2], lr.shape[3]))
        return self._decode(list(latents), lr, noise)

    def _decode(self, latents: list[Tensor], lr: Tensor, noise: Tensor | None, watch: Watch | None = None) -> Tensor:
        """Decode latents (B M, ...) of M successive samples of each of the B images, and empty the list."""
        return self.walk_decode(partial(decode_flow, watch=watch), latents, in_fastest_layout(lr), noise)

    def walk_decode(self, invert: Inversion, latents: list[Tensor], lr: Tensor, noise: Tensor | None = None) -> Tensor:
        """Decode latents, each flow by a function of one's own.

        Args:
            invert: inverts a flow, and takes its latents off their list.
            latents: in encode order, the last of them being the first that is inverted.
            lr: (B, 3, h, w) in [0, 1].
            noise: as in :meth:`encode`.

        Returns:
            (B M, 3, scale h, scale w), unclamped.
        """
        contexts = self.level_contexts(lr, noise)
        base = self.base_image(lr, contexts)
        for number, level in reversed(list(enumerate(self._levels(), 1))):
            latents.append(invert(level, latents, contexts.pop(), Place(number)))
        images = latents.pop()
        return images if base is None else add_base(images, base)

    @folding
    def folded(self) -> SuperResolutionFlow:
        """Return a copy for inference and export, in plain PyTorch operations with constants.

        It encodes, decodes and samples. See :func:`invflow.layers.fold`, also for errors.
        """
        return copy_folded(self)

    def latent_shapes(self, height: int, width: int) -> list[tuple[int, ...]]:
        """Return shapes (C, H, W) of the latents, in encode order, for a low-resolution image of this size.

        Raises:
            TypeError, ValueError: as :meth:`level_shapes`.
        """
        levels = self.level_shapes(height, width)
        return [*(shape for level in levels for shape in level.leaving), levels[-1].rest]

    def drawn_shapes(self, height: int, width: int) -> list[tuple[int, ...]]:
        """Return shapes (C, H, W) of the latents that samples differ in: the first of :meth:`latent_shapes`, or all."""
        return self.latent_shapes(height, width)

    def layer_pixels(self, height: int, width: int) -> int:
        """Count the pixels that the inverses of all layers make, for a low-resolution image of this size."""
        return layer_pixels(self._levels(), (3, height * self.scale, width * self.scale))

    def level_shapes(self, height: int, width: int) -> list[LevelShapes]:
        """Return the shapes in every level, from first to last, for a low-resolution image of this size.

        Raises:
            TypeError: a layer of several latents without a method ``output_shapes``.
            ValueError: a size that a layer does not take, or layers that do not fit each other.
        """
        return level_shapes(self._levels(), (3, height * self.scale, width * self.scale))

    @torch.no_grad()
    def sample(
        self,
        lr: Tensor,
        n: int = 1,
        *,
        first: int = 0,
        temperature: float | Sequence[float] | None = None,
        seed: int = 0,
        on_explode: OnExplode = "resample",
        tile: int | None = None,
        overlap: int | None = None,
        graph: bool | None = None,
        precision: Precision = "fp32",
        consistency: Consistency = "none",
        on_progress: Callable[[float], None] | None = None,
    ) -> Tensor:
        """Draw samples of p(hr | lr), clamped to [0, 1].

        The latents of sample j depend on ``seed``, j and the image's size only. The same image therefore gives the same
        samples alone and in a batch. An image of a size that the levels cannot halve is continued at the right and the
        bottom by reflection, and the samples are cropped.

        Args:
            lr: (B, 3, h, w) in [0, 1], of any size.
            n: samples an image, at least 1.
            first: number j of the first of them, to draw many in several calls.
            temperature: standard deviation of the latents, at least 0; 0 gives the image of the zero latents. One for
                all latents, or one a latent, in encode order. ``None``: the model's own ``temperature``.
            seed: in 0..2^31 - 1.
            on_explode: reaction to an activation that exceeds 1e5 or is not finite. ``"error"`` raises.
                ``"resample"`` draws other latents for the sample, up to five times, and then raises. At temperature 0
                there are no others, and it raises at once. ``"clamp"`` limits the activations.
            tile: side of tiles in low-resolution pixels, at least 16, that fade into each other: for images whose
                activations do not fit into memory. The latents are those of the whole image, so the result differs only
                by what the tiles' borders do to the convolutions. ``None`` decodes the whole image.
            overlap: low-resolution pixels that neighbouring tiles share, at most half of one. ``None``: a quarter.
            graph: on a GPU, replay the work of all layers from a CUDA graph, which is kept with the memory that it
                needs. It is made at once if ``True``, and never if ``False``. ``None`` makes one when as many images
                of a size come again in the main thread, unless something in the model cannot be captured. The call that
                makes it pauses for about a second.
            precision: arithmetic of the networks: ``"fp32"``, the model's own dtype; ``"bf16"`` or ``"fp16"``, for a
                model in float32, whose state and channel maps stay in float32; or ``"auto"``, bfloat16 where it is
                faster. An outer autocast has no effect.
            consistency: agreement with ``lr``. ``"project"`` moves every sample as little as possible until MATLAB's
                bicubic reduction makes ``lr`` of it. ``"exact"`` goes on until the saved 8-bit image reduces to ``lr``
                in every value, and warns of samples that do not. Then ``lr`` must be of 8 bits, and samples are.
            on_progress: called after every layer with the part of all work that was done since the last call; after a
                graph, once for all its layers. The parts add up to about 1. A sample that is drawn again takes its part
                back first: the function is called with a negative number then.

        Raises:
            ExplosionError: a sample that exploded; the message says where.
            ValueError: an argument out of range, an image that is not finite or in 0..255, one that is not of 8 bits
                for consistency ``"exact"``, or a weight without an inverse.
            RuntimeError: ``graph=True``, and the model has hooks, or does something that no graph can hold.
            TypeError: a dtype other than the model's.

        Warns:
            ConsistencyWarning: samples that are not exact; its ``differing`` counts their values that differ.

        Returns:
            (B, n, 3, scale h, scale w).
        """
        self._check(lr, "lr", look=False)
        return draw_samples(
            self,
            lr,
            n,
            first=first,
            temperature=self.temperature if temperature is None else temperature,
            seed=seed,
            on_explode=on_explode,
            tile=tile,
            overlap=overlap,
            graph=graph,
            precision=precision,
            consistency=consistency,
            on_progress=on_progress,
        )

    def decode_samples(self, latents: list[Tensor], lr: Tensor, watch: Watch, graph: bool | None) -> Tensor:
        """Decode latents as :meth:`sample` does: without noise, watched, and by a CUDA graph where one fits.

        Args:
            latents: latents (B M, C, H, W) of :meth:`drawn_shapes`, of M successive samples of each of the B images.
                The list is emptied.
            lr: (B, 3, h, w), of a size that the levels can halve.
            watch: looks at every layer's result.
            graph: as in :meth:`sample`.

        Returns:
            (B M, 3, scale h, scale w), unclamped.
        """

        def decode(latents: list[Tensor], lr: Tensor, watch: Watch) -> Tensor:
            # published samples are of noise zero
            noise = lr.new_zeros(len(lr), 1, 1, 1) if self.noise_channels else None
            return self._decode(latents, lr, noise, watch)

        return self._graphed(self, decode, latents, lr, watch, graph)

    def _check(self, image: Tensor, name: str, *, look: bool = True) -> None:
        check_image(image, name, next(self.parameters()).dtype)
        if look:
            check_range_once(image, name, self._looked_at)
