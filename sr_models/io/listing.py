"""Lists of images: those in a folder, a glob or a text file, with what was not used and why."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sr_models.io.headers import read_headers
from sr_models.io.images import IMAGE_SUFFIXES

__all__ = ["NESTED", "Listing", "Unused", "fingerprint_of", "list_images", "one_line"]

#: Folders in which systems keep what users do not see: previews of a network disk, resource forks of a Mac.
_SYSTEM_FOLDERS = ("@eaDir", "__MACOSX")
#: Kind of images in folders that are not looked into.
NESTED = "images in sub-folders"
#: Kinds of what is not used that are no fault of the images.
_HARMLESS = ("of other kinds", "folders", NESTED)
#: A line of a list: a name, and what BasicSR's meta_info files write behind it: "0001.png (480,480,3) 1".
_LISTED = re.compile(r"(?P<name>.*?)(?:\s+\(\d+(?:,\s*\d+)+\)(?:\s+\d+)?)?")
_NAMED = 3


@dataclass(frozen=True)
class Unused:
    """A file or folder that is not used.

    Attributes:
        path: where it is.
        reason: why it is not used, in one line.
        kind: what such files are counted as: ``damaged``, ``too small``, ``of other kinds``, ...
    """

    path: Path
    reason: str
    kind: str


@dataclass(frozen=True)
class Listing:
    """Images that can be used, and what else was found.

    Attributes:
        paths: the images, sorted by folder and name.
        sizes: (height, width) of each, upright.
        unused: what is not used.
        fingerprint: hash of the images' names below the deepest common folder, and of their sizes in bytes.
        root: the folder that was named; otherwise the deepest one that holds all images.
        notes: what reading each changes beyond decoding, for instance that 16 bits are rounded to 8; none for packs.
    """

    paths: list[Path]
    sizes: list[tuple[int, int]]
    unused: list[Unused] = field(default_factory=list)
    fingerprint: str = ""
    root: Path = Path()
    notes: list[tuple[str, ...]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def names(self) -> list[str]:
        """The images' paths below ``root``, with ``/`` between folders."""
        return [path.relative_to(self.root).as_posix() for path in self.paths]

    def select(self, indices: Sequence[int], unused: Iterable[Unused]) -> Listing:
        """Keep some of the images; ``unused`` says what became of the others. The fingerprint stays."""
        return Listing(
            [self.paths[index] for index in indices],
            [self.sizes[index] for index in indices],
            [*self.unused, *unused],
            self.fingerprint,
            self.root,
            [self.notes[index] for index in indices] if self.notes else [],
        )

    def summary(self) -> list[str]:
        """Say how many images there are, what reading changes, and what is not used: one line a kind."""
        changes = Counter(note for notes in self.notes for note in notes)
        return [
            f"{_count(len(self), 'image')} in {one_line(self.root)}",
            *(f"{number} of them: {one_line(note)}" for note, number in sorted(changes.items())),
            *_unused_lines(self.unused),
        ]


