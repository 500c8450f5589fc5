"""Files appear complete or not at all, with the permissions of any new file."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sr_models.io.files import write_bytes, write_text


@pytest.mark.parametrize("content", [b"", b"\x00\xff" * 1000, b"a\r\nb\n"])
def test_bytes_come_back(tmp_path: Path, content: bytes) -> None:
    write_bytes(tmp_path / "a", b"what stood here before, and is longer than any of these")
    write_bytes(str(tmp_path / "a"), content)
    assert (tmp_path / "a").read_bytes() == content
    assert os.listdir(tmp_path) == ["a"]


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
