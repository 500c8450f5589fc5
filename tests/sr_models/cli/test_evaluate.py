"""``sr-models evaluate``: a table and a file of scores."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sr_models.cli import main


def test_evaluate(run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "--checkpoint", str(run / "model.safetensors"), "--images", str(folder), "--n", "2"]
    assert main([*arguments, "--output", str(tmp_path / "scores.csv")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"image +NLL b/dim +PSNR +SSIM +LR-PSNR +worst +diversity\((lpips|mse)\)", printed)
    assert (tmp_path / "scores.csv").read_text().count("\n") == 3
