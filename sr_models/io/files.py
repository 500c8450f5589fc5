"""Files that appear complete or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

__all__ = ["append_line", "write_bytes", "write_text"]


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
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: folder {path.parent} does not exist")
    # In the same folder, because a rename is atomic only within one file system. Without the file's own name, which
    # may be as long as names can be.
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            # else a rename may reach the disk before the content does
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8 like :func:`write_bytes`; line endings stay as they are."""
    write_bytes(path, text.encode())


def append_line(path: str | os.PathLike[str], line: str) -> None:
    """Append a line to a text file in UTF-8, which is created if needed; it has reached the disk afterwards."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())
