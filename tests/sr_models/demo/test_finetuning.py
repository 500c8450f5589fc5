"""The demonstration's training: settings that fit the shipped model, steps that fit the time, and one end for a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sr_models.checkpoints.files import load_model
from sr_models.checkpoints.initial import load_initial_weights
from sr_models.demo import finetuning, run
from sr_models.demo.finetuning import finetune, finetuning_config, steps_within
from sr_models.registry import create
from sr_models.training.config import TrainingConfig


def test_the_settings_fit_the_shipped_model() -> None:
    config = finetuning_config(run.MODEL, Path("train"), Path("test"), steps=30, seed=3)
    model = create(config.model, scale=config.scale, preset=config.preset, **config.overrides)
    assert load_initial_weights(model, str(config.init_from)).startswith("starts from ")
    assert model.config == load_model(run.MODEL).config
    assert (config.images, config.val_images, config.steps, config.seed) == ("train", "test", 30, 3)
    assert config.val_every == 5


@pytest.mark.parametrize(("step", "expected"), [(0.5, 180), (0.51, 170), (100.0, 20), (1e-9, 5000)])
def test_steps_fill_the_time(tiny_demo: Path, monkeypatch: pytest.MonkeyPatch, step: float, expected: int) -> None:
    """Leave a quarter of two minutes to validations."""
    times = iter([0.0, 99.0, 200.0, 200.0 + step])  # the first step takes longer and does not count
    monkeypatch.setattr(finetuning, "monotonic", lambda: next(times))
    config = finetuning_config(run.MODEL, Path("train"), Path("test"), steps=20, seed=3)
    assert steps_within(config, 120) == expected


def test_a_run_goes_on_to_its_own_end(tiny_demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[TrainingConfig] = []
    monkeypatch.setattr(finetuning, "steps_within", lambda config, seconds: int(seconds))
    monkeypatch.setattr(finetuning, "train_model", lambda config, output, **_: asked.append(config))
    given = (run.MODEL, Path("train"), Path("test"), Path("out"))
    finetune(*given, minutes=2, seed=3, on_progress=print)
    Path("out").mkdir()
    record = Path("out/training.json")
    record.write_text(json.dumps({"settings": {"steps": 70}}))
    finetune(*given, minutes=2, seed=3, on_progress=print)
    record.write_text("{")  # damaged: what to do about it is said when the run is taken up
    finetune(*given, minutes=2, seed=3, on_progress=print)
    assert [config.steps for config in asked] == [120, 70, 20]


def test_progress_is_told_every_five_seconds(tiny_demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    told: list[tuple[int, int]] = []

    def train(config: TrainingConfig, output: Path, *, accelerator: str, callbacks: list) -> None:
        assert accelerator == "cpu"
        for done in range(1, 9):
            now[0] += 2
            callbacks[0](done, None)

    monkeypatch.setattr(finetuning, "monotonic", lambda: now[0])
    monkeypatch.setattr(finetuning, "steps_within", lambda config, seconds: 40)
    monkeypatch.setattr(finetuning, "train_model", train)
    finetune(
        run.MODEL, Path("train"), Path("test"), Path("out"), minutes=2, seed=3, on_progress=lambda *x: told.append(x)
    )
    assert told == [(3, 40), (6, 40)]