def list_images(
    source: str | os.PathLike[str], *, smallest: int = 1, recursive: bool = True, strict: bool = False
) -> Listing:
    """List the images that a user names.

    Headers are read, and the ends of files looked at: a truncated file is found without decoding it. Hidden names are
    passed over. A folder that is reached twice, through links, is listed once.

    Args:
        source: a folder, an image, a pattern such as ``photos/**/*.png``, or a text file that names an image a line.
            Names in a text file are relative to its folder, or to the folder above; ``meta_info`` files of BasicSR are
            such lists. A leading ``~`` is the home folder.
        smallest: rows and columns that an image must have at least.
        recursive: look into sub-folders.
        strict: an image that cannot be used is an error.

    Returns:
        At least one image.

    Raises:
        FileNotFoundError: no such source, or no image in it.
        ValueError: images, but none that can be used; with ``strict``, one that cannot be used. Or a source that is
            none of the above.
    """
    source = Path(source).expanduser()
    found, unused = _candidates(source, recursive)
    # sorted by folders first, as people read trees
    found.sort(key=lambda entry: entry[0].parts)
    paths, sizes, lengths, notes = [], [], [], []
    for (path, status), header in zip(found, read_headers(found, source), strict=True):
        if header.problem:
            unused.append(Unused(path, header.problem, "damaged"))
        elif min(header.height, header.width) < smallest:
            reason = f"must be at least {smallest} x {smallest} pixels, got {header.height} x {header.width}"
            unused.append(Unused(path, reason, "too small"))
        else:
            paths.append(path)
            sizes.append((header.height, header.width))
            lengths.append(status.st_size)
            notes.append(header.notes)
    unused.sort(key=lambda entry: entry.path.parts)
    check_unused(f"{one_line(source)}", len(paths), unused, strict)
    common = os.path.commonpath({str(path.parent) for path in paths})
    names = [os.path.relpath(path, common) for path in paths]
    root = source if source.is_dir() else Path(common)
    return Listing(paths, sizes, unused, fingerprint_of(names, lengths), root, notes)


def check_unused(source: str, used: int, unused: Sequence[Unused], strict: bool) -> None:
    """Raise if no image can be used; with ``strict``, if one cannot be used.

    Args:
        source: where the images are, for messages.
        used: number of images that can be used.
        unused: what cannot.
        strict: whether one is too many.

    Raises:
        FileNotFoundError: no image, and no fault of any.
        ValueError: faults.
    """
    faults = [entry for entry in unused if entry.kind not in _HARMLESS]
    if faults and (strict or not used):
        what = "no image can be used" if not used else f"{_count(len(faults), 'image')} cannot be used (strict)"
        raise ValueError(f"{source}: {what}: {'; '.join(_unused_lines(faults, full=True))}")
    if not used:
        others = "".join(f"; {line}" for line in _unused_lines(unused))
        raise FileNotFoundError(f"{source} holds no image; accepted suffixes: {' '.join(IMAGE_SUFFIXES)}{others}")


