"""The uniform interface of models: encode, decode, sample."""

from __future__ import annotations

import math

import pytest
import tiny_models
import torch

import sr_models
from invflow.testing import log_det_by_autograd

TINY = {"steps": 1, "hidden_channels": 4, "features": 4, "growth": 2, "blocks": 2, "stacked_blocks": (0, 1)}


def randomised(scale: int = 4) -> sr_models.SuperResolutionFlow:
    """A tiny model none of whose parts is at its initial identity, in float64."""
    return tiny_models.randomised("srflow-da", scale, steps=1)


@pytest.fixture(scope="module", params=[2, 4, 8])
def model(request: pytest.FixtureRequest) -> sr_models.SuperResolutionFlow:
    return randomised(request.param)


def pair(model: sr_models.SuperResolutionFlow, batch: int = 2, height: int = 3, width: int = 5):
    return (
        torch.rand(batch, 3, height * model.scale, width * model.scale, dtype=torch.float64),
        torch.rand(batch, 3, height, width, dtype=torch.float64),
    )


def test_decode_undoes_encode(model: sr_models.SuperResolutionFlow) -> None:
    hr, lr = pair(model)
    with torch.no_grad():
        encoding = model.encode(hr, lr)
        back = model.decode(encoding.latents, lr)
    torch.testing.assert_close(back, hr, rtol=0, atol=1e-10)
    shapes = [tuple(latent.shape[1:]) for latent in encoding.latents]
    assert shapes == model.latent_shapes(3, 5)
    assert sum(math.prod(shape) for shape in shapes) == hr[0].numel() == encoding.dims


def test_log_det_is_that_of_the_jacobian() -> None:
    model = randomised()
    hr, lr = pair(model, batch=1, height=1, width=1)

    class AsLayer(torch.nn.Module):
        def forward(self, x: torch.Tensor, context: torch.Tensor | None = None):
            encoding = model.encode(x, lr)
            return encoding.latents, encoding.log_det

    expected = log_det_by_autograd(AsLayer(), hr)
    torch.testing.assert_close(model.encode(hr, lr).log_det, expected, rtol=0, atol=1e-8)


def test_likelihood_is_log_det_plus_prior(model: sr_models.SuperResolutionFlow) -> None:
    hr, lr = pair(model)
    with torch.no_grad():
        encoding = model.encode(hr, lr)
    prior = sum(torch.distributions.Normal(0, 1).log_prob(latent).flatten(1).sum(1) for latent in encoding.latents)
    torch.testing.assert_close(encoding.log_prob, encoding.log_det + prior)
    torch.testing.assert_close(encoding.bits_per_dim, -encoding.log_prob / (math.log(2) * encoding.dims))


class TestSample:
    def test_shape_range_and_determinism(self, model: sr_models.SuperResolutionFlow) -> None:
        _, lr = pair(model)
        samples = model.sample(lr, 3, temperature=0.7, seed=5)
        assert samples.shape == (2, 3, 3, 3 * model.scale, 5 * model.scale)
        assert samples.min() >= 0
        assert samples.max() <= 1
        assert torch.equal(samples, model.sample(lr, 3, temperature=0.7, seed=5))
        assert not torch.equal(samples, model.sample(lr, 3, temperature=0.7, seed=6))
        assert not torch.equal(samples[:, 0], samples[:, 1])

    def test_does_not_depend_on_the_batch_or_the_number(self, model: sr_models.SuperResolutionFlow) -> None:
        _, lr = pair(model)
        together = model.sample(lr, 3)
        torch.testing.assert_close(model.sample(lr[1:], 2), together[1:, :2], rtol=0, atol=1e-10)

    def test_temperature_zero_decodes_zeros(self, model: sr_models.SuperResolutionFlow) -> None:
        _, lr = pair(model)
        zeros = [torch.zeros(2, *shape, dtype=lr.dtype) for shape in model.latent_shapes(3, 5)]
        with torch.no_grad():
            expected = model.decode(zeros, lr).clamp(0, 1)
        torch.testing.assert_close(model.sample(lr, 2, temperature=0)[:, 1], expected)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"n": 0}, "n must be at least 1, got 0"),
            ({"temperature": -1.0}, "temperature must be finite and at least 0, got -1.0"),
            ({"temperature": math.nan}, "temperature must be finite"),
            ({"seed": -1}, r"seed must be in 0\.\.2\^31 - 1, got -1"),
        ],
    )
    def test_errors(self, model: sr_models.SuperResolutionFlow, arguments: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            model.sample(pair(model)[1], **arguments)


def test_sizes_that_the_levels_cannot_halve() -> None:
    model = sr_models.create("srflow", **TINY).double().eval()
    assert model.lr_multiple == 2
    lr = torch.rand(2, 3, 3, 5).double()
    reflected = torch.cat([lr, lr[:, :, 1:2]], 2)
    reflected = torch.cat([reflected, reflected[..., 3:4]], 3)
    torch.testing.assert_close(model.sample(lr, 2), model.sample(reflected, 2)[..., :12, :20])
    with pytest.raises(ValueError, match=r"lr must have height and width divisible by 2, got \(3, 5\)"):
        model.encode(torch.rand(2, 3, 12, 20).double(), lr)


class TestErrors:
    def test_scale_mismatch(self, model: sr_models.SuperResolutionFlow) -> None:
        hr, lr = pair(model)
        with pytest.raises(ValueError, match=rf"hr must have shape .* at scale {model.scale}, got"):
            model.encode(hr[..., :-1], lr)

    def test_channels_rank_and_dtype(self, model: sr_models.SuperResolutionFlow) -> None:
        hr, lr = pair(model)
        with pytest.raises(ValueError, match=r"lr must have shape \(batch, 3, height, width\), got \(2, 1, 3, 5\)"):
            model.encode(hr, lr[:, :1])
        with pytest.raises(ValueError, match=r"hr must have shape \(batch, 3, height, width\), got \(3,"):
            model.encode(hr[0], lr)
        with pytest.raises(TypeError, match=r"hr must be torch.float64 like the model, got torch.float32"):
            model.encode(hr.float(), lr)

    def test_latents(self, model: sr_models.SuperResolutionFlow) -> None:
        hr, lr = pair(model)
        latents = model.encode(hr, lr).latents
        with pytest.raises(ValueError, match="latents must have shapes"):
            model.decode(latents[:-1], lr)
        with pytest.raises(ValueError, match="latents must have shapes"):
            model.decode([latent[:1] for latent in latents], lr)


def test_unused_upsampling_stages_are_not_computed() -> None:
    model = randomised()
    called = []
    for index, conv in enumerate([*model.encoder.upconvs, model.encoder.hr_conv, model.encoder.last_conv]):
        conv.register_forward_hook(lambda *_, index=index: called.append(index))
    model.encode(*pair(model))
    assert called == [0]


def test_noise_is_enlarged_and_reduced_by_a_bicubic_filter() -> None:
    model = tiny_models.randomised("ncsr")
    lr = torch.rand(2, 3, 4, 6, dtype=torch.float64)
    noise = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    clean, noisy = model.contexts(lr), model.contexts(lr, noise)
    assert torch.equal(noisy[0], clean[0])
    for level in (1, 2):
        count, size = clean[level].shape[1], clean[level].shape[2:]
        assert torch.equal(noisy[level][:, :count], clean[level])
        expected = torch.nn.functional.interpolate(noise, size=size, mode="bicubic")
        torch.testing.assert_close(noisy[level][:, count:], expected)
