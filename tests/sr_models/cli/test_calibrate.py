"""``sr-models calibrate`` prints the coverage of a model and the temperature at which it is right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sr_models.cli import main


def test_table_file_and_drawing(run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, figure = tmp_path / "coverage.json", tmp_path / "coverage.svg"
    arguments = ["calibrate", "--checkpoint", str(run), "--images", str(folder), "-n", "4", "--level", "0.6"]
    arguments += ["--temperatures", "[0.3,0.6]", "--output", str(output)]
    assert main([*arguments, "--figure", str(figure)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[:3]] == ["temperature", "0.3", "0.6"]
    assert "60 %" in printed[3]
    assert printed[4:] == [f"wrote {output}", f"wrote {figure}"]
    content = json.loads(output.read_text())
    assert content["about"]["images"] == str(folder)
    assert content["settings"]["n"] == 4
    assert [row["temperature"] for row in content["temperatures"]] == [0.3, 0.6]
    assert figure.read_text().startswith("<?xml")
    before = output.read_bytes()
    assert main(arguments) == 0
    assert output.read_bytes() == before


def test_an_image_that_fails_is_named_and_the_exit_code_is_one(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = shutil.copytree(folder, tmp_path / "images")
    (images / "c.png").write_bytes((images / "a.png").read_bytes()[:200])
    arguments = ["calibrate", "--checkpoint", str(run), "--images", str(images), "-n", "2", "--level", "0.3"]
    assert main([*arguments, "--temperatures", "[0.5]"]) == 1
    out, err = capsys.readouterr()
    assert "give several temperatures to calibrate" in out
    assert "sr-models: left out: c.png: " in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--level", "0.95"], "level must be at most 0.9 with n = 19 samples, got 0.95; it needs n of at least 39"),
        (["-n", "1"], "n must be at least 2, since one sample has no interval, got 1"),
        (["--figure", "coverage.gif"], "figure must end in .png, .svg, .pdf, got coverage.gif"),
    ],
)
def test_mistakes(
    run: Path, folder: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", "--checkpoint", str(run), "--images", str(folder), *options]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"sr-models: error: {message}"
