"""What a training step minimises, and which parameters learn in which phase."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import invflow
import sr_models
from sr_models.training.config import TrainingConfig
from sr_models.training.objective import Objective, Phase, advice, phases

MakeConfig = Callable[..., TrainingConfig]


def model_of(config: TrainingConfig) -> sr_models.SuperResolutionFlow:
    """A model with actnorms that count as initialised."""
    model = sr_models.create(config.model, **config.overrides)
    for part in model.modules():
        if isinstance(part, invflow.ActNorm):
            part.mark_initialized()
    return model


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("pretraining", [0, 1, 7, 20])
def test_phases_are_all_steps_in_order(config: MakeConfig, pretraining: int, share: float) -> None:
    run = config(steps=20, encoder_steps=pretraining, encoder_frozen=share)
    found = phases(run)
    assert [step for phase in found for step in phase.steps] == list(range(20))
    for phase in found:
        assert phase.steps
        for step in phase.steps:
            progress = run.flow_progress(step)
            assert (phase.loss == "l1") == (step < pretraining)
            assert phase.flow == (step >= pretraining)
            assert phase.encoder == (step < pretraining or progress >= share)


def test_only_the_parameters_of_the_phase_get_gradients(config: MakeConfig) -> None:
    run = config()
    objective = Objective(model_of(run), run)
    hr, lr = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 4, 4)
    for phase in (
        Phase("l1", range(2), encoder=True, flow=False),
        Phase("nll", range(2), encoder=False, flow=True),
        Phase("nll", range(2), encoder=True, flow=True),
    ):
        objective.zero_grad()
        objective.prepare(phase)
        objective(hr, lr, range(2), phase.loss).backward()
        learned = {name.split(".")[1] for name, p in objective.named_parameters() if p.grad is not None}
        assert ("encoder" in learned) == phase.encoder
        assert ("levels" in learned) == phase.flow


def test_the_pretraining_is_by_mean_absolute_error(config: MakeConfig) -> None:
    run = config()
    objective = Objective(sr_models.create(run.model, **run.overrides), run)
    hr, lr = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 4, 4)
    expected = (objective.model.encoder.image(lr) - hr).abs().mean().item()
    assert objective(hr, lr, range(2), "l1").item() == pytest.approx(expected)


def seen_images(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    seen = []
    encode = sr_models.SuperResolutionFlow.encode

    def watch(model: sr_models.SuperResolutionFlow, hr: Tensor, *rest: Tensor | None) -> sr_models.Encoding:
        seen.append(hr)
        return encode(model, hr, *rest)

    monkeypatch.setattr(sr_models.SuperResolutionFlow, "encode", watch)
    return seen


def test_the_noise_is_a_function_of_seed_and_crop(config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = seen_images(monkeypatch)
    model = model_of(config())
    hr, lr = torch.rand(1, 3, 16, 16), torch.rand(1, 3, 4, 4)
    for seed in (0, 1, 2**31 - 1):
        for crop in (0, 1, 2, 1000):
            Objective(model, config(seed=seed))(hr, lr, [crop], "nll")
    assert len({tuple((noisy - hr).flatten().tolist()) for noisy in seen}) == 12
    # however the crops are divided among batches
    images, small = torch.rand(4, 3, 16, 16), torch.rand(4, 3, 4, 4)
    objective = Objective(model, config())
    seen.clear()
    whole = objective(images, small, range(8, 12), "nll")
    parts = [objective(images[part], small[part], range(8 + part.start, 8 + part.stop), "nll")
             for part in (slice(0, 1), slice(1, 3), slice(3, 4))]  # fmt: skip
    assert torch.equal(torch.cat(seen[1:]), seen[0])
    assert whole.item() == pytest.approx((parts[0] + 2 * parts[1] + parts[2]).item() / 4, rel=1e-5)


def test_a_recipe_without_noise_sees_the_images_themselves(config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = seen_images(monkeypatch)
    run = config(model="srflow", steps=4, encoder_steps=0)
    assert phases(run) == [Phase("nll", range(4), encoder=True, flow=True)]
    hr, lr = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 4, 4)
    Objective(model_of(run), run)(hr, lr, range(2), "nll")
    assert torch.equal(seen[0], hr)


def test_networks_in_half_precision_hardly_change_the_likelihood(config: MakeConfig) -> None:
    model = model_of(config())
    with torch.no_grad():
        for parameter in model.parameters():  # networks are zero at first
            parameter.add_(0.05 * torch.randn_like(parameter))
    hr, lr = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 4, 4)
    exact, half = (
        Objective(model, config(precision=precision))(hr, lr, range(2), "nll") for precision in ("fp32", "bf16")
    )
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact.item(), rel=0.01, abs=0.02)
    assert half.item() != exact.item()


def test_a_compiled_loss_is_compiled_once(config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    run = config()
    model = model_of(run)
    plain, compiled = Objective(model, run), Objective(model, run)
    compiled.compile_losses()
    hr, lr = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 4, 4)
    for loss in ("l1", "nll"):
        for step in range(4):
            # of the first step: the second one would compile anew
            with torch._dynamo.config.patch(error_on_recompile=step > 0):
                found = compiled(hr, lr, range(2 * step, 2 * step + 2), loss)
            found.backward()
            expected = plain(hr, lr, range(2 * step, 2 * step + 2), loss)
            assert found.item() == pytest.approx(expected.item(), rel=1e-5)


class TestAdvice:
    def test_a_rate_too_large(self, config: MakeConfig) -> None:
        hr = torch.rand(2, 3, 16, 16)
        assert advice(config(gradient_clip=0.0), model_of(config()), hr, 5) == "lower lr (0.001) or set gradient_clip"
        assert advice(config(), model_of(config()), hr, 5) == "lower lr (0.001) or lower gradient_clip (10.0)"
        assert advice(config(), model_of(config()), hr, 1) == "lower encoder_lr (0.0002)"

    def test_before_the_first_update(self, config: MakeConfig) -> None:
        message = advice(config(), model_of(config()), torch.rand(2, 3, 16, 16), 2)
        assert message == (
            "the flow has learned nothing yet, so lr is not the reason; choose other images or another seed"
        )

    def test_a_blank_crop_without_noise(self, config: MakeConfig) -> None:
        hr = torch.rand(2, 3, 16, 16)
        hr[1] = 1 - 1e-3 * hr[1]
        expected = "the batch has a blank crop, whose likelihood has no bound without noise; set noise_std"
        assert advice(config(noise_std=0.0), model_of(config()), hr, 5) == expected
        hr[1] = torch.tensor([1.0, 0.0, 0.5])[:, None, None].expand(3, 16, 16)  # of one colour
        assert advice(config(noise_std=0.0), model_of(config()), hr, 5) == expected
        assert "blank" not in advice(config(noise_std=0.01), model_of(config()), hr, 5)
