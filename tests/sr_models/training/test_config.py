"""Settings of a run: what is refused, and what the preset decides."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from sr_models.training.config import TrainingConfig
from sr_models.training.recipe import Recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"lr": 0.0}, "lr must be finite and greater than 0, got 0.0"),
        ({"encoder_steps": 9}, "encoder_steps must be in 0..8 for 8 steps, got 9"),
        ({"encoder_frozen": 1.5}, "encoder_frozen must be in 0..1, got 1.5"),
        ({"seed": -1}, "got -1"),
        ({"noise_std": math.inf}, "noise_std must be finite and at least 0, got inf"),
        ({"model": "nonesuch"}, "model must be one of"),
        ({"gradient_clip": -1.0}, "gradient_clip must be finite and at least 0, got -1.0"),
        ({"warmup": -1}, "warmup must be in 0..8 for 8 steps, got -1"),
        ({"warmup": 9}, "warmup must be in 0..8 for 8 steps, got 9"),
        ({"average": 1.0}, "average must be at least 0 and less than 1, got 1.0"),
        ({"average": math.nan}, "average must be at least 0 and less than 1, got nan"),
        ({"crop": 0}, "crop must be at least 1, got 0"),
        ({"crop": 30}, "crop must be a multiple of the scale 4, got 30"),
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"accumulate": 3}, "accumulate must divide batch_size, which is 2, got 3"),
        ({"max_skipped": 0}, "max_skipped must be at least 1, got 0"),
        ({"best": "nll"}, "best must be one of 'val_nll', 'val_psnr', 'val_lr_psnr', got 'nll'"),
        ({"precision": "bf16-mixed"}, "precision must be one of 'fp32', 'bf16', 'fp16', 'auto', got 'bf16-mixed'"),
        ({"memory": "less"}, "memory must be one of 'store', 'invert', got 'less'"),
        ({"steps": 2.5}, "steps must be a whole number, got 2.5"),
        ({"steps": True}, "steps must be a whole number, got True"),
        ({"lr": "fast"}, "lr must be a number, got 'fast'"),
        ({"rotate": 1}, "rotate must be True or False, got 1"),
        ({"images": ""}, "images must be a name or path, got ''"),
        ({"images": None}, "images must be a name or path, got None"),
        ({"overrides": []}, "overrides must be a mapping of names to values, got \\[\\]"),
        ({"overrides": {"scale": 8}}, "overrides of srflow-da must be among variant, steps, .*, got scale"),
        ({"overrides": {"width": 8, 3: 4}}, "overrides of srflow-da must be among variant, .*, got 3, width"),
        ({"encoder": "rrdb.safetensors", "init_from": "model.pth"}, "encoder and init_from exclude each other"),
        ({"degradation": "blurry"}, "degradation must be one of 'bicubic', 'real', got 'blurry'"),
        ({"lr_images": "small", "degradation": "real"}, "leave out degradation, got 'real'"),
    ],
)
def test_config_errors(config: Callable[..., TrainingConfig], change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        config(**change)
    assert "\n" not in str(caught.value)


def test_paths_and_numbers_in_other_forms(
    config: Callable[..., TrainingConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    given = config(images=Path("~/hr"), lr_images="~/lr", init_from="runs/~", lr=1, steps=np.int64(8))
    assert (given.images, given.lr_images, given.init_from) == ("/home/somebody/hr", "/home/somebody/lr", "runs/~")
    assert type(given.lr) is float
    assert type(given.steps) is int
    assert json.loads(json.dumps(given.settings())) == {**given.settings(), "overrides": config().overrides}


def test_what_may_change_when_a_run_is_resumed() -> None:
    free = {entry.name for entry in fields(TrainingConfig) if entry.metadata.get("resume") == "free"}
    assert free == {
        *(
            "images",
            "val_images",
            "lr_images",
            "val_lr_images",
            "steps",
            "lr",
            "encoder_lr",
            "warmup",
            "gradient_clip",
            "feature_weights",
            "val_every",
        ),
        *("save_every", "max_skipped", "best", "strict", "precision", "accumulate", "memory", "compile", "graph"),
    }


@pytest.mark.parametrize("steps", [8, 1])
def test_a_run_of_the_encoder_alone(config: Callable[..., TrainingConfig], steps: int) -> None:
    run = config(steps=steps, encoder_steps=steps)
    assert all(run.flow_progress(step) < 0 for step in range(steps))
    assert [run.learning_rates(step)[0] for step in range(steps)] == [2e-4] * steps
    assert run.best_figure == "val_psnr"
    assert config(steps=steps, encoder_steps=steps, best="val_lr_psnr").best_figure == "val_lr_psnr"
    assert config(steps=steps + 1, encoder_steps=steps).best_figure == "val_nll"


class TestLearningRates:
    def test_the_flows_rate_halves_at_the_published_milestones(self) -> None:
        run = TrainingConfig(model="srflow-da", images=".", steps=1000)
        rates = [run.learning_rates(step)[1] for step in (0, 499, 500, 749, 750, 899, 900, 949, 950, 999)]
        assert rates == [2e-4, 2e-4, 1e-4, 1e-4, 5e-5, 5e-5, 2.5e-5, 2.5e-5, 1.25e-5, 1.25e-5]

    @pytest.mark.parametrize("encoder_steps", [0, 200])
    def test_the_encoder_has_the_flows_rate_after_its_pretraining(self, encoder_steps: int) -> None:
        run = TrainingConfig(
            model="srflow", images=".", steps=1000, lr=3e-4, encoder_steps=encoder_steps, encoder_lr=7e-3
        )
        for step in range(1000):
            encoder, flow = run.learning_rates(step)
            assert encoder == (7e-3 if step < encoder_steps else flow)

    def test_both_phases_warm_up(self) -> None:
        run = TrainingConfig(model="srflow", images=".", steps=40, lr=1.0, encoder_steps=10, encoder_lr=4.0, warmup=4)
        rates = [run.learning_rates(step) for step in range(40)]
        assert [encoder for encoder, _ in rates[:10]] == [1, 2, 3, 4, 4, 4, 4, 4, 4, 4]
        assert rates[10:15] == [(0.25, 0.25), (0.5, 0.5), (0.75, 0.75), (1, 1), (1, 1)]
        # milestones are as without a warm-up
        without = replace(run, warmup=0)
        assert [run.learning_rates(step) for step in range(14, 40)] == [
            without.learning_rates(step) for step in range(14, 40)
        ]


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
