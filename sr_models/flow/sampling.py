"""Sampling of a super-resolution flow: draw latents, decode them, and draw those that explode again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invflow._numerics import reads_freely
from invflow.layers import check_weights
from invflow.layers._late import look_at_weights
from sr_models.flow.consistency import Consistency, check_consistency, make_consistent
from sr_models.flow.decoding import sample_blocks
from sr_models.flow.explosions import Explosion, ExplosionError, OnExplode, Watch, check_on_explode
from sr_models.flow.graphs import check_graph
from sr_models.flow.latents import draw_latents, temperatures_of
from sr_models.flow.progress import progress_of
from sr_models.flow.tiling import check_tile, decode_tiles, decoded_pixels
from sr_models.flow.value_range import check_range
from sr_models.networks.precision import Precision, half_precision, network_dtype, network_precision

__all__ = ["Decoder", "draw_samples"]

#: Number of times that the latents of a sample that explodes are drawn again.
_RESAMPLES = 5


class Decoder(Protocol):
    """Interface of a super-resolution flow to sampling; :class:`sr_models.SuperResolutionFlow` describes its members.

    It is a module, whose weights are checked when a sample explodes.
    """

    scale: int

    @property
    def lr_multiple(self) -> int: ...

    def layer_pixels(self, height: int, width: int) -> int: ...

    def drawn_shapes(self, height: int, width: int) -> list[tuple[int, ...]]: ...

    def decode_samples(self, latents: list[Tensor], lr: Tensor, watch: Watch, graph: bool | None) -> Tensor: ...


@dataclass(frozen=True)
class _Settings:
    """Arguments of a call of ``sample`` that all draws share; ``tile`` is ``None`` if one tile holds the image."""

    temperature: float | Sequence[float]
    seed: int
    on_explode: OnExplode
    tile: int | None
    overlap: int | None
    graph: bool | None
    on_layer: Callable[[int], None] | None


def draw_samples(
    model: Decoder,
    lr: Tensor,
    n: int,
    *,
    first: int = 0,
    temperature: float | Sequence[float],
    seed: int,
    on_explode: OnExplode,
    tile: int | None,
    overlap: int | None = None,
    graph: bool | None,
    precision: Precision,
    consistency: Consistency,
    on_progress: Callable[[float], None] | None,
) -> Tensor:
    """Draw samples of a model, as :meth:`sr_models.SuperResolutionFlow.sample` describes.

    Args:
        model: decodes the latents.
        lr: (B, 3, h, w) in the model's dtype.
        n, first, temperature, seed, on_explode, tile, overlap, graph, precision, consistency, on_progress: arguments of
            ``sample``.

    Returns:
        (B, n, 3, scale h, scale w), clamped to [0, 1].

    Raises:
        ExplosionError, RuntimeError, ValueError: as ``sample``.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if first < 0:
        raise ValueError(f"first must be at least 0, got {first}")
    check_on_explode(on_explode)
    check_tile(tile, overlap)
    check_graph(graph, lr.device)
    dtype = network_dtype(precision, lr.device, lr.dtype)
    check_range(lr, "lr", finite=True)
    check_consistency(consistency, lr)
    given = lr
    height, width = lr.shape[2] * model.scale, lr.shape[3] * model.scale
    lr = _padded(lr, model.lr_multiple)
    tile = None if tile is not None and tile >= max(lr.shape[2:]) else tile
    on_layer = None if on_progress is None else _layer_progress(model, lr, n, tile, overlap, on_progress)
    settings = _Settings(temperature, seed, on_explode, tile, overlap, graph, on_layer)
    blocks = [range(n)] if tile is not None else sample_blocks(n, len(lr) * height * width, on_cpu=lr.is_cpu)
    numbers = range(first, first + n)
    with network_precision(dtype, lr.device):
        if len(blocks) == 1:
            images = _watched_samples(model, lr, settings, numbers)
        else:
            images = lr.new_empty(len(lr), n, 3, *(side * model.scale for side in lr.shape[2:]))
            for block in blocks:
                part = slice(block.start, block.stop)
                images[:, part] = _watched_samples(model, lr, settings, numbers[part])
    return make_consistent(images[..., :height, :width], given, consistency)


