"""Losses of decoded images, and the stages of HCFlow that train with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sr_models.checkpoints.files import load_model
from sr_models.evaluation.metrics.vgg import VGGFeatures, find_vgg, load_vgg
from sr_models.training import adversary
from sr_models.training.adversary import Adversary, Discriminator
from sr_models.training.config import TrainingConfig
from sr_models.training.run import train_model
from sr_models.training.stages import plan_stages, train_stages

MakeConfig = Callable[..., TrainingConfig]
TINY = {
    "steps": 1,
    "conditional_steps": 1,
    "hidden_channels": 4,
    "conditional_hidden_channels": 4,
    "features": 4,
    "growth": 2,
    "blocks": [1, 1],
}


@pytest.fixture
def shared(folder: Path) -> dict[str, Any]:
    return {
        "model": "hcflow",
        "images": str(folder),
        "overrides": TINY,
        "crop": 32,
        "batch_size": 2,
        "steps": 2,
        "lr": 1e-3,
    }


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Discriminators of a few channels."""
    monkeypatch.setattr(adversary, "_WIDTHS", (4, 4, 4, 4, 4))


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published weights where this machine has them, others of the same shapes elsewhere."""
    try:
        return find_vgg()
    except FileNotFoundError:
        path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
        with torch.device("meta"):
            shapes = {name: t.shape for name, t in _untrained().items()}
        torch.save(
            {name: torch.randn(shape) / math.sqrt(shape[1:].numel() or 1) for name, shape in shapes.items()}, path
        )
        return path


def _untrained() -> dict[str, torch.Tensor]:
    from sr_models.evaluation.metrics.vgg import _layers

    return {f"features.{name}": tensor for name, tensor in nn.Sequential(*_layers()).state_dict().items()}


@pytest.mark.usefixtures("narrow")
def test_every_stage_trains(shared: dict[str, Any], vgg_file: Path, tmp_path: Path) -> None:
    """HCFlow, HCFlow+ and HCFlow++; the last two change weights that the stage before has left."""
    plus = {"nll_weight": 6e-3, "pixel_weight": 1.0}
    plusplus = {
        **plus,
        "feature_weight": 0.05,
        "adversarial_weight": 0.5,
        "discriminator_steps": 1,
        "feature_weights": str(vgg_file),
    }
    stages = plan_stages(
        shared,
        [{"name": "hcflow"}, {"name": "plus", **plus, "carry_gradient": True}, {"name": "plusplus", **plusplus}],
    )
    train_stages(stages, tmp_path, accelerator="cpu", workers=0)
    former = None
    for folder in ("1-hcflow", "2-plus", "3-plusplus"):
        state = load_model(tmp_path / folder / "model.safetensors").state_dict()
        assert all(tensor.isfinite().all() for tensor in state.values())
        assert former is None or any(not torch.equal(tensor, former[name]) for name, tensor in state.items())
        former = state


@pytest.mark.usefixtures("narrow")
def test_an_interrupted_run_goes_on_with_its_discriminator(shared: dict[str, Any], tmp_path: Path) -> None:
    """Weights of a run in two parts are those of a run at once."""
    settings = {**shared, "adversarial_weight": 0.5, "pixel_weight": 1.0, "nll_weight": 6e-3}
    for name, parts in (("whole", [2]), ("parts", [1, 2])):
        for steps in parts:
            config = TrainingConfig(**{**settings, "steps": steps, "milestones": []})
            train_model(config, tmp_path / name, accelerator="cpu", workers=0)
    whole, parts = (load_model(tmp_path / name / "model.safetensors").state_dict() for name in ("whole", "parts"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name


def test_the_discriminator_has_the_published_size() -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in Discriminator(160).parameters()) == 14_960_201


@pytest.mark.usefixtures("narrow")
def test_the_discriminator_learns() -> None:
    opponent = Adversary(32, 0, torch.device("cpu"))
    photographs, samples = torch.rand(4, 3, 32, 32), torch.rand(4, 3, 1, 1).expand(4, 3, 32, 32)
    before = opponent.loss(samples)
    losses = [opponent.learn([(photographs, samples)], 1e-3).item() for _ in range(8)]
    assert losses[-1] < losses[0]
    assert opponent.loss(samples) > before


def test_features_are_those_of_the_published_network(vgg_file: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    weights = load_vgg(vgg_file)
    network = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    network.load_state_dict({name.removeprefix("features."): weights[name] for name in _untrained()})
    images = torch.rand(1, 3, 32, 48)
    normal = (images - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    with torch.no_grad():
        torch.testing.assert_close(VGGFeatures(weights)(images), network[:29](normal))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adversarial_weight": 1.0, "crop": 48}, "crop must be a multiple of 32 for a discriminator, got 48"),
        ({"carry_gradient": True}, "carry_gradient needs pixel_weight"),
        ({"discriminator_steps": 1}, "discriminator_steps need adversarial_weight, which is 0"),
        ({"precision": "fp16"}, "precision must not be fp16 with weights of losses or value_clip"),
        ({"noise_std": 0.1}, "noise_std and noise_width exclude each other"),
        ({"milestones": [0.5, 0.2]}, r"milestones must be ascending numbers in 0..1, got \[0.5, 0.2\]"),
        ({"milestones": 0.5}, "milestones must be a list of numbers, got 0.5"),
        ({"beta2": 1.0}, "beta2 must be between 0 and 1, got 1.0"),
        ({"pixel_weight": -1.0}, "pixel_weight must be finite and at least 0, got -1.0"),
    ],
)
def test_errors(shared: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**{**shared, **changes})


def test_errors_before_a_run_begins(shared: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="encoder_steps must be 0: hcflow has no encoder, got 1"):
        train_model(TrainingConfig(**{**shared, "encoder_steps": 1}), tmp_path / "a", accelerator="cpu")
    config = TrainingConfig(**{**shared, "feature_weight": 1.0, "feature_weights": str(tmp_path / "nowhere.pth")})
    with pytest.raises(FileNotFoundError, match=r"feature_weights must be a file, .*nowhere\.pth does not exist"):
        train_model(config, tmp_path / "b", accelerator="cpu")
