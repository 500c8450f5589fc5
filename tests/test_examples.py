"""The examples run; shortened, they learn something and write what they say."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_glow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    image = pytest.importorskip("PIL.Image")
    path = ROOT / "examples" / "glow.py"
    assert len(path.read_text().splitlines()) <= 40
    bits = runpy.run_path(str(path))["main"](epochs=2, output=str(tmp_path / "digits.png"))
    assert 2.0 < bits < 3.6  # of 17 values, 4.09 without a model
    assert f"test images: {bits:.3f} bits/dim" in capsys.readouterr().out
    with image.open(tmp_path / "digits.png") as picture:
        assert picture.size == (512, 512)
        least, largest = picture.getextrema()
    assert least == 0
    assert largest > 120
