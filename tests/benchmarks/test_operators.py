"""What is measured of a flow step on a GPU runs with the same code on a CPU."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as runner
from benchmarks import operators
from benchmarks.operators import OperatorCase, OperatorResult, measure_operator, operator_cases, operators_table

SMALL = (2, 12, 4, 6)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("direction", ["forward", "inverse", "backward", "transition"])
def test_implementations_compute_the_case(direction: str, dtype: str, layout: str) -> None:
    results = measure_operator(OperatorCase(SMALL, direction, dtype, layout), ["cpu", "reference"], "cpu", rounds=2)
    assert [result.implementation for result in results] == ["cpu", "reference"]
    for result in results:
        assert not result.error
        assert result.difference < (1e-5 if dtype == "float32" else 2e-2)
        assert min(result.cold, result.low, result.high, result.warm, result.host, result.copy) > 0


def test_traffic_counts_what_must_be_read_and_written() -> None:
    state = math.prod(SMALL)
    for direction, dtype, expected in [
        ("forward", "float32", 4 * (state + state + 2 * state + state)),
        ("transition", "bfloat16", 2 * (state + state)),
        ("backward", "float32", 4 * (2 * state + 3 * state + state + 3 * state)),
    ]:
        assert OperatorCase(SMALL, direction, dtype, "contiguous").bytes == expected


def test_tensors_have_the_layout_and_dtype_of_the_case() -> None:
    for layout in ("contiguous", "channels_last"):
        call = operators._sets_of(OperatorCase(SMALL, "forward", "bfloat16", layout), "cpu")[0].call
        for tensor in (call.x, call.coupling, call.injector):
            assert tensor is not None
            assert tensor.dtype is torch.bfloat16
            assert tensor.is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")


def test_an_implementation_that_fails_is_named_and_stops_nothing() -> None:
    case = OperatorCase(SMALL, "forward", "float32", "contiguous")
    results = measure_operator(case, ["triton", "cpu"], "cpu", rounds=2)
    assert results[0].error
    assert not results[1].error
    assert results[0].error in operators_table(results)


def test_shares_are_those_of_a_copy() -> None:
    result = OperatorResult("x", "cuda", 2e-6, 1e-6, 3e-6, warm=1e-6, host=5e-6, bytes=4000, copy=1e-6)
    cells = operators_table([result]).splitlines()[-1].strip("| ").split(" | ")
    assert cells == ["x", "cuda", "2.0", "1.0 to 3.0", "2", "50%", "1.0", "5", "0e+00"]


def test_cases_are_those_of_the_models() -> None:
    cases = list(operator_cases())
    assert len({case.name for case in cases}) == len(cases) == 6 * 4 * 2 * 2
    assert {case.shape[1] for case in cases} == {12, 24, 96}


def test_quick_run_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "steps.json"
    run = ["run", "flow_step", "--quick", "--device", "cpu", "--backends", "cpu", "--only", "*12x4x4 forward*"]
    assert runner.main([*run, "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert len(json.loads(path.read_text())["results"]) == 4
    assert runner.main([*run[:-4], "--backends", "composition"]) == 2
    assert "--backends must be among cpu,cuda,triton,reference,compile, got composition" in capsys.readouterr().err
    assert runner.main(["report", str(path)]) == 0
    assert printed.strip() in capsys.readouterr().out


def test_compile_is_measured_on_request() -> None:
    case = OperatorCase(SMALL, "backward", "float32", "contiguous")
    (result,) = measure_operator(case, ["compile"], "cpu", rounds=2)
    assert not result.error
    assert result.difference < 1e-5


def test_once_calls_every_case_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[OperatorCase] = []
    compute = operators._results
    monkeypatch.setattr(operators, "_results", lambda case, *rest: called.append(case) or compute(case, *rest))
    assert runner.main(["once", "--backend", "cpu"]) == 0
    names = [case.name for case in called]
    assert len(set(names)) == len(names) == 8
    assert capsys.readouterr().err.splitlines() == names


def test_once_ends_in_time(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(float(second) for second in range(100))
    monkeypatch.setattr(runner.time, "monotonic", lambda: next(clock))
    assert runner.main(["once", "--backend", "cpu", "--seconds", "3"]) == 0
    assert capsys.readouterr().err.splitlines()[3:] == ["no time left for 5 of 8 cases"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_once_needs_the_device_of_the_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(["once"]) == 2
    assert "--backend cuda: torch finds no CUDA or ROCm device" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("direction", ["forward", "inverse", "backward", "transition"])
def test_operators_on_a_gpu(direction: str) -> None:
    case = OperatorCase((16, 12, 80, 80), direction, "float32", "contiguous")
    results = measure_operator(case, ["cuda", "reference"], "cuda", rounds=3)
    assert not [result.error for result in results if result.error]
    assert all(result.difference < 1e-4 and 0 < result.cold < 1e-2 for result in results)
