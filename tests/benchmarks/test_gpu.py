"""Instruments for a GPU: on a CPU they are plain, on a GPU they see what they are to see."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import Replayed, activity_of, device_seconds, host_seconds, tf32, waits


def test_on_a_cpu_calls_are_made_one_after_the_other() -> None:
    made: list[int] = []
    replayed = Replayed("cpu", [lambda: made.append(1), lambda: made.append(2)])
    replayed()
    replayed()
    assert made == [1, 2, 1, 2]
    assert device_seconds(lambda: made.append(3), "cpu") > 0
    made.clear()
    assert host_seconds(lambda: made.append(4), "cpu", number=3, repeats=2) > 0
    assert made == [4] * 6


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_allowed_within_the_block_only(allowed: bool) -> None:
    def settings() -> list[bool]:
        return [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32]

    before = settings()
    with tf32(allowed):
        assert settings() == [allowed, allowed]
    assert settings() == before


@pytest.mark.gpu
def test_a_graph_replays_its_calls() -> None:
    total = torch.zeros(3, device="cuda")
    replayed = Replayed("cuda", [lambda: total.add_(1), lambda: total.mul_(2)])
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
