"""``sr-models list``."""

from __future__ import annotations

import pytest

from sr_models.cli import main


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert "srflow-da: " in capsys.readouterr().out
