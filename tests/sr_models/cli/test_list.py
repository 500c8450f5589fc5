"""``sr-models list``."""

from __future__ import annotations

import pytest

from sr_models.cli import main


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert "srflow-da: " in printed
    assert "\ndegradation bicubic: Bicubic reduction that agrees with MATLAB's ``imresize``" in printed
    assert "\ndegradation real: Blur, " in printed
