"""The benchmark runner measures what it says: right results, every implementation, one line for a mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as runner
from benchmarks.cases import DIRECTIONS, flow_step
from benchmarks.measure import measure

NAMES = ["cpu", "reference", "composition"]


@pytest.mark.parametrize("channels", [3, 12])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_implementations_compute_the_case(direction: str, channels: int) -> None:
    case = flow_step((2, channels, 8, 6), direction, NAMES)
    exact = case.exact()
    assert len(exact) == (7 if direction == "forward+backward" else 2)
    for compute in case.implementations.values():
        for actual, truth in zip(compute(), exact, strict=True):
            torch.testing.assert_close(actual.double(), truth, rtol=1e-4, atol=1e-4)


def test_measurements_belong_to_the_case() -> None:
    case = flow_step((2, 12, 16, 16), "forward", NAMES)
    assert case.bytes == 4 * 3 * 2 * 12 * 16 * 16
    assert case.flops == 2 * 12 * 12 * 2 * 16 * 16
    results = measure(case, rounds=5)
    assert [result.implementation for result in results] == NAMES
    for result in results:
        assert 0 < result.low <= result.median <= result.high
        assert result.bytes_per_second == case.bytes / result.median
        assert result.share_of_roof > 0
        assert result.error < 1e-5


def test_run_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "SHAPES", ((1, 4, 8, 8),))
    threads = torch.get_num_threads()
    try:
        assert (
            runner.main(["run", "flow_step", "--threads", "1", "--rounds", "3", "--json", str(tmp_path / "x.json")])
            == 0
        )
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert printed.count("flow_step 1x4x8x8") == 3 * 3
    assert json.loads((tmp_path / "x.json").read_text())["machine"]["torch"] == torch.__version__
    assert runner.main(["report", str(tmp_path / "x.json"), "--plot", str(tmp_path / "x.svg")]) == 0
    assert printed.strip() in capsys.readouterr().out
    assert (tmp_path / "x.svg").read_text().count("forward") >= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "flow_step", "--backends", "cpu,gpu"], "--backends must be among"),
        (["run", "flow_step", "--json", "/nonexistent/x.json"], "does not exist"),
        (["report", "/nonexistent/x.json"], "No such file"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
