"""``sr-models pack``."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import PATIENCE

from sr_models.cli import main
from sr_models.data.packing import PackedImages
from sr_models.io.images import read_image


def test_it_says_what_is_in_the_pack_and_what_is_not(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, output = shutil.copytree(folder, tmp_path / "images"), tmp_path / "x.pack"
    content = (images / "a.png").read_bytes()
    (images / "damaged.png").write_bytes(content[:900] + bytes(300) + content[1200:])
    (images / "cut.png").write_bytes(content[:-100])
    (images / "notes.txt").write_text("")
    assert main(["pack", "--images", str(images), "--output", str(output)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"3 images in {images}"
    assert any("cut.png" in line for line in printed)
    assert any("of other kinds: .txt" in line for line in printed)
    assert printed[-2].startswith(f"not used: {images / 'damaged.png'}: ")
    assert printed[-1] == f"wrote 2 images, {output.stat().st_size / 1000:.3g} kB, to {output}"
    packed = PackedImages(output)
    assert packed.names == ["a.png", "b.png"]
    assert (packed[1] == read_image(folder / "b.png")).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--images {folder} --output {tmp}/x", "output must be a file whose name ends in .pack, got {tmp}/x"),
        ("--images {folder} --output {tmp}/no/x.pack", "cannot write {tmp}/no/x.pack: folder {tmp}/no does not exist"),
        ("--images {tmp}/no --output {tmp}/x.pack", "image folder {tmp}/no does not exist"),
        ("--images {tmp} --output {tmp}/x.pack", "{tmp} holds no image"),
    ],
)
def test_mistakes(folder: Path, tmp_path: Path, options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", *options.format(folder=folder, tmp=tmp_path).split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"sr-models: error: {message.format(tmp=tmp_path)}")
    assert error.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_strict(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = shutil.copytree(folder, tmp_path / "images")
    (images / "empty.png").touch()
    assert main(f"pack --images {images} --output {tmp_path / 'x.pack'} --strict true".split()) == 2
    assert "1 image cannot be used (strict): not used: 1 damaged" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["images"]


def pack_and_signal(folder: Path, output: Path, number: str, handler: str) -> subprocess.CompletedProcess[str]:
    """Make a pack in a process that gets a signal at the second image, when data have been written in part."""
    code = f"""
import os, signal, sys, time
{f"signal.signal(signal.{number}, signal.{handler})" if handler else ""}
from sr_models.cli import main
from sr_models.data import packing
read = packing.read_image
def read_image(path):
    if path.name == "b.png":
        os.kill(os.getpid(), signal.{number})
        time.sleep(1)
    return read(path)
packing.read_image = read_image
sys.exit(main(["pack", "--images", sys.argv[1], "--output", sys.argv[2]]))
"""
    command = [sys.executable, "-c", code, str(folder), str(output)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)


@pytest.mark.parametrize(
    ("number", "handler", "left"),
    # these tests may run under nohup, or in the background of a shell
    [("SIGTERM", "SIG_DFL", 0), ("SIGHUP", "SIG_DFL", 0), ("SIGINT", "default_int_handler", 0), ("SIGKILL", "", 1)],
)
def test_a_signal_leaves_the_former_pack(folder: Path, tmp_path: Path, number: str, handler: str, left: int) -> None:
    """Nothing else stays, but after a kill the unfinished file, which has another name."""
    output = tmp_path / "x.pack"
    assert main(["pack", "--images", str(folder), "--output", str(output)]) == 0
    before = output.read_bytes()
    result = pack_and_signal(folder, output, number, handler)
    value = signal.Signals[number].value
    assert result.returncode == (-value if number == "SIGKILL" else 128 + value), result.stderr
    assert "Traceback" not in result.stderr
    assert output.read_bytes() == before
    others = [name for name in os.listdir(tmp_path) if name != "x.pack"]
    assert len(others) == left
    assert not [name for name in others if name.endswith(".pack")]


@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_that_is_ignored_stays_ignored(folder: Path, tmp_path: Path, number: str) -> None:
    """As nohup lets the hangup be."""
    output = tmp_path / "x.pack"
    result = pack_and_signal(folder, output, number, "SIG_IGN")
    assert result.returncode == 0, result.stderr
    assert PackedImages(output).names == ["a.png", "b.png"]


def test_handlers_of_signals_come_back(folder: Path, tmp_path: Path) -> None:
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    assert main(["pack", "--images", str(folder), "--output", str(tmp_path / "x.pack")]) == 0
    assert [signal.getsignal(number) for number in numbers] == before
