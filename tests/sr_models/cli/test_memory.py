"""Tiles that fit into the memory that is free."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sr_models.cli._memory import fitting_tile, free_memory, smaller_tile


@given(
    height=st.integers(1, 10_000),
    width=st.integers(1, 10_000),
    samples=st.integers(1, 40),
    scale=st.sampled_from([2, 4, 8]),
    free=st.one_of(st.none(), st.integers(0, 2**45)),
)
def test_tiles_can_be_used_and_grow_with_memory(
    height: int, width: int, samples: int, scale: int, free: int | None
) -> None:
    tile = fitting_tile(height, width, samples, scale, free)
    if free is None:
        assert tile is None
        return
    more = fitting_tile(height, width, samples, scale, 4 * free)
    assert tile is None or (tile % 16 == 0 and 16 <= tile <= 1024)
    assert more is None or (tile is not None and more >= tile)
    assert fitting_tile(height, width, samples, scale, 2**60) is None


def test_large_images_are_not_decoded_whole() -> None:
    assert fitting_tile(3000, 4000, 1, 4, 16 * 2**30) == 512
    assert fitting_tile(500, 500, 10, 4, 16 * 2**30) is None


@given(height=st.integers(1, 3000), width=st.integers(1, 3000))
def test_tiles_get_smaller_and_end(height: int, width: int) -> None:
    sides = [max(height, width)]
    tile = smaller_tile(height, width, None)
    while tile is not None:
        assert 16 <= tile < sides[-1]
        assert tile <= max(sides[-1] / 2, 16)
        sides.append(tile)
        tile = smaller_tile(height, width, tile)
    assert sides[-1] == 16 or len(sides) == 1


def test_free_memory() -> None:
    free = free_memory(torch.device("cpu"))
    if free is None:
        pytest.skip("this system does not say")
    assert 2**20 < free < 2**50
