"""Folders of known data sets, and pairs of high-resolution and low-resolution images.

Known are the folders of DIV2K, Flickr2K and BasicSR, and those of the same kind::

    DIV2K/DIV2K_train_HR/0001.png                   also DIV2K_train_HR_sub/0001_s001.png, GT, GTmod12, HR
    DIV2K/DIV2K_train_LR_bicubic/X4/0001x4.png      also X4_sub/0001_s001.png, LR, LQ, LRbicx4
    DIV2K/DIV2K_valid_HR/0801.png                   also train/ and valid/ (val/, test/) with either kind in them
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from sr_models.io.images import IMAGE_SUFFIXES
from sr_models.io.listing import Listing, Unused, one_line

__all__ = ["find_high", "find_low", "pair_names", "size_problem"]

_HIGH = re.compile(r"(?:.*[_-])?(?:HR|GT)(?:mod\d+)?(?P<sub>_sub)?", re.IGNORECASE)
_LOW = re.compile(r"(?:.*[_-])?(?:LR|LQ)(?:[_-].*|bic.*)?", re.IGNORECASE)
_SCALED = re.compile(r".*x(?P<scale>\d+)(?P<sub>_sub)?", re.IGNORECASE)
_SPLITS = {"train": r"train(?:ing)?", "valid": r"val(?:id(?:ation)?)?|test"}


def find_high(source: str | os.PathLike[str], *, split: str) -> Path:
    """Find the folder of high-resolution images in the folder of a data set.

    Args:
        source: what a user named.
        split: ``train`` or ``valid``, of a data set that has both.

    Returns:
        The folder; ``source`` itself, with ``~`` expanded, if it has no known layout.

    Raises:
        ValueError: several folders that may be meant, or the other split only; or a database.
    """
    source = Path(source).expanduser()
    folders = _folders(source)
    if any(name.lower() == "data.mdb" for name in _files(source)):
        raise ValueError(f"{one_line(source)} is an LMDB database; give the folder of images that it was made from")
    if _holds_images(source):
        return source
    if found := [name for name in folders if _HIGH.fullmatch(name)]:
        return source / _choose(source, found, split, "high-resolution images")
    if inner := _split_folder(folders, split):
        return find_high(source / inner, split=split)
    return source


def find_low(source: str | os.PathLike[str], *, scale: int, split: str, sub: bool) -> Path:
    """Find the folder of low-resolution images in the folder of a data set.

    Args:
        source: what a user named.
        scale: enlargement.
        split: ``train`` or ``valid``, of a data set that has both.
        sub: whether images are BasicSR's crops, in folders whose names end in ``_sub``.

    Returns:
        The folder; ``source`` itself, with ``~`` expanded, if it has no known layout.

    Raises:
        ValueError: several folders that may be meant, or only folders of another split or scale.
    """
    source = Path(source).expanduser()
    if _holds_images(source):
        return source
    folders = _folders(source)
    scaled = {name: match for name in folders if (match := _SCALED.fullmatch(name))}
    if scaled:
        found = [name for name, match in scaled.items() if int(match["scale"]) == scale]
        if not found:
            raise ValueError(f"{one_line(source)} holds {', '.join(scaled)} but nothing of scale {scale}")
        crops = [name for name in found if bool(scaled[name]["sub"]) == sub]
        return source / _choose(source, crops or found, split, "low-resolution images")
    if found := [name for name in folders if _LOW.fullmatch(name)]:
        return find_low(
            source / _choose(source, found, split, "low-resolution images"), scale=scale, split=split, sub=sub
        )
    if inner := _split_folder(folders, split):
        return find_low(source / inner, scale=scale, split=split, sub=sub)
    return source


def pair_names(high: Listing, low: Listing, scale: int) -> tuple[list[tuple[int, int]], list[Unused]]:
    """Find the low-resolution image of every high-resolution one, and compare their sizes.

    The low-resolution image of ``a/b.png`` is ``a/b`` or ``a/bx4`` (at scale 4), with any suffix. It has 1/scale of the
    rows and columns, rounded down or up.

    Args:
        high: high-resolution images.
        low: low-resolution images.
        scale: enlargement.

    Returns:
        Pairs of indices into both, and the high-resolution images that are not used.

    Raises:
        ValueError: a name that fits two images.
    """
    # DIV2K's tracks "difficult" and "mild" have a letter behind the scale
    endings = ("", f"x{scale}", f"x{scale}d", f"x{scale}m")
    found: dict[str, list[int]] = {}
    for index, name in enumerate(low.names):
        found.setdefault(_stem(name), []).append(index)
    pairs, unused = [], []
    taken: dict[int, int] = {}
    for index, name in enumerate(high.names):
        fitting = [other for ending in endings for other in found.get(_stem(name) + ending, [])]
        path = high.paths[index]
        if not fitting:
            unused.append(
                Unused(
                    path,
                    f"no {one_line(path.stem)} or {one_line(path.stem)}x{scale} in {one_line(low.root)}",
                    "without a low-resolution image",
                )
            )
            continue
        if len(fitting) > 1:
            raise ValueError(
                f"lr_images: {_named(low.paths[other] for other in fitting)} all fit {one_line(path)}; leave one"
            )
        other = fitting[0]
        if other in taken:
            raise ValueError(
                f"lr_images: {one_line(low.paths[other])} fits {_named([high.paths[taken[other]], path])}; rename one"
            )
        taken[other] = index
        if problem := size_problem(high.sizes[index], low.sizes[other], scale):
            unused.append(Unused(path, problem, "unlike their low-resolution image in size"))
        else:
            pairs.append((index, other))
    return pairs, unused


def size_problem(high: tuple[int, int], low: tuple[int, int], scale: int) -> str:
    """Say why two images (height, width) are no pair; empty if they are one."""
    if all(part in (whole // scale, -(-whole // scale)) for whole, part in zip(high, low, strict=True)):
        return ""
    return (
        f"{high[0]} x {high[1]} pixels, which is not {scale} times the {low[0]} x {low[1]} of its low-resolution image"
    )


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _named(paths: Iterable[Path]) -> str:
    return " and ".join(one_line(path) for path in paths)


def _choose(source: Path, found: list[str], split: str, what: str) -> str:
    """Choose the folder of a split; one without ``_sub`` if there is."""
    words = {name: _split_of(name) for name in found}
    of_split = [name for name in found if words[name] == split]
    neutral = [name for name in found if words[name] is None]
    # of training images, none is left out without a word
    fitting = of_split + neutral if split == "train" else of_split or neutral
    if not fitting:
        raise ValueError(
            f"{one_line(source)} holds {', '.join(sorted(found))}, which is not for {split}; name the folder itself"
        )
    whole = [name for name in fitting if not name.lower().endswith("_sub")] or fitting
    if len(whole) > 1:
        raise ValueError(
            f"{one_line(source)} holds {' and '.join(sorted(whole))}, each with {what}; name one of them, or a pattern "
            "such as '*_HR/*.png'"
        )
    return whole[0]


def _split_of(name: str) -> str | None:
    for split, words in _SPLITS.items():
        if re.search(rf"(?:^|[_-])(?:{words})(?:$|[_-])", name, re.IGNORECASE):
            return split
    return None


def _split_folder(folders: list[str], split: str) -> str | None:
    """Find the folder of a split if there is one of either split."""
    found = {
        name: key for name in folders for key, words in _SPLITS.items() if re.fullmatch(words, name, re.IGNORECASE)
    }
    if set(found.values()) != set(_SPLITS):
        return None
    fitting = [name for name, key in found.items() if key == split]
    return fitting[0] if len(fitting) == 1 else None


def _folders(source: Path) -> list[str]:
    return sorted(entry.name for entry in _visible(source) if entry.is_dir())


def _files(source: Path) -> list[str]:
    return [entry.name for entry in _visible(source) if not entry.is_dir()]


def _holds_images(source: Path) -> bool:
    return any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in _files(source))


def _visible(source: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(source) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError:  # no folder: whoever lists the images says so
        return []
