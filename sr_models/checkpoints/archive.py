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

from sr_models.checkpoints.pickles import damage_of_pickles

__all__ = ["describe_content", "is_state_dict", "read_archive"]

#: A file of torch before 1.6 begins with a magic number, a version, the machine, the content, and keys of its storages.
_OLD_PICKLES = 5
#: Bytes that a tensor may have more than its storage, as those that were expanded do.
_REPEATED = 2**20


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
        reason = None
        try:
            damage, readable = _looked_through(file)
            if not damage:
                content = torch.load(readable, map_location="cpu", weights_only=True)
                damage = _repeated(content)
            if not damage:
                return content
        except MemoryError:
            raise
        # torch reports broken and refused files with nearly every exception type there is
        except Exception as error:
            damage, reason = "", error
    damage = f": {damage}" if damage else ""
    raise ValueError(f"cannot read {path}: it is not a file of tensors alone that torch.save wrote{damage}") from reason


def _looked_through(file: BinaryIO) -> tuple[str, BinaryIO]:
    """Say what is seen to be wrong before anything is unpickled, and return what torch.load is to read."""
    archive = zipfile.is_zipfile(file)
    file.seek(0)
    start = file.read(4)
    file.seek(0)
    if not start:
        return "it is empty", file
    if archive or start.startswith(b"PK"):
        return _damage_of_archive(file), file
    # A file on disk makes room for as many bytes as a damaged length says, before it reads any.
    copy = io.BytesIO(file.read())
    damage = damage_of_pickles(copy, _OLD_PICKLES)
    copy.seek(0)
    return damage, copy


def _damage_of_archive(file: BinaryIO) -> str:
    """Say what is wrong with an archive, whose checksums and sizes torch.load itself does not look at."""
    try:
        with zipfile.ZipFile(file) as archive:
            held, size = sum(entry.file_size for entry in archive.infolist()), file.seek(0, os.SEEK_END)
            if held > size:
                return f"it unpacks to {held:,} bytes from {size:,}, but torch.save compresses nothing"
            if name := archive.testzip():
                return f"it is damaged (wrong checksum of {name})"
            pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
            return next(filter(None, (damage_of_pickles(io.BytesIO(archive.read(name))) for name in pickles)), "")
    # a damaged archive leads to errors of many types
    except Exception:
        return "it is cut short or damaged"
    finally:
        file.seek(0)


def _repeated(content: Any) -> str:
    """Name a large tensor that repeats few values, as a small file can do to ask for all memory; empty: none."""
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value
        elif isinstance(value, Tensor) and value.layout is torch.strided:
            held = value.untyped_storage().nbytes()
            if value.numel() * value.element_size() > held + _REPEATED:
                return f"a tensor of shape {tuple(value.shape)} repeats {held:,} bytes"
    return ""


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