def fingerprint_of(names: Sequence[str], lengths: Sequence[int]) -> str:
    """Hash names and sizes in bytes of a list of files to 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, length in zip(names, lengths, strict=True):
        # no name has a zero byte
        digest.update(os.fsencode(name) + f"\0{length}\0".encode())
    return digest.hexdigest()[:32]


def one_line(name: str | os.PathLike[str]) -> str:
    """Return a name that any terminal prints in one line: control characters and stray bytes are escaped."""
    text = os.fspath(name)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


_Found = list[tuple[Path, os.stat_result]]


def _candidates(source: Path, recursive: bool) -> tuple[_Found, list[Unused]]:
    """List the files with the suffix of an image that a source names."""
    if source.is_dir():
        return _walk(source, recursive)
    if source.is_file():
        if source.suffix.lower() in IMAGE_SUFFIXES:
            return _existing([source])
        if source.suffix.lower() == ".txt":
            return _existing(_named_in(source))
        raise ValueError(
            f"{one_line(source)} is neither a folder, nor an image ({' '.join(IMAGE_SUFFIXES)}), nor a list of "
            f"images (.txt)"
        )
    if glob.has_magic(str(source)):
        return _existing(Path(name) for name in glob.glob(str(source), recursive=True))
    if source.exists():
        raise ValueError(f"{one_line(source)} is neither a folder nor a regular file")
    if source.is_symlink():
        raise FileNotFoundError(
            f"{one_line(source)} is a link to {one_line(os.readlink(source))}, which does not exist"
        )
    kind = "image" if source.suffix.lower() in IMAGE_SUFFIXES else "image folder"
    raise FileNotFoundError(f"{kind} {one_line(source)} does not exist")


def _walk(folder: Path, recursive: bool, seen: set[tuple[int, int]] | None = None) -> tuple[_Found, list[Unused]]:
    """List the images in a folder, but for those in folders that were seen before."""
    found: _Found = []
    unused: list[Unused] = []
    seen = set() if seen is None else seen
    # links come last, so that a folder is listed under its own name
    folders, links = [folder], list[Path]()
    while folders or links:
        here = folders.pop() if folders else links.pop()
        try:
            status = here.stat()
            if (status.st_dev, status.st_ino) in seen:
                unused.append(Unused(here, "a link to a folder that is listed already", "folders"))
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(here) as entries:
                names = sorted(entries, key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            unused.append(Unused(here, f"cannot be listed: {error.strerror}", "unreadable folders"))
            continue
        for entry in names:
            if entry.name.startswith(".") or entry.name in _SYSTEM_FOLDERS:
                continue
            path = Path(entry.path)
            if _is_folder(entry):
                if recursive:
                    (links if entry.is_symlink() else folders).append(path)
                else:
                    unused += [Unused(image, entry.name, NESTED) for image, _ in _walk(path, True, seen)[0]]
            else:
                _sort_in(path, entry, found, unused)
    return found, unused


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _existing(paths: Iterable[Path]) -> tuple[_Found, list[Unused]]:
    found: _Found = []
    unused: list[Unused] = []
    seen = set()
    for path in paths:
        if path in seen:
            unused.append(Unused(path, "named twice", "named twice"))
        elif path.is_dir():
            unused.append(Unused(path, "a folder; to look into folders, end the pattern in /**/*.png", "folders"))
        else:
            _sort_in(path, path, found, unused)
        seen.add(path)
    return found, unused


def _sort_in(path: Path, entry: Path | os.DirEntry[str], found: _Found, unused: list[Unused]) -> None:
    """Add one file to what was found, or to what is not used."""
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        unused.append(Unused(path, suffix or "without a suffix", "of other kinds"))
        return
    try:
        status = entry.stat()
    except OSError as error:
        if path.is_symlink():
            unused.append(Unused(path, f"a link to {os.readlink(path)}: {error.strerror}", "dangling links"))
        else:
            unused.append(Unused(path, str(error.strerror), "missing"))
        return
    if stat.S_ISREG(status.st_mode):
        found.append((path, status))
    else:
        unused.append(Unused(path, "not a regular file", "damaged"))


def _named_in(file: Path) -> list[Path]:
    """Read the paths of a list; relative ones start at its folder, or at the folder above."""
    try:
        lines = file.read_text("utf-8-sig", errors="surrogateescape").splitlines()
    except OSError as error:
        raise ValueError(f"cannot read the list of images {one_line(file)}: {error.strerror}") from error
    names = [match["name"] for line in lines if (match := _LISTED.fullmatch(line.strip())) and match["name"]]
    if not names:
        raise FileNotFoundError(f"the list of images {one_line(file)} names no file")
    paths = [Path(name).expanduser() for name in names]
    bases = [base for base in (file.parent, file.parent.parent) if (base / paths[0]).exists()]
    base = bases[0] if bases else file.parent
    return [base / path for path in paths]


def _unused_lines(unused: Sequence[Unused], *, full: bool = False) -> list[str]:
    """Count what is not used by kind and name the first of each."""
    kinds: dict[str, list[Unused]] = {}
    for entry in unused:
        kinds.setdefault(entry.kind, []).append(entry)
    lines = []
    for kind, entries in kinds.items():
        if kind in ("of other kinds", NESTED):
            reasons = sorted({one_line(entry.reason) for entry in entries})
            shown = ", ".join(reasons[:8]) + (", ..." if len(reasons) > 8 else "")
            shown += "; --recursive uses them" if kind == NESTED else ""
        else:
            shown = ", ".join(
                f"{one_line(entry.path if full else entry.path.name)} ({one_line(entry.reason)})"
                for entry in entries[:_NAMED]
            )
            shown += f" and {len(entries) - _NAMED} more" if len(entries) > _NAMED else ""
        lines.append(f"not used: {len(entries)} {kind}: {shown}")
    return lines


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
