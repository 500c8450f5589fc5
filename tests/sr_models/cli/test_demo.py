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
    assert main(["demo"]) == 0
    assert main(["demo", "--images", "a.jpg", "b.jpg", "--output", "here", "--minutes", "0.5", "--seed", "4"]) == 0
    assert asked == [
        ("runs/demo", {"images": (), "minutes": 2.0, "seed": 10}),
        ("here", {"images": ["a.jpg", "b.jpg"], "minutes": 0.5, "seed": 4}),
    ]
    assert capsys.readouterr().out == "wrote runs/demo/report.html\nwrote here/report.html\n"


def test_the_help_says_what_comes_and_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "less than a minute",
        "about five",
        "Ctrl-C leaves a report",
        "goes on where it was",
        "--images photo.jpg",
    ):
        assert part in text, part
