"""PTX and machine code from nvcc, where it is installed, kept in the build folder like everything compiled."""

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


def ptxas() -> str | None:
    """Path of the assembler beside nvcc, or None."""
    return shutil.which("ptxas", path=str(Path(nvcc() or "").parent))


def compile_cubin(source: Path, architecture: int, *, include: Sequence[Path] = ()) -> Path:
    """The machine code of ``source``; what ptxas said of it stands beside it, in a file that ends in ``.txt``.

    ``nvcc -cubin`` makes the same, in the same two steps, but would make PTX again that is also run on the CPU. Raises
    ``RuntimeError`` with what a tool says.
    """
    ptx = compile_ptx(source, architecture, include=include)
    output = build.DEFAULT_CACHE / f"{source.stem}-{architecture}-{build.digest(ptx, version())}.cubin"

    def make(path: Path) -> None:
        report, text = path.with_suffix(".txt"), path.with_suffix(".ptx")
        text.write_text(ptx)
        report.write_text(build.run([str(ptxas()), "-v", f"-arch=sm_{architecture}", str(text), "-o", str(path)]))
        report.replace(output.with_suffix(".txt"))

    return build.kept(output, make)


@functools.cache
def version() -> str:
    return build.run([str(nvcc()), "--version"])