def _layer_progress(
    model: Decoder,
    lr: Tensor,
    n: int,
    tile: int | None,
    overlap: int | None,
    on_progress: Callable[[float], None],
) -> Callable[[int], None]:
    """Return a function that turns the pixels a layer has made into a part of the work of ``n`` samples an image."""
    height, width = lr.shape[2:]
    area = height * width or 1
    decoded = area
    if tile is not None:
        decoded = decoded_pixels(height, width, tile=tile, multiple=model.lr_multiple, overlap=overlap)
    return progress_of(model.layer_pixels(height, width) * len(lr) * n * decoded / area, on_progress)


def _watched_samples(
    model: Decoder, lr: Tensor, settings: _Settings, samples: Sequence[int], attempt: int = 0
) -> Tensor:
    """Return samples (B, number of samples, 3, scale h, scale w). Those that explode are drawn again, alone."""
    shapes, n = model.drawn_shapes(lr.shape[2], lr.shape[3]), len(samples)
    draw = partial(draw_latents, pinned=True) if lr.is_cuda else draw_latents
    latents = [
        latent.to(lr, non_blocking=True).expand(len(lr), *latent.shape).flatten(0, 1)
        for latent in draw(shapes, samples, settings.temperature, settings.seed, attempt)
    ]
    on_explode = settings.on_explode
    watch = Watch(clamp=on_explode == "clamp", on_layer=settings.on_layer)

    def decode(latents: list[Tensor], lr: Tensor) -> Tensor:
        return model.decode_samples(latents, lr, watch, settings.graph)

    if settings.tile is None:
        images = decode(latents, lr)
    else:
        sizes = {"tile": settings.tile, "multiple": model.lr_multiple, "scale": model.scale}
        images = decode_tiles(decode, latents, lr, **sizes, overlap=settings.overlap)
    images = images.clamp_(0, 1).unflatten(0, (len(lr), n))
    found = {} if on_explode == "clamp" and reads_freely(lr) else watch.found
    if found and not reads_freely(lr):
        # a layer on a device does not wait to see that its weight has no inverse, and gives what is not finite
        look_at_weights(cast(nn.Module, model))
        check_weights(cast(nn.Module, model))
    if on_explode == "clamp":
        return images
    for state, explosion in found.items():
        image, position = divmod(state, n)
        fixed = not any(temperatures_of(settings.temperature, len(shapes)))
        if on_explode == "error" or attempt == _RESAMPLES or fixed:
            raise ExplosionError(
                _report(samples[position], explosion, attempt + 1, fixed=fixed, precision=half_precision(lr.device))
            )
        if settings.on_layer is not None:
            settings.on_layer(-(watch.pixels // (len(lr) * n)))
        part, one = lr[image : image + 1], [samples[position]]
        again = _watched_samples(model, part, replace(settings, graph=settings.graph and None), one, attempt + 1)
        images[image, position] = again[0, 0]
    return images


def _report(sample: int, explosion: Explosion, draws: int, *, fixed: bool, precision: torch.dtype | None) -> str:
    """Say where a sample exploded, and what to do.

    Args:
        sample: its number.
        explosion: the place.
        draws: number of draws that exploded.
        fixed: other draws would be the same.
        precision: arithmetic of the networks, ``None`` for that of the model.
    """
    of_draws = f" in {draws} draws" if draws > 1 else ""
    hint = "; there is one draw at temperature 0" if fixed else "; lower the temperature"
    hint += ", reduce or denoise the image first, or set on_explode to 'clamp'"
    if not math.isfinite(explosion.largest) and precision is torch.float16:
        hint = "; networks overflow in fp16: choose precision 'bf16' or 'fp32'"
    return f"sample {sample} exploded{of_draws} at {explosion}{hint}"


def _padded(image: Tensor, multiple: int) -> Tensor:
    """Continue an image at the right and the bottom to multiples, by reflection, or by the last pixel if too small."""
    for dim in (2, 3):
        side = image.shape[dim]
        if missing := -side % multiple:
            mode = "reflect" if missing < side else "replicate"
            image = F.pad(image, (0, 0, 0, missing) if dim == 2 else (0, missing, 0, 0), mode=mode)
    return image
