"""Instruments for a GPU: on a CPU they are plain, on a GPU they see what they are to see."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import Replayed, activity_of, device_seconds, host_seconds, waits


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_calls_are_made_one_after_the_other() -> None:
    made: list[int] = []
    replayed = Replayed(lambda: made.append(1), lambda: made.append(2))
    replayed()
    replayed()
    assert made == [1, 2, 1, 2]
    assert device_seconds(lambda: made.append(3)) > 0
    made.clear()
    assert host_seconds(lambda: made.append(4), number=3, repeats=2) > 0
    assert made == [4] * 6
    with waits() as places:
        torch.ones(1).item()
    assert not places
    assert activity_of(lambda: torch.ones(1)).launches == 0


@pytest.mark.gpu
def test_a_graph_replays_its_calls() -> None:
    total = torch.zeros(3, device="cuda")
    replayed = Replayed(lambda: total.add_(1), lambda: total.mul_(2))
    replayed()
    before = total.clone()
    replayed()
    assert torch.equal(total, (before + 1) * 2)


@pytest.mark.gpu
def test_waits_and_launches_are_counted() -> None:
    x = torch.ones(8, device="cuda")
    with waits() as places:
        x.sum().item()
        x.add_(1)
        bool(x[0] > 0)
    assert sum(places.values()) == 2
    assert all("test_gpu.py:" in place for place in places)
    activity = activity_of(lambda: x.add_(1))
    assert activity.launches == 1
    assert activity.busy > 0
    assert len(activity.heaviest) == 1
