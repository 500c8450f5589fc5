"""``sr-models evaluate``: a table and a file of scores."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sr_models.checkpoints.files import describe_file, load_model
from sr_models.cli import main
from sr_models.flow.model import SuperResolutionFlow


def test_evaluate(run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "--checkpoint", str(run / "model.safetensors"), "--images", str(folder), "--n", "2"]
    assert main([*arguments, "--output", str(tmp_path / "scores.csv")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"image +NLL b/dim +PSNR +PSNR-Y +SSIM +LR-PSNR +worst +diversity\((lpips|mse)\)", printed)
    assert (tmp_path / "scores.csv").read_text().count("\n") == 3
    distance = re.findall(r"diversity\((\w+)\)", printed)[0]
    assert f"distance: {distance}, {'weights of' if distance == 'lpips' else 'since'} " in printed
    assert json.loads((tmp_path / "scores.summary.json").read_text())["settings"]["distance"] == distance


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A number for every image that is sampled."""
    calls: list[int] = []
    original = SuperResolutionFlow.sample

    def sample(self: SuperResolutionFlow, *args: Any, **options: Any) -> torch.Tensor:
        calls.append(len(calls))
        return original(self, *args, **options)

    monkeypatch.setattr(SuperResolutionFlow, "sample", sample)
    return calls


def test_a_run_that_goes_on(run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load_model(run / "model.safetensors")
    (tmp_path / "going" / "checkpoints").mkdir(parents=True)
    content = {"format": 1, "step": 7, "description": json.dumps(describe_file(model)), "model": model.state_dict()}
    torch.save(content, tmp_path / "going" / "checkpoints" / "last.ckpt")
    output = tmp_path / "scores.csv"
    arguments = ["--images", str(folder), "--n", "1", "--output", str(output)]
    assert main(["evaluate", "--checkpoint", str(tmp_path / "going"), *arguments]) == 0
    about = json.loads(output.with_suffix(".summary.json").read_text())["about"]
    assert about["step"] == 7
    assert about["checkpoint"].endswith("going/checkpoints/last.ckpt")
    # the same weights, wherever they are
    capsys.readouterr()
    assert main(["evaluate", "--checkpoint", str(run / "model.safetensors"), *arguments]) == 0
    assert main(["evaluate", "--checkpoint", str(run / "model.safetensors"), *arguments, "--seed", "1"]) == 2
    assert "holds scores of other settings (seed was 0, now 1)" in capsys.readouterr().err


def test_an_image_that_fails_is_named_and_the_exit_code_is_one(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = shutil.copytree(folder, tmp_path / "images")
    (images / "c.png").write_bytes((images / "a.png").read_bytes()[:200])
    arguments = ["evaluate", "--checkpoint", str(run), "--images", str(images), "--n", "1"]
    assert main([*arguments, "--output", str(tmp_path / "scores.csv")]) == 1
    out, err = capsys.readouterr()
    assert re.search(r"^ *mean ", out, re.MULTILINE)
    assert re.search(r"^sr-models: not scored: c.png: ", err, re.MULTILINE)
    assert "the means are of 2 images, without 1\n" in err
    assert (tmp_path / "scores.csv").read_text().count("\n") == 3
    assert list(json.loads((tmp_path / "scores.summary.json").read_text())["failures"]) == ["c.png"]


def test_mistakes_are_found_before_anything_is_scored(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], scored: list[int]
) -> None:
    low = shutil.copytree(folder, tmp_path / "low")
    (low / "b.png").unlink()
    for arguments, message in (
        (["--lr_images", str(low)], "lr_images do not fit 2 of 2 images"),
        (["--output", str(tmp_path)], "is a folder; give a file such as"),
        (["--tile", "3"], "tile must be at least 16, got 3"),
    ):
        assert main(["evaluate", "--checkpoint", str(run), "--images", str(folder), "--n", "1", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not scored


def test_precision_of_networks(run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {}
    for precision in ("fp32", "bf16"):
        output = tmp_path / f"{precision}.csv"
        arguments = ["evaluate", "--checkpoint", str(run / "model.safetensors"), "--images", str(folder), "--n", "1"]
        assert main([*arguments, "--output", str(output), "--precision", precision]) == 0
        rows[precision] = list(csv.DictReader(output.open()))
        settings = json.loads(output.with_suffix(".summary.json").read_text())["settings"]
        assert settings.get("precision") == ("bf16" if precision == "bf16" else None)
    for exact, half in zip(rows["fp32"], rows["bf16"], strict=True):
        for name in ("nll", "psnr"):
            assert float(half[name]) == pytest.approx(float(exact[name]), rel=0.02)
    # of so few steps the networks compute little, which may round to the same number
    assert [row["nll"] for row in rows["bf16"]] != [row["nll"] for row in rows["fp32"]]
    capsys.readouterr()
    assert main([*arguments, "--output", str(tmp_path / "bf16.csv")]) == 2
    assert "holds scores of other settings (precision was bf16, now None)" in capsys.readouterr().err
    assert main([*arguments, "--precision", "fp16"]) == 2
    assert "precision fp16 is for GPUs" in capsys.readouterr().err
