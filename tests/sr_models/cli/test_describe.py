"""``sr-models describe``."""

from __future__ import annotations

import pytest

from sr_models.cli import main


def test_describe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "--model", "srflow", "--scale", "8", "--preset", "faces"]) == 0
    assert "encoder 5,943,555, flow 33,810,400, total 39,753,955" in capsys.readouterr().out
