"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import time
import weakref
from datetime import datetime
from pathlib import Path
from typing import Any

__all__ = ["FolderLock"]

#: What ``flock`` says on file systems that have no locks, or whose lock daemon does not run.
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL}
#: Characters of the command that are stored.
_COMMAND = 300


class FolderLock:
    """Keep other processes out of a folder, from construction to :meth:`release` or the end of this process.

    The lock is the system's (``flock`` on the file ``.lock``), so that a killed process leaves nothing behind that
    stands in the way. It holds across the machines of a network file system. The file says who has it.

    A file system without locks is noticed. There only a living process of the same machine is found, which
    ``notes`` says.

    Args:
        folder: exists.

    Attributes:
        notes: what the user should be told.

    Raises:
        BlockingIOError: another process has the folder; the message names its number, machine, start and command.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        self.notes: list[str] = []
        self._descriptor = self._acquire()
        _OPEN.add(self)
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now(), "command": shlex.join(sys.argv)}
        owner["command"] = str(owner["command"])[:_COMMAND]
        with contextlib.suppress(OSError):  # on a full disk the lock holds, but does not say whose it is
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(owner).encode(), 0)

    def _acquire(self) -> int:
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise self._in_use(self._owner(patience=1.0)) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    os.close(descriptor)
                    raise
                owner = self._owner(patience=0.0)
                if owner and _lives(owner):
                    os.close(descriptor)
                    raise self._in_use(owner) from None
                self.notes.append(
                    f"the file system of {self.path.parent} has no locks: a process of another machine that trains in "
                    "this folder at the same time would not be noticed"
                )
                return descriptor
            if self._is_at_its_path(descriptor):
                return descriptor
            os.close(descriptor)  # its last holder removed the file in between, and a new one may stand there

    def release(self) -> None:
        """Let others in. The file is removed."""
        if self._descriptor < 0:
            return
        _OPEN.discard(self)
        with contextlib.suppress(OSError):  # the folder may have vanished
            if self._is_at_its_path(self._descriptor):
                self.path.unlink()
        self._close()

    def _close(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1

    def _is_at_its_path(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    def _owner(self, patience: float) -> dict[str, Any] | None:
        """Read who has the lock; the file is empty for an instant after the lock was taken."""
        end = time.monotonic() + patience
        while True:
            with contextlib.suppress(OSError, ValueError):
                owner = json.loads(self.path.read_bytes())
                if isinstance(owner, dict):
                    return owner
            if time.monotonic() >= end:
                return None
            time.sleep(0.02)

    def _in_use(self, owner: dict[str, Any] | None) -> BlockingIOError:
        who = "another process"
        if owner:
            who = "process {} on {} since {} ({})".format(
                *(owner.get(key, "?") for key in ("pid", "host", "since", "command"))
            )
        return BlockingIOError(
            f"folder {self.path.parent} is in use by {who}; wait until it ends, stop it, or choose another folder"
        )


def _lives(owner: dict[str, Any]) -> bool:
    """Tell whether a process of this machine exists and is another one than this."""
    pid = owner.get("pid")
    if owner.get("host") != socket.gethostname() or not isinstance(pid, int) or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user, and alive
        pass
    return True


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


#: Locks that this process holds. A forked child, such as one that loads data, must not keep them when its parent dies.
_OPEN: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _close_inherited() -> None:
    for lock in list(_OPEN):
        lock._close()
    _OPEN.clear()


os.register_at_fork(after_in_child=_close_inherited)
