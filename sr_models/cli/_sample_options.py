"""The options of ``sr-models sample``, and what can be checked before a file is read."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from sr_models.cli._drawing import Tile
from sr_models.cli._inputs import STANDARD
from sr_models.flow.consistency import Consistency, check_consistency
from sr_models.flow.explosions import OnExplode
from sr_models.flow.latents import temperatures_of
from sr_models.flow.tiling import check_tile
from sr_models.io.encoding import Format
from sr_models.io.naming import check_template
from sr_models.networks.precision import Precision
from sr_models.seeds import check_seed

__all__ = ["Options", "check_options"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command; :func:`sr_models.cli.sample.run` describes them."""

    recursive: bool
    n: int
    temperature: float | list[float] | None
    seed: int
    on_explode: OnExplode
    tile: Tile
    overlap: int | None
    scale: int | None
    precision: Precision
    consistency: Consistency
    device: str
    overwrite: bool
    format: Format
    naming: str
    first_index: int
    sheet: bool


def check_options(images: Sequence[str], output: str, options: Options) -> None:
    """Raise ``ValueError`` for an option out of range, or for two that exclude each other."""
    n, first_index, naming, scale = options.n, options.first_index, options.naming, options.scale
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if options.tile == "auto":
        if options.overlap is not None:
            raise ValueError(
                f"overlap needs a tile of your own, such as --tile 256; got overlap {options.overlap} with tile auto"
            )
    else:
        check_tile(options.tile, options.overlap)
    if (given := options.temperature) is not None:
        temperatures_of(given, len(given) if isinstance(given, list) else 1)
    if first_index < 0 or (first_index and naming != "ntire"):
        raise ValueError(f"first_index must be 0, or positive with naming ntire, got {first_index}")
    if naming not in ("name", "ntire"):
        check_template(naming)
    check_seed(options.seed)
    check_consistency(options.consistency)
    if scale is not None and scale < 1:
        raise ValueError(f"scale must be at least 1, got {scale}")
    if options.consistency == "exact" and (options.format == "jpeg" or scale is not None):
        what = "format jpeg, which changes them" if options.format == "jpeg" else "scale, which reduces them"
        raise ValueError(f"consistency exact is of the samples' own values and cannot be had with {what}")
    if STANDARD in images and len(images) > 1:
        raise ValueError(f"images must be {STANDARD} alone, or files, got {' '.join(images)}")
    if output == STANDARD:
        if n != 1 or options.sheet:
            raise ValueError("output - takes one sample of one image: give -n 1, and no sheet")
        if sys.stdout is None:
            raise ValueError("output - writes an image, and standard output is closed; add > FILE")
        if sys.stdout.isatty():
            raise ValueError("output - writes an image, and standard output is a terminal; add > FILE")
