"""Sampling: seeds, temperatures, sizes, and what is refused."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from tiny_models import randomised

from sr_models.flow import decoding, sampling
from sr_models.flow.model import SuperResolutionFlow


@pytest.fixture(scope="module", params=["srflow", "srflow-da", "ncsr"])
def model(request: pytest.FixtureRequest) -> SuperResolutionFlow:
    return randomised(request.param)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 3), (5, 7)])
def test_any_size(model: SuperResolutionFlow, size: tuple[int, int]) -> None:
    lr = torch.rand(2, 3, *size, dtype=torch.float64)
    samples = model.sample(lr, 2)
    assert samples.shape == (2, 2, 3, 4 * size[0], 4 * size[1])
    assert samples.isfinite().all()


def test_one_temperature_a_latent(model: SuperResolutionFlow) -> None:
    lr = torch.rand(1, 3, 4, 4, dtype=torch.float64)
    count = len(model.latent_shapes(4, 4))
    assert torch.equal(model.sample(lr, 2, temperature=[0.7] * count), model.sample(lr, 2, temperature=0.7))
    mixed = model.sample(lr, 2, temperature=[0.0] * (count - 1) + [0.7])
    assert not torch.equal(mixed[:, 0], mixed[:, 1])
    message = f"temperature must be a number or {count} numbers, one a latent, got {count + 1}"
    with pytest.raises(ValueError, match=message):
        model.sample(lr, temperature=[0.7] * (count + 1))
    with pytest.raises(ValueError, match=r"temperature must be finite and at least 0, got -1\.0"):
        model.sample(lr, temperature=[-1.0] * count)


def test_an_image_that_is_not_finite_is_refused(model: SuperResolutionFlow) -> None:
    for value in (math.nan, math.inf):
        lr = torch.rand(1, 3, 4, 4, dtype=torch.float64)
        lr[0, 1, 2, 3] = value
        with pytest.raises(ValueError, match="lr must be finite, got NaN or infinity"):
            model.sample(lr)


@pytest.mark.parametrize("split", [1, 2, 3])
def test_samples_do_not_depend_on_the_split(model: SuperResolutionFlow, split: int) -> None:
    lr = torch.rand(3, 3, 4, 6, dtype=torch.float64)
    together = model.sample(lr, 4, seed=7)
    parts = torch.cat([model.sample(part, 4, seed=7) for part in lr.split(split)])
    torch.testing.assert_close(parts, together, rtol=0, atol=1e-10)


def test_many_samples_are_decoded_in_blocks_that_bound_the_memory(
    model: SuperResolutionFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    lr, side = torch.rand(2, 3, 4, 6, dtype=torch.float64), 16 * 24
    monkeypatch.setattr(decoding, "_FEWEST", 2)
    expected = model.sample(lr, 5, seed=3)
    sizes: list[int] = []
    original = model.decode_samples

    def counted(latents: list[torch.Tensor], *given: Any) -> torch.Tensor:
        sizes.append(len(latents[0]))
        return original(latents, *given)

    monkeypatch.setattr(model, "decode_samples", counted)
    monkeypatch.setattr(decoding, "_BLOCK_PIXELS", 2 * 3 * side)
    torch.testing.assert_close(model.sample(lr, 5, seed=3), expected)
    monkeypatch.setattr(decoding, "_BLOCK_PIXELS", 1)
    torch.testing.assert_close(model.sample(lr, 5, seed=3), expected)
    assert sizes == [2 * count for count in (3, 2, 2, 2, 1)]


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 7), (3, 6), (7, 4)])
def test_other_sizes_are_continued_by_reflection(size: tuple[int, int]) -> None:
    """At the right and the bottom, without the border's pixel; by that pixel where there are too few to reflect."""
    model = randomised("srflow", scale=8)
    multiple = model.lr_multiple
    lr = torch.rand(1, 3, *size, dtype=torch.float64)
    whole = lr
    for dim in (2, 3):
        side = whole.shape[dim]
        missing = -side % multiple
        order = [2 * side - 2 - i if missing < side else side - 1 for i in range(side, side + missing)]
        whole = torch.cat([whole, whole.index_select(dim, torch.tensor(order, dtype=torch.long))], dim)
    expected = model.sample(whole, 2)[..., : 8 * size[0], : 8 * size[1]]
    assert torch.equal(model.sample(lr, 2), expected)


def test_tiles_where_one_side_is_small() -> None:
    model = randomised("srflow-da")
    lr = torch.rand(1, 3, 16, 40, dtype=torch.float64)
    assert not torch.equal(model.sample(lr, tile=20), model.sample(lr))
    assert torch.equal(model.sample(lr, tile=40), model.sample(lr))


@pytest.mark.parametrize("tile", [None, 16])
@pytest.mark.parametrize("size", [(4, 6), (23, 40)])
def test_progress_adds_up_to_one(tile: int | None, size: tuple[int, int]) -> None:
    model = randomised("srflow-da")
    lr = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts: list[float] = []
    samples = model.sample(lr, 3, tile=tile, on_progress=parts.append)
    assert torch.equal(samples, model.sample(lr, 3, tile=tile))
    assert len(parts) > 5
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(1)


@pytest.mark.parametrize("tile", [None, 16])
def test_a_sample_drawn_again_takes_its_progress_back(monkeypatch: pytest.MonkeyPatch, tile: int | None) -> None:
    model = randomised("srflow-da")
    lr = torch.rand(2, 3, 20, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draw = sampling.draw_latents

    def with_outliers(
        shapes: list[tuple[int, int, int]], samples: list[int], temperature: float, seed: int, attempt: int = 0
    ) -> list[torch.Tensor]:
        latents = draw(shapes, samples, temperature, seed, attempt)
        for position, sample in enumerate(samples):
            if attempt < sample:  # sample 0 is drawn once, sample 1 twice, sample 2 three times, of every image
                latents[-1][position] = 1e7
        return latents

    monkeypatch.setattr(sampling, "draw_latents", with_outliers)
    parts: list[float] = []
    model.sample(lr, 3, tile=tile, on_progress=parts.append)
    taken_back = [part for part in parts if part < 0]
    assert taken_back == pytest.approx([-1 / 6] * 6)
    assert sum(parts) == pytest.approx(1)
    assert max(sum(parts[: count + 1]) for count in range(len(parts))) < 1 + 1e-9


def test_the_temperature_of_a_model_is_that_of_its_samples(model: SuperResolutionFlow) -> None:
    lr = torch.rand(1, 3, 4, 4, dtype=torch.float64)
    assert model.temperature == 0.9
    assert torch.equal(model.sample(lr), model.sample(lr, temperature=0.9))
    own = copy.deepcopy(model)
    own.temperature = 0.4
    assert torch.equal(own.sample(lr), model.sample(lr, temperature=0.4))
    assert torch.equal(own.sample(lr, temperature=0), model.sample(lr, temperature=0))


def test_no_images_make_no_progress() -> None:
    parts: list[float] = []
    assert randomised("srflow-da").sample(torch.empty(0, 3, 4, 4).double(), on_progress=parts.append).shape[0] == 0
    assert not parts
