"""A folder has one process at a time, and a dead one does not stand in the way."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sr_models.training.lock import FolderLock


def child(action: Callable[[], object]) -> int:
    """Start a process that ends with exit code 0, or 5 if the lock was refused."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            action()
            code = 0
        except BlockingIOError:
            code = 5
        finally:
            os._exit(code)
    return pid


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_the_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    lock = FolderLock(tmp_path)
    assert lock.path.stat().st_mode == (tmp_path / "usual").stat().st_mode
    lock.release()


def test_a_second_process_is_told_who_has_it(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    assert exit_code(child(lambda: FolderLock(tmp_path))) == 5
    with pytest.raises(BlockingIOError) as raised:
        FolderLock(tmp_path)
    message = str(raised.value)
    assert f"folder {tmp_path} is in use by process {os.getpid()} on {socket.gethostname()} since 2" in message
    assert "pytest" in message
    assert message.endswith("; wait until it ends, stop it, or choose another folder")
    lock.release()
    assert os.listdir(tmp_path) == []
    assert lock.notes == []
    lock.release()  # for the second time, without harm
    assert exit_code(child(lambda: FolderLock(tmp_path))) == 0


def test_a_killed_process_is_no_obstacle_nor_are_its_children(tmp_path: Path) -> None:
    reading, writing = os.pipe()

    def hold() -> None:
        lock = FolderLock(tmp_path)
        if not os.fork():  # a worker, which outlives its parent
            os.write(writing, str(os.getpid()).encode())
            time.sleep(600)
        assert lock
        time.sleep(600)

    holder = child(hold)
    worker = int(os.read(reading, 20))
    try:
        with pytest.raises(BlockingIOError, match=f"process {holder} on"):
            FolderLock(tmp_path)
        os.kill(holder, signal.SIGKILL)
        assert exit_code(holder) == -signal.SIGKILL
        os.kill(worker, 0)
        FolderLock(tmp_path).release()
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_child_that_ends_leaves_the_lock_to_its_parent(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    assert exit_code(child(lock.release)) == 0
    assert (tmp_path / ".lock").exists()
    with pytest.raises(BlockingIOError):
        FolderLock(tmp_path)
    lock.release()


def test_of_many_at_the_same_instant_one_has_it(tmp_path: Path) -> None:
    for _ in range(10):
        reading, writing = os.pipe()

        def take(start: int = reading, end: int = writing) -> None:
            os.close(end)
            os.read(start, 1)  # until all can go
            FolderLock(tmp_path)
            time.sleep(600)

        children = {child(take) for _ in range(4)}
        os.close(writing)
        refused = [os.wait() for _ in range(3)]
        (holder,) = children - {pid for pid, _ in refused}
        os.kill(holder, signal.SIGKILL)
        assert [os.waitstatus_to_exitcode(status) for _, status in refused] == [5, 5, 5]
        assert exit_code(holder) == -signal.SIGKILL
        os.close(reading)


def test_a_file_that_its_holder_removes_in_between_is_not_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def flock_a_moment_later(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        (tmp_path / ".lock").unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock_a_moment_later)
    lock = FolderLock(tmp_path)
    assert exit_code(child(lambda: FolderLock(tmp_path))) == 5
    lock.release()
    assert os.listdir(tmp_path) == []


def test_taking_and_releasing_in_turn_never_lets_two_in(tmp_path: Path) -> None:
    # a released lock's file is removed: whoever has opened the old file must not take it for the lock
    (tmp_path / "folder").mkdir()
    inside = tmp_path / "inside"

    def take() -> None:
        done = 0
        while done < 30:
            try:
                lock = FolderLock(tmp_path / "folder")
            except BlockingIOError:
                continue
            with inside.open("x"):
                pass
            inside.unlink()
            lock.release()
            done += 1

    assert [exit_code(pid) for pid in [child(take) for _ in range(3)]] == [0, 0, 0]


def test_a_lock_file_without_an_owner_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = FolderLock(tmp_path)
    os.truncate(tmp_path / ".lock", 0)
    monkeypatch.setattr(time, "sleep", lambda _: (tmp_path / ".lock").write_text('{"pid": 12, "host": "else'))
    with pytest.raises(BlockingIOError, match="is in use by another process; wait until it ends"):
        FolderLock(tmp_path)
    monkeypatch.setattr(time, "sleep", lambda _: (tmp_path / ".lock").write_text('{"pid": 12, "host": "elsewhere"}'))
    with pytest.raises(BlockingIOError, match=r"process 12 on elsewhere since \? \(\?\); wait until it ends"):
        FolderLock(tmp_path)
    lock.release()


def test_a_full_disk_hinders_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    lock = FolderLock(tmp_path)
    assert exit_code(child(lambda: FolderLock(tmp_path))) == 5
    lock.release()


def test_a_folder_that_vanishes_is_released(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    lock = FolderLock(tmp_path / "run")
    (tmp_path / "run" / ".lock").unlink()
    (tmp_path / "run").rmdir()
    lock.release()


class TestWithoutLocks:
    @pytest.fixture(params=[errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK], autouse=True)
    def no_locks(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        def flock(descriptor: int, operation: int) -> None:
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(fcntl, "flock", flock)

    def test_it_is_said(self, tmp_path: Path) -> None:
        lock = FolderLock(tmp_path)
        assert lock.notes == [
            f"the file system of {tmp_path} has no locks: a process of another machine that trains in this folder at "
            "the same time would not be noticed"
        ]
        lock.release()
        assert os.listdir(tmp_path) == []

    def test_a_living_process_of_this_machine_is_found(self, tmp_path: Path) -> None:
        def hold() -> None:
            FolderLock(tmp_path)
            time.sleep(600)

        holder = child(hold)
        try:
            while not (tmp_path / ".lock").exists() or not (tmp_path / ".lock").read_bytes():
                time.sleep(0.01)
            with pytest.raises(BlockingIOError, match=f"is in use by process {holder} on"):
                FolderLock(tmp_path)
        finally:
            os.kill(holder, signal.SIGKILL)
            os.waitpid(holder, 0)
        FolderLock(tmp_path).release()

    @pytest.mark.parametrize("owner", ["", "[]", '{"pid": "x"}', json.dumps({"pid": 1, "host": "elsewhere"})])
    def test_what_cannot_be_told_is_no_obstacle(self, tmp_path: Path, owner: str) -> None:
        (tmp_path / ".lock").write_text(owner)
        FolderLock(tmp_path).release()


def test_other_errors_are_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        FolderLock(tmp_path / "none")

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error"):
        FolderLock(tmp_path)
