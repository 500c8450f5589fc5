"""The work of ``sr-models sample``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from sr_models.checkpoints.files import load_model, weights_fingerprint
from sr_models.cli._device import check_worthwhile, usable_device
from sr_models.cli._errors import users_error
from sr_models.cli._warnings import warnings_as_lines
from sr_models.flow.consistency import Consistency, ConsistencyWarning, check_consistency
from sr_models.flow.explosions import OnExplode
from sr_models.flow.latents import temperatures_of
from sr_models.flow.model import SuperResolutionFlow
from sr_models.flow.tiling import LEAST_TILE
from sr_models.io.images import read_image, to_tensor, to_uint8, write_image
from sr_models.io.listing import list_images, one_line
from sr_models.io.sample_files import (
    KEY,
    challenge_files,
    challenge_numbers,
    describe_sample,
    is_done,
    read_description,
    sample_files,
    sample_names,
)
from sr_models.networks.precision import Precision, network_dtype, resolved
from sr_models.seeds import check_seed

__all__ = ["sample_images"]

#: Kinds of files in a listing that are rightly left out.
_NO_FAILURES = ("of other kinds", "folders", "named twice")


def sample_images(
    images: Sequence[str],
    checkpoint: str,
    output: str,
    *,
    n: int,
    temperature: float | list[float] | None,
    seed: int,
    on_explode: OnExplode,
    tile: int | None,
    precision: Precision,
    consistency: Consistency,
    device: str,
    overwrite: bool,
    naming: Literal["name", "ntire"],
    first_index: int,
) -> int:
    """Draw samples of every image that is not sampled yet; arguments are those of the command.

    Returns:
        The exit code: 1 if some images could not be sampled.

    Raises:
        ValueError, OSError: bad arguments, files that would be overwritten, or no image that can be sampled.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if tile is not None and tile < LEAST_TILE:
        raise ValueError(f"tile must be at least {LEAST_TILE}, got {tile}")
    if temperature is not None:
        temperatures_of(temperature, len(temperature) if isinstance(temperature, list) else 1)
    if first_index < 0 or (first_index and naming != "ntire"):
        raise ValueError(f"first_index must be 0, or positive with naming ntire, got {first_index}")
    check_seed(seed)
    check_consistency(consistency)
    checkpoint, output = os.path.expanduser(checkpoint), os.path.expanduser(output)
    place = usable_device(device)
    check_worthwhile(precision, place)
    folder = Path(output)
    paths, root, failures, damaged = _find(images, folder)
    named = dict(zip(sample_names(paths, root), paths, strict=True))
    for name, path in named.items():
        if name.endswith(path.suffix) and naming == "name":
            _say(f"the samples of {path} are called {name}_sample000.png, because another image has the same name")

    model = load_model(checkpoint).to(place)
    latents = len(model.drawn_shapes(model.lr_multiple, model.lr_multiple))
    temperatures = temperatures_of(model.temperature if temperature is None else temperature, latents)
    options = {"temperature": temperatures, "seed": seed, "on_explode": on_explode, "tile": tile}
    like = next(model.parameters())
    dtype = network_dtype(precision, like.device, like.dtype)
    alike = len(set(temperatures)) == 1
    settings = {
        "weights": weights_fingerprint(model),
        **options,
        "temperature": temperatures[0] if alike else temperatures,
        # samples in float32, and without consistency, say nothing of it, as samples before there was a choice
        **({} if dtype is None else {"precision": resolved(precision, like.device)}),
        **({} if consistency == "none" else {"consistency": consistency}),
    }
    descriptions = {name: describe_sample(path, settings) for name, path in named.items()}
    if naming == "ntire":
        # damaged images keep their numbers, else all that follow would be taken for others
        numbers = challenge_numbers([*paths, *damaged], root, model.scale)
        files = {name: challenge_files(folder, first_index + numbers[path], n) for name, path in named.items()}
    else:
        files = {name: sample_files(folder, name, n) for name in named}
    pending = [name for name in named if overwrite or not is_done(files[name], descriptions[name])]
    if kept := len(named) - len(pending):
        _say(f"the samples of {kept} of {len(named)} images are in {output} already")
    written, begun = 0, monotonic()
    drawing = {**options, "precision": precision, "consistency": consistency}
    for name, samples in _drawn(model, {name: named[name] for name in pending}, n, drawing):
        if isinstance(samples, str):
            failures.append(samples)
            continue
        for file, pixels in zip(files[name], samples, strict=True):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_image(file, pixels, text={KEY: json.dumps(descriptions[name])})
            written += 1
        height, width = samples[0].shape[:2]
        shown = one_line(files[name][0] if n == 1 else f"{files[name][0]} to {files[name][-1].name}")
        tqdm.write(
            f"{one_line(named[name])}: {width // model.scale} x {height // model.scale} to {width} x {height} pixels, "
            f"{shown}, {monotonic() - begun:.1f} s"
        )
        begun = monotonic()
    if not written and not kept:
        raise ValueError(f"no image could be sampled: {'; '.join(failures)}")
    at = settings["temperature"]
    print(f"wrote {written} images (sRGB) to {one_line(output)}, temperature {f'{at:g}' if alike else at}")
    for failure in failures:
        _say(f"not sampled: {failure}")
    return 1 if failures else 0


