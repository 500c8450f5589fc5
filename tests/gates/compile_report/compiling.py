"""Compiles kernels for processors that need not be there, and reads what the compilers say of the result.

Signatures come from Triton's own launcher, so that what it specialises (strides of one, pointers and sizes divisible by
16, ``None``) is specialised here.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend
from triton.runtime.jit import create_function_from_signature


class Target(NamedTuple):
    """A processor: Triton's description, and the bytes of shared memory that a block may have."""

    gpu: GPUTarget
    shared: int


#: By name. Shared memory: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; CDNA 3 ISA.
TARGETS = {
    "sm_75": Target(GPUTarget("cuda", 75, 32), 64 << 10),
    "sm_80": Target(GPUTarget("cuda", 80, 32), 163 << 10),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 227 << 10),
    "sm_100": Target(GPUTarget("cuda", 100, 32), 227 << 10),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 64 << 10),
}


class Source(NamedTuple):
    """A kernel as its launcher would hand it to the compiler: plain data, which processes can exchange."""

    kernel: str
    signature: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]


class Facts(NamedTuple):
    """Resources of a compiled kernel.

    Attributes:
        registers: registers of a thread.
        spills: bytes of a thread's registers that are kept in memory.
        scalar_spills: scalar registers of AMD's processors that are kept in lanes of vector registers, not in memory.
        shared: bytes of shared memory of a block.
        widest_load: widest load from global memory, in bits.
        seconds: processor time of the compilation.
    """

    registers: int
    spills: int
    scalar_spills: int
    shared: int
    widest_load: int
    seconds: float


def source_of(kernel: Any, arguments: dict[str, Any], config: triton.Config, target: Target) -> Source:
    """Return the source that ``kernel[grid](**arguments)`` with a configuration would compile for a target."""
    backend = make_backend(target.gpu)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialisation, options = bind(**arguments, **config.all_kwargs())
    _, signature, constants, attributes = kernel._pack_args(backend, options, bound, specialisation, options)
    return Source(kernel.__name__, signature, constants, attributes, options)


def compile_for(kernel: Any, source: Source, target: Target) -> tuple[Any, float]:
    """The compiled kernel and the processor time that it took, never from a cache."""
    with tempfile.TemporaryDirectory() as folder, triton.knobs.cache.scope():
        triton.knobs.cache.dir = folder
        before = sum(os.times()[:4])
        compiled = triton.compile(
            ASTSource(kernel, source.signature, source.constants, source.attributes),
            target=target.gpu,
            options=source.options,
        )
        return compiled, sum(os.times()[:4]) - before


def facts_of(compiled: Any, seconds: float) -> Facts:
    """Read the binary of an NVIDIA processor or the assembly of an AMD one."""
    shared = compiled.metadata.shared
    if "cubin" in compiled.asm:
        registers, spills = _resources(compiled.asm["cubin"])
        return Facts(registers, spills, 0, shared, _widest_load_of_ptx(compiled.asm["ptx"]), seconds)
    text = compiled.asm["amdgcn"]
    return Facts(
        registers=_amd_fact(text, "vgpr_count"),
        spills=_amd_fact(text, "private_segment_fixed_size"),
        scalar_spills=_amd_fact(text, "sgpr_spill_count"),
        shared=shared,
        widest_load=_widest_load_of_amdgcn(text),
        seconds=seconds,
    )


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of the stack frame. Kernels have no arrays, so that a frame holds nothing but spills: it is
    what ``ptxas -v`` calls "bytes stack frame", and the field LOCAL is always 0."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        printed = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", printed)
    if found is None:
        raise RuntimeError(f"cuobjdump -res-usage names no registers: {printed.strip()!r}")
    return int(found[1]), int(found[2])


def _widest_load_of_ptx(text: str) -> int:
    loads = re.findall(r"\bld\.global[\w.:]*?(?:\.v(\d))?\.[bfsu](\d+)\s", text)
    copies = re.findall(r"\bcp\.async\.\w+\.shared\.global[^;]*\], (?:0x)?(\w+)", text)
    return max([0, *(int(count or 1) * int(bits) for count, bits in loads), *(8 * int(size, 16) for size in copies)])


def _widest_load_of_amdgcn(text: str) -> int:
    """Return the widest load of an AMD kernel.

    Triton loads tensors of less than 2 GiB through buffers, and only tensors. Other loads are then of single numbers,
    which LLVM joins if they are neighbours.
    """
    loads = re.findall(r"\b(buffer|global|flat)_load_[us]?(byte|short|dword)(?:x(\d))?\b", text)
    buffers = [load for load in loads if load[0] == "buffer"]
    bits = {"byte": 8, "short": 16, "dword": 32}
    return max([0, *(bits[kind] * int(count or 1) for _, kind, count in buffers or loads)])


def _amd_fact(text: str, name: str) -> int:
    found = re.search(rf"\.{name}:\s+(\d+)", text)
    if found is None:
        raise RuntimeError(f"the assembly names no {name}")
    return int(found[1])
