"""Decoded images in memory: the latest ones, within a limit."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from sr_models.data import memory
from sr_models.data.memory import Memory


def array(size: int) -> tuple[np.ndarray, ...]:
    return (np.zeros(size - 1, np.uint8), np.zeros(1, np.uint8))


def test_what_was_used_last_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LIMIT", 10)
    kept = Memory()
    made = []

    def get(key: str, size: int) -> None:
        result = kept.get(key, lambda: made.append(key) or array(size))
        assert sum(part.nbytes for part in result) == size

    for key in "abab":
        get(key, 4)
    assert made == ["a", "b"]
    get("c", 3)  # without room for all, a goes, which was used before b
    get("b", 4)
    get("a", 4)
    assert made == ["a", "b", "c", "a"]
    assert list(kept._kept) == ["b", "a"]
    get("x", 11)  # larger than the limit: the others stay
    assert list(kept._kept) == ["b", "a"]
    get("y", 10)
    assert list(kept._kept) == ["y"]
    assert kept._bytes == 10


def test_workers_share_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LIMIT", 12)
    monkeypatch.setattr(memory, "get_worker_info", lambda: SimpleNamespace(num_workers=3))
    kept = Memory()
    for key in range(5):
        kept.get(key, lambda: array(2))
    assert list(kept._kept) == [3, 4]


def test_a_copy_for_another_process_is_empty() -> None:
    kept = Memory()
    kept.get("a", lambda: array(1000))
    copy = pickle.loads(pickle.dumps(kept))
    assert not copy._kept
    assert copy._bytes == 0
