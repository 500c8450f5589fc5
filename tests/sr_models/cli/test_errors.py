"""Which errors are the user's, and what a line on standard error says of them."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from sr_models import cli
from sr_models.cli import main
from sr_models.cli._errors import users_error
from sr_models.training.stopping import SIGNALS, Stopped


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], int]:
    """Run a function as the command ``list``."""

    def run(action: Callable[[], object]) -> int:
        def command_line(*_: object) -> int:
            action()
            return 0

        monkeypatch.setattr(cli, "_run", command_line)
        return main(["list"])

    return run


def raising(error: BaseException) -> Callable[[], object]:
    def action() -> None:
        raise error

    return action


Command = Callable[[Callable[[], object]], int]


class TestExitCodes:
    @pytest.mark.parametrize("number", SIGNALS)
    def test_a_stopped_run_ends_with_its_signal(
        self, command: Command, capsys: pytest.CaptureFixture[str], number: int
    ) -> None:
        assert command(raising(Stopped(number, 12, "run"))) == 128 + number
        assert capsys.readouterr().err == "sr-models: stopped at step 12; the same command goes on\n"

    def test_an_interrupted_command(self, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
        assert command(raising(KeyboardInterrupt())) == 130
        assert capsys.readouterr().err == "sr-models: interrupted\n"

    def test_success(self, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
        assert command(lambda: None) == 0
        assert capsys.readouterr().err == ""


class TestUsersErrors:
    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (ValueError("two\n  lines"), "two lines"),
            (
                OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.ckpt"),
                "[Errno 28] No space left on device: 'x.ckpt'",
            ),
            (FloatingPointError("not finite"), "not finite"),
            (MemoryError(), "out of memory; choose a smaller batch_size, crop or tile"),
            (torch.OutOfMemoryError("CUDA out of memory."), "CUDA out of memory; choose a smaller batch_size"),
            (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "choose a smaller batch_size"),
            (
                RuntimeError("unable to open shared memory object </torch_1>"),
                "choose fewer workers or enlarge /dev/shm",
            ),
            (torch.distributed.DistNetworkError("The server socket has failed"), "failed; check MASTER_ADDR"),
        ],
    )
    def test_they_are_one_line(
        self, command: Command, capsys: pytest.CaptureFixture[str], error: Exception, message: str
    ) -> None:
        assert command(raising(error)) == 2
        printed = capsys.readouterr().err
        assert printed.startswith("sr-models: error: ")
        assert printed.count("\n") == 1
        assert message in printed

    @pytest.mark.parametrize(
        "error",
        [
            *(TypeError("x"), KeyError("x"), AttributeError("x"), AssertionError("x"), ZeroDivisionError("x")),
            *(RuntimeError("shapes do not fit"), NotImplementedError("x"), RecursionError("x")),
            ModuleNotFoundError("No module named 'sr_models.nonesuch'", name="sr_models.nonesuch"),
        ],
    )
    def test_bugs_keep_their_traceback(self, command: Command, error: Exception) -> None:
        with pytest.raises(type(error)):
            command(raising(error))

    @pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
    @pytest.mark.parametrize(
        ("accelerator", "message"),
        [("cuda", "CUDAAccelerator.*; choose another accelerator"), ("gpu", "No .*gpu.*; choose another accelerator")],
    )
    def test_a_missing_gpu(
        self, command: Command, capsys: pytest.CaptureFixture[str], accelerator: str, message: str
    ) -> None:
        assert command(lambda: Fabric(accelerator=accelerator, devices=1)) == 2
        assert re.fullmatch(f"sr-models: error: .*{message}.*\n", capsys.readouterr().err)


class Items(Dataset[int]):
    """Items whose worker process fails or dies at the third."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        if index == 2:
            if self.error is not None:
                raise self.error
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        return index


def message_of(error: Exception | None) -> str:
    """Return what is said of an error in a worker process; "None" for a bug.

    This happens in a process of its own: torch tells it from a signal handler that a worker was killed.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            list(DataLoader(Items(error), batch_size=1, num_workers=1))
        except Exception as raised:
            while True:
                with contextlib.suppress(RuntimeError):  # the signal may come just here
                    os.write(writing, str(users_error(raised)).encode())
                    break
        finally:
            os._exit(0)
    os.close(writing)
    message = os.read(reading, 2**16).decode()
    os.close(reading)
    os.waitpid(child, 0)
    return message


class TestWorkers:
    def test_a_killed_worker(self) -> None:
        # told by the system, by torch, or by a connection that ends: that depends on the moment
        for _ in range(5):
            message = message_of(None)
            assert "\n" not in message
            assert message.endswith("mostly for want of memory; choose fewer workers"), message

    @pytest.mark.parametrize("error", [ValueError("cannot read image x.png: truncated"), OSError("x.png: too short")])
    def test_the_error_of_a_worker_comes_without_its_traceback(self, error: Exception) -> None:
        assert message_of(error) == str(error)

    def test_a_bug_in_a_worker_stays_one(self) -> None:
        assert message_of(TypeError("x")) == "None"

    def test_a_connection_of_another_kind_is_told_as_it_is(self) -> None:
        assert users_error(ConnectionResetError(104, "Connection reset by peer")) == (
            "[Errno 104] Connection reset by peer"
        )


class TestProgressBars:
    @pytest.mark.parametrize("leave", [True, False])
    def test_the_error_stands_on_a_line_of_its_own(
        self, command: Command, monkeypatch: pytest.MonkeyPatch, leave: bool
    ) -> None:
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        bars: list[Any] = []

        def action() -> None:
            bars.append(tqdm(total=3, file=stream, mininterval=0, leave=leave, desc="Training"))
            bars[0].update()
            raise OSError("disk full")

        assert command(action) == 2
        printed = stream.getvalue()
        assert "Training" in printed
        # a bar that leaves nothing has overwritten its line with blanks
        assert printed.replace("\r", "\n").splitlines()[-1] == "sr-models: error: disk full"
        if leave:
            assert printed.splitlines()[-1] == "sr-models: error: disk full"

    def test_nothing_is_printed_where_there_is_no_bar(
        self, command: Command, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with tqdm(total=1):
            pass
        capsys.readouterr()
        assert command(raising(ValueError("x"))) == 2
        assert capsys.readouterr().err == "sr-models: error: x\n"
