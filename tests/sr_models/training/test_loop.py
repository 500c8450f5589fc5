"""The training loop: it learns, follows the schedule, and survives steps that are not finite."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sr_models
from sr_models.checkpoints.files import load_model
from sr_models.evaluation.report.curve import training_curve
from sr_models.training.checkpoints import Checkpoints
from sr_models.training.config import TrainingConfig
from sr_models.training.loop import better
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

    monkeypatch.setattr(torch.optim.Adam, "step", watch)
    train_model(run, tmp_path, accelerator="cpu")
    assert rates == [run.learning_rates(step) for step in range(12)]


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
    path = train_model(config(max_skipped=2, lr=1e-4), tmp_path, accelerator="cpu")
    assert all(tensor.isfinite().all() for tensor in load_model(path).state_dict().values())


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


def test_the_better_figure() -> None:
    first = better(None, "val_nll", {"val_nll": -1.0, "val_psnr": 9.0}, 4)
    assert first == {"figure": "val_nll", "value": -1.0, "step": 4}
    assert better(first, "val_nll", {"val_nll": -1.0}, 5) is first
    assert better(first, "val_nll", {"val_nll": math.nan}, 5) is first
    assert better(first, "val_nll", {"val_nll": math.inf}, 5) is first
    assert better(first, "val_nll", {}, 5) is first
    assert better(first, "val_nll", {"val_nll": -2.0}, 5)["step"] == 5
    other = better(first, "val_psnr", {"val_psnr": 9.0}, 6)
    assert other == {"figure": "val_psnr", "value": 9.0, "step": 6}
    assert better(other, "val_psnr", {"val_psnr": 8.0}, 7) is other
    assert better(other, "val_psnr", {"val_psnr": 9.5}, 7)["value"] == 9.5


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
