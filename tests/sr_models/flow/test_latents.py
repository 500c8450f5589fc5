"""Latents: drawn for samples, interpolated between images, transferred from one to another."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import sr_models
from sr_models.flow.latents import draw_latents, interpolate, transfer

TINY = {"steps": 1, "hidden_channels": 4, "features": 4, "growth": 2, "blocks": 2, "stacked_blocks": (0, 1)}
SHAPES = [(2, 6, 8, 12), (2, 24, 4, 6)]


def latents(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


class TestDrawing:
    def test_a_sample_is_the_same_in_every_batch(self) -> None:
        shapes = [shape[1:] for shape in SHAPES]
        together = draw_latents(shapes, [0, 1, 2], 0.9, seed=7)
        assert [(tuple(z.shape), z.dtype) for z in together] == [((3, *shape), torch.float32) for shape in shapes]
        for index in range(3):
            for alone, whole in zip(draw_latents(shapes, [index], 0.9, seed=7), together, strict=True):
                assert torch.equal(alone[0], whole[index])

    def test_seeds_samples_and_attempts_have_streams_of_their_own(self) -> None:
        draws = [
            draw_latents([(3, 8, 8)], [index], 1.0, seed, attempt)[0]
            for seed in (0, 1, 2**31 - 1)
            for index in (0, 1, 2**20 - 1)
            for attempt in (0, 1, 5)
        ]
        assert len({tuple(z.flatten().tolist()) for z in draws}) == len(draws)

    def test_the_temperature_is_the_standard_deviation(self) -> None:
        warm, cold = draw_latents([(16, 32, 32), (16, 32, 32)], range(4), [0.8, 0.0], seed=0)
        assert warm.std().item() == pytest.approx(0.8, abs=0.01)
        assert warm.mean().item() == pytest.approx(0, abs=0.01)
        assert not cold.any()

    @pytest.mark.parametrize("number", [np.float32, np.float64, np.int64])
    def test_the_temperature_may_be_a_number_of_numpy(self, number: type) -> None:
        shapes = [(2, 4, 4), (1, 2, 2)]
        given, expected = (draw_latents(shapes, [0, 1], value, seed=3) for value in (number(2), 2.0))
        assert all(map(torch.equal, given, expected))

    @pytest.mark.parametrize("seed", [-1, 2**31])
    def test_seed_out_of_range(self, seed: int) -> None:
        with pytest.raises(ValueError, match=rf"seed must be in 0\.\.2\^31 - 1, got {seed}"):
            draw_latents([(1, 1, 1)], [0], 0.9, seed)


def test_interpolation_begins_and_ends_at_the_latents() -> None:
    first, second = latents(0), latents(1)
    for weight, expected in ((0.0, first), (1.0, second)):
        for actual, wanted in zip(interpolate(first, second, weight), expected, strict=True):
            torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("weight", [0.25, 0.5, 0.9])
def test_interpolation_keeps_the_norm_of_typical_latents(weight: float) -> None:
    first, second = latents(0), latents(1)
    for a, b, between in zip(first, second, interpolate(first, second, weight), strict=True):
        norms = [tensor.flatten(1).norm(dim=1) for tensor in (a, b, between)]
        assert (
            (norms[2] > 0.97 * torch.minimum(norms[0], norms[1])) & (norms[2] < 1.03 * norms[0].maximum(norms[1]))
        ).all()
        # it lies in the plane of both, at its share of the angle
        cosine = torch.cosine_similarity(a.flatten(1), between.flatten(1))
        whole = torch.cosine_similarity(a.flatten(1), b.flatten(1))
        torch.testing.assert_close(cosine.acos() / whole.acos(), torch.full((2,), weight), rtol=0, atol=0.03)


def test_interpolation_of_alike_opposite_and_zero_latents_is_finite() -> None:
    first = latents(0)
    for factor in (1.0, -1.0, 0.0):
        second = [factor * latent for latent in first]
        for a, between in zip(first, interpolate(first, second, 0.25), strict=True):
            torch.testing.assert_close(between, (0.75 + 0.25 * factor) * a)


def test_interpolated_latents_decode() -> None:
    model = sr_models.create("srflow-da", **TINY).double().eval()
    hr, lr = torch.rand(2, 3, 16, 16).double(), torch.rand(2, 3, 4, 4).double()
    with torch.no_grad():
        found = model.encode(hr, lr).latents
        back = model.decode(interpolate(found, [z.flip(0) for z in found], 0.0), lr)
    torch.testing.assert_close(back, hr)


def test_transfer_inside_and_outside_of_the_mask() -> None:
    source, target = latents(0), latents(1)
    mask = torch.zeros(1, 1, 16, 24)
    mask[..., :8, :] = 1
    for a, b, mixed in zip(source, target, transfer(source, target, mask), strict=True):
        half = a.shape[2] // 2
        assert torch.equal(mixed[:, :, :half], a[:, :, :half])
        assert torch.equal(mixed[:, :, half:], b[:, :, half:])
    for a, mixed in zip(source, transfer(source, target, torch.ones(2, 1, 16, 24)), strict=True):
        assert torch.equal(mixed, a)


def test_transfer_at_the_edge_keeps_the_variance() -> None:
    source, target = ([torch.randn(1, 64, 32, 32)] for _ in range(2))
    (mixed,) = transfer(source, target, torch.full((1, 1, 32, 32), 0.3))
    assert mixed.std().item() == pytest.approx(1, abs=0.02)


def test_errors() -> None:
    first = latents(0)
    with pytest.raises(ValueError, match=r"second must have shapes \[\(2, 6, 8, 12\), \(2, 24, 4, 6\)\], got \[\(2, 6"):
        interpolate(first, first[:1], 0.5)
    with pytest.raises(ValueError, match=r"weight must be in 0\.\.1, got 1.5"):
        interpolate(first, first, 1.5)
    with pytest.raises(ValueError, match=r"mask must have shape \(2 or 1, 1, height, width\), got \(3, 1, 16, 24\)"):
        transfer(first, first, torch.ones(3, 1, 16, 24))
    with pytest.raises(ValueError, match=r"mask must be in 0\.\.1, got values in 2\.\.2"):
        transfer(first, first, torch.full((1, 1, 16, 24), 2.0))
    with pytest.raises(ValueError, match=r"mask must be a multiple of every latent's size, got \(12, 24\) for \(2, 6"):
        transfer(first, first, torch.ones(1, 1, 12, 24))


@pytest.mark.parametrize("angle", [2e-4, 1e-3, 0.05, 1.0, 3.0, 3.141])
def test_interpolation_on_the_sphere_at_every_angle(angle: float) -> None:
    """Along the arc between two vectors of norm 2, at a share of their angle."""
    first = torch.tensor([2.0, 0.0, 0.0, 0.0], dtype=torch.float64).reshape(1, 4, 1, 1)

    def at(turn: float) -> Tensor:
        return torch.tensor([2 * math.cos(turn), 2 * math.sin(turn), 0, 0], dtype=torch.float64).reshape(1, 4, 1, 1)

    for weight in (0.25, 0.6):
        (between,) = interpolate([first], [at(angle)], weight)
        torch.testing.assert_close(between, at(weight * angle), rtol=0, atol=1e-9)
