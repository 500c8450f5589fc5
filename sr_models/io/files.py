"""Files that appear complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from time import time
from typing import BinaryIO

__all__ = ["append_line", "remove_leftovers", "user_cache", "write_bytes", "write_stream", "write_text"]

#: What :func:`os.fsync` says on file systems that cannot do it: those of some networks, and of user space.
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}
_LEFTOVER = re.compile(r"\.[0-9a-f]{32}\.tmp")


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file atomically, with the permissions that any new file gets.

    The content goes to a temporary file in the same folder, reaches the disk, and then takes the place of ``path``.
    A reader, or a machine that loses power, sees the old file or the new one. A failure leaves no temporary file.

    Args:
        path: file to write; an existing one is replaced.
        content: all of it.

    Raises:
        FileNotFoundError: the folder of ``path`` does not exist.
        OSError: the disk is full, the folder is read-only, and the like.
    """
    write_stream(path, lambda file: file.write(content))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8 like :func:`write_bytes`; line endings stay as they are."""
    write_bytes(path, text.encode())


def write_stream(
    path: str | os.PathLike[str],
    write: Callable[[BinaryIO], object],
    *,
    keep: str | os.PathLike[str] | None = None,
) -> None:
    """Write a file like :func:`write_bytes`, with a function that writes the content piece by piece.

    Args:
        path: file to write; an existing one is replaced.
        write: receives the open file.
        keep: new name of the file that stood at ``path``, in the same folder. Between two renames only this one exists.

    Raises:
        FileNotFoundError: the folder of ``path`` does not exist.
        OSError: the disk is full, the folder is read-only, and the like; it names ``path``.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: folder {path.parent} does not exist")
    # In the same folder, because a rename is atomic only within one file system. Without the file's own name, which
    # may be as long as names can be.
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            # else a rename may reach the disk before the content does
            _sync(file.fileno())
        if keep is not None:
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, keep)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):  # what went wrong first is what counts
            temporary.unlink(missing_ok=True)
        # an error without a number would lose its text
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)  # a full disk names no file, a read-only folder the temporary one
        raise


def remove_leftovers(folder: str | os.PathLike[str], *, age: float = 0) -> int:
    """Remove the temporary files that killed processes have left in a folder.

    Args:
        folder: where they are.
        age: seconds since the last change of those that are removed; with 0, nobody else may be writing there.

    Returns:
        Their size in bytes; 0 for a folder that does not exist.
    """
    size = 0
    with contextlib.suppress(FileNotFoundError):
        for entry in list(os.scandir(folder)):
            if not _LEFTOVER.fullmatch(entry.name):
                continue
            status = entry.stat(follow_symlinks=False)
            if age == 0 or time() - status.st_mtime > age:
                size += status.st_size
                os.unlink(entry)
    return size


def user_cache(name: str) -> Path | None:
    """Return the folder ``$XDG_CACHE_HOME/sr_models/name`` (``~/.cache`` by default), which need not exist.

    Returns:
        The folder; nothing for a user without a home.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return folder / "sr_models" / name


def _sync_folder(folder: Path) -> None:
    """Let the names in a folder reach the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def append_line(path: str | os.PathLike[str], line: str) -> None:
    """Append a line to a text file in UTF-8, which is created if needed; it has reached the disk afterwards."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        _sync(file.fileno())
