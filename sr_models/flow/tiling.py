"""Decoding an image that does not fit into memory, tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["LEAST_TILE", "check_tile", "decode_tiles", "decoded_pixels"]

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
    overlap: int | None = None,
) -> Tensor:
    """Decode latents to images, tile by tile.

    Every tile is decoded from its part of the whole image's latents and of the low-resolution image. Neighbouring tiles
    therefore differ only by what their borders do to the convolutions. Where they overlap, each fades linearly into the
    other.

    Args:
        decode: ``decode(latents, lr)`` for one tile: (B M, 3, scale h, scale w).
        latents: latents of the whole images, in encode order, each (B M, C, H, W). Every ``multiple`` low-resolution
            pixels correspond to a whole number of pixels of each.
        lr: (B, 3, h, w); h and w are multiples of ``multiple``.
        tile: side of a tile in low-resolution pixels, at least 1. It is rounded up to a multiple of ``multiple``, and
            to two of them, so that tiles can overlap.
        multiple: divides height and width of every low-resolution image that the flow accepts; at least 1.
        scale: enlargement, at least 1.
        overlap: low-resolution pixels that neighbours share, rounded up to a multiple of ``multiple``, less than a
            tile; ``None``: a quarter of a tile.

    Returns:
        (B M, 3, scale h, scale w).

    Raises:
        ValueError: a number out of range, or sizes that ``multiple`` does not divide.
    """
    _check(latents, lr, tile=tile, multiple=multiple, scale=scale)
    height, width = lr.shape[2:]
    side, shared = _side_and_overlap(tile, multiple, overlap)
    images = lr.new_zeros(latents[0].shape[0], 3, scale * height, scale * width)
    total = lr.new_zeros(scale * height, scale * width)
    for rows in _spans(height, side, shared):
        for columns in _spans(width, side, shared):
            parts = [_part(latent, rows, columns, height, width) for latent in latents]
            weight = _fade(rows, height, shared, scale, lr)[:, None] * _fade(columns, width, shared, scale, lr)
            piece = decode(parts, _part(lr, rows, columns, height, width))
            _part(images, rows, columns, height, width).addcmul_(piece, weight)
            _part(total, rows, columns, height, width).add_(weight)
    return images.div_(total)


def decoded_pixels(height: int, width: int, *, tile: int, multiple: int, overlap: int | None = None) -> int:
    """Count the low-resolution pixels that :func:`decode_tiles` decodes, those that tiles share more than once."""
    side, shared = _side_and_overlap(tile, multiple, overlap)
    rows, columns = (sum(map(len, _spans(size, side, shared))) for size in (height, width))
    return rows * columns


def check_tile(tile: int | None, overlap: int | None) -> None:
    """Check the side of tiles, and the overlap of two.

    Raises:
        ValueError: a tile below :data:`LEAST_TILE`, an overlap without tiles, or one that is not in 1..tile / 2.
    """
    if tile is not None and tile < LEAST_TILE:
        raise ValueError(f"tile must be at least {LEAST_TILE}, got {tile}")
    if overlap is not None and tile is None:
        raise ValueError(f"overlap must be given with tile only, got {overlap}")
    if overlap is not None and tile is not None and not 1 <= overlap <= tile // 2:
        raise ValueError(f"overlap must be in 1..{tile // 2}, half of tile, got {overlap}")


def _side_and_overlap(tile: int, multiple: int, overlap: int | None) -> tuple[int, int]:
    side = max(-(-tile // multiple), 2) * multiple
    shared = side // 4 // multiple if overlap is None else -(-overlap // multiple)
    return side, min(max(shared, 1), side // multiple - 1) * multiple


def _check(latents: Sequence[Tensor], lr: Tensor, **numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    multiple, size = numbers["multiple"], tuple(lr.shape[2:])
    if any(side % multiple for side in size):
        raise ValueError(f"lr must have height and width divisible by {multiple}, got {size}")
    if not latents:
        raise ValueError("latents must hold at least one tensor, got none")
    for latent in latents:
        if any(side * multiple % whole for side, whole in zip(latent.shape[2:], size, strict=True) if whole):
            raise ValueError(
                f"latents must have a whole number of pixels for every {multiple} of lr's {size}, "
                f"got size {tuple(latent.shape[2:])}"
            )


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
