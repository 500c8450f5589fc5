"""The script for a machine with a GPU starts what it says, keeps every result, and goes on after a failure."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

#: Stands for every program: writes its name and arguments down, and fails if it is told to.
STAND_IN = """#!/bin/sh
echo "$(basename "$0") $* [$INVFLOW_TEST_UNTUNED]" >> "$CALLS"
echo "output of $(basename "$0")"
for bad in $FAILING; do case "$*" in *"$bad"*) exit 1 ;; esac; done
"""


def run(folder: Path, *parts: str, failing: str = "") -> tuple[subprocess.CompletedProcess[str], list[str]]:
    programs = folder / "programs"
    programs.mkdir()
    for name in ("python", "nvidia-smi", "nvcc", "compute-sanitizer", "ncu"):
        (programs / name).write_text(STAND_IN)
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHON": "python",
        "OUT": str(folder / "out"),
        "CALLS": str(folder / "calls"),
        "FAILING": failing,
    }
    command = ["bash", str(ROOT / "tests/gpu/run.sh"), *parts]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    calls = folder / "calls"
    return done, calls.read_text().splitlines() if calls.exists() else []


def test_all_parts_run(tmp_path: Path) -> None:
    done, calls = run(tmp_path)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1].endswith("end; nothing failed")
    tests = [call for call in calls if call.startswith("python -m pytest")]
    assert len(tests) == 3
    assert all(call.endswith("[1]") and "-m gpu" in call for call in tests)
    tools = [call.split()[2] for call in calls if call.startswith("compute-sanitizer")]
    assert sorted(tools) == ["memcheck", "racecheck", "synccheck"]
    measured = [call.split("benchmarks run ")[1].split()[0] for call in calls if "-m benchmarks run" in call]
    assert measured == ["models", "models", "models", "flow_step", "flow_step"]
    assert sum(call.startswith("ncu") for call in calls) == 1
    assert "setup.py" not in " ".join(calls), "the extensions can be imported"
    kept = {path.name for path in (tmp_path / "out").iterdir()}
    assert kept >= {"log.txt", "cuda.txt", "triton.txt", "whole.txt", "memcheck.txt", "racecheck.txt", "synccheck.txt"}


def test_a_failure_stops_nothing_and_is_named_at_the_end(tmp_path: Path) -> None:
    done, calls = run(tmp_path, "tests", "models", failing="invflow._C many.json")
    assert done.returncode == 1
    assert "build ended with 0" in done.stdout, "the extensions could not be imported, so they were built"
    assert "python setup.py -q build_ext --inplace []" in calls
    assert done.stdout.splitlines()[-1].endswith("end; many(1) failed")
    assert sum("-m benchmarks run" in call for call in calls) == 3


def test_a_failing_backend_is_named(tmp_path: Path) -> None:
    done, _ = run(tmp_path, "tests", failing="test_graphs.py")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].endswith("end; tests of models(1) failed")


def test_files_with_tests_that_need_a_gpu_are_run(tmp_path: Path) -> None:
    _, calls = run(tmp_path, "tests")
    named = {word for call in calls if "-m pytest" in call for word in call.split() if word.startswith("tests/")}
    marked = re.compile(r"pytest\.mark\.gpu|\beach_kernels\b|GPU_BACKENDS")
    needing = {path.relative_to(ROOT) for path in ROOT.glob("tests/**/test_*.py") if marked.search(path.read_text())}
    left = {str(path) for path in needing if not {str(path), *map(str, path.parents)} & named}
    assert left == {"tests/benchmarks/test_benchmarks.py", "tests/gpu/test_run.py"}, "the first compiles for minutes"
    assert all((ROOT / path).exists() for path in named)


def test_extensions_older_than_their_sources_are_built(tmp_path: Path) -> None:
    for number, name in enumerate(("csrc/new.cu", "invflow/_C.so", "invflow/_CUDA.so", "csrc/newer.cu")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (number, number))
    _, calls = run(tmp_path, "facts")
    assert any("setup.py" in call for call in calls)


def test_without_a_device_nothing_is_tried(tmp_path: Path) -> None:
    done, calls = run(tmp_path, "tests", "facts", failing="is_available")
    assert done.returncode == 2
    assert done.stdout.splitlines()[-1].endswith("s: cannot run: output of python")
    assert not [call for call in calls if "pytest" in call.split() or call.startswith("nvidia-smi")]
    (tmp_path / "facts").mkdir()
    _, calls = run(tmp_path / "facts", "facts", failing="is_available")
    assert sum(call.startswith("nvidia-smi") for call in calls) == 1


def refusal_of(python: str, folder: Path) -> str:
    """Run the script with a Python that cannot do its work, and return its last line."""
    environment = {**os.environ, "PYTHON": python, "OUT": str(folder / "out")}
    command = ["bash", str(ROOT / "tests/gpu/run.sh"), "counters"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    return done.stdout.splitlines()[-1].partition("cannot run: ")[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_missing_device_is_named(tmp_path: Path) -> None:
    assert refusal_of(sys.executable, tmp_path) == f"torch {torch.__version__} finds no CUDA or ROCm device"


def test_missing_packages_are_named(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    assert refusal_of(str(bare), tmp_path).endswith(" lacks pytest, pytest-xdist, hypothesis, Pillow, NumPy")


def test_parts_run_alone(tmp_path: Path) -> None:
    _, calls = run(tmp_path, "sanitizers")
    assert not [call for call in calls if "benchmarks" in call or call.startswith("ncu")]
    assert sum(call.startswith("compute-sanitizer") for call in calls) == 3


def test_an_unknown_part_is_refused_before_anything_runs(tmp_path: Path) -> None:
    done, calls = run(tmp_path, "speed")
    assert done.returncode == 2
    assert (
        "PART must be one of facts tests sanitizers models steps counters small_grids compiled, got speed"
        in done.stdout
    )
    assert not calls


def test_compiled_models_have_more_time(tmp_path: Path) -> None:
    done, calls = run(tmp_path, "compiled")
    assert done.returncode == 0, done.stdout
    (measured,) = [call for call in calls if "-m benchmarks run" in call]
    assert "--seconds 384 " in measured
    assert "published-bf16-compile" in measured


def test_small_grids_are_built_apart_and_measured_in_turn(tmp_path: Path) -> None:
    for name in ("invflow", "benchmarks", "sr_models", "csrc", "cmake"):
        (tmp_path / name).mkdir()
    for name in ("CMakeLists.txt", "setup.py", "pyproject.toml", "README.md", "LICENSE", "invflow/_CUDA.so"):
        (tmp_path / name).touch()
    done, calls = run(tmp_path, "small_grids")
    assert done.returncode == 0, done.stdout
    measured = [Path(call.split("--json ")[1].split()[0]).stem for call in calls if "-m benchmarks run" in call]
    assert measured == ["usual_grids_1", "small_grids_1", "usual_grids_2", "small_grids_2"]
    assert sum("setup.py" in call for call in calls) == 1
    tree = tmp_path / "out" / "small_grids"
    assert (tree / "setup.py").exists()
    assert not (tree / "invflow/_CUDA.so").exists(), "it would not be built again"
    (tmp_path / "failing").mkdir()
    done, calls = run(tmp_path / "failing", "small_grids", failing="setup.py")
    assert done.returncode == 1
    assert "build of small_grids(1)" in done.stdout.splitlines()[-1]
    assert not any("-m benchmarks run" in call for call in calls)


@pytest.mark.parametrize("untuned", [True, False])
def test_triton_is_not_tuned_where_the_script_says_so(
    untuned: bool, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    conftest = pytestconfig.pluginmanager.get_plugin(str(ROOT / "tests/conftest.py"))
    assert conftest is not None
    asked: list[bool] = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode, *, warn_only: asked.append(mode))
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setenv("INVFLOW_TEST_UNTUNED", "1" if untuned else "")
    conftest.pytest_configure()
    assert asked == [True] * untuned
    assert torch.utils.deterministic.fill_uninitialized_memory is not untuned
