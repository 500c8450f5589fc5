"""The order of crops: the same whoever trains on them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sr_models.data.sampler import StepSampler


def test_sampler_begins_at_the_present_step() -> None:
    everything = list(StepSampler(2, range(4)))
    assert everything == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert list(StepSampler(2, range(3, 4))) == everything[3:]
    assert len(StepSampler(2, range(1, 4))) == 3
    assert list(StepSampler(2, range(4, 4))) == []


@pytest.mark.parametrize(("world", "parts"), [(1, 1), (1, 3), (2, 1), (2, 3), (4, 3), (12, 1), (1, 12)])
def test_shares_of_processes_and_parts_are_the_batch_in_order(world: int, parts: int) -> None:
    samplers = [StepSampler(12, range(5, 8), rank=rank, world=world, parts=parts) for rank in range(world)]
    assert {len(sampler) for sampler in samplers} == {3 * parts}
    shares = [list(sampler) for sampler in samplers]
    assert {len(share) for share in shares} == {3 * parts}
    # part after part, process after process
    assert [index for lists in zip(*shares, strict=True) for part in lists for index in part] == list(range(60, 96))


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 9), st.integers(0, 5), st.data())
def test_any_division_and_any_interruption_give_the_same_batches(
    world: int, parts: int, share: int, first: int, count: int, data: st.DataObject
) -> None:
    batch_size, steps = world * parts * share, range(first, first + count)
    interruption = data.draw(st.integers(0, count))
    found: list[int] = []
    for part in (steps[:interruption], steps[interruption:]):
        shares = [list(StepSampler(batch_size, part, rank=rank, world=world, parts=parts)) for rank in range(world)]
        found += [index for lists in zip(*shares, strict=True) for indices in lists for index in indices]
    assert found == list(range(first * batch_size, (first + count) * batch_size))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 6, "world": 4}, r"batch_size must be a multiple of 4 \(4 devices x 1 parts\), got 6"),
        (
            {"batch_size": 6, "world": 2, "parts": 2},
            r"must be a multiple of 4 \(2 devices x 2 parts\), got 6",
        ),
        ({"batch_size": 0}, "batch_size must be a multiple of 1 .*, got 0"),
        ({"batch_size": 4, "parts": 0}, "parts must be at least 1, got 0"),
        ({"batch_size": 4, "world": 2, "rank": 2}, r"rank must be in 0\.\.1 for 2 processes, got 2"),
        ({"batch_size": 4, "rank": -1}, r"rank must be in 0\.\.0 for 1 processes, got -1"),
    ],
)
def test_errors(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StepSampler(**arguments, steps=range(3))
