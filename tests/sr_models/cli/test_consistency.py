"""``--consistency`` of ``sr-models sample`` and ``evaluate``."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_models import randomised

import sr_models
from sr_models.cli import main
from sr_models.io.images import read_image, write_image
from sr_models.io.resize import imresize


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    sr_models.save_model(randomised("srflow-da"), path)
    return path


def possible(size: int) -> np.ndarray:
    return imresize(np.random.default_rng(0).integers(0, 256, (4 * size, 4 * size, 3), np.uint8), 1 / 4)


def impossible(size: int) -> np.ndarray:
    image = np.zeros((size, size, 3), np.uint8)
    image[size // 2, size // 2] = 255
    return image


def test_samples(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    write_image(tmp_path / "in" / "a.png", possible(9))
    command = ["sample", "--checkpoint", str(checkpoint), "--images", str(tmp_path / "in"), "--n", "2", "--tile", "16"]
    output = [*command, "--output", str(tmp_path / "out")]
    assert main([*output, "--consistency", "exact"]) == 0
    assert "differ" not in capsys.readouterr().err
    for number in range(2):
        path = tmp_path / "out" / f"a_sample00{number}.png"
        assert np.array_equal(imresize(read_image(path), 1 / 4), possible(9))
        with Image.open(path) as image:
            assert json.loads(image.info["sr-models sample"])["consistency"] == "exact"
    # samples that were drawn otherwise are not taken for these
    assert main(output) == 2
    assert "consistency was exact, now None" in capsys.readouterr().err
    assert main([*command, "--output", str(tmp_path / "plain")]) == 0
    with Image.open(tmp_path / "plain" / "a_sample000.png") as image:
        assert "consistency" not in json.loads(image.info["sr-models sample"])


def test_an_image_that_no_sample_reduces_to_is_named(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    write_image(tmp_path / "in" / "a.png", possible(9))
    write_image(tmp_path / "in" / "b.png", impossible(9))
    command = ["sample", "--checkpoint", str(checkpoint), "--images", str(tmp_path / "in"), "--n", "2"]
    assert main([*command, "--output", str(tmp_path / "out"), "--consistency", "exact"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "values differ" in line]
    assert len(lines) == 1
    differing = [
        int((imresize(read_image(tmp_path / "out" / f"b_sample00{number}.png"), 1 / 4) != impossible(9)).sum())
        for number in range(2)
    ]
    assert lines[0].endswith(
        f"{tmp_path / 'in' / 'b.png'}: 2 of 2 samples do not reduce to the low-resolution image exactly: up to "
        f"{max(differing)} of 243 values differ, because no 8-bit image was found that reduces to all of them"
    )


def test_another_value_is_refused(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("sample", "evaluate"):
        options = ["--checkpoint", str(checkpoint), "--images", str(tmp_path), "--consistency", "yes"]
        assert main([command, *options]) == 2
        assert "consistency must be none or project or exact, got 'yes'" in capsys.readouterr().err


def test_scores(checkpoint: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "scores.csv"
    command = [
        "evaluate",
        "--checkpoint",
        str(checkpoint),
        "--images",
        str(folder),
        "--n",
        "2",
        "--output",
        str(output),
    ]
    assert main([*command, "--consistency", "exact"]) == 0
    assert [row["lr_psnr_worst"] for row in csv.DictReader(output.open())] == ["inf", "inf"]
    summary = json.loads(output.with_suffix(".summary.json").read_text())
    assert summary["settings"]["consistency"] == "exact"
    assert summary["mean"]["lr_psnr"] == "inf"
    (means,) = (line.split() for line in capsys.readouterr().out.splitlines() if line.split()[0] == "mean")
    assert means[5:7] == ["inf", "inf"]
    # the scores of other samples are not mixed with these
    assert main(command) == 2
    assert "consistency was exact, now None" in capsys.readouterr().err
