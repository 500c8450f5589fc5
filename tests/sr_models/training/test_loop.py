"""The training loop: it learns, follows the schedule, and survives steps that are not finite."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

import sr_models
from sr_models.checkpoints.files import load_model
from sr_models.data.crops import RandomCrops
from sr_models.evaluation.report.curve import training_curve
from sr_models.training import learner
from sr_models.training.checkpoints import Checkpoints
from sr_models.training.config import TrainingConfig
from sr_models.training.monitor import Monitor
from sr_models.training.objective import Objective
from sr_models.training.run import train_model

MakeConfig = Callable[..., TrainingConfig]


def test_likelihood_of_the_training_picture_rises(config: MakeConfig, tmp_path: Path) -> None:
    train_model(config(steps=60, encoder_steps=5, val_every=20), tmp_path, accelerator="cpu")
    curve = training_curve(tmp_path / "logs")
    assert curve.val_nll[0][0] == 5
    assert curve.val_nll[-1][0] == 60
    assert curve.val_nll[-1][1] < curve.val_nll[0][1] - 0.1
    assert curve.l1[0][0] < 5
    # the last score is in the checkpoint as well
    assert Checkpoints(tmp_path / "checkpoints").newest()["best"]["step"] == 60


def test_networks_in_bfloat16_learn_as_in_float32(config: MakeConfig, tmp_path: Path) -> None:
    last = {}
    for precision in ("fp32", "bf16"):
        run = config(steps=60, encoder_steps=5, val_every=60, precision=precision)
        train_model(run, tmp_path / precision, accelerator="cpu")
        last[precision] = training_curve(tmp_path / precision / "logs").val_nll[-1][1]
    assert last["bf16"] != last["fp32"]
    assert last["bf16"] == pytest.approx(last["fp32"], abs=0.01)


def test_encoder_is_frozen_for_the_first_share_of_the_flow_steps(config: MakeConfig, tmp_path: Path) -> None:
    states = []

    def keep(step: int, objective: Objective) -> None:
        states.append({name: p.detach().clone() for name, p in objective.model.named_parameters()})

    train_model(config(steps=10, encoder_steps=2, encoder_frozen=0.5), tmp_path, accelerator="cpu", callbacks=[keep])
    for step in range(1, 10):
        moved = {
            name.split(".")[0] for name in states[0] if not torch.equal(states[step - 1][name], states[step][name])
        }
        # the flow appears at the second step by its initialisation, and the encoder rests from there to the sixth
        assert moved == ({"encoder"} if step < 2 else {"levels"} if step < 6 else {"encoder", "levels"}), step


def test_the_rates_are_those_of_the_settings(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, rates = config(steps=12, encoder_steps=3, warmup=2), []
    step = torch.optim.Adam.step

    def watch(optimizer: torch.optim.Adam, *arguments: object) -> None:
        rates.append(tuple(group["lr"] for group in optimizer.param_groups))
        step(optimizer, *arguments)

    shown = []

    def show(monitor: Monitor, number: int, losses: object, *, lr: float, **_: object) -> None:
        shown.append(lr)

    monkeypatch.setattr(torch.optim.Adam, "step", watch)
    monkeypatch.setattr(Monitor, "step", show)
    train_model(run, tmp_path, accelerator="cpu")
    assert shown == [run.learning_rates(step)[step >= 3] for step in range(12)]
    assert rates == [run.learning_rates(step) for step in range(12)]


def test_every_phase_is_compiled_if_the_settings_say_so(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Objective] = []
    monkeypatch.setattr(Objective, "compile_losses", lambda objective: compiled.append(objective))
    found: list[Objective] = []

    def look(step: int, objective: Objective) -> None:
        if objective not in found:
            found.append(objective)

    for wanted in (False, True):
        run = config(compile=wanted, steps=4, encoder_steps=1, encoder_frozen=0.5, val_images=None)
        found.clear()
        train_model(run, tmp_path / str(wanted), accelerator="cpu", callbacks=[look])
        assert len(found) == 3
        assert compiled == (found if wanted else [])


def test_noise_conditional_training(config: MakeConfig, tmp_path: Path) -> None:
    tiny = {**config().overrides, "noise_steps": [0, 1, 1]}
    path = train_model(config(model="ncsr", overrides=tiny, steps=4, encoder_steps=1), tmp_path, accelerator="cpu")
    curve = training_curve(tmp_path / "logs")
    assert all(math.isfinite(value) for _, value in curve.val_nll)
    # noise networks have moved away from their initial zeros
    model = load_model(path)
    assert model.levels[1].layers[-1].noise.net.layers[-1].weight.any()


def test_every_tenth_step_is_logged(config: MakeConfig, tmp_path: Path) -> None:
    train_model(config(steps=35, encoder_steps=12, val_every=9), tmp_path, accelerator="cpu")
    curve = training_curve(tmp_path / "logs")
    assert [step for step, _ in curve.l1] == [0, 10]
    assert [step for step, _ in curve.nll] == [20, 30]


def test_a_limit_of_the_gradient_is_kept(config: MakeConfig, tmp_path: Path) -> None:
    norms = []

    def watch(step: int, objective: Objective) -> None:
        gradients = [p.grad for p in objective.parameters() if p.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())

    for clip in (0.0, 1e-3):
        norms.clear()
        train_model(config(gradient_clip=clip), tmp_path / str(clip), accelerator="cpu", callbacks=[watch])
        assert all(norm <= 1.001e-3 if clip else norm > 1.001e-3 for norm in norms)


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({}, 1e-4),
        ({"accumulate": 4, "gradient_clip": 0.05}, 1e-4),
        ({"accumulate": 2, "memory": "invert"}, 1e-3),
        ({"precision": "fp16", "accumulate": 2, "gradient_clip": 0.05}, 0.05),
    ],
)
def test_the_gradient_is_that_of_the_whole_batch(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], tolerance: float
) -> None:
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *given, **more: scaler(*given, init_scale=64.0, **more))
    run = config(batch_size=4, steps=5, val_images=None, **changes)
    exact = dataclasses.replace(run, accumulate=1, precision="fp32")
    data = RandomCrops(run.images, scale=4, crop=16, length=20, seed=run.seed)
    weights: dict[str, Tensor] = {}
    memories = []

    def check(step: int, objective: Objective) -> None:
        found = {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}
        memories.append(objective.model.levels[0].memory)
        if weights and step != 3:  # the flow is initialised within the third step
            model = sr_models.create(run.model, **run.overrides).train()
            model.load_state_dict(weights)
            for name, parameter in Objective(model, exact).named_parameters():
                parameter.requires_grad_(name in found)
            crops = range(4 * step - 4, 4 * step)
            batch = default_collate([data[crop] for crop in crops])
            loss = Objective(model, exact)(batch["hr"], batch["lr"], crops, "l1" if step <= 2 else "nll")
            loss.backward()
            expected = {f"model.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
            assert expected.keys() == found.keys()
            norm = torch.nn.utils.get_total_norm(expected.values()).item()
            assert norm > 0.05
            factor = min(1.0, run.recipe.gradient_clip / norm)
            for name, gradient in expected.items():
                bound = tolerance * factor * norm
                torch.testing.assert_close(found[name], factor * gradient, rtol=0, atol=bound, msg=f"{step} {name}")
        weights.update({name: tensor.clone() for name, tensor in objective.model.state_dict().items()})

    train_model(run, tmp_path, accelerator="cpu", callbacks=[check])
    assert memories == [run.memory] * 5


def test_the_loss_that_is_shown_is_that_of_the_whole_batch(config: MakeConfig, tmp_path: Path) -> None:
    shown = []
    for parts in (1, 4):
        run = config(batch_size=4, steps=11, encoder_steps=10, accumulate=parts, val_images=None, lr=1e-6)
        train_model(run, tmp_path / str(parts), accelerator="cpu")
        curve = training_curve(tmp_path / str(parts) / "logs")
        shown.append([value for _, value in [*curve.l1, *curve.nll]])
    assert len(shown[0]) == 2
    assert shown[1] == pytest.approx(shown[0], rel=1e-4)


class NotFinite:
    """Likelihoods of chosen training steps that are NaN."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
        self.steps, self.calls = steps, 0
        forward = Objective.forward

        def spoil(objective: Objective, *arguments: object) -> Tensor:
            loss = forward(objective, *arguments)
            if torch.is_grad_enabled():
                loss = loss * (math.nan if self.calls in self.steps else 1.0)
                self.calls += 1
            return loss

        monkeypatch.setattr(Objective, "forward", spoil)


