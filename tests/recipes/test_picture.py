"""The picture of what the shipped model makes of photographs."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import randomised

import sr_models
from recipes.picture import main
from sr_models.io.images import read_image


def test_a_picture_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str) -> sr_models.SuperResolutionFlow:
        asked.append(name)
        return randomised("srflow-da").float()

    monkeypatch.setattr(sr_models, "load", load)
    main([str(tmp_path / "picture.png")])
    assert asked == ["srflow-da-tiny"]
    height, width, _ = read_image(tmp_path / "picture.png").shape
    assert width > height > 100
