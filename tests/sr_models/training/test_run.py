"""A run in a folder: a resumed one equals an unbroken one, and another one is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import lightning
import pytest
import torch

import sr_models
from sr_models.checkpoints.convert import convert_published
from sr_models.checkpoints.files import load_model
from sr_models.checkpoints.published import encoder_layout
from sr_models.evaluation.report.curve import training_curve
from sr_models.training.config import TrainingConfig
from sr_models.training.run import train_model

MakeConfig = Callable[..., TrainingConfig]


class StopAt(lightning.Callback):
    """Interruption of a run, as a killed process causes it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            raise InterruptedError("killed")


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_resumed_run_equals_unbroken_run(config: MakeConfig, tmp_path: Path, stop: int) -> None:
    unbroken = train_model(config(), tmp_path / "unbroken", accelerator="cpu")
    with pytest.raises(InterruptedError):
        train_model(config(), tmp_path / "broken", accelerator="cpu", callbacks=[StopAt(stop)])
    assert not (tmp_path / "broken" / "model.safetensors").exists()
    resumed = train_model(config(), tmp_path / "broken", accelerator="cpu")
    expected, actual = load_model(unbroken).state_dict(), load_model(resumed).state_dict()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name
    curves = [training_curve(tmp_path / name / "logs") for name in ("unbroken", "broken")]
    assert curves[0].val_nll == curves[1].val_nll


def test_finished_run_is_left_as_it_is(config: MakeConfig, tmp_path: Path) -> None:
    path = train_model(config(), tmp_path, accelerator="cpu")
    before = load_model(path).state_dict()
    after = load_model(train_model(config(), tmp_path, accelerator="cpu")).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_another_run_in_the_folder_is_refused(config: MakeConfig, tmp_path: Path) -> None:
    train_model(config(), tmp_path, accelerator="cpu")
    record = (tmp_path / "training.json").read_text()
    with pytest.raises(ValueError, match=r"holds a run with other settings \(lr was 0.001, now 0.5\)"):
        train_model(config(lr=0.5), tmp_path, accelerator="cpu")
    assert (tmp_path / "training.json").read_text() == record
    assert json.loads(record)["lr"] == 1e-3


def test_without_validation_folder(config: MakeConfig, tmp_path: Path) -> None:
    assert train_model(config(val_images=None), tmp_path, accelerator="cpu").exists()


def test_pretrained_encoder(config: MakeConfig, tmp_path: Path) -> None:
    encoder = sr_models.create("srflow-da", **config().overrides).encoder
    state_dict = {name: encoder.state_dict()[own] for name, (own, _) in encoder_layout(encoder).items()}
    torch.save(state_dict, tmp_path / "rrdb.pth")
    convert_published(tmp_path / "rrdb.pth", tmp_path / "rrdb.safetensors")
    frozen = {"encoder": str(tmp_path / "rrdb.safetensors"), "encoder_steps": 0, "encoder_frozen": 1.0, "steps": 2}
    trained = load_model(train_model(config(**frozen), tmp_path / "run", accelerator="cpu")).encoder
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(trained.state_dict()[name], tensor), name
    other = config(**frozen, overrides={**config().overrides, "features": 6})
    with pytest.raises(ValueError, match=r"cannot load encoder .*rrdb.safetensors: size mismatch"):
        train_model(other, tmp_path / "other", accelerator="cpu")
    assert not (tmp_path / "other").exists()
