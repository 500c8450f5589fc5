"""``sr-models study`` in a process of its own, and ``sr-models study results``."""

# fixtures are imported, and are arguments of the same names
# ruff: noqa: F811

from __future__ import annotations

import contextlib
import csv
import http.client
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from processes import PATIENCE
from tests_of_studies import METHODS, Client, folders, study  # noqa: F401

from sr_models.cli import main
from sr_models.study.database import Database
from sr_models.study.serving import listen


def options(folders: Path, database: Path) -> list[str]:
    methods = [option for name in METHODS for option in ("--method", f"{name}={folders / name}")]
    return ["study", "--images", str(folders / "truth"), *methods, "--database", str(database)]


@contextlib.contextmanager
def server(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run the command until it has printed an address; yields the process and the port."""
    command = [sys.executable, "-m", "sr_models.cli", *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            port = 0
            while not port and (line := process.stdout.readline()):
                port = int(found[1]) if (found := re.search(r"http://127\.0\.0\.1:(\d+)/", line)) else 0
            assert port, process.communicate(timeout=PATIENCE)[1]
            yield process, port
        finally:
            process.kill()


def test_no_answer_is_lost_when_the_server_is_killed(folders: Path, tmp_path: Path) -> None:
    """Ten raters answer until the server dies by SIGKILL, and go on after a restart that takes --database alone."""
    database = tmp_path / "study.db"
    acknowledged: set[tuple[str, int]] = set()
    enough = threading.Event()

    def rate(name: str, port: int) -> None:
        # a connection that breaks, or an answer that breaks off
        with contextlib.suppress(OSError, http.client.HTTPException):
            rater = Client(port, name)
            for task in range(4):
                if rater.task(task)["revision"]:
                    assert (name, task) in acknowledged
                elif rater.answer(task, [2, 0, 1])[0] == 200:
                    acknowledged.add((name, task))
                if len(acknowledged) >= 15:
                    enough.set()

    names = [f"rater{number}" for number in range(10)]
    with server(*options(folders, database), "--port", "0") as (process, port):
        with ThreadPoolExecutor(10) as pool:
            running = [pool.submit(rate, name, port) for name in names]
            assert enough.wait(PATIENCE)
            process.kill()
            [future.result() for future in running]
        assert process.wait(PATIENCE) == -signal.SIGKILL
    killed_after = len(acknowledged)
    with server("study", "--database", str(database), "--port", str(port)) as (process, again):
        assert again == port
        stored = {
            (rater.name, task) for rater in map_raters(database) for task in tasks_answered(Client(port, rater.name))
        }
        assert stored >= acknowledged
        # an answer may be stored whose acknowledgement the kill has swallowed
        assert len(stored) <= killed_after + 10
        acknowledged |= stored
        with ThreadPoolExecutor(10) as pool:
            list(pool.map(lambda name: rate(name, port), names))
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, errors) == (0, "")
    assert output.splitlines()[-1] == f"stopped; 40 answers are in {database}"
    assert len(acknowledged) == 40


def map_raters(database: Path) -> list:
    with contextlib.closing(Database(database, writable=False)) as reader:
        return reader.raters()


def tasks_answered(client: Client) -> list[int]:
    return [task for task in range(4) if client.task(task)["revision"]]


def test_results(study: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(study.path)
    assert main(["study", "results", path]) == 2
    assert capsys.readouterr().err == "sr-models: error: the study has no answers yet\n"
    for name in ("anna", "ben"):
        for image in range(4):
            study.store(study.enter(name).number, image, [2, 0, 1], 0)
    # the server has the file open
    assert main(["study", "results", path, "--output", path]) == 2
    assert "output must be another file than the database" in capsys.readouterr().err
    assert main(["study", "results", path, "--output", str(tmp_path / "mor.csv")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == [METHODS[2], "1.000", "1.000", "to", "1.000"]
    assert "8 answers of 2 raters" in lines
    assert "Kendall's W 1.000, mean of 4 images" in lines[-2]
    with open(tmp_path / "mor.csv", newline="") as file:
        assert [(row["method"], float(row["mor"])) for row in csv.DictReader(file)] == [
            (METHODS[2], 1), (METHODS[0], 2), (METHODS[1], 3),
        ]  # fmt: skip


def test_bad_input_is_told_in_a_line(
    folders: Path,
    study: Database,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def error(*arguments: str) -> str:
        assert main(list(arguments)) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        return captured.err.removeprefix("sr-models: error: ").rstrip()

    port, path = ("--port", "0"), str(study.path)
    whole = options(folders, study.path)
    assert re.fullmatch(
        r".*study\.db is another study: seed was 0, now 1; choose another --database",
        error(*whole, "--seed", "1", *port),
    )
    assert "methods were" in error(*whole[:-4], "--database", path, *port)
    assert "reference was True, now False" in error("study", "--database", path, "--no_reference", *port)
    assert error("study", "--database", str(tmp_path / "x.db"), *port).endswith(
        "x.db does not exist; a new study needs --images and --method"
    )
    assert "--method and --baselines need --images" in error("study", "--method", "a=b", *port)
    assert "compares 2 to 9 methods, got 0" in error(
        "study", "--images", str(folders / "truth"), "--database", "x", *port
    )
    assert error("study", "--images", "x", "--method", "bicubic", *port) == "method must be NAME=FOLDER, got 'bicubic'"
    assert error("study", "--images", "x", "--method", "a=b", "--method", "a=c", *port) == "method a is given twice"
    assert "needs the names of its raters" in error("study", "--database", path, "--host", "0.0.0.0", *port)
    assert "host must be an IPv4 address of this machine" in error("study", "--host", "example.org")
    assert error("study", "--port", "70000") == "port must be in 0..65535, got 70000"
    with listen("127.0.0.1", 0) as listener:
        used = listener.getsockname()[1]
        assert error("study", "--database", path, "--port", str(used)) == (
            f"cannot listen on 127.0.0.1:{used}: address already in use; choose another --port or --host"
        )
    assert "does not exist" in error("study", "results", str(tmp_path / "x.db"))
    assert not study.raters()
