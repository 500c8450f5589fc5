"""PTX from nvcc, where it is installed, kept in the build folder like everything compiled."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from . import build


@functools.cache
def nvcc() -> str | None:
    """Path of nvcc, or None."""
    return shutil.which("nvcc", path=os.environ.get("PATH", "") + ":/usr/local/cuda/bin")


def unavailable() -> str | None:
    """Return why nvcc's PTX cannot be run here, or ``None``."""
    return build.unavailable() or (None if nvcc() else "nvcc is not installed")


def compile_ptx(
    source: Path,
    architecture: int,
    *,
    include: Sequence[Path] = (),
    flags: Sequence[str] = ("-std=c++17", "-O3"),
    cache_dir: Path | None = None,
) -> str:
    """The PTX of ``source`` for a compute capability such as 80. ``include``: folders of headers, which count among the
    sources. Raises ``RuntimeError`` with what nvcc says."""
    cache = cache_dir or build.DEFAULT_CACHE
    key = build.digest(source.read_bytes(), *build.headers_of(include), str(architecture), *flags, version())
    options = ["-ptx", f"-arch=compute_{architecture}", *flags, *(f"-I{path}" for path in include)]

    def make(path: Path) -> None:
        build.run([str(nvcc()), *options, "-o", str(path), str(source)])

    return build.kept(cache / f"{source.stem}-{architecture}-{key}.ptx", make).read_text()


@functools.cache
def version() -> str:
    return build.run([str(nvcc()), "--version"])
