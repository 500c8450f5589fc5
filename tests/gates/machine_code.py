"""Machine code of the CUDA kernels, as nvcc makes it for a GPU that need not be there, and what can be read from it."""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.emulator import build, nvcc
from tests.emulator.through_ptx import plain_name


@dataclass(frozen=True)
class MachineCode:
    """A kernel compiled for one architecture.

    ``stack``, ``spill_stores`` and ``spill_loads`` are bytes of a thread, ``shared`` the static bytes of a block;
    ``local`` counts instructions that access local memory. ``loads`` and ``stores`` of global memory are bits of a
    thread, each width once.
    """

    kernel: str  # demangled, with template arguments
    architecture: int
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int
    local: int
    loads: tuple[int, ...]
    stores: tuple[int, ...]


@functools.cache
def nvdisasm() -> str | None:
    """Path of NVIDIA's disassembler, beside nvcc or in the package of Triton, or None."""
    folders = [Path(found).parent for found in [nvcc.nvcc()] if found]
    if spec := importlib.util.find_spec("triton"):
        folders += [Path(folder) / "backends" / "nvidia" / "bin" for folder in spec.submodule_search_locations or ()]
    return next((found for folder in folders if (found := shutil.which("nvdisasm", path=str(folder)))), None)


def unavailable() -> str | None:
    """Return why machine code cannot be made and read here, or ``None``."""
    if nvcc.nvcc() is None or nvcc.ptxas() is None:
        return "nvcc is not installed"
    return None if nvdisasm() else "nvdisasm is neither beside nvcc nor in a package triton"


def machine_code(source: Path, architecture: int, *, include: Sequence[Path] = ()) -> list[MachineCode]:
    """The kernels of ``source`` for an architecture such as 80, compiled or taken from the build folder.

    ``include``: folders of headers, which count among the sources. Raises ``RuntimeError`` with what a tool says.
    """
    report = nvcc.compile_cubin(source, architecture, include=include).with_suffix(".txt").read_text()
    of_kernel = instructions(source, architecture, include=include)
    return [_described(symbol, architecture, said, of_kernel[symbol]) for symbol, said in _reports(report)]


def instructions(source: Path, architecture: int, *, include: Sequence[Path] = ()) -> dict[str, list[str]]:
    """The instructions of each kernel of ``source``, by its symbol, without operands, such as ``STS.128``."""
    cubin = nvcc.compile_cubin(source, architecture, include=include)
    return dict(_by_kernel(build.run([str(nvdisasm()), "-c", str(cubin)])))


def _reports(text: str) -> Iterator[tuple[str, str]]:
    """Yield the symbol of every kernel in the report of ptxas, and the text on it."""
    parts = re.split(r"Compiling entry function '([^']+)'", text)
    yield from zip(parts[1::2], parts[2::2], strict=True)


def _by_kernel(disassembly: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the symbol of every kernel, and its instructions without operands."""
    parts = re.split(r"^\.text\.(\S+):$", disassembly, flags=re.MULTILINE)
    for symbol, body in zip(parts[1::2], parts[2::2], strict=True):
        yield symbol, re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", body)


def _described(symbol: str, architecture: int, report: str, of_kernel: list[str]) -> MachineCode:
    def number(pattern: str, default: int | None = None) -> int:
        if found := re.search(pattern, report):
            return int(found.group(1))
        if default is None:
            raise RuntimeError(f"ptxas says nothing like {pattern!r} of {symbol}:\n{report}")
        return default

    def widths(name: str) -> tuple[int, ...]:
        return tuple(sorted({width(text) for text in of_kernel if text.split(".")[0] == name}))

    return MachineCode(
        plain_name(symbol),
        architecture,
        number(r"Used (\d+) registers"),
        number(r"(\d+) bytes stack frame"),
        number(r"(\d+) bytes spill stores"),
        number(r"(\d+) bytes spill loads"),
        number(r"(\d+) bytes smem", 0),
        sum(text.split(".")[0] in ("LDL", "STL") for text in of_kernel),
        widths("LDG"),
        widths("STG"),
    )


def width(instruction: str) -> int:
    """Bits that an instruction such as LDG.E.128.CONSTANT moves for a thread."""
    parts = instruction.split(".")[1:]
    return next((int(part.lstrip("US")) for part in parts if re.fullmatch(r"[US]?(8|16|64|128|256)", part)), 32)
