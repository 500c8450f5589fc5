"""The work of ``sr-models sample``."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from tqdm import tqdm

from sr_models.checkpoints.files import load_model, weights_fingerprint
from sr_models.cli._device import check_worthwhile, usable_device
from sr_models.cli._drawing import Block, Request, draw_blocks
from sr_models.cli._errors import users_error
from sr_models.cli._inputs import STANDARD, find_images, say, shown, standard_input
from sr_models.cli._outputs import check_files, check_folder, existing, name_files, write_sample, write_sheet
from sr_models.cli._sample_options import Options, check_options
from sr_models.evaluation.report.stored import checkpoint_name
from sr_models.flow.latents import temperatures_of
from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.listing import one_line
from sr_models.io.sample_files import describe_sample, read_description, remove_other_numbering
from sr_models.memory import is_out_of_memory
from sr_models.networks.precision import network_dtype, resolved

__all__ = ["sample_images"]

#: Name of an image -> the image, and the files of its samples.
_Named = Mapping[str, tuple[Path, Sequence[Path]]]


def sample_images(images: Sequence[str], checkpoint: str, output: str, options: Options) -> int:
    """Draw samples of every image that is not sampled yet; arguments are those of the command.

    Returns:
        The exit code: 1 if some images could not be sampled.

    Raises:
        ValueError, OSError: bad arguments, files that would be overwritten, or no image that can be sampled.
    """
    check_options(images, output, options)
    checkpoint, output = os.path.expanduser(checkpoint), os.path.expanduser(output)
    if STANDARD not in images:
        return _sample(images, checkpoint, output, options)
    with standard_input() as file:
        return _sample([str(file)], checkpoint, output, options)


def _sample(images: Sequence[str], checkpoint: str, output: str, options: Options) -> int:
    device = usable_device(options.device)
    check_worthwhile(options.precision, device)
    folder, piped = Path(output), output == STANDARD
    keep_alpha = options.format != "jpeg"
    paths, root, failures, damaged = find_images(images, folder, recursive=options.recursive, keep_alpha=keep_alpha)
    if piped and len(paths) > 1:
        raise ValueError(f"output - takes one sample of one image, got {len(paths)} images")

    model = _load(checkpoint, device)
    scale = _scale(model, checkpoint, options)
    temperatures = _temperatures(model, options)
    named: _Named = {"stdin": (paths[0], [folder])}
    if not piped:
        named = name_files(
            paths,
            root,
            folder,
            n=options.n,
            naming=options.naming,
            format=options.format,
            first_index=options.first_index,
            overwrite=options.overwrite,
            damaged=damaged,
            model_scale=model.scale,
            values=_template_values(checkpoint, scale, temperatures, options),
        )
        check_files((file for _, files in named.values() for file in files), folder, f"naming {options.naming}")
    settings = _settings(model, scale, temperatures, options)
    descriptions = {name: describe_sample(path, settings) for name, (path, _) in named.items()}
    requests = _requests(named, descriptions, options, anew=options.overwrite or piped)
    sheets = {name: folder / f"{name}_sheet.png" for name in named if options.sheet}
    _check_sheets(sheets, {file for _, files in named.values() for file in files}, overwrite=options.overwrite)
    check_files(sheets.values(), folder, "sheet")
    if (requests or sheets) and not piped:
        check_folder(folder)
    if kept := len(named) - len(requests):
        say(f"the samples of {kept} of {len(named)} images are in {output} already")

    drawing = _drawing_options(temperatures, options)
    blocks = draw_blocks(model, requests, scale=scale, format=options.format, options=drawing)
    written, failed = _write(blocks, named, descriptions, scale, options)
    failures += failed.values()
    if not written and not kept:
        raise ValueError(f"no image could be sampled: {'; '.join(failures)}")
    for name in sheets.keys() - failed.keys():
        write_sheet(sheets[name], *named[name])
    if not piped:
        at = _one_if_alike(temperatures)
        shown = at if isinstance(at, list) else f"{at:g}"
        print(f"wrote {written} image{'' if written == 1 else 's'} (sRGB) to {one_line(output)}, temperature {shown}")
    for failure in failures:
        say(f"not sampled: {failure}")
    return 1 if failures else 0


def _load(checkpoint: str, device: torch.device) -> SuperResolutionFlow:
    """Load a model; where memory is too small for it, smaller tiles would not help."""
    try:
        return load_model(checkpoint).to(device)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        advice = "the model itself does not fit; take a smaller one, or close other programs"
        raise ValueError(f"cannot load {checkpoint}: {users_error(error, memory=advice)}") from error


def _scale(model: SuperResolutionFlow, checkpoint: str, options: Options) -> int:
    """Return the enlargement of the samples, and say if it is not the model's own."""
    scale = model.scale if options.scale is None else options.scale
    if scale > model.scale:
        raise ValueError(f"scale must be at most the model's {model.scale}, got {scale}")
    if scale < model.scale:
        say(
            f"{checkpoint} enlarges {model.scale} times; "
            f"its samples are then reduced to {scale} times, by bicubic interpolation"
        )
    return scale