def _find(sources: Sequence[str], output: Path) -> tuple[list[Path], Path, list[str], list[Path]]:
    """List the images that the user names.

    Args:
        sources: images, folders, patterns or lists.
        output: the folder of the samples, which are no images to sample.

    Returns:
        The images' absolute paths, a folder that they all are in, what was found to be unusable, and the absolute paths
        of images among that.
    """
    found: dict[Path, None] = {}
    damaged: dict[Path, None] = {}
    roots, failures, own = [], [], 0
    inside = os.path.abspath(output)
    for source in sources:
        path = Path(source).expanduser()
        if path.is_dir() and output.is_dir() and path.samefile(output):
            raise ValueError(f"output must be another folder than that of the images, got {output} for both")
        try:
            listing = list_images(source)
        except ValueError as error:
            failures.append(str(error))
            continue
        roots.append(os.path.abspath(listing.root))
        failures += [f"{entry.path}: {entry.reason}" for entry in listing.unused if entry.kind not in _NO_FAILURES]
        damaged |= {Path(os.path.abspath(entry.path)): None for entry in listing.unused if entry.kind == "damaged"}
        for line in listing.summary():
            _say(line)
        for image in map(Path, map(os.path.abspath, listing.paths)):
            # who names a sample in another folder wants it enlarged
            passed_over = not path.is_file() or image.is_relative_to(inside)
            if passed_over and read_description(image) is not None:
                own += 1
            else:
                found[image] = None
    if own:
        _say(f"not used: {own} samples that this command made before")
    if not found:
        raise ValueError("; ".join(failures) or f"{' '.join(sources)}: only samples that this command made before")
    return list(found), Path(os.path.commonpath(roots)), failures, list(damaged)


def _drawn(
    model: SuperResolutionFlow, images: Mapping[str, Path], n: int, options: dict[str, Any]
) -> Iterator[tuple[str, list[np.ndarray] | str]]:
    """Draw the samples of each image, with a progress bar.

    Args:
        model: in evaluation mode.
        images: name -> image.
        n: samples an image.
        options: those of :meth:`SuperResolutionFlow.sample`.

    Yields:
        An image's name, and its samples or why there are none.
    """
    like = next(model.parameters())
    # rates and times are of samples; layers move the bar between them
    shape = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} samples [{elapsed}<{remaining}{postfix}]"
    redrawn = 0
    with tqdm(total=n * len(images), bar_format=shape) as bar:

        def advance(part: float) -> None:
            nonlocal redrawn
            if part < 0:
                redrawn += 1
                bar.set_postfix_str(f"{redrawn} drawn again", refresh=False)
            bar.update(part * n)

        for count, (name, path) in enumerate(images.items(), 1):
            bar.set_description_str(f"sampling {one_line(path.name)[:40]}")
            result: list[np.ndarray] | str
            try:
                lr = to_tensor(read_image(path))[None].to(like)
                with warnings_as_lines(ConsistencyWarning, str(path)):
                    samples = model.sample(lr, n, **options, on_progress=advance)[0]
                result = [to_uint8(sample) for sample in samples]
            except Exception as error:
                message = users_error(error)
                if message is None:
                    raise
                result = message if str(path) in message else f"{path}: {message}"
            bar.update(n * count - bar.n)
            yield name, result


def _say(line: str) -> None:
    """Print a line on standard error, above the progress bar if there is one."""
    tqdm.write(f"sr-models: {one_line(line)}", file=sys.stderr)
