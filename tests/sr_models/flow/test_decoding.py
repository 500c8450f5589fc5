"""The parts in which states go through a layer: all of them, aligned with their images, and not too large."""

from __future__ import annotations

import itertools

import pytest
import torch
from tiny_models import randomised

from sr_models.flow import decoding
from sr_models.flow.decoding import _CHUNK_PIXELS, _chunks
from sr_models.flow.explosions import Watch


@pytest.mark.parametrize("images", [1, 2, 3, 7])
@pytest.mark.parametrize("states", [1, 2, 5, 12])
@pytest.mark.parametrize("pixels", [1, 64, 1000, 2**13, 5000, 2**14, 2**14 + 1, 2**20])
def test_chunks_hold_every_state_once(images: int, states: int, pixels: int) -> None:
    covered = []
    chunks = list(_chunks(images, states, pixels, _CHUNK_PIXELS))
    for own, part in chunks:
        count = part.stop - part.start
        # states of several images come with all of them, those of one image in any number
        assert (own.start, own.stop - 1) == (part.start // states, (part.stop - 1) // states)
        assert own.stop - own.start == 1 or count == states * (own.stop - own.start)
        assert count == 1 or count * pixels <= _CHUNK_PIXELS
        covered += range(part.start, part.stop)
    assert covered == list(range(images * states))
    # no smaller than they must be: what is joined with the next chunk is too large, or is of another image
    for (own, part), (following, after) in itertools.pairwise(chunks):
        least = states if own.stop == following.start else 1
        assert (part.stop - part.start + min(least, after.stop - after.start)) * pixels > _CHUNK_PIXELS or (
            own.stop == following.start and (part.stop - part.start) < states
        )


def test_chunks_of_a_level_are_for_its_height_and_width(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spied(images: int, states: int, pixels: int, limit: int):
        seen.append((images, states, pixels))
        return _chunks(images, states, pixels, limit)

    monkeypatch.setattr(decoding, "_chunks", spied)
    randomised("srflow").sample(torch.rand(2, 3, 4, 10, dtype=torch.float64), 3)
    # from the coarsest level to the finest
    assert seen == [(2, 3, 2 * 5), (2, 3, 4 * 10), (2, 3, 8 * 20)]


@pytest.mark.parametrize("name", ["srflow", "srflow-da", "ncsr"])
@pytest.mark.parametrize("pixels", [1, 2**14])
@pytest.mark.parametrize(("images", "samples"), [(1, 1), (1, 3), (2, 2)])
def test_states_stay_contiguous(
    name: str, pixels: int, images: int, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flow steps on a CPU take several times as long in another layout, whatever that of the features is."""
    layouts: list[tuple[int, int, bool]] = []
    original = Watch.__call__

    def look(self: Watch, state: torch.Tensor, first: int, level: int, layer: int) -> torch.Tensor:
        layouts.append((level, layer, state.is_contiguous()))
        return original(self, state, first, level, layer)

    monkeypatch.setattr(Watch, "__call__", look)
    monkeypatch.setattr(decoding, "_CHUNK_PIXELS", pixels)
    randomised(name, dtype=torch.float32).sample(torch.rand(images, 3, 4, 6), samples)
    assert layouts
    assert [place for *place, kept in layouts if not kept] == []
