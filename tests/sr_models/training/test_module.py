"""The training procedure: it learns, and follows the published schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import lightning
import pytest
import torch
from torch import Tensor

import sr_models
from sr_models.checkpoints.files import load_model
from sr_models.evaluation.report.curve import training_curve
from sr_models.training.config import TrainingConfig
from sr_models.training.module import FlowTraining
from sr_models.training.run import train_model

MakeConfig = Callable[..., TrainingConfig]


def test_likelihood_of_the_training_picture_rises(config: MakeConfig, tmp_path: Path) -> None:
    train_model(config(steps=60, encoder_steps=5, val_every=20), tmp_path, accelerator="cpu")
    curve = training_curve(tmp_path / "logs")
    assert curve.val_nll[0][0] == 5
    assert curve.val_nll[-1][1] < curve.val_nll[0][1] - 0.1
    assert curve.l1[0][0] < 5


def test_divergence_is_reported(config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"not finite at step \d+; lower lr \(1e\+30\)"):
        train_model(config(lr=1e30), tmp_path, accelerator="cpu")


def test_encoder_is_frozen_for_the_first_share_of_the_flow_steps(config: MakeConfig, tmp_path: Path) -> None:
    frozen = {}

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer: lightning.Trainer, module: FlowTraining, *_: object) -> None:
            frozen[trainer.global_step] = not module.model.encoder.conv_first.weight.requires_grad

    train_model(config(steps=10, encoder_steps=2, encoder_frozen=0.5), tmp_path, accelerator="cpu", callbacks=[Watch()])
    assert frozen == {step: 3 <= step <= 6 for step in range(1, 11)}


def test_learning_rate_halves_at_the_published_milestones() -> None:
    run = TrainingConfig(model="srflow-da", images=".", steps=1000)
    module = FlowTraining(torch.nn.ModuleDict({"encoder": torch.nn.Linear(1, 1), "levels": torch.nn.Linear(1, 1)}), run)
    schedule = module.configure_optimizers()["lr_scheduler"]["scheduler"]
    rates = [schedule.base_lrs[1] * schedule.lr_lambdas[1](step) for step in (0, 499, 500, 750, 900, 950)]
    assert rates == [2e-4, 2e-4, 1e-4, 5e-5, 2.5e-5, 1.25e-5]


def test_released_srflow_never_freezes_its_encoder_and_sees_clean_images(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, seen = [], []
    encode = sr_models.SuperResolutionFlow.encode

    def watch(model: sr_models.SuperResolutionFlow, hr: Tensor, *rest: Tensor | None) -> sr_models.Encoding:
        if model.training:
            frozen.append(not model.encoder.conv_first.weight.requires_grad)
            seen.append(hr)
        return encode(model, hr, *rest)

    monkeypatch.setattr(sr_models.SuperResolutionFlow, "encode", watch)
    train_model(config(model="srflow", steps=4, encoder_steps=0), tmp_path, accelerator="cpu")
    assert frozen == [False] * 5  # the actnorms' initialisation, and four steps
    assert all(torch.equal(hr, (hr * 255).round() / 255) for hr in seen)


def test_noise_conditional_training(config: MakeConfig, tmp_path: Path) -> None:
    tiny = {**config().overrides, "noise_steps": [0, 1, 1]}
    path = train_model(config(model="ncsr", overrides=tiny, steps=4, encoder_steps=1), tmp_path, accelerator="cpu")
    curve = training_curve(tmp_path / "logs")
    assert all(math.isfinite(value) for _, value in curve.val_nll)
    # noise networks have moved away from their initial zeros
    model = load_model(path)
    assert model.levels[1].layers[-1].noise.net.layers[-1].weight.any()
