"""The images that a user names for ``sr-models sample``."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from tqdm import tqdm

from sr_models.io.files import write_bytes
from sr_models.io.listing import NESTED, Listing, list_images, one_line
from sr_models.io.reading import WHITE_BACKGROUND
from sr_models.io.sample_files import read_description

__all__ = ["STANDARD", "find_images", "say", "shown", "standard_input"]

#: What stands for standard input and standard output.
STANDARD = "-"
#: Where standard input is kept while it is read as a file: a folder whose name begins so, and a file in it.
_PREFIX, _KEPT = "sr-models-standard-input-", "stdin.png"
#: Kinds of files in a listing that are rightly left out.
_NO_FAILURES = ("of other kinds", "folders", NESTED, "named twice")


def find_images(
    sources: Sequence[str], output: Path, *, recursive: bool, keep_alpha: bool
) -> tuple[list[Path], Path, list[str], list[Path]]:
    """List the images that the user names, and say what they are.

    Args:
        sources: images, folders, patterns or lists.
        output: the folder of the samples, which are no images to sample.
        recursive: look into sub-folders.
        keep_alpha: samples will have the transparency of their images.

    Returns:
        The images' absolute paths, a folder that they all are in, what was found to be unusable, and the absolute paths
        of images among that.

    Raises:
        ValueError, OSError: no image that can be sampled, or one folder for images and samples.
    """
    found: dict[Path, None] = {}
    damaged: dict[Path, None] = {}
    roots, failures, own = [], [], 0
    inside = os.path.abspath(output)
    alone: dict[Path, Listing] = {}
    for source in sources:
        path = Path(source).expanduser()
        if path.is_dir() and output.is_dir() and path.samefile(output):
            raise ValueError(f"output must be another folder than that of the images, got {output} for both")
        try:
            listing = list_images(source, recursive=recursive)
        except ValueError as error:
            failures.append(str(error))
            continue
        roots.append(os.path.abspath(listing.root))
        failures += [f"{entry.path}: {entry.reason}" for entry in listing.unused if entry.kind not in _NO_FAILURES]
        damaged |= {Path(os.path.abspath(entry.path)): None for entry in listing.unused if entry.kind == "damaged"}
        # samples of an earlier run in a sub-folder are not waiting for --recursive
        others = [entry for entry in listing.unused if entry.kind != NESTED or not _is_in(entry.path, inside)]
        if path.is_file() and listing.paths == [path]:
            alone[path] = listing
        else:
            _say_summary(replace(listing, unused=others), keep_alpha)
        for image in map(Path, map(os.path.abspath, listing.paths)):
            # who names a sample in another folder wants it enlarged
            passed_over = not path.is_file() or image.is_relative_to(inside)
            if passed_over and read_description(image) is not None:
                own += 1
            else:
                found[image] = None
    if alone:
        _say_summary(_together(list(alone.values())), keep_alpha)
    if own:
        say(f"not used: {own} samples that this command made before")
    if not found:
        raise ValueError("; ".join(failures) or f"{' '.join(sources)}: only samples that this command made before")
    return list(found), Path(os.path.commonpath(roots)), failures, list(damaged)


def _together(listings: Sequence[Listing]) -> Listing:
    """Join listings of single images, of which a shell makes many from one pattern."""
    common = os.path.commonpath([os.path.abspath(listing.root) for listing in listings])
    relative = not any(listing.root.is_absolute() for listing in listings)
    return Listing(
        [path for listing in listings for path in listing.paths],
        [size for listing in listings for size in listing.sizes],
        root=Path(os.path.relpath(common) if relative else common),
        notes=[notes for listing in listings for notes in listing.notes],
    )


def _say_summary(listing: Listing, keep_alpha: bool) -> None:
    for line in listing.summary():
        say(line.replace(WHITE_BACKGROUND, "transparency is kept") if keep_alpha else line)


def _is_in(path: Path, folder: str) -> bool:
    return Path(os.path.abspath(path)).is_relative_to(folder)


@contextmanager
def standard_input() -> Iterator[Path]:
    """Keep what comes from standard input in a file within the ``with`` block.

    Raises:
        ValueError: nothing comes; or an error of the block, in which the file is called standard input.
    """
    # a closed one is none
    content = sys.stdin.buffer.read() if sys.stdin else b""
    if not content:
        raise ValueError("standard input is empty; it must be an image")
    with TemporaryDirectory(prefix=_PREFIX) as folder:
        # readers look at the content, and not at the suffix
        file = Path(folder, _KEPT)
        write_bytes(file, content)
        try:
            yield file
        except ValueError as error:
            raise ValueError(shown(str(error))) from error


def shown(text: str) -> str:
    """Return a message in which the file that keeps standard input, and its folder, are called standard input."""
    folder = re.escape(os.path.join(gettempdir(), _PREFIX))
    return re.sub(rf"{folder}\w+(/{re.escape(_KEPT)})?", "standard input", text)


def say(line: str) -> None:
    """Print a line on standard error, above the progress bar if there is one."""
    tqdm.write(f"sr-models: {one_line(shown(line))}", file=sys.stderr)
