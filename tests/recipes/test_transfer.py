"""An SRFlow-DA with noise-conditional layers that computes the same, and its training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import sr_models
from recipes import transfer
from recipes.robust import finetune
from recipes.transfer import with_noise
from sr_models.checkpoints.files import load_model, save_model
from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.images import write_image
from sr_models.io.resize import imresize

SIZES = {"steps": 2, "hidden_channels": 4, "features": 4, "growth": 2, "blocks": 1}


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SuperResolutionFlow:
    """A small SRFlow-DA with networks that do something; models are small from here on."""
    create = sr_models.create

    def small(name: str, **fields: object) -> SuperResolutionFlow:
        noise = {"noise_steps": (2, 1)} if name == "ncsr" else {}
        return create(name, **fields, **SIZES, **noise)  # type: ignore[arg-type]

    monkeypatch.setattr(sr_models, "create", small)
    torch.manual_seed(0)
    model = sr_models.create("srflow-da", preset="tiny")
    with torch.no_grad():
        model.encode(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 8, 8))
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    save_model(model, tmp_path / "start.safetensors")
    return model.eval()


def test_the_noisy_model_computes_what_its_start_does(tmp_path: Path, start: SuperResolutionFlow) -> None:
    model = with_noise(tmp_path / "start.safetensors").double().train()
    start = start.double()
    hr, lr, std = torch.rand(3, 3, 32, 32).double(), torch.rand(3, 3, 8, 8).double(), torch.tensor([0.0, 0.004, 0.01])
    noise = std[:, None, None, None].double()
    with torch.no_grad():
        model.encode(hr, lr, noise)  # the noise networks take their values
        model.eval()
        expected, found = start.encode(hr, lr), model.encode(hr, lr, noise)
    torch.testing.assert_close(found.bits_per_dim, expected.bits_per_dim, rtol=1e-6, atol=1e-6)
    for own, other in zip(found.latents, expected.latents, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.sample(lr, seed=1), start.sample(lr, seed=1), rtol=1e-5, atol=1e-5)
    # a layer that does not do anything yet must be able to learn
    model.train().encode(hr, lr, noise).bits_per_dim.mean().backward()
    layers = [module for name, module in model.named_modules() if name.endswith(".noise")]
    assert len(layers) == 3
    assert all(layer.net.layers[-2].weight.grad.abs().max() > 0 for layer in layers)


def test_it_learns_with_an_encoder_that_does_not(tmp_path: Path, start: SuperResolutionFlow) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "photographs").mkdir()
    write_image(tmp_path / "photographs" / "a.png", imresize(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), 10))
    save_model(transfer.with_noise(tmp_path / "start.safetensors"), tmp_path / "noisy.safetensors")
    file = finetune(
        str(tmp_path / "noisy.safetensors"),
        tmp_path / "photographs",
        tmp_path / "run",
        minutes=0.02,
        batch=2,
        crop=32,
        lr=1e-3,
        share=0.5,
        frozen=True,
    )
    assert file.name == "ncsr-tiny.safetensors"
    model = load_model(file)
    for found, own in zip(model.encoder.parameters(), start.encoder.parameters(), strict=True):
        assert torch.equal(found, own)
    assert any(
        bool(parameter.abs().max() > 0)
        for name, parameter in model.named_parameters()
        if name.endswith("noise.net.layers.4.weight")
    )
