"""Settings of a run: what is refused, and what the preset decides."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from sr_models.training.config import TrainingConfig
from sr_models.training.recipe import Recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be finite and greater than 0, got 0.0"),
        ({"encoder_steps": 8}, "encoder_steps must be in 0..7 for 8 steps, got 8"),
        ({"encoder_frozen": 1.5}, "encoder_frozen must be in 0..1, got 1.5"),
        ({"seed": -1}, "got -1"),
        ({"noise_std": math.inf}, "noise_std must be finite and at least 0, got inf"),
        ({"model": "nonesuch"}, "model must be one of"),
        ({"gradient_clip": -1.0}, "gradient_clip must be finite and at least 0, got -1.0"),
    ],
)
def test_config_errors(config: Callable[..., TrainingConfig], change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**change)


class TestRecipes:
    @pytest.mark.parametrize(
        ("model", "scale", "preset", "expected"),
        [
            ("srflow", 4, "released", Recipe(200_000, 12, 2.5e-4, 0.0, 0.0)),
            ("srflow", 8, "released", Recipe(200_000, 16, 5e-4, 0.0, 0.0)),
            ("srflow", 8, "faces", Recipe(200_000, 16, 5e-4, 0.0, 0.0)),
            ("srflow", 4, "paper", Recipe(200_000, 16, 5e-4, 0.5, 4 / math.sqrt(3) / 255)),
            ("srflow-da", 4, "released", Recipe(200_000, 12, 2e-4, 0.5, 4 / math.sqrt(3) / 255)),
            ("srflow-da-s", 8, "released", Recipe(200_000, 16, 2e-4, 0.5, 4 / math.sqrt(3) / 255)),
            ("ncsr", 4, "released", Recipe(220_000, 18, 2e-4, 0.0, 0.0)),
            ("ncsr", 8, "released", Recipe(250_000, 1, 2e-4, 0.0, 0.0)),
        ],
    )
    def test_presets(self, model: str, scale: int, preset: str, expected: Recipe) -> None:
        assert TrainingConfig(model=model, scale=scale, preset=preset, images=".").recipe == expected

    def test_what_the_user_says_comes_first(self) -> None:
        run = TrainingConfig(model="srflow", images=".", lr=1e-3, noise_std=0.1, encoder_frozen=0.25)
        assert run.recipe == Recipe(200_000, 12, 1e-3, 0.25, 0.1)
        assert run.settings()["batch_size"] == 12
