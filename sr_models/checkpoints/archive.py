"""Files that ``torch.save`` wrote, read without running anything that they may contain."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

__all__ = ["describe_content", "is_state_dict", "read_archive"]


def read_archive(path: str | os.PathLike[str]) -> Any:
    """Read tensors and plain values that ``torch.save`` wrote, onto the CPU.

    Raises:
        FileNotFoundError: no such file.
        OSError: a file that may not be read.
        ValueError: a file that is empty, damaged, not of ``torch.save``, or that holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"model file {path} does not exist")
    # opened here, so that a file that may not be read is not taken for a damaged one
    with path.open("rb") as file:
        damage = _damage(file)
        try:
            if not damage:
                return torch.load(_bounded(file), map_location="cpu", weights_only=True)
            reason: Exception | None = None
        except MemoryError:
            raise
        # torch reports broken and refused files with nearly every exception type there is
        except Exception as error:
            reason = error
    raise ValueError(f"cannot read {path}: it is not a file of tensors alone that torch.save wrote{damage}") from reason


def _bounded(file: BinaryIO) -> BinaryIO:
    """Return a file whose lengths are believed only as far as it goes, for pickles outside an archive.

    A file on disk makes room for as many bytes as a damaged length says, before it reads any.
    """
    archive = zipfile.is_zipfile(file)
    file.seek(0)
    return file if archive else io.BytesIO(file.read())


def _damage(file: BinaryIO) -> str:
    """Say what is seen to be damaged before anything is unpickled; torch.load itself looks at no checksum."""
    start = file.read(4)
    if not start:
        return ": it is empty"
    if not start.startswith(b"PK"):
        return ""
    try:
        with zipfile.ZipFile(file) as archive:
            name = archive.testzip()
    # a damaged archive leads to errors of many types
    except Exception:
        return ": it is cut short or damaged"
    return f": it is damaged (wrong checksum of {name})" if name else ""


def is_state_dict(content: Any) -> bool:
    """Tell whether a content is a dict of tensors by name that is not empty."""
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )


def describe_content(content: Any, most: int = 4) -> str:
    """Say in a few words what a file holds: the first entries of a dict, and how many more there are."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    if not content:
        return "an empty dict"
    entries = [f"{name!r} ({_kind(value)})" for name, value in list(content.items())[:most]]
    more = f" and {len(content) - most} more" if len(content) > most else ""
    return f"{', '.join(entries)}{more}"


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a dict of {len(value)}{_tensors(value)}"
    return type(value).__name__


def _tensors(value: Mapping[Any, Any]) -> str:
    return f" tensor{'s' if len(value) > 1 else ''}" if is_state_dict(value) else ""
