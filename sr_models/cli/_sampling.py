"""The work of ``sr-models sample``."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

from tqdm import tqdm

from sr_models.checkpoints.files import load_model, weights_fingerprint
from sr_models.cli._device import check_worthwhile, usable_device
from sr_models.cli._drawing import Request, Tile, draw_blocks
from sr_models.cli._inputs import STANDARD, find_images, read_standard_input, say
from sr_models.cli._outputs import existing, name_files, write_sample, write_sheet
from sr_models.evaluation.report.stored import checkpoint_name
from sr_models.flow.consistency import Consistency, check_consistency
from sr_models.flow.explosions import OnExplode
from sr_models.flow.latents import temperatures_of
from sr_models.flow.tiling import check_tile
from sr_models.io.encoding import Format
from sr_models.io.listing import one_line
from sr_models.io.naming import check_template
from sr_models.io.sample_files import describe_sample, read_description
from sr_models.networks.precision import Precision, network_dtype, resolved
from sr_models.seeds import check_seed

__all__ = ["sample_images"]


def sample_images(images: Sequence[str], checkpoint: str, output: str, **options: Any) -> int:
    """Draw samples of every image that is not sampled yet; arguments are those of the command.

    Returns:
        The exit code: 1 if some images could not be sampled.

    Raises:
        ValueError, OSError: bad arguments, files that would be overwritten, or no image that can be sampled.
    """
    _check(images, output, **options)
    checkpoint, output = os.path.expanduser(checkpoint), os.path.expanduser(output)
    with TemporaryDirectory() as folder:
        if STANDARD in images:
            images = [str(read_standard_input(Path(folder)))]
        return _sample(images, checkpoint, output, **options)


def _check(
    images: Sequence[str],
    output: str,
    *,
    n: int,
    temperature: float | list[float] | None,
    seed: int,
    tile: Tile,
    overlap: int | None,
    scale: int | None,
    format: Format,
    consistency: Consistency,
    naming: str,
    first_index: int,
    sheet: bool,
    **_: Any,
) -> None:
    """Check what can be checked before a file is read."""
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    check_tile(None if tile == "auto" else tile, overlap)
    if temperature is not None:
        temperatures_of(temperature, len(temperature) if isinstance(temperature, list) else 1)
    if first_index < 0 or (first_index and naming != "ntire"):
        raise ValueError(f"first_index must be 0, or positive with naming ntire, got {first_index}")
    if naming not in ("name", "ntire"):
        check_template(naming)
    check_seed(seed)
    check_consistency(consistency)
    if scale is not None and scale < 1:
        raise ValueError(f"scale must be at least 1, got {scale}")
    if consistency == "exact" and (format == "jpeg" or scale is not None):
        what = "format jpeg, which changes them" if format == "jpeg" else "scale, which reduces them"
        raise ValueError(f"consistency exact is of the samples' own values and cannot be had with {what}")
    if STANDARD in images and len(images) > 1:
        raise ValueError(f"images must be {STANDARD} alone, or files, got {' '.join(images)}")
    if output == STANDARD:
        if n != 1 or sheet:
            raise ValueError("output - takes one sample of one image: give -n 1, and no sheet")
        if sys.stdout.isatty():
            raise ValueError("output - writes an image, and standard output is a terminal; add > FILE")


def _sample(
    images: Sequence[str],
    checkpoint: str,
    output: str,
    *,
    recursive: bool,
    n: int,
    temperature: float | list[float] | None,
    seed: int,
    on_explode: OnExplode,
    tile: Tile,
    overlap: int | None,
    scale: int | None,
    precision: Precision,
    consistency: Consistency,
    device: str,
    overwrite: bool,
    format: Format,
    naming: str,
    first_index: int,
    sheet: bool,
) -> int:
    place = usable_device(device)
    check_worthwhile(precision, place)
    folder, piped = Path(output), output == STANDARD
    paths, root, failures, damaged = find_images(images, folder, recursive=recursive, keep_alpha=format != "jpeg")
    if piped and len(paths) > 1:
        raise ValueError(f"output - takes one sample of one image, got {len(paths)} images")

    model = load_model(checkpoint).to(place)
    factor = model.scale if scale is None else scale
    if factor > model.scale:
        raise ValueError(f"scale must be at most the model's {model.scale}, got {factor}")
    if factor < model.scale:
        say(
            f"{checkpoint} enlarges {model.scale} times; "
            f"its samples are then reduced to {factor} times, by bicubic interpolation"
        )
    latents = len(model.drawn_shapes(model.lr_multiple, model.lr_multiple))
    temperatures = temperatures_of(model.temperature if temperature is None else temperature, latents)
    alike = len(set(temperatures)) == 1
    at = temperatures[0] if alike else temperatures
    like = next(model.parameters())
    dtype = network_dtype(precision, like.device, like.dtype)
    # what is not said is as it was before there was a choice
    settings = {
        "weights": weights_fingerprint(model),
        "temperature": at,
        "seed": seed,
        "on_explode": on_explode,
        **({} if dtype is None else {"precision": resolved(precision, like.device)}),
        **({} if consistency == "none" else {"consistency": consistency}),
        **({} if overlap is None else {"overlap": overlap}),
        **({} if factor == model.scale else {"scale": factor}),
        **({"format": format} if format == "png16" else {}),
    }
    shown = {
        "seed": seed,
        "temperature": temperatures[0],
        "model": checkpoint_name(os.path.abspath(checkpoint)),
        "scale": factor,
    }
    named = {"stdin": (paths[0], [folder])}
    if not piped:
        named = name_files(
            paths,
            root,
            folder,
            n=n,
            naming=naming,
            format=format,
            first_index=first_index,
            damaged=damaged,
            model_scale=model.scale,
            values=shown,
        )
    requests: dict[str, Request] = {}
    descriptions = {name: describe_sample(path, settings) for name, (path, _) in named.items()}
    for name, (path, files) in named.items():
        there, begin = ([False] * n, tile) if overwrite or piped else existing(files, descriptions[name], tile)
        if not all(there):
            missing = [number for number, is_there in enumerate(there) if not is_there]
            requests[name] = Request(path, missing, tile, begin)
    sheets = {name: folder / f"{name}_sheet.png" for name in named if sheet}
    _check_sheets(sheets, {file for _, files in named.values() for file in files}, overwrite=overwrite)
    if kept := len(named) - len(requests):
        say(f"the samples of {kept} of {len(named)} images are in {output} already")
    written, begun, failed = 0, monotonic(), set()
    drawing = {
        "temperature": temperatures,
        "seed": seed,
        "on_explode": on_explode,
        "overlap": overlap,
        "precision": precision,
        "consistency": consistency,
    }
    for name, block in draw_blocks(model, requests, scale=factor, format=format, options=drawing):
        if isinstance(block, str):
            failures.append(block)
            failed.add(name)
            continue
        path, files = named[name]
        about = {**descriptions[name], "tile": block.tile}
        for number, sample in zip(block.numbers, block.samples, strict=True):
            write_sample(files[number], sample, format, about)
            written += 1
        if block.last and not piped:
            height, width = block.size
            which = one_line(files[0] if n == 1 else f"{files[0]} to {files[-1].name}")
            tqdm.write(
                f"{one_line(path)}: {width} x {height} to {factor * width} x {factor * height} pixels, {which}, "
                f"{monotonic() - begun:.1f} s"
            )
            begun = monotonic()
    if not written and not kept:
        raise ValueError(f"no image could be sampled: {'; '.join(failures)}")
    for name in sheets.keys() - failed:
        write_sheet(sheets[name], *named[name])
    if not piped:
        print(f"wrote {written} images (sRGB) to {one_line(output)}, temperature {f'{at:g}' if alike else at}")
    for failure in failures:
        say(f"not sampled: {failure}")
    return 1 if failures else 0


def _check_sheets(sheets: Mapping[str, Path], samples: Collection[Path], *, overwrite: bool) -> None:
    """Raise if a contact sheet would replace a sample, or another file."""
    for sheet in sheets.values():
        if sheet in samples:
            raise ValueError(f"naming gives a sample the name of a contact sheet, {one_line(sheet)}")
        if not overwrite and os.path.lexists(sheet) and read_description(sheet) is None:
            raise ValueError(
                f"{one_line(sheet)} is no contact sheet; choose another output, or replace it with --overwrite"
            )
