"""The benchmark runner measures what it says: right results, every implementation, one line for a mistake."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from missing_packages import run_without

from benchmarks import __main__ as runner
from benchmarks import cases, crops, freia, steps, vectors
from benchmarks.cases import DIRECTIONS, IMPLEMENTATIONS, Spec, build, runnable, specs_of
from benchmarks.measure import measure
from benchmarks.peaks import peak_memory
from benchmarks.steps import LIBRARIES
from invflow import FlowSequential
from sr_models.io.images import encode_png

NAMES = ["cpu", "reference", "composition"]
SMALL = Spec("flow_step", (2, 12, 16, 16), "forward")


@pytest.mark.parametrize("channels", [3, 12])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("operator", ["flow_step", "flow_step_with_network"])
def test_implementations_compute_the_case(operator: str, direction: str, channels: int) -> None:
    case = build(Spec(operator, (2, channels, 8, 6), direction), NAMES)
    exact = case.exact()
    # results; gradients of state, h or six parameters of the network (twice two convolutions, a gain), and actnorm
    between = 7 if operator == "flow_step_with_network" else 1
    assert len(exact) == 2 + (direction == "forward+backward") * (1 + between + 3)
    for compute in case.implementations.values():
        for actual, truth in zip(compute(), exact, strict=True):
            torch.testing.assert_close(actual.double(), truth, rtol=1e-4, atol=1e-4)


def test_the_library_s_own_network_computes_the_case() -> None:
    case = build(Spec("flow_step_with_network", (2, 24, 10, 12), "forward+backward"), ["coupling_net"])
    for actual, truth in zip(case.implementations["coupling_net"](), case.exact(), strict=True):
        torch.testing.assert_close(actual.double(), truth, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_steps_of_other_libraries_are_measured_by_their_own_map(library: str, direction: str) -> None:
    pytest.importorskip(LIBRARIES[library])
    case = build(Spec("flow_step_with_network", (2, 5, 8, 6), direction), [library])
    (result,) = measure(case, rounds=2)
    assert result.implementation == library
    assert 0 < result.error < 1e-3
    *_, log_det = case.implementations[library]()[:2]
    assert log_det.shape == (2,)
    assert not torch.allclose(log_det.double(), case.exact()[1], rtol=1e-2), "its map is not ours"


def test_a_library_that_is_missing_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "find_spec", lambda name: None if name == "nflows" else "there")
    assert not set(runnable("flow_step_with_network", "cpu")) & set(LIBRARIES)
    assert runner.main(["run", "flow_step_with_network", "--backends", "freia,nflows"]) == 2
    message = f"--backends nflows: not installed: run pip install -e '.[peers]' in {ROOT}"
    assert capsys.readouterr().err == f"benchmarks: error: {message}\n"


def test_compile_computes_the_case_too() -> None:
    case = build(Spec("flow_step", (1, 4, 4, 4), "forward"), ["compile"])
    for actual, truth in zip(case.implementations["compile"](), case.exact(), strict=True):
        torch.testing.assert_close(actual.double(), truth, rtol=1e-4, atol=1e-4)


def test_training_compares_the_two_kinds_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    case = build(Spec("training", (2, 4, 6, 6), "forward+backward", steps=2), ["store", "invert"])
    used = []
    encode = FlowSequential.forward
    monkeypatch.setattr(FlowSequential, "forward", lambda flow, *a: used.append(flow.memory) or encode(flow, *a))
    exact = case.exact()
    for compute in case.implementations.values():
        for actual, truth in zip(compute(), exact, strict=True):
            torch.testing.assert_close(actual.double(), truth, rtol=1e-3, atol=1e-3)
    assert used == ["invert", "store", "invert"]


def test_measurements_belong_to_the_case() -> None:
    case = build(SMALL, NAMES)
    assert case.bytes == 4 * 3 * 2 * 12 * 16 * 16
    assert case.flops == 2 * 12 * 12 * 2 * 16 * 16
    results = measure(case, rounds=5)
    assert [result.implementation for result in results] == NAMES
    for result in results:
        assert 0 < result.low <= result.median <= result.high
        assert result.bytes_per_second == case.bytes / result.median
        assert result.share_of_roof is not None
        assert result.share_of_roof > 0
        assert result.error < 1e-5
        assert result.peak_bytes is None


def test_memory_of_a_call_is_measured() -> None:
    spec = Spec("flow_step", (4, 12, 160, 160), "forward")
    state = 4 * 4 * 12 * 160 * 160
    peaks = peak_memory(spec, ["cpu", "composition"], threads=1)
    if not peaks:
        pytest.skip("this system does not tell a process's peak memory")
    # the system counts a process's memory in batches
    assert 0.9 * state < peaks["cpu"] < 1.5 * state, "the output and next to nothing else"
    assert peaks["composition"] > 1.9 * state


def test_run_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "SHAPES", ((1, 4, 8, 8),))
    threads = torch.get_num_threads()
    run = ["run", "flow_step", "--backends", ",".join(NAMES), "--threads", "1", "--rounds", "3"]
    try:
        assert runner.main([*run, "--json", str(tmp_path / "x.json")]) == 0
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert printed.count("flow_step 1x4x8x8") == 3 * 3
    assert json.loads((tmp_path / "x.json").read_text())["machine"]["torch"] == torch.__version__
    assert runner.main(["report", str(tmp_path / "x.json"), "--plot", str(tmp_path / "x.svg")]) == 0
    assert printed.strip() in capsys.readouterr().out
    assert (tmp_path / "x.svg").read_text().count("forward") >= 2


def test_by_default_everything_runs_that_can() -> None:
    assert runnable("flow_step", "cpu") == ["cpu", "reference", "composition", "compile"]
    assert runnable("training", "cpu") == ["store", "invert"]


@pytest.mark.gpu
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_measurements_on_a_gpu(direction: str) -> None:
    spec = Spec("flow_step_with_network", (4, 12, 80, 80), direction, device="cuda")
    names = runnable("flow_step_with_network", "cuda")
    assert {"triton", "reference", "composition", "compile"} <= set(names)
    results = measure(build(spec, names), rounds=5, peaks=peak_memory(spec, names, threads=1))
    assert all(0 < result.median < 1 and result.peak_bytes for result in results)
    assert all(result.error < 1e-3 for result in results)


def test_a_training_step_is_timed_alone_and_beside_a_busy_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(["neighbour", "--rounds", "2"]) == 0
    line = capsys.readouterr().out
    quiet, busy = (float(number) for number in re.findall(r"(\d+\.\d+) s", line))
    assert quiet > 0
    assert busy > 0
    assert f"{torch.get_num_threads()} threads" in line


def test_overhead_is_a_table_of_positive_figures(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    assert runner.main(["overhead", "--rounds", "2"]) == 0
    torch.set_num_threads(threads)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.strip() == "microseconds a call (quartiles)"
    assert len(rows) == 7
    figures = {name: float(value.split()[0]) for name, value in (re.split(r" {2,}", row, maxsplit=1) for row in rows)}
    assert 0 < figures["FlowStep, forward"] < figures["FlowStep, forward + backward"]


def test_freia_is_a_table_of_blocks_with_the_same_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("FrEIA", reason="FrEIA is not installed: make peers")
    monkeypatch.setattr(freia, "_LEAST_SECONDS", 1e-4)
    table = freia.measure_freia(2, ((2, 16, 12, 12), (8, 6)))
    head, _, *rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    assert head[0] == "state"
    assert [row[0] for row in rows] == ["2 x 16 x 12 x 12", "8 x 6"]
    assert all(float(row[1]) < 1e-5 for row in rows)
    assert all(float(figure) > 0 for row in rows for figure in row[2:])


def test_vectors_is_a_table_of_positive_figures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "_STATES", ((64, 16), (64, 8, 2, 2)))
    monkeypatch.setattr(vectors, "_LEAST_SECONDS", 1e-4)
    threads = torch.get_num_threads()
    assert runner.main(["vectors", "--rounds", "2"]) == 0
    torch.set_num_threads(threads)
    head, _, *rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert head[0] == "state"
    assert [row[:2] for row in rows[::2]] == [["64 x 16", "forward"], ["64 x 8 x 2 x 2", "forward"]]
    assert all(float(figure) > 0 for row in rows for figure in row[2:])


def test_crops_of_a_pack_are_cheaper_than_those_of_files(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # smaller than the benchmark's, but large enough for decoding to take ten times as long as all else
    monkeypatch.setattr(crops, "_LARGE", (800, 1000))
    monkeypatch.setattr(crops, "_FILES", 1)
    threads = torch.get_num_threads()
    assert runner.main(["crops", "--rounds", "2"]) == 0
    torch.set_num_threads(threads)
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.strip() == "ms of processor time (quartiles), a second on 8 cores"
    figures = {name: float(value.split()[0]) for name, value in (re.split(r" {2,}", row, maxsplit=1) for row in rows)}
    assert len(figures) == 11
    assert 0 < figures["crop of a pack"] < figures["crop of a PNG, 2040 x 1356"]
    assert figures["read_image, PNG, 2040 x 1356"] > 0


def test_pictures_of_the_benchmark_compress_like_photographs() -> None:
    picture = crops._photograph(600, 800, 0)
    assert len(encode_png(picture)) == pytest.approx(picture.nbytes / 2, rel=0.1)
    assert (picture != crops._photograph(600, 800, 1)).any()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cuda"], "--device cuda: torch finds no CUDA or ROCm device"),
        (["--backends", "triton"], "backend 'triton' cannot run: torch finds no CUDA or ROCm device"),
    ],
)
def test_mistakes_without_a_gpu(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(["run", "flow_step", *arguments]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("operator", IMPLEMENTATIONS)
def test_every_case_has_a_name_of_its_own(operator: str) -> None:
    names = [spec.name for spec in specs_of(operator)]
    assert len(set(names)) == len(names) == {"training": 3}.get(operator, 18)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "flow_step", "--backends", "cpu,gpu"], "--backends must be among"),
        (["run", "training", "--backends", "cpu"], "--backends must be among store,invert, got cpu"),
        (["run", "flow_step", "--rounds", "1"], "--rounds must be at least 2, got 1"),
        (["run", "flow_step", "--threads", "0"], "--threads must be at least 1, got 0"),
        (["run", "flow_step", "--json", "/nonexistent/x.json"], "does not exist"),
        (["run", "training", "--quick"], "--quick must be used with models or flow_step, got training"),
        (["run", "training", "--only", "x", "y*"], "--only must match a case, got x y*; the cases are 'training 8x12"),
        (["run", "models", "--device", "cpu", "--backends", "ours-tf32"], "--backends must be among published-fp32,"),
        (["report", "/nonexistent/x.json"], "No such file"),
        (["overhead", "--rounds", "1"], "--rounds must be at least 2, got 1"),
        (["vectors", "--rounds", "1"], "--rounds must be at least 2, got 1"),
        (["freia", "--rounds", "1"], "--rounds must be at least 2, got 1"),
        (["anomalib", "--rounds", "1"], "--rounds must be at least 2, got 1"),
        (["neighbour", "--rounds", "1"], "--rounds must be at least 2, got 1"),
        (["crops", "--rounds", "1"], "--rounds must be at least 2, got 1"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


ROOT = Path(runner.__file__).parents[1]

RUN_BY_PATH = """
import runpy
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_by_path(cwd: Path, missing: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    # the variable of the allocator is set so that it does not start anew
    environment = {"PYTHONPATH": "", "MALLOC_TOP_PAD_": "0"}
    return run_without(missing.split(","), RUN_BY_PATH, str(ROOT / "benchmarks"), *arguments, cwd=cwd, **environment)


def test_it_runs_by_path_from_anywhere(tmp_path: Path) -> None:
    figures = ROOT / "docs" / "benchmarks" / "flow_step.json"
    command = [sys.executable, str(ROOT / "benchmarks"), "report", str(figures)]
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "flow_step 16x12x80x80 forward | 1 | cpu" in done.stdout


def test_memory_is_measured_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert set(peak_memory(SMALL, ["reference"], threads=1)) <= {"reference"}


# all that pip install . leaves out
EXTRAS = "jsonargparse,lightning,lpips,matplotlib,PIL,safetensors,skimage,scipy,tensorboard,torchvision,tqdm"
INSTALL = f"run pip install -e '.[sr]' in {ROOT}"


@pytest.mark.parametrize(
    ("missing", "arguments", "message"),
    [
        ("torch", "report figures.json", f"error: No module named 'torch': {INSTALL}"),
        (
            "matplotlib",
            f"report {ROOT / 'docs/benchmarks/flow_step.json'} --plot x.png",
            f"error: No module named 'matplotlib': {INSTALL}",
        ),
        (EXTRAS, "run models --rounds 1", "error: --rounds must be at least 2, got 1"),
        (
            "invflow._C",
            "run flow_step --rounds 1",
            "backend 'cpu' cannot run flow_step: the extension invflow._C could not be imported "
            f"(No module named 'invflow._C'): run pip install -e . in {ROOT} to measure it",
        ),
    ],
)
def test_what_is_missing_is_said_in_one_line(missing: str, arguments: str, message: str, tmp_path: Path) -> None:
    done = run_by_path(tmp_path, missing, *arguments.split())
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert f"benchmarks: {message}" in done.stderr.splitlines()
