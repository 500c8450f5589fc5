"""Fine-tuning of seconds, blending, and the choice of a temperature."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import sr_models
from recipes import robust
from recipes.robust import blend, finetune
from recipes.temperature import best_temperature
from sr_models.checkpoints.files import load_model, save_model
from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.images import write_image
from sr_models.io.resize import imresize

SIZES = {"steps": 1, "hidden_channels": 4, "features": 4, "growth": 2, "blocks": 1}


def _small(file: Path) -> SuperResolutionFlow:
    torch.manual_seed(0)
    model = sr_models.create("srflow-da", preset="tiny", **SIZES)
    with torch.no_grad():
        model.encode(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 8, 8))
    save_model(model, file)
    return model


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    write_image(folder / "a.png", imresize(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), 10))
    return folder


def test_it_goes_on_from_a_model(tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = _small(tmp_path / "start.safetensors")
    create = sr_models.create
    monkeypatch.setattr(robust.sr_models, "create", lambda *args, **fields: create(*args, **fields, **SIZES))
    file = finetune(
        str(tmp_path / "start.safetensors"),
        photographs,
        tmp_path / "run",
        minutes=0.02,
        batch=2,
        crop=32,
        lr=1e-4,
        share=0.5,
    )
    trained = load_model(file)
    ways = [(a - b).abs().max() for a, b in zip(trained.parameters(), start.parameters(), strict=True)]
    assert 0 < max(ways) < 0.05
    blend(str(tmp_path / "start.safetensors"), file, 0.25)
    mixed = load_model(file)
    for found, a, b in zip(mixed.parameters(), start.parameters(), trained.parameters(), strict=True):
        assert found.dtype == torch.float16
        torch.testing.assert_close(found, (0.75 * a + 0.25 * b).half(), rtol=1e-3, atol=1e-6)


def test_the_temperature_of_the_least_distance(photographs: Path) -> None:
    asked: list[float] = []

    class Sampled:
        scale = 4

        def sample(self, lr: torch.Tensor, *, temperature: float, seed: int) -> torch.Tensor:
            asked.append(temperature)
            return torch.full((1, 1, 3, 4 * lr.shape[2], 4 * lr.shape[3]), temperature)

    def distance(sample: np.ndarray, truth: np.ndarray) -> np.ndarray:
        return np.abs(sample / 255.0 - 0.7)

    found = best_temperature(
        Sampled(),  # type: ignore[arg-type]
        photographs,
        distance,
        crops=3,
        crop=32,
        temperatures=(0.2, 0.65, 0.9),
    )
    assert found == 0.65
    assert asked == [0.2] * 3 + [0.65] * 3 + [0.9] * 3
