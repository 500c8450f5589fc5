"""Two checkpoints, one of which is intact whatever happens."""

from __future__ import annotations

import ctypes
import errno
import io
import math
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import FAILED, FAULTS, KILLED, FaultyFiles, count_calls, run_with_fault

from sr_models.io.files import remove_leftovers
from sr_models.training.checkpoints import Checkpoints, check_finite


def content(step: int, numbers: int = 40) -> dict[str, Any]:
    weights = {"weight": torch.full((numbers,), float(step)), "count": torch.tensor(step)}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(numbers)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
    return {"step": step, "description": "{}", "model": weights, "average": None, "optimizer": optimizer}


def step_of(checkpoint: dict[str, Any] | None) -> int:
    """Number of a checkpoint whose every part belongs to it."""
    assert checkpoint is not None
    step = checkpoint["step"]
    assert torch.equal(checkpoint["model"]["weight"], content(step)["model"]["weight"])
    assert checkpoint["model"]["count"] == step
    return step


def damaged(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


class TestWriting:
    def test_the_last_two_are_kept(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        assert checkpoints.newest() is None
        for step in (1, 2, 3):
            checkpoints.write(content(step))
        assert sorted(os.listdir(tmp_path / "checkpoints")) == ["last.ckpt", "previous.ckpt"]
        assert step_of(Checkpoints(tmp_path / "checkpoints").newest()) == 3
        os.replace(checkpoints.previous, checkpoints.last)
        assert step_of(Checkpoints(tmp_path / "checkpoints").newest()) == 2

    def test_all_values_come_back(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        given = {**content(5), "skipped": 3, "average": {"w": torch.ones(2, dtype=torch.bfloat16)}, "text": "naïve"}
        checkpoints.write(given)
        found = checkpoints.newest()
        assert found is not None
        assert found["format"] == 1
        assert found["optimizer"]["param_groups"] == given["optimizer"]["param_groups"]
        assert torch.equal(found["average"]["w"], given["average"]["w"])
        assert (found["skipped"], found["text"]) == (3, "naïve")
        assert checkpoints.notes == []

    @pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("part", ["model", "average", "optimizer"])
    def test_numbers_that_are_not_finite_replace_nothing(self, tmp_path: Path, part: str, number: float) -> None:
        checkpoints = Checkpoints(tmp_path)
        checkpoints.write(content(1))
        bad = {**content(2), part: {"good": torch.ones(2), "bad": [{"x": torch.tensor([0.0, number])}]}}
        message = rf"^no checkpoint is written at step 2: {part}: bad.0.x holds values that are not finite$"
        with pytest.raises(FloatingPointError, match=message):
            checkpoints.write(bad)
        assert os.listdir(tmp_path) == ["last.ckpt"]
        assert step_of(checkpoints.newest()) == 1

    def test_a_folder_that_has_vanished_is_named(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
        message = rf"^cannot write {checkpoints.last}: folder {tmp_path / 'run'} is gone$"
        with pytest.raises(FileNotFoundError, match=message):
            checkpoints.write(content(1))
        assert os.listdir(tmp_path) == []

    def test_an_interruption_is_not_hidden(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        checkpoints = Checkpoints(tmp_path)
        checkpoints.write(content(1))

        def interrupted(*_: object) -> int:
            raise KeyboardInterrupt

        monkeypatch.setattr(FaultyFiles, "reach", lambda self, name, *rest: name == "write" and interrupted())
        with FaultyFiles(tmp_path), pytest.raises(KeyboardInterrupt):
            checkpoints.write(content(2))
        assert os.listdir(tmp_path) == ["last.ckpt"]

    def test_a_full_disk_is_named(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        checkpoints.write(content(1))
        for at in range(count_calls(tmp_path, lambda: checkpoints.write(content(2)))):
            with FaultyFiles(tmp_path, at, "ENOSPC") as files, pytest.raises(OSError, match="No space left") as raised:
                checkpoints.write(content(2))
            if files.calls[at].startswith("write"):
                assert str(raised.value) == f"[Errno 28] No space left on device: '{checkpoints.last}'"


#: What stands in the folder, and the step that can be read.
SITUATIONS: dict[str, tuple[Callable[[Checkpoints], object], int]] = {
    "two": (lambda checkpoints: None, 2),
    "one": (lambda checkpoints: checkpoints.previous.unlink(), 2),
    "the newest is damaged": (lambda checkpoints: damaged(checkpoints.last), 1),
    "the older is damaged": (lambda checkpoints: damaged(checkpoints.previous), 2),
    "killed between the renames": (lambda checkpoints: checkpoints.last.unlink(), 1),
}


@pytest.fixture(params=SITUATIONS)
def situation(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, int]:
    checkpoints = Checkpoints(tmp_path / "before")
    for step in (1, 2):
        checkpoints.write(content(step))
    prepare, readable = SITUATIONS[request.param]
    prepare(checkpoints)
    return tmp_path / "before", readable


def go_on(folder: Path) -> None:
    """What a process does that goes on with a run, until it has replaced both checkpoints."""
    checkpoints = Checkpoints(folder)
    checkpoints.newest()
    for step in (3, 4):
        checkpoints.write(content(step))


@pytest.mark.parametrize("fault", FAULTS)
def test_an_intact_checkpoint_is_left_by_a_fault_at_any_call(situation: tuple[Path, int], fault: str) -> None:
    before, readable = situation
    folder = before.with_name("folder")
    shutil.copytree(before, folder)
    calls = count_calls(folder, lambda: go_on(folder))
    assert calls > 16  # the content goes out in pieces, and a fault falls into each of them
    codes, steps = [], []
    for number in range(calls + 1):
        shutil.rmtree(folder)
        shutil.copytree(before, folder)
        codes.append(run_with_fault(folder, lambda: go_on(folder), number, fault))
        steps.append(step_of(Checkpoints(folder).newest()))
        if codes[-1] != KILLED:
            assert not remove_leftovers(folder)
        # the next process goes on from there
        remove_leftovers(folder)
        checkpoints = Checkpoints(folder)
        checkpoints.newest()
        checkpoints.write(content(5))
        assert step_of(Checkpoints(folder).newest()) == 5
        assert set(os.listdir(folder)) <= {"last.ckpt", "previous.ckpt"}
    # until the last rename it is the one before, afterwards the new one
    assert set(steps) == {readable, 3, 4}
    assert steps == sorted(steps)
    assert codes == [KILLED if fault in ("kill", "power") else FAILED] * calls + [0]


def test_the_faults_find_a_writer_that_is_not_careful(tmp_path: Path) -> None:
    def in_place() -> None:
        (tmp_path / "x").write_bytes(b"new content")

    def unsynchronised() -> None:
        (tmp_path / "y").write_bytes(b"new content")
        os.replace(tmp_path / "y", tmp_path / "x")

    for fault, write in (("kill", in_place), ("full", in_place), ("power", unsynchronised)):
        found = set()
        (tmp_path / "x").write_bytes(b"old content")
        for number in range(count_calls(tmp_path, write)):
            (tmp_path / "x").write_bytes(b"old content")
            run_with_fault(tmp_path, write, number, fault)
            # what happens after the last call that is counted: the machine loses power before anything is synchronised
            found.add((tmp_path / "x").read_bytes())
        if write is in_place:
            assert found - {b"old content", b"new content"}, fault


class TestDamage:
    @pytest.mark.parametrize(
        ("damage", "reason"),
        [
            (lambda good: b"", "is empty"),
            (lambda good: good[: len(good) // 2], r"is damaged \(File is not a zip file\)"),
            (lambda good: good[:-1], "is damaged"),
            (lambda good: b"hello", r"is damaged \(File is not a zip file\)"),
            (lambda good: bytes(len(good)), r"is damaged \(File is not a zip file\)"),
            (lambda good: good.replace(bytes(32), b"\1" + bytes(31), 1), "is damaged"),
            (lambda good: archive({"a.txt": b"hello"}), "is damaged"),
            (lambda good: saved([1, 2]), "is no checkpoint of a training run"),
            (lambda good: saved({"weight": torch.ones(2)}), "is no checkpoint of a training run"),
            (
                lambda good: saved({**content(9), "format": 1, "x": os.system}),
                "holds more than tensors and plain values",
            ),
            (
                lambda good: saved({**content(9), "format": 1, "model": {"w": torch.tensor(math.nan)}}),
                r"is of no use \(model: w holds values that are not finite\)",
            ),
        ],
    )
    def test_the_previous_one_is_used_and_it_is_said_why(
        self, tmp_path: Path, damage: Callable[[bytes], bytes], reason: str
    ) -> None:
        checkpoints = Checkpoints(tmp_path)
        for step in (1, 2):
            checkpoints.write(content(step))
        bad = damage(checkpoints.last.read_bytes())
        checkpoints.last.write_bytes(bad)
        found = Checkpoints(tmp_path)
        assert step_of(found.newest()) == 1
        (note,) = found.notes
        assert "\n" not in note
        assert note.startswith("last.ckpt is ")
        assert note.endswith(f"; {checkpoints.previous} is used instead, of step 1")
        checkpoints.previous.write_bytes(bad)
        with pytest.raises(ValueError, match=reason) as raised:
            Checkpoints(tmp_path).newest()
        assert str(raised.value).startswith(f"no checkpoint in {tmp_path} can be read: last.ckpt is ")
        assert str(raised.value).endswith("; restore one of these files from a backup, or choose another folder")
        # nothing is changed by looking
        assert checkpoints.last.read_bytes() == checkpoints.previous.read_bytes() == bad

    def test_no_single_byte_goes_wrong_unnoticed(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        for step in (1, 2):
            checkpoints.write(content(step, numbers=2))
        good = checkpoints.last.read_bytes()
        for place in range(0, len(good), 7):
            bad = bytearray(good)
            bad[place] ^= 255
            checkpoints.last.write_bytes(bad)
            found = Checkpoints(tmp_path).newest()
            # bytes between the records and dates mean nothing
            assert found is not None
            assert found["step"] == 1 or torch.equal(found["model"]["weight"], torch.full((2,), 2.0)), place

    @pytest.mark.parametrize("length", range(0, 4000, 37))
    def test_no_length_is_taken_for_the_whole(self, tmp_path: Path, length: int) -> None:
        checkpoints = Checkpoints(tmp_path)
        for step in (1, 2):
            checkpoints.write(content(step, numbers=2))
        assert checkpoints.last.stat().st_size > 2000
        if length < checkpoints.last.stat().st_size:
            os.truncate(checkpoints.last, length)
            assert Checkpoints(tmp_path).newest()["step"] == 1

    def test_a_missing_last_one_is_said(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        for step in (1, 2):
            checkpoints.write(content(step))
        checkpoints.last.unlink()
        assert step_of(checkpoints.newest()) == 1
        assert checkpoints.notes == [f"last.ckpt is missing; {checkpoints.previous} is used instead, of step 1"]

    def test_a_copy_under_another_name_is_not_passed_over(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        checkpoints.write(content(1))
        os.replace(checkpoints.last, tmp_path / "best so far.ckpt")
        assert checkpoints.exist()
        with pytest.raises(ValueError, match=r"are missing; rename best so far.ckpt to .*last.ckpt to go on from it"):
            checkpoints.newest()

    @pytest.mark.parametrize("format", [None, 0, 2])
    def test_another_format_is_no_damage(self, tmp_path: Path, format: int | None) -> None:
        checkpoints = Checkpoints(tmp_path)
        checkpoints.write(content(1))
        checkpoints.write(content(2))
        torch.save({**content(2), "format": format}, checkpoints.last)
        with pytest.raises(ValueError, match=f"has format {format} and this version of sr_models reads 1"):
            checkpoints.newest()

    def test_a_checkpoint_of_lightning_is_recognised(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        torch.save({"pytorch-lightning_version": "2.6.6", "global_step": 3, "state_dict": {}}, checkpoints.last)
        with pytest.raises(ValueError, match=r"last.ckpt is a checkpoint of an earlier version of sr_models"):
            checkpoints.newest()

    @pytest.mark.parametrize(
        ("error", "is_damage"),
        [
            (OSError(errno.EIO, "Input/output error"), True),
            (OSError(errno.ESTALE, "Stale file handle"), False),
            (PermissionError(errno.EACCES, "Permission denied"), False),
            (MemoryError(), False),
            (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory"), False),
        ],
    )
    def test_a_file_that_may_be_intact_is_not_passed_over(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, is_damage: bool
    ) -> None:
        checkpoints = Checkpoints(tmp_path)
        for step in (1, 2):
            checkpoints.write(content(step))
        load = torch.load

        def failing(file: io.BufferedReader, **settings: Any) -> Any:
            if file.name == str(checkpoints.last):
                raise error
            return load(file, **settings)

        monkeypatch.setattr(torch, "load", failing)
        if is_damage:
            assert step_of(checkpoints.newest()) == 1
        else:
            with pytest.raises(type(error)):
                checkpoints.newest()


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        for name, data in files.items():
            opened.writestr(name, data)
    return buffer.getvalue()


class TestFinite:
    def test_finite_numbers_pass(self) -> None:
        tensors = [
            torch.ones(2),
            torch.tensor(3),
            torch.tensor([True]),
            torch.zeros(0),
            torch.ones(2, dtype=torch.half),
        ]
        check_finite({"a": tensors, "b": None, "c": math.nan, "d": "text"}, "x")

    def test_the_first_is_named_and_the_others_are_counted(self) -> None:
        bad = {
            "a": torch.ones(1),
            "b": (torch.tensor(math.nan), torch.tensor(complex(0, math.inf))),
            "c": torch.ones(1),
        }
        with pytest.raises(FloatingPointError, match=r"^x is not written: b.0 and 1 more tensors hold values that"):
            check_finite(bad, "x is not written")


def mount_small(folder: Path, size: int) -> bool:
    """Mount a file system in memory, which only this process sees; ``False`` where that is not allowed."""
    system = ctypes.CDLL(None, use_errno=True)
    new_mounts = 0x00020000
    private, recursive = 1 << 18, 1 << 14
    if system.unshare(new_mounts) or system.mount(b"none", b"/", None, private | recursive, None):
        return False
    return not system.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode())


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    skip = 77

    def fill() -> None:
        if not mount_small(tmp_path, 400_000):
            os._exit(skip)
        checkpoints = Checkpoints(tmp_path / "checkpoints")
        for step in (1, 2):
            checkpoints.write(content(step, numbers=10_000))
        free = os.statvfs(tmp_path)
        ballast = b"x" * (free.f_bavail * free.f_bsize - 40_000)
        (tmp_path / "ballast").write_bytes(ballast)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left") as raised:
                checkpoints.write(content(3, numbers=10_000))
            assert raised.value.filename == str(checkpoints.last)
            assert sorted(os.listdir(checkpoints.last.parent)) == ["last.ckpt", "previous.ckpt"]
        assert checkpoints.newest()["step"] == 2
        (tmp_path / "ballast").unlink()
        checkpoints.write(content(3, numbers=10_000))
        assert Checkpoints(tmp_path / "checkpoints").newest()["step"] == 3

    child = os.fork()
    if not child:
        code = 1
        try:
            fill()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == skip:
        pytest.skip("no file system can be mounted here")
    assert code == 0
