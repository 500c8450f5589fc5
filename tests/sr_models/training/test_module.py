"""The training procedure: it learns, and follows the published schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import lightning
import pytest
import torch
from torch import Tensor

import invflow
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


def advice(config: MakeConfig, hr: Tensor, step: int, **changes: object) -> str:
    """The message for a likelihood that is not finite at a step, after two of pretraining."""
    run = config(**changes)
    model = sr_models.create(run.model, **run.overrides)
    module = FlowTraining(model, run)
    module._step = step
    for part in model.modules():
        if isinstance(part, invflow.ActNorm):
            part.mark_initialized()
    with torch.no_grad():
        model.levels[0][1].actnorm.bias.fill_(math.nan)
    with pytest.raises(FloatingPointError) as caught:
        module.training_step({"hr": hr, "lr": hr[..., ::4, ::4]}, 0)
    return str(caught.value)


class TestAdvice:
    @pytest.fixture(autouse=True)
    def at_a_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(FlowTraining, "global_step", property(lambda module: module._step))

    def test_a_rate_too_large(self, config: MakeConfig) -> None:
        hr = torch.rand(2, 3, 16, 16)
        message = advice(config, hr, 5, gradient_clip=0.0)
        assert message.endswith("at step 5; lower lr (0.001) or set gradient_clip")
        message = advice(config, hr, 5, gradient_clip=10.0)
        assert message.endswith("at step 5; lower lr (0.001) or lower gradient_clip (10.0)")

    def test_before_the_first_update(self, config: MakeConfig) -> None:
        message = advice(config, torch.rand(2, 3, 16, 16), 2)
        assert message.endswith("at step 2; the flow has learned nothing yet, so lr is not the reason; "
                                "choose other images or another seed")  # fmt: skip

    def test_a_blank_crop_without_noise(self, config: MakeConfig) -> None:
        hr = torch.rand(2, 3, 16, 16)
        hr[1] = 1 - 1e-3 * hr[1]
        expected = "the batch has a blank crop, whose likelihood has no bound without noise; set noise_std"
        assert advice(config, hr, 5, noise_std=0.0).endswith(f"at step 5; {expected}")
        assert "blank" not in advice(config, hr, 5, noise_std=0.01)


def test_a_pretraining_that_diverges_is_reported(config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"L1 loss is not finite at step \d; lower encoder_lr \(1e\+30\)"):
        train_model(config(encoder_lr=1e30, encoder_steps=6), tmp_path, accelerator="cpu")


@pytest.mark.parametrize(("encoder_steps", "steps"), [(0, 1000), (200, 1200)])
def test_the_encoder_learns_at_the_flows_rate_after_its_pretraining(encoder_steps: int, steps: int) -> None:
    run = TrainingConfig(
        model="srflow-da", images=".", steps=steps, lr=3e-4, encoder_steps=encoder_steps, encoder_lr=7e-3
    )
    parts = {"encoder": torch.nn.Linear(1, 1), "levels": torch.nn.Linear(1, 1)}
    found = FlowTraining(torch.nn.ModuleDict(parts), run).configure_optimizers()
    optimizer, schedule = found["optimizer"], found["lr_scheduler"]["scheduler"]
    assert found["lr_scheduler"]["interval"] == "step"
    assert [group["params"] for group in optimizer.param_groups] == [list(p.parameters()) for p in parts.values()]
    rates = []
    for _ in range(steps):
        rates.append(tuple(group["lr"] for group in optimizer.param_groups))
        optimizer.step()
        schedule.step()
    for step, (encoder, levels) in enumerate(rates):
        done = step - encoder_steps
        halvings = sum(done >= milestone for milestone in (500, 750, 900, 950))
        assert levels == pytest.approx(3e-4 / 2**halvings), step
        assert encoder == pytest.approx(7e-3 if done < 0 else 3e-4 / 2**halvings), step


def test_the_noise_is_a_function_of_seed_and_step(config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    model = sr_models.create("srflow-da", **config().overrides)
    hr, lr = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 4, 4)
    monkeypatch.setattr(FlowTraining, "global_step", property(lambda module: module._step))

    def noise(seed: int, step: int) -> Tensor:
        module = FlowTraining(model, config(seed=seed))
        module._step = step
        return module._noisy(hr, lr).hr - hr

    drawn = [noise(seed, step) for seed in (0, 1, 2**31 - 1) for step in (0, 1, 2, 1000)]
    assert len({tuple(z.flatten().tolist()) for z in drawn}) == len(drawn)
    assert torch.equal(noise(1, 2), noise(1, 2))


def test_the_pretraining_is_by_mean_absolute_error(config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run = config()
    module = FlowTraining(sr_models.create(run.model, **run.overrides), run)
    monkeypatch.setattr(module, "_record", lambda *_: None)
    monkeypatch.setattr(FlowTraining, "global_step", property(lambda _: 0))
    hr, lr = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 4, 4)
    loss = module.training_step({"hr": hr, "lr": lr}, 0)
    assert loss.item() == pytest.approx((module.model.encoder.image(lr) - hr).abs().mean().item())


def test_every_tenth_step_is_logged(config: MakeConfig, tmp_path: Path) -> None:
    train_model(config(steps=35, encoder_steps=12, val_every=9), tmp_path, accelerator="cpu")
    curve = training_curve(tmp_path / "logs")
    assert [step for step, _ in curve.l1] == [0, 10]
    assert [step for step, _ in curve.nll] == [20, 30]
