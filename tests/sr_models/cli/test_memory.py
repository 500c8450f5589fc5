"""Tiles that fit into the memory that is free."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sr_models.cli import _memory
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
    assert fitting_tile(3000, 4000, 1, 4, 16 * 2**30) == 592
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


def test_samples_that_are_drawn_together_count() -> None:
    """As measured: 32 samples of 256 x 256 pixels take 1438 MiB, and 10 take 855 MiB."""
    assert fitting_tile(256, 256, 32, 4, 1438 * 2**20) is not None
    assert fitting_tile(256, 256, 10, 4, 1438 * 2**20) is None


def test_files_that_a_container_keeps_in_memory_are_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "_GROUP", tmp_path)
    for name, text in (
        ("memory.max", "1000000\n"),
        ("memory.current", "900000\n"),
        ("memory.stat", "anon 100000\ninactive_file 600000\nactive_file 5\n"),
    ):
        (tmp_path / name).write_text(text)
    assert free_memory(torch.device("cpu")) == 700_000
    (tmp_path / "memory.max").write_text("max\n")
    free = free_memory(torch.device("cpu"))
    assert free is None or free > 1_000_000
