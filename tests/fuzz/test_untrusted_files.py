"""Damaged files of every kind are refused in one line that names them, or read; ``make fuzz`` tries many more."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
sys.path.insert(0, str(_HERE))
try:
    from fuzz import faults_of
    from mutate import mutant
finally:
    sys.path.remove(str(_HERE))

# those that have had faults, the cheap ones; each costs a process
_SHORT = {"config": 40, "settings": 200, "study": 100}


@pytest.mark.parametrize(("kind", "files"), _SHORT.items())
def test_damaged_files_are_refused_in_one_line(kind, files):
    assert faults_of(kind, files) == {}


def test_a_mutant_follows_from_its_seed_alone():
    content = b'{"a": {"b": [1, {"c": 2}]}, "config": {"d": 3}}'
    alone = [mutant(content, seed) for seed in range(300)]
    assert len(set(alone)) > 200
    assert [mutant(content, seed) for seed in reversed(range(300))] == alone[::-1]
