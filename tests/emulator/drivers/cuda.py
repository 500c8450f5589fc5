"""The project's CUDA kernels on tensors of the CPU.

    with cuda_on_cpu(capability=80):
        flow_step(x, matrix, shift, backend="cuda")

Everything but the launches is the project's own: its Python and its host code, with the choice of kernels and grids.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from invflow.backends import _cuda, cuda

from .. import build, nvcc
from ..occupancy import MULTIPROCESSORS
from ..source import host_library, load_extension
from ..through_ptx import HostLaunch, through_ptx

CSRC = Path(__file__).parents[3] / "csrc"
KERNELS = sorted((CSRC / "cuda").glob("*.cu"))
INCLUDE = [CSRC / "include", CSRC / "cuda"]


def unavailable(capability: int | None) -> str | None:
    """Return why the kernels cannot run here, or ``None``."""
    try:
        import pybind11  # noqa: F401
    except ImportError:
        return "pybind11 is not installed"
    return build.unavailable() if capability is None else nvcc.unavailable()


@functools.cache
def library(sanitize: str | None = None, *definitions: str) -> Path:
    """Path of ``invflow._CUDA``, compiled for the CPU with macros defined; ``sanitize`` as for ``host_library``."""
    import pybind11

    facts = {"COMPILER": "g++", "CUDA_ARCHITECTURES": "the CPU", "VERSION": "under test"}
    flags = [f'-DINVFLOW_{name}="{value}"' for name, value in facts.items()]
    flags += [f"-D{name}" for name in definitions]
    flags += [f"-I{sysconfig.get_paths()['include']}", f"-I{pybind11.get_include()}"]
    return host_library(
        "_CUDA", [*KERNELS, CSRC / "cuda" / "bindings.cpp"], include=INCLUDE, flags=flags, sanitize=sanitize
    )


class _Device(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int) for name in ("multiprocessors", "shared_of_multiprocessor", "shared_of_block")
    )


@contextlib.contextmanager
def cuda_on_cpu(
    capability: int | None = None,
    *,
    device: int | None = None,
    multiprocessors: int = 2,
    sanitize: str | None = None,
    **options: Any,
) -> Iterator[list[HostLaunch]]:
    """Let the backend "cuda" take tensors of the CPU, and nothing else, inside the context.

    A compute ``capability`` such as 80 makes it run the PTX of nvcc. ``options`` are those of ``through_ptx``, and the
    list of launches is yielded. ``None`` makes it run the kernels as g++ compiles them. They run under a sanitizer if
    the process runs under the same (see ``run_sanitized``), and the list stays empty.

    The host code divides the work as for a GPU with so many ``multiprocessors`` of architecture ``device``, by default
    ``capability``, or else 90. They are few, so that small states too give blocks more than one tile.
    """
    path = library(sanitize)
    chip = MULTIPROCESSORS[device or capability or 90]
    facts = _Device.in_dll(ctypes.CDLL(str(path)), "cuda_on_cpu_device")
    facts.multiprocessors, facts.shared_of_multiprocessor = multiprocessors, chip.shared
    facts.shared_of_block = chip.of_block
    where = {
        "extension": load_extension("_CUDA", path),
        "unavailable": lambda: "",
        "why_not": lambda op, x: "" if x.device.type == "cpu" else f"it runs on the CPU, got {x.device}",
    }
    with contextlib.ExitStack() as stack:
        for name, value in where.items():
            stack.enter_context(mock.patch.object(cuda, name, value))
        stack.enter_context(mock.patch.object(_cuda, "_stream", return_value=0))
        if capability is None:
            yield []
        else:
            ptx = [nvcc.compile_ptx(source, capability, include=INCLUDE) for source in KERNELS]
            yield stack.enter_context(through_ptx(path, ptx, **options))
