"""Headers of many images at once, and a memory of them on disk."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from sr_models.io.files import user_cache, write_text
from sr_models.io.reading import read_header

__all__ = ["Header", "read_headers"]

#: Changes whenever the same file may get another header than before.
_FORMAT = f"sr_models headers 3, Pillow {Image.__version__}"
#: A memory of fewer headers would not be worth a file.
_WORTH_KEEPING = 500
#: Files on a network disk answer late: some are asked at once.
_THREADS = 8

_Key = tuple[str, int, int]


@dataclass(frozen=True)
class Header:
    """Size and faults of a file before it is decoded.

    Attributes:
        height: rows of the upright image; 0 if it cannot be used.
        width: columns of the upright image; 0 if it cannot be used.
        notes: what reading changes beyond decoding, one clause each.
        problem: why it cannot be used; empty if it can.
    """

    height: int
    width: int
    notes: tuple[str, ...] = ()
    problem: str = ""


def read_headers(files: Sequence[tuple[Path, os.stat_result]], source: Path) -> list[Header]:
    """Read the headers of many files, or take them from the user's cache if the files have not changed since.

    The cache is one file a source in ``$XDG_CACHE_HOME/sr_models/headers`` (``~/.cache`` by default). It knows a file
    by path, size and time of modification. Files that cannot be used are looked at again every time. A cache that
    cannot be read or written changes nothing but the time.

    Args:
        files: paths and what ``os.stat`` says of them.
        source: what the user named; each source has a cache file of its own.

    Returns:
        A header for each file.
    """
    cache = _cache_file(source)
    known = _read_cache(cache)
    keys = [(os.path.abspath(path), status.st_size, status.st_mtime_ns) for path, status in files]
    unknown = [index for index, key in enumerate(keys) if key not in known]
    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as pool:
        # of odd metadata; what matters becomes a problem
        warnings.simplefilter("ignore")
        fresh = pool.map(_read, [files[index][0] for index in unknown])
        bar = tqdm(fresh, "reading headers", len(unknown), leave=False, unit="image", delay=1, disable=None)
        known.update({keys[index]: header for index, header in zip(unknown, bar, strict=True)})
    headers = [known[key] for key in keys]
    if cache is not None and sum(not known[keys[index]].problem for index in unknown) >= _WORTH_KEEPING:
        _write_cache(cache, keys, headers)
    return headers


def _read(path: Path) -> Header:
    try:
        header = read_header(path)
    except (OSError, ValueError) as error:
        reason = str(error).replace(f"cannot read image {path}: ", "").replace(f"image {path} ", "")
        return Header(0, 0, problem=" ".join(reason.split()))
    return Header(header.height, header.width, header.notes)


def _cache_file(source: Path) -> Path | None:
    folder = user_cache("headers")
    name = hashlib.sha256(os.fsencode(os.path.abspath(source))).hexdigest()[:32]
    return folder / f"{name}.jsonl" if folder is not None else None


def _read_cache(cache: Path | None) -> dict[_Key, Header]:
    """Read what is known; nothing, if the file is not as it was written."""
    known: dict[_Key, Header] = {}
    try:
        lines = cache.read_text().splitlines() if cache is not None else []
        if lines[:1] != [json.dumps(_FORMAT)]:
            return {}
        for line in lines[1:]:
            path, size, modified, height, width, notes = json.loads(line)
            known[str(path), int(size), int(modified)] = Header(int(height), int(width), tuple(map(str, notes)))
    except (OSError, ValueError, TypeError):
        return {}
    return known


def _write_cache(cache: Path, keys: list[_Key], headers: list[Header]) -> None:
    records = [
        [*key, header.height, header.width, header.notes]
        for key, header in zip(keys, headers, strict=True)
        if not header.problem
    ]
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_text(cache, "".join(json.dumps(record) + "\n" for record in [_FORMAT, *records]))
    except OSError:
        pass
