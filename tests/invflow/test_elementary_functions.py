"""Accuracy of exp, log, tanh and the sigmoid scale in units in the last place, in every version of the kernels."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from invflow.backends import cpu

HERE = Path(__file__).parent
COMPILER = shlex.split(os.environ.get("CXX", "")) or ["g++" if shutil.which("g++") else "c++"]
# As in CMakeLists.txt.
FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-Wno-psabi"]
VERSIONS = {
    "neon": (16, []),
    "baseline": (16, []),
    "avx2": (32, ["-mavx2", "-mfma"]),
    "avx512": (64, ["-mavx512f", "-mavx512dq", "-mfma"]),
}

Values = np.ndarray


def _sigmoid(x: Values) -> Values:
    """Return the sigmoid of raw + 2, a sum that float32 rounds."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-(x.astype(np.float32) + np.float32(2)).astype(np.float64)))


def _log_sigmoid(x: Values) -> Values:
    return np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x)))


# Position in elementary_functions.cpp; the same in float64; arguments from and to; largest error in units in the last
# place.
FUNCTIONS: dict[str, tuple[int, Callable[[Values], Values], float, float, float]] = {
    "exp": (0, np.exp, -104, 88.7, 2),
    "1 + exp": (1, lambda x: 1 + np.exp(x), -69, 69, 2),
    "log": (2, np.log, 1.2e-38, 3e38, 2),
    "log sigmoid": (3, _log_sigmoid, -3e38, 87, 3),
    "tanh": (4, np.tanh, -3e38, 3e38, 3),
    "slope of tanh": (5, lambda x: 1 / np.cosh(x) ** 2, -43, 43, 5),
    "sigmoid + eps": (6, lambda x: _sigmoid(x) + np.float32(1e-4), -3e38, 3e38, 2),
    "1 / (sigmoid + eps)": (7, lambda x: 1 / (_sigmoid(x) + np.float32(1e-4)), -3e38, 3e38, 3),
    "sigmoid": (8, _sigmoid, -80, 3e38, 2),
    "atan": (9, np.arctan, -3e38, 3e38, 3),
}


def _arguments(low: float, high: float) -> Values:
    """Float32 numbers between the two of every size, and as many evenly spaced ones near zero."""
    every_size = np.arange(0, 2**32, 2003, dtype=np.uint64).astype(np.uint32).view(np.float32)
    near_zero = np.linspace(-110, 110, 2**21 + 1, dtype=np.float32)
    values = np.concatenate([every_size, near_zero])
    values = values[(values >= low) & (values <= high)]
    return np.ascontiguousarray(values[: len(values) // 16 * 16])


@pytest.fixture(scope="module", params=cpu.extension.supported_instruction_sets() if cpu.extension else [])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    width, flags = VERSIONS[request.param]
    library = tmp_path_factory.mktemp("compiled") / "elementary.so"
    source = HERE / "elementary_functions.cpp"
    csrc = HERE.parents[1] / "csrc"
    folders = [f"-I{csrc / 'include'}", f"-I{csrc / 'cpu'}"]
    command = [*COMPILER, *FLAGS, *flags, f"-DINVFLOW_VECTOR_BYTES={width}", *folders, "-shared", "-fPIC"]
    subprocess.run([*command, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def _errors(library: ctypes.CDLL, name: str, arguments: Values) -> Values:
    """Distance to the result in float64, in units in the last place of a float32 of its size."""
    position, exact_function, *_ = FUNCTIONS[name]
    actual = np.full_like(arguments, np.nan)
    pointers = (values.ctypes.data_as(ctypes.c_void_p) for values in (arguments, actual))
    library.elementary_function(position, *pointers, ctypes.c_int64(len(arguments)))
    exact = exact_function(arguments.astype(np.float64))
    return np.abs(actual - exact) / np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_errors_are_a_few_units_in_the_last_place(
    compiled: ctypes.CDLL, name: str, record_property: Callable[[str, object], None]
) -> None:
    *_, low, high, allowed = FUNCTIONS[name]
    arguments = _arguments(low, high)
    assert len(arguments) > 10**5
    errors = _errors(compiled, name, arguments)
    worst = int(np.nanargmax(errors))
    assert not np.isnan(errors).any(), f"not a number at {arguments[np.isnan(errors).argmax()]}"
    assert errors[worst] <= allowed, f"{errors[worst]:.3g} units in the last place at {arguments[worst]!r}"
    record_property(f"units in the last place of {name}", float(errors[worst]))
