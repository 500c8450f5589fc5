"""The noise of training: the published step, draw by draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import sr_models
from sr_models.flow.noise import clean_condition, noisy_pair
from sr_models.io.resize import imresize
from sr_models.randomness import random_stream

TINY = {"steps": 1, "hidden_channels": 4, "features": 4, "growth": 2, "blocks": 2, "stacked_blocks": (0, 1)}


def pair(batch: int = 3, scale: int = 4) -> tuple[Tensor, Tensor]:
    return torch.rand(batch, 3, 6 * scale, 8 * scale), torch.rand(batch, 3, 6, 8)


def draw(model: sr_models.SuperResolutionFlow, hr: Tensor, lr: Tensor, std: float, seed: int = 0):
    return noisy_pair(model, hr, lr, std, [random_stream(seed, "noise", index) for index in range(len(hr))])


def test_fixed_noise() -> None:
    model = sr_models.create("srflow-da", **TINY)
    hr, lr = pair(batch=40)
    noisy = draw(model, hr, lr, 0.1)
    noise = noisy.hr - hr
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=0.002)
    assert noisy.lr is lr
    assert noisy.noise is None
    assert torch.equal(draw(model, hr, lr, 0.1).hr, noisy.hr)
    assert not torch.equal(draw(model, hr, lr, 0.1, seed=1).hr, noisy.hr)
    assert torch.equal(draw(model, hr, lr, 0.0).hr, hr)
    assert clean_condition(model, hr) is None


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_noise_conditional(scale: int) -> None:
    steps = {2: (1, 1), 4: (0, 1, 1), 8: (0, 0, 1, 1)}[scale]
    model = sr_models.create("ncsr", scale=scale, **TINY, noise_steps=steps)
    hr, lr = pair(batch=400, scale=scale)
    noisy = draw(model, hr, lr, 0.0)
    assert noisy.noise is not None
    torch.testing.assert_close(noisy.hr, hr + noisy.noise)
    # as strong as a uniform draw for every image says
    strength = noisy.noise.flatten(1).std(1)
    assert model.config.noise_std == {2: 0.05, 4: 0.05, 8: 0.03}[scale]
    quantiles = torch.quantile(strength, torch.tensor([0.02, 0.25, 0.5, 0.75, 0.98])) / model.config.noise_std
    torch.testing.assert_close(quantiles, torch.tensor([0.02, 0.25, 0.5, 0.75, 0.98]), rtol=0, atol=0.07)
    # the low-resolution image gets the reduced noise, whatever its own values
    for index in (0, 399):
        reduced = imresize(np.moveaxis(noisy.noise[index].numpy(), 0, -1), 1 / scale)
        expected = torch.from_numpy(np.moveaxis(reduced, -1, 0)).float()
        torch.testing.assert_close(noisy.lr[index] - lr[index], expected, rtol=0, atol=1e-6)
    assert torch.equal(clean_condition(model, hr), torch.zeros(400, 1, 1, 1))


def test_one_channel_of_noise_is_its_standard_deviation() -> None:
    model = sr_models.create("ncsr", **TINY, noise_steps=(0, 1, 1), noise_channels=1)
    hr, lr = pair(batch=5)
    noisy = draw(model, hr, lr, 0.0)
    assert noisy.noise is not None
    assert noisy.noise.shape == (5, 1, 1, 1)
    torch.testing.assert_close((noisy.hr - hr).flatten(1).std(1), noisy.noise.flatten(), rtol=0.1, atol=1e-3)
    model.eval().encode(*noisy)
