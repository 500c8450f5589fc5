"""Checkpoints of a training run: the last two, at least one of which is intact whatever happens."""

from __future__ import annotations

import errno
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from sr_models.io.files import write_stream

__all__ = ["FORMAT", "Checkpoints", "check_finite"]

#: Version of the content of a checkpoint.
FORMAT = 1


class Checkpoints:
    """The last two checkpoints of a run: ``last.ckpt`` and, of the time before, ``previous.ckpt``.

    A checkpoint is written beside its target, reaches the disk and is then renamed. ``last.ckpt`` becomes
    ``previous.ckpt`` in between, unless it is damaged. So a full disk, a loss of power or a killed process leaves the
    new checkpoint or the one before it.

    Args:
        folder: of the two files; :meth:`write` makes it if only the folder itself is missing.

    Attributes:
        notes: what the user should be told: which file is damaged and why.
    """

    def __init__(self, folder: Path) -> None:
        self.last, self.previous = folder / "last.ckpt", folder / "previous.ckpt"
        self.notes: list[str] = []
        # only a file that was read or written here may take the place of previous.ckpt
        self._last_is_intact = False

    def exist(self) -> bool:
        """Tell whether the folder holds a checkpoint, intact or not, under whatever name."""
        return any(self.last.parent.glob("*.ckpt"))

    def write(self, content: dict[str, Any]) -> None:
        """Write a checkpoint.

        Args:
            content: by :func:`torch.save`, without classes of its own. It holds ``step``; the tensors in ``model``,
                ``average`` and ``optimizer`` must be finite.

        Raises:
            FloatingPointError: a tensor that is not finite; nothing is written.
            OSError: the disk is full, the folder has vanished, and the like; the former checkpoint stays.
        """
        for part in ("model", "average", "optimizer"):
            check_finite(content.get(part), f"no checkpoint is written at step {content['step']}: {part}")
        if not self.last.parent.is_dir():
            if not self.last.parent.parent.is_dir():
                raise FileNotFoundError(f"cannot write {self.last}: folder {self.last.parent.parent} is gone")
            self.last.parent.mkdir()
        keep = self.previous if self._last_is_intact else None
        write_stream(self.last, lambda file: _save({"format": FORMAT, **content}, file), keep=keep)
        self._last_is_intact = True

    def newest(self) -> dict[str, Any] | None:
        """Read the newest checkpoint that is intact.

        Returns:
            Its content with tensors on the CPU; ``None`` if there is no checkpoint at all.

        Raises:
            ValueError: checkpoints that are all damaged, or of another version.
            OSError: a file that is there but cannot be read, for instance without permission.
        """
        damages = []
        for path in (self.last, self.previous):
            try:
                content = _load(path)
            except FileNotFoundError:
                continue
            except _Damage as damage:
                damages.append(f"{path.name} {damage}")
                continue
            self._last_is_intact = path == self.last
            if path == self.previous:
                why = damages[0] if damages else f"{self.last.name} is missing"
                self.notes.append(f"{why}; {self.previous} is used instead, of step {content['step']}")
            return content
        if damages:
            raise ValueError(
                f"no checkpoint in {self.last.parent} can be read: {'; '.join(damages)}; "
                "restore one of these files from a backup, or choose another folder"
            )
        for path in sorted(self.last.parent.glob("*.ckpt")):
            raise ValueError(
                f"{self.last} and {self.previous.name} are missing; rename {path.name} to {self.last.name} to go on "
                "from it, or choose another folder"
            )
        return None


def check_finite(tensors: Any, what: str) -> None:
    """Raise unless all numbers are finite, so that a file of good weights is never replaced by one of bad ones.

    Args:
        tensors: tensors in dicts, lists and tuples of any depth; everything else is left alone.
        what: begins the message: the file that is not written.

    Raises:
        FloatingPointError: a tensor holds NaN or an infinity; the first one is named.
    """
    bad = [name for name, tensor in _tensors(tensors, "") if not _is_finite(tensor)]
    if bad:
        more = f" and {len(bad) - 1} more tensors hold" if len(bad) > 1 else " holds"
        raise FloatingPointError(f"{what}: {bad[0]}{more} values that are not finite")


class _Damage(Exception):
    """A file that is no intact checkpoint; the message continues a sentence that begins with its name."""


def _load(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = _read(file)
    except (_Damage, MemoryError):
        raise
    except pickle.UnpicklingError as error:  # whose text advises to load the file without care
        raise _Damage("is no checkpoint (it holds more than tensors and plain values)") from error
    except OSError as error:
        # EINVAL: a damaged archive may point to a place before its own beginning
        if error.errno not in (errno.EIO, errno.EINVAL):
            raise
        raise _Damage("is damaged (its content cannot be read)") from error
    except Exception as error:
        if isinstance(error, RuntimeError) and "memory" in str(error):
            raise  # torch's kind of MemoryError: the file may be intact
        raise _Damage(f"is damaged ({str(error).splitlines()[0] if str(error) else type(error).__name__})") from error
    if isinstance(content, dict) and "pytorch-lightning_version" in content:
        raise ValueError(
            f"{path} is a checkpoint of an earlier version of sr_models, which this version cannot go on with; "
            "choose another folder, or finish the run with the version that began it"
        )
    if not isinstance(content, dict) or not isinstance(content.get("step"), int):
        raise _Damage("is no checkpoint of a training run")
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {content.get('format')!r} and this version of sr_models reads {FORMAT}; "
            "go on with the version that wrote it"
        )
    try:
        for part in ("model", "average", "optimizer"):
            check_finite(content.get(part), part)
    except FloatingPointError as error:
        raise _Damage(f"is of no use ({error})") from error
    return content


def _read(file: BinaryIO) -> Any:
    if not file.read(1):
        raise _Damage("is empty")
    # torch.load finds its way by the names in the archive and never looks at the check sums
    with zipfile.ZipFile(file) as archive:
        if (name := archive.testzip()) is not None:
            raise _Damage(f"is damaged (wrong check sum of {name})")
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def _save(content: dict[str, Any], file: BinaryIO) -> None:
    """Call :func:`torch.save`, and raise what the file raised: torch hides a full disk behind an error of its own."""
    sink = _Sink(file)
    try:
        torch.save(content, sink)  # type: ignore[arg-type]
    except RuntimeError:
        if sink.error is None:
            raise
    if sink.error is not None:
        raise sink.error


class _Sink:
    """A file that remembers why it could not be written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: BaseException | None = None

    def write(self, piece: bytes) -> int:
        try:
            return self.file.write(piece)
        except BaseException as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _tensors(value: Any, name: str) -> list[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        return [(name, value)]
    if isinstance(value, Mapping):
        entries = list(value.items())
    elif isinstance(value, (list, tuple)):
        entries = list(enumerate(value))
    else:
        return []
    return [found for key, entry in entries for found in _tensors(entry, f"{name}.{key}" if name else str(key))]


def _is_finite(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex()) or bool(tensor.isfinite().all())
