"""Every version of the kernels that this processor runs, not only the one that it would choose."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import PATIENCE, run_python

from invflow.backends import cpu

VERSIONS = cpu.extension.supported_instruction_sets() if cpu.extension else []


@pytest.mark.parametrize(
    "version", [*(pytest.param(v, marks=pytest.mark.slow) for v in VERSIONS[1:-1]), *VERSIONS[1:][-1:]]
)
def test_operators_are_right_in_narrower_versions(version: str) -> None:
    files = [
        str(Path(__file__).with_name(f"test_{name}.py"))
        for name in ("ops", "flow_step", "rows", "vector_step", "dtypes", "layouts", "conv3x3")
    ]
    files.append(str(Path(__file__).with_name("interop") / "test_vector_block.py"))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "not onnx", *files]
    done = subprocess.run(
        command,
        env={**os.environ, "INVFLOW_CPU_ISA": version},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert f"instruction set {version} of" in done.stdout


def test_baseline_is_always_there() -> None:
    assert VERSIONS[-1] == "baseline"


def test_unknown_version_is_an_error_at_import() -> None:
    done = run_python("import invflow", INVFLOW_CPU_ISA="sse9")
    assert done.returncode != 0
    assert f"INVFLOW_CPU_ISA must be one of {', '.join(VERSIONS)} on this processor, got sse9" in done.stderr