def _temperatures(model: SuperResolutionFlow, options: Options) -> list[float]:
    """Return the temperature of every latent of the model."""
    latents = len(model.drawn_shapes(model.lr_multiple, model.lr_multiple))
    return temperatures_of(model.temperature if options.temperature is None else options.temperature, latents)


def _one_if_alike(temperatures: list[float]) -> float | list[float]:
    return temperatures[0] if len(set(temperatures)) == 1 else temperatures


def _template_values(checkpoint: str, scale: int, temperatures: list[float], options: Options) -> dict[str, object]:
    """Return what the fields of a template of names stand for, but those that differ between samples."""
    return {
        "seed": options.seed,
        "temperature": temperatures[0],
        "model": checkpoint_name(os.path.abspath(checkpoint)),
        "scale": scale,
    }


def _settings(model: SuperResolutionFlow, scale: int, temperatures: list[float], options: Options) -> dict[str, object]:
    """Return the settings that samples carry in their files, but for their tiles."""
    like = next(model.parameters())
    settings: dict[str, object] = {
        "weights": weights_fingerprint(model),
        "temperature": _one_if_alike(temperatures),
        "seed": options.seed,
        "on_explode": options.on_explode,
    }
    # what is not said is as it was before there was a choice
    if network_dtype(options.precision, like.device, like.dtype) is not None:
        settings["precision"] = resolved(options.precision, like.device)
    if options.consistency != "none":
        settings["consistency"] = options.consistency
    if options.overlap is not None:
        settings["overlap"] = options.overlap
    if scale != model.scale:
        settings["scale"] = scale
    if options.format == "png16":
        settings["format"] = options.format
    return settings


def _drawing_options(temperatures: list[float], options: Options) -> dict[str, object]:
    """Return the options of :meth:`SuperResolutionFlow.sample`."""
    return {
        "temperature": temperatures,
        "seed": options.seed,
        "on_explode": options.on_explode,
        "overlap": options.overlap,
        "precision": options.precision,
        "consistency": options.consistency,
    }


def _requests(
    named: _Named, descriptions: Mapping[str, Mapping[str, Any]], options: Options, *, anew: bool
) -> dict[str, Request]:
    """Return the samples that are not there yet; all of them if they are to be drawn anew."""
    requests = {}
    for name, (path, files) in named.items():
        there, begin = [False] * options.n, options.tile
        if not anew:
            there, begin = existing(files, descriptions[name], options.tile)
        if missing := [number for number, is_there in enumerate(there) if not is_there]:
            requests[name] = Request(path, missing, options.tile, begin)
    return requests


def _check_sheets(sheets: Mapping[str, Path], samples: Collection[Path], *, overwrite: bool) -> None:
    """Raise if a contact sheet would replace a sample, or another file."""
    for sheet in sheets.values():
        if sheet in samples:
            raise ValueError(f"naming gives a sample the name of a contact sheet, {one_line(sheet)}")
        if not overwrite and os.path.lexists(sheet) and read_description(sheet) is None:
            raise ValueError(
                f"{one_line(sheet)} is no contact sheet; choose another output, or replace it with --overwrite"
            )


def _write(
    blocks: Iterable[tuple[str, Block | str]],
    named: _Named,
    descriptions: Mapping[str, Mapping[str, Any]],
    scale: int,
    options: Options,
) -> tuple[int, dict[str, str]]:
    """Write samples as they come.

    Returns:
        How many were written, and of each image that could not be sampled the name and the reason.
    """
    written, failed, begun = 0, {}, monotonic()
    for name, block in blocks:
        if isinstance(block, str):
            failed[name] = block
            continue
        path, files = named[name]
        about = {**descriptions[name], "tile": block.tile}
        for number, sample in zip(block.numbers, block.samples, strict=True):
            write_sample(files[number], sample, options.format, about, overwrite=options.overwrite)
        written += len(block.samples)
        if block.last and options.naming == "ntire" and options.overwrite:
            remove_other_numbering(files)
        if block.last and str(files[0]) != STANDARD:
            _say_done(path, files, block, scale, monotonic() - begun)
            begun = monotonic()
    return written, failed


def _say_done(path: Path, files: Sequence[Path], block: Block, scale: int, seconds: float) -> None:
    height, width = block.size
    which = one_line(files[0] if len(files) == 1 else f"{files[0]} to {files[-1].name}")
    sizes = f"{width} x {height} to {scale * width} x {scale * height} pixels"
    tqdm.write(f"{one_line(shown(str(path)))}: {sizes}, {which}, {seconds:.1f} s")
