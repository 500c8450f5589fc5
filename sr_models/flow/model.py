"""The super-resolution flow: an encoder and levels of invertible layers that encode, decode and sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invflow import FlowSequential, bits_per_dim, standard_normal_log_prob
from invflow._numerics import reads_freely
from invflow.layers import check_weights
from invflow.layers._late import look_at_weights
from invflow.layers.conditioning import context_for
from invflow.layers.folding import copy_folded, folding
from invflow.layers.protocol import Shape
from sr_models.flow.base import Base, check_base, enlarge_bicubic
from sr_models.flow.condition_sharing import LevelContext
from sr_models.flow.decoding import decode_levels, sample_blocks
from sr_models.flow.explosions import ExplosionError, OnExplode, Watch, check_on_explode
from sr_models.flow.graphs import GraphedDecoding, check_graph
from sr_models.flow.latents import TEMPERATURE, draw_latents, temperatures_of
from sr_models.flow.progress import progress_of
from sr_models.flow.tiling import LEAST_TILE, decode_tiles, decoded_pixels
from sr_models.flow.value_range import check_range
from sr_models.networks.precision import Precision, half_precision, network_dtype, network_precision
from sr_models.networks.rrdb import RRDBEncoder

__all__ = ["Encoding", "LevelShapes", "SuperResolutionFlow"]

#: Beyond this, no multiple of a low-resolution image's sides is tried.
_LARGEST_MULTIPLE = 256
#: Number of times that the latents of a sample that explodes are drawn again.
_RESAMPLES = 5


@dataclass(frozen=True)
class Encoding:
    """A batch of images as a flow sees them.

    Attributes:
        latents: in encode order, standardised: their prior is N(0, I).
        log_det: (B,), pure ``log |det|`` of the map from image to latents.
        log_prior: (B,), log N(latents; 0, I).
        dims: number of elements of one image.
    """

    latents: list[Tensor]
    log_det: Tensor
    log_prior: Tensor
    dims: int

    @property
    def log_prob(self) -> Tensor:
        """(B,), log-density of the images (scaled to [0, 1]) given their low-resolution images."""
        return self.log_det + self.log_prior

    @property
    def bits_per_dim(self) -> Tensor:
        """(B,), negative log-likelihood in bits per dimension of images scaled to [0, 1]. For 8-bit values add 8.

        The SR-flow papers' code reports three times this value, bits per pixel.
        """
        return bits_per_dim(self.log_prob, self.dims)


class LevelShapes(NamedTuple):
    """Shapes (C, H, W) in one level of a flow.

    Attributes:
        state: shape after the first layer that changes the resolution, or of the level's input if no layer does. The
            level's context has its height and width.
        leaving: shapes of the latents that leave the level, in encode order.
        rest: shape of the state that goes on, which is the last latent after the last level.
    """

    state: Shape
    leaving: list[Shape]
    rest: Shape


class SuperResolutionFlow(nn.Module):
    r"""Conditional flow p(hr | lr) (Lugmayr et al., SRFlow, 2020, figure 2).

    An encoder computes features of the low-resolution image. Level l of the flow works at 1 / 2^l of the high
    resolution, with the features of that resolution as context.

    Args:
        scale: enlargement, a power of two.
        encoder: computes features of the low-resolution image.
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
        encoder: RRDBEncoder,
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

    @property
    def lr_multiple(self) -> int:
        """Number that must divide height and width of a low-resolution image, so that every level can halve them.

        Raises:
            TypeError: a layer of several latents without a method ``output_shapes``.
            ValueError: layers that do not fit each other.
        """
        return self._smallest()[0]

    def _smallest(self) -> tuple[int, list[LevelShapes]]:
        """Return the side of the smallest low-resolution image that every level can halve, and its shapes."""
        for side in range(1, _LARGEST_MULTIPLE):
            try:
                return side, self.level_shapes(side, side)
            except ValueError:
                continue
        return _LARGEST_MULTIPLE, self.level_shapes(_LARGEST_MULTIPLE, _LARGEST_MULTIPLE)

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
        multiple, smallest = self._smallest()
        if lr.shape[2] % multiple or lr.shape[3] % multiple:
            raise ValueError(f"lr must have height and width divisible by {multiple}, got {tuple(lr.shape[2:])}")
        factors = [shapes.state[1] / multiple for shapes in smallest]
        if noise is not None:
            self._check_noise(noise, lr)
        maps = self.encoder.features(lr, factors)
        return [
            LevelContext(maps[factor], None if noise is None or not noisy else self._resized(noise, maps[factor].own))
            for factor, noisy in zip(factors, self.noise_steps, strict=True)
        ]

    def image(self, lr: Tensor) -> Tensor:
        """Predict the high-resolution image by the encoder alone, as L1 pretraining trains it.

        A flow with a base has an encoder that predicts the difference to the bicubic enlargement.

        Args:
            lr: (B, 3, h, w) in [0, 1], of any size.

        Returns:
            (B, 3, scale h, scale w), unclamped.
        """
        image = self.encoder.image(lr)
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
        return base + self.encoder.image(lr, known)

    def _resized(self, noise: Tensor, context: Tensor) -> Tensor:
        size = context.shape[2:]
        if noise.shape[2:] == (1, 1):
            return noise.expand(context.shape[0], self.noise_channels, *size)
        return F.interpolate(noise, size=size, mode="bicubic")

    def _check_noise(self, noise: Tensor, lr: Tensor) -> None:
        if not self.noise_channels:
            raise ValueError(f"noise must be None: {self.name} is not conditioned on noise")
        batch, height, width = lr.shape[0], lr.shape[2] * self.scale, lr.shape[3] * self.scale
        allowed = [(batch, 1, 1, 1), (batch, self.noise_channels, height, width)]
        if tuple(noise.shape) not in allowed:
            raise ValueError(f"noise must have shape {allowed[0]} or {allowed[1]}, got {tuple(noise.shape)}")

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
        expected = (lr.shape[0], 3, lr.shape[2] * self.scale, lr.shape[3] * self.scale)
        if hr.shape != expected:
            raise ValueError(
                f"hr must have shape {expected} for lr of shape {tuple(lr.shape)} at scale {self.scale}, "
                f"got {tuple(hr.shape)}"
            )
        latents: list[Tensor] = []
        log_det = hr.new_zeros(hr.shape[0])
        hr, lr = _in_fastest_layout(hr), _in_fastest_layout(lr)
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
        shapes = self.latent_shapes(lr.shape[2], lr.shape[3])
        expected = [(lr.shape[0], *shape) for shape in shapes]
        if [tuple(latent.shape) for latent in latents] != expected:
            raise ValueError(f"latents must have shapes {expected}, got {[tuple(z.shape) for z in latents]}")
        return self._decode(list(latents), lr, noise)

    def _decode(self, latents: list[Tensor], lr: Tensor, noise: Tensor | None, watch: Watch | None = None) -> Tensor:
        """Decode latents (B M, ...) of M successive samples of each of the B images, and empty the list."""
        lr = _in_fastest_layout(lr)
        contexts = self.level_contexts(lr, noise)
        base = self.base_image(lr, contexts)
        images = decode_levels(self._levels(), latents, contexts, watch)
        return images if base is None else add_base(images, base)

    @folding
    def folded(self) -> SuperResolutionFlow:
        """Return a copy for inference and export, in plain PyTorch operations with constants.

        It encodes, decodes and samples. See :func:`invflow.layers.fold`, also for errors.
        """
        return copy_folded(self)

    def latent_shapes(self, height: int, width: int) -> list[tuple[int, int, int]]:
        """Return shapes (C, H, W) of the latents, in encode order, for a low-resolution image of this size.

        Raises:
            TypeError, ValueError: as :meth:`level_shapes`.
        """
        levels = self.level_shapes(height, width)
        return [*(shape for level in levels for shape in level.leaving), levels[-1].rest]

    def level_shapes(self, height: int, width: int) -> list[LevelShapes]:
        """Return the shapes in every level, from first to last, for a low-resolution image of this size.

        Raises:
            TypeError: a layer of several latents without a method ``output_shapes``.
            ValueError: a size that a layer does not take, or layers that do not fit each other.
        """
        found: list[LevelShapes] = []
        rest: Shape = 3, height * self.scale, width * self.scale
        for number, level in enumerate(self._levels(), 1):
            given = state = rest
            leaving: list[Shape] = []
            try:
                for _, shapes in level.walk_shapes(given):
                    leaving += shapes[:-1]
                    rest = shapes[-1]
                    state = rest if state[1:] == given[1:] else state
            except ValueError as error:
                raise ValueError(f"level {number}: {error}") from error
            except TypeError as error:
                raise TypeError(f"level {number}: {error}") from error
            found.append(LevelShapes(given if state[1:] == given[1:] else state, leaving, rest))
        return found

    @torch.no_grad()
    def sample(
        self,
        lr: Tensor,
        n: int = 1,
        *,
        temperature: float | Sequence[float] = 0.9,
        seed: int = 0,
        on_explode: OnExplode = "resample",
        tile: int | None = None,
        graph: bool | None = None,
        precision: Precision = "fp32",
        on_progress: Callable[[float], None] | None = None,
    ) -> Tensor:
        """Draw samples of p(hr | lr), clamped to [0, 1].

        The latents of sample j depend on ``seed``, j and the image's size only. The same image therefore gives the same
        samples alone and in a batch. An image of a size that the levels cannot halve is continued at the right and the
        bottom by reflection, and the samples are cropped.

        Args:
            lr: (B, 3, h, w) in [0, 1], of any size.
            n: samples an image, at least 1.
            temperature: standard deviation of the latents, at least 0; 0 gives the image of the zero latents. One for
                all latents, or one a latent, in encode order.
            seed: in 0..2^31 - 1.
            on_explode: reaction to an activation that exceeds 1e5 or is not finite. ``"error"`` raises.
                ``"resample"`` draws other latents for the sample, up to five times, and then raises. At temperature 0
                there are no others, and it raises at once. ``"clamp"`` limits the activations.
            tile: side of tiles in low-resolution pixels, at least 16, that fade into each other: for images whose
                activations do not fit into memory. The latents are those of the whole image, so the result differs only
                by what the tiles' borders do to the convolutions. ``None`` decodes the whole image.
            graph: on a GPU, replay the work of all layers from a CUDA graph, which is kept with the memory that it
                needs. It is made at once if ``True``, and never if ``False``. ``None`` makes one when as many images
                of a size come again in the main thread, unless something in the model cannot be captured.
            precision: arithmetic of the networks: ``"fp32"``, the model's own dtype; ``"bf16"`` or ``"fp16"``, for a
                model in float32, whose state and channel maps stay in float32; or ``"auto"``, bfloat16 where it is
                faster. An outer autocast has no effect.
            on_progress: called after every layer with the part of all work that was done since the last call; after a
                graph, once for all its layers. The parts add up to about 1, and to more if samples are drawn again.

        Raises:
            ExplosionError: a sample that exploded; the message says where.
            ValueError: an argument out of range, an image that is not finite or in 0..255, or a weight without an
                inverse.
            RuntimeError: ``graph=True``, and the model has hooks, or does something that no graph can hold.
            TypeError: a dtype other than the model's.

        Returns:
            (B, n, 3, scale h, scale w).
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        check_on_explode(on_explode)
        if tile is not None and tile < LEAST_TILE:
            raise ValueError(f"tile must be at least {LEAST_TILE}, got {tile}")
        self._check(lr, "lr", look=False)
        check_graph(graph, lr.device)
        dtype = network_dtype(precision, lr.device, lr.dtype)
        check_range(lr, "lr", finite=True)
        height, width = lr.shape[2] * self.scale, lr.shape[3] * self.scale
        lr = _padded(lr, self.lr_multiple)
        tile = None if tile is not None and tile >= max(lr.shape[2:]) else tile
        on_layer = None
        if on_progress is not None:
            padded = lr.shape[2:]
            area = padded[0] * padded[1] or 1
            decoded = area if tile is None else decoded_pixels(*padded, tile=tile, multiple=self.lr_multiple)
            shape = (3, padded[0] * self.scale, padded[1] * self.scale)
            on_layer = progress_of(self._levels(), shape, len(lr) * n * decoded / area, on_progress)
        draw = partial(self._watched_samples, lr, temperature, seed, on_explode, tile, graph, on_layer)
        blocks = sample_blocks(n, len(lr) * height * width) if not reads_freely(lr) and tile is None else [range(n)]
        with network_precision(dtype, lr.device):
            if len(blocks) == 1:
                images = draw(blocks[0])
            else:
                images = lr.new_empty(len(lr), n, 3, *(side * self.scale for side in lr.shape[2:]))
                for block in blocks:
                    images[:, block.start : block.stop] = draw(block)
        return images[..., :height, :width]

    def _watched_samples(
        self,
        lr: Tensor,
        temperature: float | Sequence[float],
        seed: int,
        on_explode: OnExplode,
        tile: int | None,
        graph: bool | None,
        on_layer: Callable[[int], None] | None,
        samples: Sequence[int],
        attempt: int = 0,
    ) -> Tensor:
        """Return samples (B, number of samples, 3, scale h, scale w). Those that explode are drawn again, alone."""
        shapes, n = self.latent_shapes(lr.shape[2], lr.shape[3]), len(samples)
        draw = partial(draw_latents, pinned=True) if lr.is_cuda else draw_latents
        latents = [
            latent.to(lr, non_blocking=True).expand(len(lr), *latent.shape).flatten(0, 1)
            for latent in draw(shapes, samples, temperature, seed, attempt)
        ]
        watch = Watch(clamp=on_explode == "clamp", on_layer=on_layer)

        def decode(latents: list[Tensor], lr: Tensor, watch: Watch) -> Tensor:
            # published samples are of noise zero
            noise = lr.new_zeros(len(lr), 1, 1, 1) if self.noise_channels else None
            return self._decode(latents, lr, noise, watch)

        def graphed(latents: list[Tensor], lr: Tensor) -> Tensor:
            return self._graphed(self, decode, latents, lr, watch, graph)

        if tile is None:
            images = graphed(latents, lr)
        else:
            images = decode_tiles(graphed, latents, lr, tile=tile, multiple=self.lr_multiple, scale=self.scale)
        images = images.clamp_(0, 1).unflatten(0, (len(lr), n))
        found = {} if on_explode == "clamp" and reads_freely(lr) else watch.found
        if found and not reads_freely(lr):
            # a layer on a device does not wait to see that its weight has no inverse, and gives what is not finite
            look_at_weights(self)
            check_weights(self)
        if on_explode == "clamp":
            return images
        for state, explosion in found.items():
            image, position = divmod(state, n)
            fixed = on_explode == "resample" and not any(temperatures_of(temperature, len(shapes)))
            if on_explode == "error" or attempt == _RESAMPLES or fixed:
                draws = f" in {attempt + 1} draws" if attempt else ""
                hint = "; there is one draw at temperature 0: set on_explode to 'clamp'" if fixed else ""
                if not math.isfinite(explosion.largest) and half_precision(lr.device) is torch.float16:
                    hint = "; networks overflow in fp16: choose precision 'bf16' or 'fp32'"
                raise ExplosionError(f"sample {samples[position]} exploded{draws} at {explosion}{hint}")
            part, one = lr[image : image + 1], [samples[position]]
            again = self._watched_samples(
                part, temperature, seed, on_explode, tile, graph and None, on_layer, one, attempt + 1
            )
            images[image, position] = again[0, 0]
        return images

    def _check(self, image: Tensor, name: str, *, look: bool = True) -> None:
        if not isinstance(image, Tensor) or image.dim() != 4 or image.shape[1] != 3:
            given = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise ValueError(f"{name} must have shape (batch, 3, height, width), got {given}")
        dtype = self.encoder.conv_first.weight.dtype
        if image.dtype != dtype:
            raise TypeError(f"{name} must be {dtype} like the model, got {image.dtype}")
        if not look:
            return
        # Waiting for an accelerator at every training step would be dear, and one look finds images in 0..255.
        if reads_freely(image):
            check_range(image, name)
        elif not torch.compiler.is_compiling() and name not in self._looked_at:
            check_range(image, name)
            self._looked_at.add(name)


def _in_fastest_layout(image: Tensor) -> Tensor:
    """Return an image in the layout of the fastest convolutions, which all that is computed from it then has.

    That is channels_last on a CPU, and in the training steps of a GPU whose convolutions use its matrix units.
    """
    if image.is_cuda:
        last = torch.is_grad_enabled() and (torch.is_autocast_enabled("cuda") or torch.backends.cudnn.allow_tf32)
    else:
        last = image.device.type == "cpu"
    return image.contiguous(memory_format=torch.channels_last) if last else image


def add_base(images: Tensor, base: Tensor) -> Tensor:
    """Add the base of B images to M successive samples (B M, 3, H, W) of each, in place where no gradient flows."""
    base = base[:, None]
    samples = images.unflatten(0, (len(base), len(images) // max(len(base), 1)))
    return (samples + base if torch.is_grad_enabled() else samples.add_(base)).flatten(0, 1)


def _padded(image: Tensor, multiple: int) -> Tensor:
    """Continue an image at the right and the bottom to multiples, by reflection, or by the last pixel if too small."""
    for dim in (2, 3):
        side = image.shape[dim]
        if missing := -side % multiple:
            mode = "reflect" if missing < side else "replicate"
            image = F.pad(image, (0, 0, 0, missing) if dim == 2 else (0, missing, 0, 0), mode=mode)
    return image
