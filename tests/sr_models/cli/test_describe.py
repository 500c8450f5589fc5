"""``sr-models describe``."""

from __future__ import annotations

import pytest

from sr_models.cli import main


def test_describe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "--model", "srflow", "--scale", "8", "--preset", "faces"]) == 0
    assert "encoder 5,943,555, flow 33,810,400, total 39,753,955" in capsys.readouterr().out


def test_defaults_are_the_released_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []

    def describe(model: str, **options: object) -> str:
        asked.append((model, options))
        return "described"

    monkeypatch.setattr("sr_models.inspection.describe.describe", describe)
    assert main(["describe", "--model", "ncsr"]) == 0
    assert asked == [("ncsr", {"scale": 4, "preset": "released"})]
    assert capsys.readouterr().out == "described\n"
