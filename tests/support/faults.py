"""Disks that fill up, break or lose power, and processes that are killed, at any one of the calls that change files.

A test runs an action in a forked process, once for each of its calls, with a fault in place of that call::

    for number in range(count_calls(folder, action)):
        restore(folder)
        run_with_fault(folder, action, number, "kill")
        assert is_intact(folder)
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["FAILED", "FAULTS", "KILLED", "FaultyFiles", "count_calls", "run_with_fault"]

#: What can happen at a call. "kill": the process is killed before it, or in the middle of a write. "power": so is the
#: machine, and what was written but not yet synchronised is lost. "full": the disk is full from then on. Others: the
#: call fails, once.
FAULTS = ("kill", "power", "full", "EIO", "EPERM", "ENOSPC")

#: Results of run_with_fault: the action ended with an OSError, or the process was killed. 0: it ended well.
FAILED, KILLED = 3, -signal.SIGKILL

_CHANGING = ("replace", "rename", "unlink", "remove", "mkdir", "rmdir", "link", "symlink", "truncate")
_BUFFER = 512
#: Calls that need no room on a disk.
_FREEING = ("replace", "rename", "unlink", "remove", "rmdir", "close")


class FaultyFiles:
    """Within the ``with`` block, count the calls that change files below a folder, and let one of them go wrong.

    Seen are Python's own: ``open`` for writing and what is written to it, ``os.fsync``, ``os.replace`` and the like.
    Files that C libraries write by themselves are not.

    Args:
        folder: everything elsewhere is left alone.
        at: number of the call that goes wrong, from 0 on; ``None``: none does.
        fault: one of :data:`FAULTS`.

    Attributes:
        calls: names of the calls so far, with the names of their files.
    """

    def __init__(self, folder: str | os.PathLike[str], at: int | None = None, fault: str = "kill") -> None:
        assert fault in FAULTS, fault
        self.folder = os.path.realpath(folder)
        self.at, self.fault = at, fault
        self.calls: list[str] = []
        self._unsynced: dict[int, int] = {}  # inode -> size that has reached the disk
        self._former: list[tuple[Any, str, Any]] = []
        self._lock = threading.RLock()

    def __enter__(self) -> FaultyFiles:
        for name in _CHANGING:
            self._patch(os, name, self._changing(name, getattr(os, name)))
        for name in ("fsync", "fdatasync", "ftruncate", "pwrite", "write"):
            self._patch(os, name, self._on_descriptor(name, getattr(os, name)))
        self._patch(os, "open", self._opening_descriptor(os.open))
        opening = self._opening(io.open)
        self._patch(io, "open", opening)
        self._patch(builtins, "open", opening)
        return self

    def __exit__(self, *_: object) -> None:
        while self._former:
            setattr(*self._former.pop())

    def _patch(self, module: Any, name: str, replacement: Any) -> None:
        self._former.append((module, name, getattr(module, name)))
        setattr(module, name, replacement)

    def reach(self, name: str, path: object, halfway: Callable[[], object] = lambda: None) -> None:
        """Count a call, and let it go wrong if its turn has come; ``halfway`` does a part of it first."""
        with self._lock:
            number = len(self.calls)
            self.calls.append(f"{name} {os.path.basename(str(path))}")
            if self.at is None or number < self.at:
                return
            if number > self.at:
                if self.fault == "full" and name not in _FREEING:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return
            if self.fault == "full" and name in _FREEING:
                return
            halfway()
            if self.fault in ("kill", "power"):
                if self.fault == "power":
                    self._lose_power()
                os.kill(os.getpid(), signal.SIGKILL)
            number = getattr(errno, "ENOSPC" if self.fault == "full" else self.fault)
            raise OSError(number, os.strerror(number))

    def _lose_power(self) -> None:
        at, self.at = self.at, None
        for parent, _, names in os.walk(self.folder):
            for name in names:
                path = os.path.join(parent, name)
                if (size := self._unsynced.get(os.stat(path).st_ino)) is not None:
                    os.truncate(path, size)
        self.at = at

    def _inside(self, path: Any) -> bool:
        if isinstance(path, int):
            path = f"/proc/self/fd/{path}"
        try:
            parent, name = os.path.split(os.path.abspath(os.fspath(path)))
            found = (
                os.path.realpath(path) if parent.startswith("/proc/") else os.path.join(os.path.realpath(parent), name)
            )
        except TypeError:
            return False
        return os.fsdecode(found).startswith(self.folder)

    def _wrote(self, descriptor: int, before: int) -> None:
        self._unsynced.setdefault(os.fstat(descriptor).st_ino, before)

    def _changing(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def changing(path: Any, *args: Any, **kwargs: Any) -> Any:
            if self._inside(path):
                self.reach(name, path)
            return original(path, *args, **kwargs)

        return changing

    def _on_descriptor(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def on_descriptor(descriptor: int, *args: Any) -> Any:
            if self._inside(descriptor):
                self.reach(name, os.readlink(f"/proc/self/fd/{descriptor}"))
                status = os.fstat(descriptor)
                if "sync" in name:
                    self._unsynced.pop(status.st_ino, None)
                else:
                    self._wrote(descriptor, status.st_size)
            return original(descriptor, *args)

        return on_descriptor

    def _opening_descriptor(self, original: Callable[..., int]) -> Callable[..., int]:
        def opening(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & (os.O_CREAT | os.O_TRUNC) and self._inside(path):
                self.reach("open", path)
            return original(path, flags, *args, **kwargs)

        return opening

    def _opening(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def opening(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not set(mode) & set("wax+") or isinstance(file, int) or not self._inside(file):
                return original(file, mode, *args, **kwargs)
            self.reach("open", file)
            if "b" not in mode:
                return original(file, mode, *args, **kwargs)
            opened = _FaultyFile(file, mode.replace("b", ""))
            opened.faults = self
            # a small buffer, so that small files too are written in several pieces
            return (io.BufferedRandom if "+" in mode else io.BufferedWriter)(opened, _BUFFER)

        return opening


class _FaultyFile(io.FileIO):
    """A file each of whose writes may go wrong half-way."""

    faults: FaultyFiles

    def write(self, piece: Any) -> int:
        piece = memoryview(piece).cast("B")
        self.faults._wrote(self.fileno(), os.fstat(self.fileno()).st_size)
        self.faults.reach("write", self.name, lambda: super(_FaultyFile, self).write(piece[: len(piece) // 2]))
        done = 0
        while done < len(piece):
            done += super().write(piece[done:])
        return done


def run_with_fault(folder: str | os.PathLike[str], action: Callable[[], object], at: int | None, fault: str) -> int:
    """Run an action in a forked process, with a fault at one of its calls.

    Returns:
        0: the action ended well. :data:`FAILED`: with an ``OSError``. :data:`KILLED`: not at all.
    """
    child = os.fork()
    if not child:
        code = 1
        try:
            with FaultyFiles(folder, at, fault):
                action()
            code = 0
        except OSError:
            code = FAILED
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, FAILED, KILLED), f"the action ended with an error that is no OSError (exit code {code})"
    return code


def count_calls(folder: str | os.PathLike[str], action: Callable[[], object]) -> int:
    """Count the calls of an action that change files; the action is done, in this process."""
    with FaultyFiles(Path(folder)) as files:
        action()
    return len(files.calls)
