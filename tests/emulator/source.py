"""Compilation of CUDA C++ for the CPU, against ``runtime/cuda_on_cpu.h``, plainly or under a sanitizer.

The kernels run on the same fibers as translated PTX, which check barriers, shuffles and votes. Sanitizers check memory:
AddressSanitizer finds accesses out of bounds, and UndefinedBehaviorSanitizer misaligned ones. ThreadSanitizer, to which
every CUDA thread is a thread of its own, finds data races.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from . import build
from .ptx.module import KernelError

_RUNTIME_SOURCES = ("fibers", "scheduler", "host_launch")
_FLAGS = {
    None: ("-O1",),
    "address": ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    "thread": ("-O1", "-g1", "-fsanitize=thread"),
}
_REPORT = re.compile(r"(?:ERROR: AddressSanitizer|WARNING: ThreadSanitizer|[^\n]*runtime error)(?:.|\n)*")
_LIBRARIES = {"address": "libasan.so", "thread": "libtsan.so"}


def host_library(
    name: str,
    sources: Sequence[Path],
    *,
    include: Sequence[Path] = (),
    flags: Sequence[str] = (),
    sanitize: str | None = None,
    cache_dir: Path | None = None,
) -> Path:
    """Compile ``sources`` into a shared library with ``INVFLOW_CUDA_ON_CPU`` defined; return its path.

    ``include``: folders of headers, which count among the sources. ``sanitize``: None, "address" or "thread"; such a
    library must be used through :func:`run_sanitized`. Raises ``RuntimeError`` with what the compiler says.
    """
    if sanitize not in _FLAGS:
        raise ValueError(f"sanitize: {sanitize!r} is none of None, 'address', 'thread'")
    all_flags = [
        *_FLAGS[sanitize],
        *("-shared", "-DINVFLOW_CUDA_ON_CPU", "-fno-gnu-unique"),
        *("-Wl,-Bsymbolic", "-Wno-unknown-pragmas", "-Wno-attributes"),
        *(f"-I{folder}" for folder in include),
        *flags,
        *("-x", "c++"),
    ]
    runtime = {part: build.RUNTIME / f"{part}.cpp" for part in ("shared_begin", "shared_end", *_RUNTIME_SOURCES)}
    kernels = [source for source in sources if source.suffix == ".cu"]
    others = [source for source in sources if source.suffix != ".cu"]
    # the order matters, see shared_begin.cpp
    files = [runtime.pop("shared_begin"), *kernels, runtime.pop("shared_end"), *others, *runtime.values()]
    headers = build.headers_of(include)
    return build.compile_cached(f"{name}.so", files, all_flags, depends_on=headers, cache=cache_dir)


def load_extension(name: str, library: Path) -> ModuleType:
    """Import a library made from pybind11 sources as the Python module ``name``; ``sys.modules`` stays as it is."""
    loader = importlib.machinery.ExtensionFileLoader(name, str(library))
    module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(name, loader, origin=str(library)))
    loader.exec_module(module)
    return module


def run_sanitized(code: str, sanitize: str, *, order: str = "ascending") -> str:
    """Run Python ``code`` in a process of its own, under the run time of a sanitizer; return what it printed.

    ``order``: "ascending", "descending" or "random:<seed>", see ``runtime/cuda_on_cpu.h``. Raises ``KernelError`` with
    the sanitizer's report, and ``RuntimeError`` if the code fails in another way.
    """
    result = _run(code, sanitize, order)
    if report := _REPORT.search(result.stderr):
        raise KernelError(report.group()[:6000])
    if result.returncode:
        raise RuntimeError(f"exit status {result.returncode}\n{result.stderr[-4000:]}")
    return result.stdout


@functools.cache
def sanitizer_unavailable(sanitize: str) -> str | None:
    """Return why code cannot run under a sanitizer here, or ``None``."""
    if reason := build.unavailable():
        return reason
    if not Path(_found(_LIBRARIES[sanitize])).is_absolute():
        return f"g++ comes without {_LIBRARIES[sanitize]}"
    result = _run("", sanitize, "ascending")
    return f"{_LIBRARIES[sanitize]} does not start here: {result.stderr[:200]}" if result.returncode else None


def _run(code: str, sanitize: str, order: str) -> subprocess.CompletedProcess[str]:
    options = {
        "ASAN_OPTIONS": "detect_leaks=0:exitcode=66",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1:exitcode=66:report_thread_leaks=0",
        "PYTHONMALLOC": "malloc",  # so that the sanitizer knows the end of every buffer
        # a sanitizer must find the function that throws before a library brings it
        "LD_PRELOAD": f"{_found(_LIBRARIES[sanitize])} {_found('libstdc++.so.6')}",
        "CUDA_ON_CPU_ORDER": order,
    }
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **options})


@functools.cache
def _found(library: str) -> str:
    """Path of a library of g++'s, or its name if there is none."""
    command = ["g++", f"-print-file-name={library}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
