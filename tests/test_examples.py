"""The examples run; shortened, they learn something and write what they say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_glow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    image = pytest.importorskip("PIL.Image")
    path = ROOT / "examples" / "glow.py"
    assert len(path.read_text().splitlines()) <= 40
    runpy.run_path(str(path))["main"](epochs=1, output=str(tmp_path / "digits.png"))
    found = re.search(r"^test images: (.*) bits/dim; samples: (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert found is not None
    assert 2.0 < float(found[1]) < 3.9  # 17 values have 4.09 without a model
    assert found[2] == str(tmp_path / "digits.png")
    with image.open(tmp_path / "digits.png") as picture:
        assert picture.size == (640, 640)
        least, largest = picture.getextrema()
    assert least == 0
    assert largest > 120
