"""The same cases under pytest-benchmark: ``python -m pytest benchmarks``. Not part of the test suite."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.cases import IMPLEMENTATIONS, Spec, build, runnable, specs_of

pytest.importorskip("pytest_benchmark", reason="the benchmarks need pytest-benchmark: run pip install -e '.[test]'")

CASES = [
    (spec, name) for operator in IMPLEMENTATIONS for spec in specs_of(operator) for name in runnable(operator, "cpu")
]


@pytest.mark.parametrize(("spec", "implementation"), CASES, ids=[f"{spec.name} {name}" for spec, name in CASES])
def test_speed(benchmark: Any, spec: Spec, implementation: str) -> None:
    benchmark(build(spec, [implementation]).implementations[implementation])
