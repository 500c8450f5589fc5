"""The published composition is the same function as ours, and none of our operators takes part in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import NAMES, randomised
from torch import Tensor

from benchmarks.published import published

CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in NAMES),
    ("srflow", {"affine": "exp"}),
    ("srflow", {"scale": 8}),
    ("ncsr", {"noise_channels": 1}),
]


def images(scale: int) -> tuple[Tensor, Tensor]:
    return torch.rand(2, 3, 8 * scale, 4 * scale).double(), torch.rand(2, 3, 8, 4).double()


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_encode_likelihood_and_decode_are_ours_in_float64(name: str, options: dict[str, Any]) -> None:
    model = randomised(name, **options)
    plain = published(model)
    hr, lr = images(model.scale)
    noises = [None]
    if model.noise_channels:
        noises += [torch.full((2, 1, 1, 1), 0.03).double(), 0.03 * torch.randn(2, model.noise_channels, *hr.shape[2:])]
    for noise in noises:
        noise = None if noise is None else noise.double()
        with torch.no_grad():
            ours, theirs = model.encode(hr, lr, noise), plain.encode(hr, lr, noise)
            for actual, expected in zip(theirs.latents, ours.latents, strict=True):
                torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)
            torch.testing.assert_close(theirs.log_det, ours.log_det, rtol=1e-11, atol=1e-9)
            torch.testing.assert_close(theirs.bits_per_dim, ours.bits_per_dim, rtol=1e-11, atol=1e-11)
            decoded = plain.decode(theirs.latents, lr, noise)
            torch.testing.assert_close(decoded, model.decode(ours.latents, lr, noise), rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(decoded, hr, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["srflow", "srflow-da-r", "ncsr"])
def test_gradients_are_ours_in_float64(name: str) -> None:
    model = randomised(name).train()
    plain = published(model)
    hr, lr = images(4)
    for module in (model, plain):
        module.encode(hr, lr).bits_per_dim.mean().backward()
    expected = dict(model.named_parameters())
    assert len(expected) == len(list(plain.parameters()))
    for parameter_name, parameter in plain.named_parameters():
        gradient = expected[parameter_name.removeprefix("model.")].grad
        if parameter.grad is None or gradient is None:
            assert parameter.grad is gradient is None, parameter_name
        else:
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["srflow", "srflow-da", "ncsr"])
def test_samples_are_ours(name: str) -> None:
    model = randomised(name)
    lr = torch.rand(1, 3, 4, 4).double()
    samples = published(model).sample(lr, 3, temperature=0.7, seed=5)
    assert samples.std() > 0
    torch.testing.assert_close(samples, model.sample(lr, 3, temperature=0.7, seed=5), rtol=0, atol=1e-9)


def test_weights_are_copies() -> None:
    model = randomised("srflow")
    plain = published(model)
    before = [parameter.clone() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_none_of_our_operators_takes_part() -> None:
    plain = published(randomised("ncsr"))
    hr, lr = images(4)
    with torch.no_grad(), torch.profiler.profile() as profile:
        latents = plain.encode(hr, lr, torch.full((2, 1, 1, 1), 0.01).double()).latents
        plain.decode(latents, lr)
    names = {event.key for event in profile.key_averages()}
    assert "aten::conv2d" in names
    assert "aten::linalg_slogdet" in names
    assert not [name for name in names if "invflow" in name]


def test_a_layer_that_no_published_model_has_is_named() -> None:
    model = randomised("srflow")
    model.levels[0].layers[1] = torch.nn.Identity()
    with pytest.raises(TypeError, match="the published composition has no Identity"):
        published(model).encode(*images(4))


def test_a_flow_of_the_residual_is_refused() -> None:
    with pytest.raises(ValueError, match="base must be 'none', got a model with 'bicubic'"):
        published(randomised("srflow", base="bicubic"))
