"""The same cases under pytest-benchmark: ``python -m pytest benchmarks``. Not part of the test suite."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.cases import DIRECTIONS, SHAPES, flow_step


@pytest.mark.parametrize("implementation", ["cpu", "reference", "composition"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_flow_step(benchmark: Any, shape: tuple[int, int, int, int], direction: str, implementation: str) -> None:
    benchmark(flow_step(shape, direction, [implementation]).implementations[implementation])
