"""Files appear complete or not at all, with the permissions of any new file."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from faults import KILLED, FaultyFiles, run_with_fault

from sr_models.io.files import remove_leftovers, write_bytes, write_stream, write_text


@pytest.mark.parametrize("content", [b"", b"\x00\xff" * 1000, b"a\r\nb\n"])
def test_bytes_come_back(tmp_path: Path, content: bytes) -> None:
    write_bytes(tmp_path / "a", b"what stood here before, and is longer than any of these")
    write_bytes(str(tmp_path / "a"), content)
    assert (tmp_path / "a").read_bytes() == content
    assert os.listdir(tmp_path) == ["a"]


def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, mode: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OSError, match=r"Read-only file system: '.*/a'$"):
        write_bytes(tmp_path / "a", b"content")


def test_text_is_written_as_it_is_in_utf_8(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "naïve\r\né\n")
    assert (tmp_path / "a").read_bytes() == "naïve\r\né\n".encode()


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_permissions_are_those_of_any_new_file(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "a", b"content")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


def test_a_name_may_be_as_long_as_names_can_be(tmp_path: Path) -> None:
    path = tmp_path / ("a" * os.pathconf(tmp_path, "PC_NAME_MAX"))
    write_bytes(path, b"content")
    assert path.read_bytes() == b"content"


def test_the_content_reaches_the_disk_before_the_rename_and_the_name_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        calls.append("folder" if stat.S_ISDIR(status.st_mode) else f"{status.st_size} bytes")
        fsync(descriptor)

    def recorded_replace(source: Path, target: Path) -> None:
        assert source.parent == target.parent
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    write_bytes(tmp_path / "a", b"content")
    assert calls == ["7 bytes", "rename", "folder"]


def test_a_reader_sees_a_whole_file_always(tmp_path: Path) -> None:
    contents = [bytes([value]) * 300_000 for value in range(4)]
    write_bytes(tmp_path / "a", contents[0])
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for content in contents:
                write_bytes(tmp_path / "a", content)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert all((tmp_path / "a").read_bytes() in contents for _ in range(200))
    finally:
        stop.set()
        thread.join()


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"old")
    # a limit on the size of files fails in the middle of the content, as a full disk does
    code = (
        "import resource, sys; from sr_models.io.files import write_bytes\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_bytes(sys.argv[1], bytes(100_000))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True, check=False
    )
    assert "OSError: [Errno 27] File too large" in result.stderr
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"cannot write {tmp_path}/no/a: folder {tmp_path}/no does not exist"):
        write_text(tmp_path / "no" / "a", "")


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    with FaultyFiles(tmp_path, 1, "full") as files, pytest.raises(OSError, match="No space left") as raised:
        write_bytes(tmp_path / "a", b"content")
    assert files.calls[1].startswith("write")
    assert raised.value.filename == str(tmp_path / "a")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_cannot_synchronise_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    write_bytes(tmp_path / "a", b"content")
    assert (tmp_path / "a").read_bytes() == b"content"


def test_what_failed_first_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "unlink", fail)
    with pytest.raises(ZeroDivisionError):
        write_stream(tmp_path / "a", lambda file: 1 / 0)


def test_the_former_file_can_be_kept(tmp_path: Path) -> None:
    for content in (b"1", b"2", b"3"):
        write_stream(tmp_path / "a", lambda file, content=content: file.write(content), keep=tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == b"3"
    assert (tmp_path / "b").read_bytes() == b"2"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    for at in (2, 3):
        assert run_with_fault(tmp_path, lambda: write_bytes(tmp_path / "a", b"content"), at, "kill") == KILLED
    for name in (".x.tmp", f"{'0' * 32}.tmp", f".{'0' * 32}.tmp.png"):
        (tmp_path / name).write_bytes(b"mine")
    assert len(os.listdir(tmp_path)) == 5
    assert remove_leftovers(tmp_path) == 14
    assert sorted(os.listdir(tmp_path)) == sorted([".x.tmp", f"{'0' * 32}.tmp", f".{'0' * 32}.tmp.png"])
    assert remove_leftovers(tmp_path / "none") == 0


def test_only_old_leftovers_are_removed_where_others_write(tmp_path: Path) -> None:
    old, new = (tmp_path / f".{digit * 32}.tmp" for digit in "01")
    for path in (old, new):
        path.write_bytes(b"content")
    os.utime(old, (new.stat().st_mtime - 100,) * 2)
    assert remove_leftovers(tmp_path, age=1000) == 0
    assert remove_leftovers(tmp_path, age=50) == 7
    assert os.listdir(tmp_path) == [new.name]
