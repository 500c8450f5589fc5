"""Decoding in tiles: the whole image's latents, exact away from the tiles' borders, no seams."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import NAMES, randomised
from torch import Tensor

import sr_models
from sr_models.flow.tiling import decode_tiles


@pytest.mark.parametrize("size", [(16, 40), (41, 16), (50, 67)])
def test_tiles_of_a_pointwise_decoder_are_the_whole(size: tuple[int, int]) -> None:
    """Without convolutions nothing depends on the tiles."""

    def decode(latents: list[Tensor], lr: Tensor) -> Tensor:
        fine, coarse = (
            torch.nn.functional.interpolate(latent, (4 * lr.shape[2], 4 * lr.shape[3])) for latent in latents
        )
        return fine + 3 * coarse + torch.nn.functional.interpolate(lr, scale_factor=4)

    height, width = (side // 2 * 2 for side in size)
    lr = torch.rand(1, 3, height, width, dtype=torch.float64)
    latents = [torch.randn(2, 3, 4 * height, 4 * width).double(), torch.randn(2, 3, height // 2, width // 2).double()]
    tiled = decode_tiles(decode, latents, lr, tile=16, multiple=2, scale=4)
    torch.testing.assert_close(tiled, decode(latents, lr), rtol=1e-12, atol=1e-12)


def shallow() -> sr_models.SuperResolutionFlow:
    """A receptive field below 16 low-resolution pixels."""
    torch.manual_seed(0)
    config = {"steps": 1, "hidden_channels": 4, "features": 4, "growth": 2, "blocks": 1, "stacked_blocks": (0,)}
    model = sr_models.create("srflow", scale=4, transition_steps=0, **config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    for module in model.modules():
        if hasattr(module, "mark_initialized"):
            module.mark_initialized()
    return model.eval()


def test_exact_where_no_border_is_seen() -> None:
    model, lr = shallow(), torch.rand(1, 3, 96, 128, dtype=torch.float64)
    whole, tiled = model.sample(lr, 2), model.sample(lr, 2, tile=80)
    # tiles at columns 0..80 and 48..128, of rows at 0..80 and 16..96: the middle of each is its own and sees no border
    for rows, columns in (
        (slice(0, 8), slice(0, 24)),
        (slice(88, 96), slice(104, 128)),
        (slice(0, 8), slice(104, 128)),
    ):
        place = (..., *(slice(4 * part.start, 4 * part.stop) for part in (rows, columns)))
        torch.testing.assert_close(tiled[place], whole[place], rtol=1e-10, atol=1e-10)
    assert not torch.equal(tiled, whole)


@pytest.mark.parametrize(("name", "scale"), [*((name, 4) for name in NAMES), ("srflow", 2), ("ncsr", 2)])
def test_close_and_deterministic(name: str, scale: int) -> None:
    model, lr = randomised(name, scale), torch.rand(2, 3, 37, 53, dtype=torch.float64)
    whole, tiled = model.sample(lr, 2), model.sample(lr, 2, tile=20)
    assert tiled.shape == (2, 2, 3, 37 * scale, 53 * scale)
    assert (tiled - whole).abs().mean() < 0.1 * (whole - whole.mean()).abs().mean()
    torch.testing.assert_close(model.sample(lr, 2, tile=20), tiled, rtol=0, atol=0)
    torch.testing.assert_close(model.sample(lr[1:], 1, tile=20)[0, 0], tiled[1, 0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.sample(lr, 2, tile=64), whole, rtol=0, atol=0)


def test_a_tile_too_small() -> None:
    with pytest.raises(ValueError, match="tile must be at least 16, got 8"):
        randomised("srflow").sample(torch.rand(1, 3, 32, 32, dtype=torch.float64), tile=8)


def enlarged(x: Tensor, lr: Tensor, scale: int) -> Tensor:
    return torch.nn.functional.interpolate(x, (scale * lr.shape[2], scale * lr.shape[3]))


@given(
    tile=st.integers(1, 40),
    multiple=st.sampled_from([1, 2, 3, 4, 8, 16, 32]),
    scale=st.sampled_from([1, 2, 4, 8]),
    counts=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    coarse=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_combination_covers_every_pixel(
    tile: int, multiple: int, scale: int, counts: tuple[int, int], coarse: bool, seed: int
) -> None:
    """A decoder that looks at one pixel at a time cannot see tiles, and no tile is larger than announced."""
    height, width = (min(count, 96 // multiple + 1) * multiple for count in counts)
    lr = torch.rand(1, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    size = (height // multiple, width // multiple) if coarse else (scale * height, scale * width)
    latents = [torch.rand(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))]
    seen = []

    def decode(parts: list[Tensor], lr: Tensor) -> Tensor:
        seen.append(tuple(lr.shape[2:]))
        return enlarged(parts[0], lr, scale) - 2 * enlarged(lr, lr, scale)

    tiled = decode_tiles(decode, latents, lr, tile=tile, multiple=multiple, scale=scale)
    side = max(-(-tile // multiple), 2) * multiple
    assert set(seen) == {(min(side, height), min(side, width))}
    torch.testing.assert_close(tiled, decode(latents, lr), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [
        # a side of 32, and an overlap of 8; the last tile ends at the border
        (None, [0, 24, 38]),
        (8, [0, 24, 38]),
        (15, [0, 16, 32, 38]),
        (1, [0, 30, 38]),
    ],
)
def test_tiles_overlap(overlap: int | None, expected: list[int]) -> None:
    places = []

    def decode(parts: list[Tensor], lr: Tensor) -> Tensor:
        places.append((int(lr[0, 0, 0, 0]), int(lr[0, 1, 0, 0])))
        return lr

    rows, columns = torch.meshgrid(torch.arange(70.0), torch.arange(32.0), indexing="ij")
    lr = torch.stack([rows, columns, rows])[None]
    decode_tiles(decode, [lr], lr, tile=31, multiple=2, scale=1, overlap=overlap)
    assert places == [(row, 0) for row in expected]


def test_a_decoder_may_return_what_it_was_given() -> None:
    image = torch.rand(1, 3, 40, 40)
    copy = image.clone()
    tiled = decode_tiles(lambda latents, _: latents[0], [image], image, tile=16, multiple=2, scale=1)
    assert torch.equal(image, copy)
    torch.testing.assert_close(tiled, image)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_tiles_fade_in_every_dtype(dtype: torch.dtype) -> None:
    image = torch.rand(1, 3, 48, 64).to(dtype)
    tiled = decode_tiles(lambda latents, _: latents[0], [image], image, tile=16, multiple=2, scale=1)
    assert tiled.dtype == dtype
    # each weight, product, sum and quotient is rounded
    torch.testing.assert_close(tiled, image, rtol=8 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile": 0}, "tile must be at least 1, got 0"),
        ({"tile": -16}, "tile must be at least 1, got -16"),
        ({"multiple": 0}, "multiple must be at least 1, got 0"),
        ({"scale": 0}, "scale must be at least 1, got 0"),
        ({"multiple": 5}, r"lr must have height and width divisible by 5, got \(32, 30\)"),
        ({"latents": []}, "latents must hold at least one tensor, got none"),
        (
            {"latents": [torch.zeros(1, 3, 16, 7)]},
            r"whole number of pixels for every 2 of .*, got size \(16",
        ),
    ],
)
def test_tiles_that_do_not_fit_are_refused(change: dict, message: str) -> None:
    given = {"tile": 16, "multiple": 2, "scale": 1, "latents": [torch.zeros(1, 3, 32, 30)], **change}
    with pytest.raises(ValueError, match=message):
        decode_tiles(lambda latents, _: latents[0], given.pop("latents"), torch.zeros(1, 3, 32, 30), **given)


@pytest.mark.parametrize("across", [False, True])
def test_tiles_fade_linearly(across: bool) -> None:
    """Two tiles, one black and one white, share four low-resolution pixels: eight pixels, each an eighth brighter."""
    size = (16, 28) if across else (28, 16)
    lr = torch.zeros(1, 3, *size, dtype=torch.float64)
    shades = iter((0.0, 1.0))

    def decode(parts: list[Tensor], lr: Tensor) -> Tensor:
        return torch.full((1, 3, 2 * lr.shape[2], 2 * lr.shape[3]), next(shades), dtype=torch.float64)

    tiled = decode_tiles(decode, [lr], lr, tile=16, multiple=4, scale=2)
    ramp = ((torch.arange(56, dtype=torch.float64) - 24 + 0.5) / 8).clamp(0, 1)
    expected = ramp if across else ramp[:, None]
    torch.testing.assert_close(tiled, expected.expand(1, 3, 2 * size[0], 2 * size[1]), rtol=0, atol=1e-14)


@pytest.mark.parametrize("across", [False, True])
def test_a_tile_that_ends_next_to_the_border_fades(across: bool) -> None:
    """Two tiles, one black and one white, of 16 pixels each, one pixel apart: each fades over four pixels."""
    size = (16, 17) if across else (17, 16)
    lr = torch.zeros(1, 3, *size, dtype=torch.float64)
    shades = iter((0.0, 1.0))
    tiled = decode_tiles(lambda parts, lr: torch.full_like(lr, next(shades)), [lr], lr, tile=16, multiple=1, scale=1)
    middle = torch.arange(17, dtype=torch.float64) + 0.5
    black, white = ((16 - middle) / 4).clamp(0, 1), ((middle - 1) / 4).clamp(0, 1)
    expected = white / (black + white)
    expected = expected if across else expected[:, None]
    torch.testing.assert_close(tiled, expected.expand(1, 3, *size), rtol=0, atol=1e-14)


def test_overlap_of_samples() -> None:
    model, lr = randomised("srflow"), torch.rand(1, 3, 37, 53, dtype=torch.float64)
    quarter, half = model.sample(lr, tile=16), model.sample(lr, tile=16, overlap=8)
    torch.testing.assert_close(model.sample(lr, tile=16, overlap=4), quarter, rtol=0, atol=0)
    assert not torch.equal(quarter, half)
    progress: list[float] = []
    model.sample(lr, tile=16, overlap=8, on_progress=progress.append)
    assert sum(progress) == pytest.approx(1)
    for overlap in (0, 9):
        with pytest.raises(ValueError, match=rf"overlap must be in 1\.\.8, half of tile, got {overlap}"):
            model.sample(lr, tile=16, overlap=overlap)
    with pytest.raises(ValueError, match="overlap must be given with tile only, got 4"):
        model.sample(lr, overlap=4)
