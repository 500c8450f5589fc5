"""Training: it learns, and a resumed run equals an unbroken one."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from torch import Tensor

import sr_models
from sr_models.checkpoints.convert import from_official
from sr_models.checkpoints.files import load_model
from sr_models.checkpoints.published import encoder_layout
from sr_models.evaluation.report import training_curve
from sr_models.io.images import write_image
from sr_models.training.config import TrainingConfig
from sr_models.training.recipe import Recipe
from sr_models.training.run import FlowTraining, train_model

TINY = {"steps": 1, "hidden_channels": 4, "features": 4, "growth": 2, "blocks": 2, "stacked_blocks": [0, 1]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One smooth picture, which even a tiny flow finds likelier than noise after a few steps."""
    path = tmp_path_factory.mktemp("photographs")
    y, x = np.mgrid[0:48, 0:64] / 64
    picture = np.stack([128 + 100 * np.sin(6 * x), 255 * y, 128 + 90 * np.cos(9 * x * y)], -1)
    write_image(path / "picture.png", picture.astype(np.uint8))
    return path


def config(folder: Path, **changes: object) -> TrainingConfig:
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
    return dataclasses.replace(defaults, **changes)


class StopAt(lightning.Callback):
    """What a killed process does to a run."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            raise InterruptedError("killed")


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_resumed_run_equals_unbroken_run(folder: Path, tmp_path: Path, stop: int) -> None:
    unbroken = train_model(config(folder), tmp_path / "unbroken", accelerator="cpu")
    with pytest.raises(InterruptedError):
        train_model(config(folder), tmp_path / "broken", accelerator="cpu", callbacks=[StopAt(stop)])
    assert not (tmp_path / "broken" / "model.safetensors").exists()
    resumed = train_model(config(folder), tmp_path / "broken", accelerator="cpu")
    expected, actual = load_model(unbroken).state_dict(), load_model(resumed).state_dict()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name
    curves = [training_curve(tmp_path / name / "logs") for name in ("unbroken", "broken")]
    assert curves[0].val_nll == curves[1].val_nll


def test_likelihood_of_the_training_picture_rises(folder: Path, tmp_path: Path) -> None:
    train_model(config(folder, steps=60, encoder_steps=5, val_every=20), tmp_path, accelerator="cpu")
    curve = training_curve(tmp_path / "logs")
    assert curve.val_nll[0][0] == 5
    assert curve.val_nll[-1][1] < curve.val_nll[0][1] - 0.1
    assert curve.l1[0][0] < 5


def test_finished_run_is_left_as_it_is(folder: Path, tmp_path: Path) -> None:
    path = train_model(config(folder), tmp_path, accelerator="cpu")
    before = load_model(path).state_dict()
    after = load_model(train_model(config(folder), tmp_path, accelerator="cpu")).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_another_run_in_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    train_model(config(folder), tmp_path, accelerator="cpu")
    record = (tmp_path / "training.json").read_text()
    with pytest.raises(ValueError, match=r"holds a run with other settings \(lr was 0.001, now 0.5\)"):
        train_model(config(folder, lr=0.5), tmp_path, accelerator="cpu")
    assert (tmp_path / "training.json").read_text() == record
    assert json.loads(record)["lr"] == 1e-3


def test_without_validation_folder(folder: Path, tmp_path: Path) -> None:
    assert train_model(config(folder, val_images=None), tmp_path, accelerator="cpu").exists()


def test_divergence_is_reported(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"not finite at step \d+; lower lr \(1e\+30\)"):
        train_model(config(folder, lr=1e30), tmp_path, accelerator="cpu")


def test_encoder_is_frozen_for_the_first_share_of_the_flow_steps(folder: Path, tmp_path: Path) -> None:
    frozen = {}

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer: lightning.Trainer, module: FlowTraining, *_: object) -> None:
            frozen[trainer.global_step] = not module.model.encoder.conv_first.weight.requires_grad

    train_model(
        config(folder, steps=10, encoder_steps=2, encoder_frozen=0.5), tmp_path, accelerator="cpu", callbacks=[Watch()]
    )
    assert frozen == {step: 3 <= step <= 6 for step in range(1, 11)}


def test_learning_rate_halves_at_the_published_milestones() -> None:
    run = TrainingConfig(model="srflow-da", images=".", steps=1000)
    module = FlowTraining(torch.nn.ModuleDict({"encoder": torch.nn.Linear(1, 1), "levels": torch.nn.Linear(1, 1)}), run)
    schedule = module.configure_optimizers()["lr_scheduler"]["scheduler"]
    rates = [schedule.base_lrs[1] * schedule.lr_lambdas[1](step) for step in (0, 499, 500, 750, 900, 950)]
    assert rates == [2e-4, 2e-4, 1e-4, 5e-5, 2.5e-5, 1.25e-5]


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
def test_config_errors(folder: Path, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(folder, **change)


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

    def test_released_srflow_never_freezes_its_encoder_and_sees_clean_images(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        frozen, seen = [], []
        encode = sr_models.SuperResolutionFlow.encode

        def watch(model: sr_models.SuperResolutionFlow, hr: Tensor, *rest: Tensor | None) -> sr_models.Encoding:
            if model.training:
                frozen.append(not model.encoder.conv_first.weight.requires_grad)
                seen.append(hr)
            return encode(model, hr, *rest)

        monkeypatch.setattr(sr_models.SuperResolutionFlow, "encode", watch)
        train_model(config(folder, model="srflow", steps=4, encoder_steps=0), tmp_path, accelerator="cpu")
        assert frozen == [False] * 5  # the actnorms' initialisation, and four steps
        assert all(torch.equal(hr, (hr * 255).round() / 255) for hr in seen)

    def test_noise_conditional_training(self, folder: Path, tmp_path: Path) -> None:
        tiny = {**TINY, "noise_steps": [0, 1, 1]}
        path = train_model(
            config(folder, model="ncsr", overrides=tiny, steps=4, encoder_steps=1), tmp_path, accelerator="cpu"
        )
        curve = training_curve(tmp_path / "logs")
        assert all(math.isfinite(value) for _, value in curve.val_nll)
        # noise networks have moved away from their initial zeros
        model = load_model(path)
        assert model.levels[1].layers[-1].noise.net.layers[-1].weight.any()

    def test_pretrained_encoder(self, folder: Path, tmp_path: Path) -> None:
        encoder = sr_models.create("srflow-da", **TINY).encoder
        state_dict = {name: encoder.state_dict()[own] for name, (own, _) in encoder_layout(encoder).items()}
        torch.save(state_dict, tmp_path / "rrdb.pth")
        from_official(tmp_path / "rrdb.pth", tmp_path / "rrdb.safetensors")
        frozen = {"encoder": str(tmp_path / "rrdb.safetensors"), "encoder_steps": 0, "encoder_frozen": 1.0, "steps": 2}
        trained = load_model(train_model(config(folder, **frozen), tmp_path / "run", accelerator="cpu")).encoder
        for name, tensor in encoder.state_dict().items():
            assert torch.equal(trained.state_dict()[name], tensor), name
        other = config(folder, **frozen, overrides={**TINY, "features": 6})
        with pytest.raises(ValueError, match=r"cannot load encoder .*rrdb.safetensors: size mismatch"):
            train_model(other, tmp_path / "other", accelerator="cpu")
        assert not (tmp_path / "other").exists()
