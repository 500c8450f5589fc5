"""``sr-models demo``."""

from __future__ import annotations

import pytest

from sr_models.cli import main


def test_options_reach_the_demonstration(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []

    def run_demo(output: str, **options: object) -> str:
        asked.append((output, options))
        return f"{output}/report.html"

    monkeypatch.setattr("sr_models.demo.run.run_demo", run_demo)
    assert main(["demo", "--output", "here", "--steps", "30", "--seed", "4"]) == 0
    assert asked == [("here", {"steps": 30, "seed": 4})]
    assert capsys.readouterr().out == "wrote here/report.html\n"
