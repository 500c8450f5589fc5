"""Decoding an image that does not fit into memory, tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["LEAST_TILE", "decode_tiles"]

#: Smallest side of a tile, in low-resolution pixels.
LEAST_TILE = 16


def decode_tiles(
    decode: Callable[[list[Tensor], Tensor], Tensor],
    latents: Sequence[Tensor],
    lr: Tensor,
    *,
    tile: int,
    multiple: int,
    scale: int,
) -> Tensor:
    """Decode latents to images, tile by tile.

    Every tile is decoded from its part of the whole image's latents and of the low-resolution image. Neighbouring tiles
    therefore differ only by what their borders do to the convolutions. They overlap by a quarter, in which each fades
    linearly into the other.

    Args:
        decode: ``decode(latents, lr)`` for one tile: (B M, 3, scale h, scale w).
        latents: latents of the whole images, in encode order, each (B M, C, H, W).
        lr: (B, 3, h, w); h and w are multiples of ``multiple``.
        tile: side of a tile in low-resolution pixels; rounded up to a multiple of ``multiple``.
        multiple: divides height and width of every low-resolution image that the flow accepts.
        scale: enlargement.

    Returns:
        (B M, 3, scale h, scale w).
    """
    side = -(-tile // multiple) * multiple
    overlap = max(side // 4 // multiple, 1) * multiple
    height, width = lr.shape[2:]
    images = lr.new_zeros(latents[0].shape[0], 3, scale * height, scale * width)
    total = lr.new_zeros(scale * height, scale * width)
    for rows in _spans(height, side, overlap):
        for columns in _spans(width, side, overlap):
            parts = [_part(latent, rows, columns, height, width) for latent in latents]
            weight = _fade(rows, height, overlap, scale, lr)[:, None] * _fade(columns, width, overlap, scale, lr)
            piece = decode(parts, _part(lr, rows, columns, height, width))
            _part(images, rows, columns, height, width).add_(piece.mul_(weight))
            _part(total, rows, columns, height, width).add_(weight)
    return images.div_(total)


def _spans(size: int, side: int, overlap: int) -> Iterator[range]:
    """Yield overlapping ranges of length ``side`` that cover ``size``; the last one ends at the image's border."""
    start = 0
    while start + side < size:
        yield range(start, start + side)
        start += side - overlap
    yield range(max(size - side, 0), size)


def _part(x: Tensor, rows: range, columns: range, height: int, width: int) -> Tensor:
    """Cut out the pixels of ``x`` (..., H, W) that belong to these of height x width low-resolution pixels."""
    high, wide = x.shape[-2:]
    return x[
        ...,
        rows.start * high // height : rows.stop * high // height,
        columns.start * wide // width : columns.stop * wide // width,
    ]


def _fade(span: range, size: int, overlap: int, scale: int, like: Tensor) -> Tensor:
    """Return weights of a tile's pixels along one axis: rising from borders inside the image, 1 at the image's."""
    at = torch.arange(scale * len(span), dtype=like.dtype, device=like.device) + 0.5
    weight = torch.ones_like(at)
    if span.start > 0:
        weight = torch.minimum(weight, at / (scale * overlap))
    if span.stop < size:
        weight = torch.minimum(weight, (scale * len(span) - at) / (scale * overlap))
    return weight
