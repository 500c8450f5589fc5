"""Setup of the tests of the demonstration: a tiny model in the shipped one's place, and small photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sr_models
from sr_models.checkpoints import shipped
from sr_models.checkpoints.files import save_model
from sr_models.demo import run
from sr_models.evaluation.metrics import mse_distance
from sr_models.io.images import write_image
from sr_models.io.resize import imresize

TINY: dict[str, Any] = {"steps": 1, "hidden_channels": 4, "features": 4, "growth": 2, "blocks": 2, "stacked_blocks": ()}


@pytest.fixture
def tiny_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, where the demonstration has a tiny model and two photographs of 64 x 80 pixels."""
    rng = np.random.default_rng(0)

    def unpack(folder: Path) -> tuple[Path, Path]:
        for sub, names in (("train", ["bird"]), ("test", ["cat", "dog"])):
            (folder / sub).mkdir(parents=True, exist_ok=True)
            for name in names:
                file = folder / sub / f"{name}.png"
                if not file.exists():
                    write_image(file, imresize(rng.integers(0, 256, (16, 20, 3), dtype=np.uint8), 4))
        return folder / "train", folder / "test"

    torch.manual_seed(0)
    model = sr_models.create("srflow-da", base="image", **TINY)
    with torch.no_grad():
        model.encode(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 8, 8))
    model.temperature = 0.5
    (tmp_path / "shipped").mkdir()
    save_model(model.half(), tmp_path / "shipped" / f"{run.MODEL}.safetensors")
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path / "shipped")
    monkeypatch.setattr(run, "unpack_photographs", unpack)
    monkeypatch.setattr(run, "best_available_distance", lambda: ("mse", mse_distance))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"