def test_a_step_that_is_not_finite_is_skipped_and_listed(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    NotFinite(monkeypatch, {1, 4, 5})
    states = []

    def keep(step: int, objective: Objective) -> None:
        states.append(objective.model.encoder.conv_first.weight.clone())

    path = train_model(config(max_skipped=2), tmp_path, accelerator="cpu", callbacks=[keep])
    assert all(tensor.isfinite().all() for tensor in load_model(path).state_dict().values())
    still = [step for step in range(1, 8) if torch.equal(states[step - 1], states[step])]
    assert {1, 4, 5} <= set(still)
    records = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [(record["step"], record["what"]) for record in records] == [
        (1, "encoder's L1 loss"), (4, "likelihood"), (5, "likelihood")]  # fmt: skip
    assert all(Path(file).name == "picture.png" for record in records for file in record["paths"])
    assert Checkpoints(tmp_path / "checkpoints").newest()["skipped"] == 3
    assert "the likelihood is not finite at step 4; skipped" in capfd.readouterr().err


def test_a_run_that_fails_can_go_on_with_another_rate(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        NotFinite(patch, {4, 5, 6})
        with pytest.raises(FloatingPointError, match=r"not finite at step 6, nor in the 2 before; lower lr \(0.001\)"):
            train_model(config(max_skipped=2), tmp_path, accelerator="cpu")
    assert Checkpoints(tmp_path / "checkpoints").newest()["step"] == 3
    with monkeypatch.context() as patch:
        NotFinite(patch, {0})
        path = train_model(config(max_skipped=2, lr=1e-4), tmp_path, accelerator="cpu")
    assert Checkpoints(tmp_path / "checkpoints").newest()["skipped"] == 1
    assert all(tensor.isfinite().all() for tensor in load_model(path).state_dict().values())


def test_a_scale_of_gradients_that_is_too_large_is_no_failure(config: MakeConfig, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    train_model(config(precision="fp16", max_skipped=1), tmp_path, accelerator="cpu")
    content = checkpoints.newest()
    assert content["scaler"]["scale"] < 2**16
    updates = content["optimizer"]["levels.0.layers.1.actnorm.bias"]["step"]
    assert 0 < updates < 6
    assert content["skipped"] == 0
    assert not (tmp_path / "skipped.jsonl").exists()


def test_the_scale_of_gradients_is_restored(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(step: int, objective: Objective) -> None:
        if step == 4:
            raise InterruptedError

    scaler, run = torch.amp.GradScaler, config(precision="fp16", val_images=None)
    with monkeypatch.context() as patch:
        patch.setattr(torch.amp, "GradScaler", lambda *given, **more: scaler(*given, init_scale=4.0, **more))
        with pytest.raises(InterruptedError):
            train_model(run, tmp_path, accelerator="cpu", callbacks=[stop])
    train_model(run, tmp_path, accelerator="cpu")
    assert Checkpoints(tmp_path / "checkpoints").newest()["scaler"]["scale"] == 4.0


def test_losses_that_are_not_finite_are_failures_at_any_scale(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    NotFinite(monkeypatch, {3, 4, 5})
    with pytest.raises(FloatingPointError, match="likelihood is not finite at step 5, nor in the 2 before"):
        train_model(config(precision="fp16", max_skipped=2), tmp_path, accelerator="cpu")


def test_gradients_that_no_scale_makes_finite_are_failures(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norm = learner.clip_grad_norm_
    monkeypatch.setattr(learner, "clip_grad_norm_", lambda *given: norm(*given) * math.inf)
    monkeypatch.setattr(torch.amp.GradScaler, "get_scale", lambda scaler: 1.0)  # what many overflows leave
    with pytest.raises(FloatingPointError, match="gradient is not finite at step 2, nor in the 2 before"):
        train_model(config(precision="fp16", max_skipped=2), tmp_path, accelerator="cpu")


@pytest.mark.parametrize(
    ("changes", "updates"),
    [
        ({"encoder_steps": 2, "steps": 5}, [0, 1, 0, 1, 2]),
        ({"encoder_steps": 4, "steps": 4}, [0, 1, 2, 3]),
        ({"encoder_steps": 0, "steps": 3}, [0, 1, 2]),
    ],
)
def test_the_average_counts_the_updates_of_one_loss(
    config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, int],
    updates: list[int],
) -> None:
    seen = []
    update = learner.update_average

    def watch(average: dict[str, Tensor], model: torch.nn.Module, decay: float, number: int) -> None:
        seen.append((decay, number))
        update(average, model, decay, number)

    monkeypatch.setattr(learner, "update_average", watch)
    train_model(config(**changes, average=0.75), tmp_path, accelerator="cpu")
    assert seen == [(0.75, number) for number in updates]


def test_the_likelihood_begins_without_the_moments_of_the_pretraining(config: MakeConfig, tmp_path: Path) -> None:
    train_model(config(encoder_steps=3, steps=5, encoder_frozen=0.0), tmp_path, accelerator="cpu")
    optimizer = Checkpoints(tmp_path / "checkpoints").newest()["optimizer"]
    assert {int(state["step"]) for state in optimizer.values()} == {2}
    # the likelihood does not depend on the layers that make an image of the encoder's features
    assert "encoder.conv_first.weight" in optimizer
    assert "encoder.conv_last.weight" not in optimizer


def test_the_state_that_a_phase_began_from_leaves_the_memory(config: MakeConfig, tmp_path: Path) -> None:
    def states() -> int:
        gc.collect()
        return sum(type(each) is dict and {"optimizer", "average"} <= each.keys() for each in gc.get_objects())

    found = []
    before = states()  # what failures of other tests hold
    for run in (config(), config(steps=9)):
        train_model(run, tmp_path, accelerator="cpu", callbacks=[lambda *_: found.append(states())])
    assert len(found) == 9
    assert max(found) <= before


def test_a_failure_leaves_no_workers_behind(config: MakeConfig, tmp_path: Path) -> None:
    def fail(step: int, objective: Objective) -> None:
        assert multiprocessing.active_children()
        raise InterruptedError

    with pytest.raises(InterruptedError) as caught:
        train_model(config(), tmp_path, accelerator="cpu", workers=1, callbacks=[fail])
    assert not multiprocessing.active_children()
    assert caught.value is not None  # the frames of the failure are still there


def test_the_advice_on_an_encoder_that_ends_badly(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Objective.forward

    last = []

    def spoil(objective: Objective, *arguments: object) -> Tensor:
        if torch.is_grad_enabled():
            return forward(objective, *arguments)
        last.append(list(arguments[2]))
        return forward(objective, *arguments) * math.nan

    monkeypatch.setattr(Objective, "forward", spoil)
    run = config(steps=2, encoder_steps=2, val_images=None)
    with pytest.raises(FloatingPointError, match=r"the last weights is not finite; lower encoder_lr \(0.0002\)"):
        train_model(run, tmp_path, accelerator="cpu")
    assert last == [[2, 3]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 1e30}, r"not finite at step \d+, nor in the 1 before; lower lr \(1e\+30\)"),
        (
            {"encoder_lr": 1e30, "encoder_steps": 7},
            r"L1 loss is not finite at step \d, nor .*; lower encoder_lr \(1e\+30\)",
        ),
    ],
)
def test_divergence_is_reported_and_its_weights_are_not_kept(
    config: MakeConfig, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(FloatingPointError, match=message):
        train_model(config(**changes, max_skipped=1, save_every=1), tmp_path, accelerator="cpu")
    assert not (tmp_path / "model.safetensors").exists()
    # whatever was written is good: the run can go on
    assert train_model(config(**{**changes, "lr": 1e-3, "encoder_lr": 1e-3}), tmp_path, accelerator="cpu").exists()


def test_the_last_weights_are_looked_at(config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"loss of the last weights is not finite; lower lr \(1e\+30\)"):
        train_model(
            config(steps=1, encoder_steps=0, lr=1e30, val_images=None, average=0.0), tmp_path, accelerator="cpu"
        )
    assert not (tmp_path / "model.safetensors").exists()


def test_photographs_that_are_blank_do_not_doom_the_flow(config: MakeConfig, tmp_path: Path) -> None:
    import numpy as np

    from sr_models.io.images import write_image

    page = np.full((96, 96, 3), 255, np.uint8)
    page[80:, 80:] = np.random.default_rng(0).integers(0, 255, (16, 16, 3))
    (tmp_path / "pages").mkdir()
    write_image(tmp_path / "pages" / "page.png", page)
    pages = str(tmp_path / "pages")
    path = train_model(config(images=pages, val_images=None), tmp_path / "run", accelerator="cpu")
    model = load_model(path)
    assert isinstance(model, sr_models.SuperResolutionFlow)
    assert max(p.abs().max().item() for name, p in model.named_parameters() if name.endswith("log_scale")) < 6
