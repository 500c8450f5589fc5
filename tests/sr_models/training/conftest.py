"""Setup of the tests of training: one photograph, and the settings of a short run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sr_models.io.images import write_image
from sr_models.training import monitor, progress
from sr_models.training.config import TrainingConfig
from tests.support.clock import Clock

TINY = {"steps": 1, "hidden_channels": 4, "features": 4, "growth": 2, "blocks": 2, "stacked_blocks": [0, 1]}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of the progress bar and of the monitor."""
    fake = Clock()
    for part in (monitor, progress):
        monkeypatch.setattr(part, "monotonic", fake)
    return fake


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One smooth picture, which even a tiny flow finds likelier than noise after a few steps."""
    path = tmp_path_factory.mktemp("photographs")
    y, x = np.mgrid[0:48, 0:64] / 64
    picture = np.stack([128 + 100 * np.sin(6 * x), 255 * y, 128 + 90 * np.cos(9 * x * y)], -1)
    write_image(path / "picture.png", picture.astype(np.uint8))
    return path


@pytest.fixture(scope="session")
def config(folder: Path) -> Callable[..., TrainingConfig]:
    """``config(steps=3)``: a short run of a tiny model with single settings replaced."""
    defaults = TrainingConfig(
        model="srflow-da",
        images=str(folder),
        val_images=str(folder),
        overrides=TINY,
        crop=16,
        batch_size=2,
        steps=8,
        encoder_steps=2,
        val_every=4,
        save_every=3,
        lr=1e-3,
    )
    return lambda **changes: dataclasses.replace(defaults, **changes)
