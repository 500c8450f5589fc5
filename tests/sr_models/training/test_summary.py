"""What a run says about itself when it begins and when it has ended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import sr_models
from sr_models.training.config import TrainingConfig
from sr_models.training.run import train_model
from sr_models.training.summary import closing, opening

MakeConfig = Callable[..., TrainingConfig]
CPU = torch.device("cpu")
IMAGES = ["5 images in photos", "not used: 1 of another kind (a.gif)"]


def begin(config: TrainingConfig, **options: int) -> list[str]:
    model = sr_models.create(config.model, **config.overrides)
    return opening(config, model, device=CPU, images=IMAGES, **options)


def test_opening_names_the_gpu(config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    run = config()
    model = sr_models.create(run.model, **run.overrides)
    lines = opening(run, model, device=torch.device("cuda", 1), images=IMAGES, devices=2)
    assert any(line.startswith("2 x card 1, ") for line in lines)


def test_opening(config: MakeConfig) -> None:
    run = config(steps=8000, encoder_steps=2000, precision="bf16")
    model = sr_models.create(run.model, **run.overrides)
    encoder, total = (sum(part.numel() for part in module.parameters()) for module in (model.encoder, model))
    threads = torch.get_num_threads()
    assert begin(run) == [
        f"srflow-da 4x, preset released: {total:,} parameters (encoder {encoder:,}, flow {total - encoder:,})",
        f"cpu, {threads} thread{'s' if threads > 1 else ''}, precision bf16",
        *IMAGES,
        "8,000 steps of 2 crops of 16 x 16 pixels, 2,000 of them pretrain the encoder",
    ]


def test_opening_of_a_resumed_run_on_several_devices(config: MakeConfig) -> None:
    lines = begin(config(steps=8000), devices=4, first_step=1234)
    assert lines[1].startswith("4 x cpu, ")
    assert lines[-1] == "going on after step 1,234"


class TestRandomFrozenEncoder:
    def warning(self, run: TrainingConfig) -> str:
        *_, last = begin(run)
        return last if last.startswith("warning: ") else ""

    def test_is_warned_about(self, config: MakeConfig) -> None:
        assert self.warning(config(encoder_steps=0, encoder_frozen=0.5, steps=1000)) == (
            "warning: the encoder is random and stays so for the first 500 steps; "
            "set encoder, init_from or encoder_steps, or encoder_frozen 0"
        )

    @pytest.mark.parametrize(
        "changes",
        [{"encoder": "rrdb.safetensors"}, {"init_from": "model.safetensors"}, {"encoder_steps": 5},
         {"encoder_frozen": 0.0}],
    )  # fmt: skip
    def test_not_if_it_is_trained_or_given(self, config: MakeConfig, changes: dict[str, object]) -> None:
        options = {"encoder_steps": 0, "encoder_frozen": 0.5, "steps": 1000, **changes}
        assert self.warning(config(**options)) == ""

    def test_not_for_a_recipe_that_never_freezes_it(self, config: MakeConfig) -> None:
        assert self.warning(config(model="srflow", encoder_steps=0)) == ""


def test_closing() -> None:
    lines = closing(Path("runs/my run"), steps=8000, seconds=7500, skipped=3, best=("val_nll", -4.1163, 6000))
    assert lines == [
        "8,000 steps in 2 h 5 min; 3 skipped, see runs/my run/skipped.jsonl",
        "best val_nll -4.116 after step 6,000: runs/my run/best.safetensors",
        "curves: tensorboard --logdir 'runs/my run/logs'",
        "samples: sr-models sample --checkpoint 'runs/my run/model.safetensors' --images FOLDER --output FOLDER",
    ]


def test_closing_of_an_encoder() -> None:
    """Samples of a flow that has learned nothing are noise."""
    *_, last = closing(Path("run"), steps=5, seconds=1.2, encoder_only=True)
    assert last == "the flow has not begun to learn: sr-models train --init_from run/model.safetensors goes on"


def test_closing_without_validation_and_skipped_steps() -> None:
    first, second, _ = closing(Path("run"), steps=5, seconds=1.2)
    assert first == "5 steps in 1 s"
    assert second == "curves: tensorboard --logdir run/logs"


def test_a_run_begins_with_its_description_and_ends_with_its_results(
    config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_model(config(), tmp_path, accelerator="cpu")
    lines = capsys.readouterr().err.splitlines()
    beginnings = ["srflow-da 4x, ", "cpu, ", "1 image in ", "validation: 4 crops of 1 image in ", "8 steps of 2 crops"]
    beginnings += ["pretraining: step 2 of 2", "training: step 8 of 8"]
    beginnings += ["8 steps in ", "best val_nll ", "curves: ", "samples: "]
    assert len(lines) == len(beginnings), lines
    for line, beginning in zip(lines, beginnings, strict=True):
        assert line.startswith(beginning), line
