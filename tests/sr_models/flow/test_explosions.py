"""Samples that explode are noticed, named, and drawn again or limited."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import randomised

from invflow import FlowStep
from sr_models.flow import sampling
from sr_models.flow.explosions import LIMIT, ExplosionError, OnExplode, Watch
from sr_models.flow.model import SuperResolutionFlow

LR = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def model() -> SuperResolutionFlow:
    return randomised("srflow")


def damage(model: SuperResolutionFlow, level: int, layer: int, bias: float) -> None:
    step = model.levels[level - 1][layer]
    assert isinstance(step, FlowStep)
    with torch.no_grad():
        step.actnorm.bias[0] = bias


@pytest.mark.parametrize("bias", [1e6, math.inf, math.nan])
def test_the_layer_is_named(model: SuperResolutionFlow, bias: float) -> None:
    damage(model, 2, 3, bias)
    with pytest.raises(ExplosionError, match=r"sample 0 exploded at level 2, layer 3: largest activation"):
        model.sample(LR, 2, on_explode="error")


def test_drawing_again_ends(model: SuperResolutionFlow) -> None:
    damage(model, 1, 3, math.nan)
    with pytest.raises(ExplosionError, match="sample 0 exploded in 6 draws at level 1, layer 3"):
        model.sample(LR, 2)


@pytest.mark.parametrize("temperature", [0, 0.0, "zeros"])
def test_zero_latents_are_drawn_once(
    model: SuperResolutionFlow, monkeypatch: pytest.MonkeyPatch, temperature: float | str
) -> None:
    damage(model, 1, 3, math.nan)
    draws = []
    draw = sampling.draw_latents
    monkeypatch.setattr(sampling, "draw_latents", lambda *given: draws.append(given) or draw(*given))
    given = [0.0] * len(model.latent_shapes(4, 4)) if temperature == "zeros" else temperature
    with pytest.raises(ExplosionError, match=r"sample 0 exploded at level 1, layer 3: .*; there is one draw at temp"):
        model.sample(LR, 2, temperature=given)
    assert len(draws) == 1
    # one latent that is drawn makes other draws
    with pytest.raises(ExplosionError, match="sample 0 exploded in 6 draws"):
        model.sample(LR, 2, temperature=[0.0] * (len(model.latent_shapes(4, 4)) - 1) + [0.1])


@pytest.mark.parametrize("temperature", [0, 0.9])
@pytest.mark.parametrize("on_explode", ["error", "resample"])
def test_the_error_says_what_to_do(model: SuperResolutionFlow, temperature: float, on_explode: OnExplode) -> None:
    damage(model, 1, 3, math.nan)
    with pytest.raises(ExplosionError) as caught:
        model.sample(LR, 2, temperature=temperature, on_explode=on_explode)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith("reduce or denoise the image first, or set on_explode to 'clamp'")
    # at temperature 0 there is none that is lower
    assert ("; lower the temperature, reduce or denoise" in message) == bool(temperature)


def test_clamped_samples_are_finite(model: SuperResolutionFlow) -> None:
    damage(model, 3, 3, math.nan)
    samples = model.sample(LR, 2, on_explode="clamp")
    assert samples.isfinite().all()


def test_only_what_explodes_is_drawn_again(model: SuperResolutionFlow, monkeypatch: pytest.MonkeyPatch) -> None:
    untouched = model.sample(LR, 4)
    shapes = model.latent_shapes(4, 4)
    draw = sampling.draw_latents

    def with_an_outlier(shapes, samples, temperature, seed, attempt=0):
        latents = draw(shapes, samples, temperature, seed, attempt)
        for position, sample in enumerate(samples):
            if sample == 2 and attempt < 2:
                latents[-1][position] = 1e7
        return latents

    monkeypatch.setattr(sampling, "draw_latents", with_an_outlier)
    samples = model.sample(LR, 4)
    others = [0, 1, 3]
    torch.testing.assert_close(samples[:, others], untouched[:, others], rtol=0, atol=1e-10)
    latents = [latent.to(LR).expand(2, *latent.shape[1:]) for latent in draw(shapes, [2], 0.9, 0, 2)]
    with torch.no_grad():
        expected = model.decode(latents, LR).clamp(0, 1)
    torch.testing.assert_close(samples[:, 2], expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(model.sample(LR[1:], 4), samples[1:], rtol=0, atol=1e-10)


def test_what_is_within_the_limit_stays_as_it_is() -> None:
    state = torch.full((2, 3, 2, 2), LIMIT)
    watch = Watch(clamp=True)
    assert watch(state, 0, 1, 0) is state
    assert not watch.found
    state[1, 0, 0, 0] = -2 * LIMIT
    assert watch(state, 4, 1, 7).abs().max() == LIMIT
    assert watch.found == {5: (1, 7, 2 * LIMIT)}


def test_unknown_ways(model: SuperResolutionFlow) -> None:
    with pytest.raises(ValueError, match="on_explode must be one of 'error', 'resample', 'clamp', got 'ignore'"):
        model.sample(LR, on_explode="ignore")


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1.5e5, -1.5e5])
def test_clamping_in_every_dtype(dtype: torch.dtype, value: float) -> None:
    state = torch.full((2, 3, 2, 2), 0.5, dtype=dtype)
    state[1, 2, 0, 1] = value
    watch = Watch(clamp=True)
    limited = watch(state, 0, 1, 0)
    assert limited.dtype == dtype
    assert list(watch.found) == [1]
    # float16 cannot hold the limit: its own largest number is the limit then
    limit = min(LIMIT, torch.finfo(dtype).max)
    expected = 0.0 if math.isnan(value) else math.copysign(limit, value)
    assert limited[1, 2, 0, 1].item() == pytest.approx(expected, rel=0.002)
    assert limited.double().abs().max() <= LIMIT
    limited[1, 2, 0, 1] = 0.5
    assert torch.equal(limited, torch.full_like(limited, 0.5))
    watch = Watch(clamp=True)
    watch(limited, 0, 1, 0)
    assert not watch.found


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_state_within_the_limit_in_every_dtype(dtype: torch.dtype) -> None:
    state = torch.full((1, 3, 2, 2), 6.5e4, dtype=dtype)
    state[0, 1] = -6.5e4
    watch = Watch()
    assert watch(state, 0, 1, 0) is state
    assert not watch.found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [math.inf, -math.inf, math.nan])
def test_every_way_in_every_dtype(dtype: torch.dtype, bias: float) -> None:
    model = randomised("srflow-da").to(dtype)
    damage(model, 1, 3, bias)
    lr = LR.to(dtype)
    with pytest.raises(ExplosionError, match=r"sample 0 exploded at level 1, layer 3: largest activation (inf|nan)"):
        model.sample(lr, 1, on_explode="error")
    with pytest.raises(ExplosionError, match="sample 0 exploded in 6 draws at level 1, layer 3"):
        model.sample(lr, 1, on_explode="resample")
    assert model.sample(lr, 2, on_explode="clamp").isfinite().all()
