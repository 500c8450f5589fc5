"""Execution of PTX kernels on the CPU: ``ptx_module(text).launch(name, grid, block, shared_bytes, arguments)``.

The PTX, as nvcc or Triton emitted it, is translated to C++ and run with one fiber for each CUDA thread, one block at a
time. Every address is checked against the buffers of the launch, and every barrier and warp operation against the rules
of CUDA. An error in the kernel raises ``KernelError`` with the PTX instruction, thread and block.
"""

from __future__ import annotations

import ctypes
import functools
import re
import struct
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import build
from .parse import Parameter, PtxError
from .translate import TranslatedKernel, translate

__all__ = ["KernelError", "MemorySite", "PtxError", "PtxModule", "Trace", "ptx_module"]

MOST_SHARED_BYTES = 227 * 1024
_RUNTIME_SOURCES = ("fibers", "scheduler", "ptx_launch", "ptx_memory", "ptx_warp", "races", "trace")
# -Og compiles in half the time of -O1; most tests spend more on compiling than on running.
_MODULE_FLAGS = ("-Og", "-w")
_ORDERS = {"ascending": 0, "descending": 1, "random": 2}
_SCALARS = {"f32": "f", "f64": "d", "8": "b", "16": "h", "32": "i", "64": "q"}
# The state of a launch is global in the runtime.
_lock = threading.Lock()


class KernelError(RuntimeError):
    """Error of a kernel, with its place and thread."""


@dataclass(frozen=True)
class MemorySite:
    """A load, store or atomic instruction that ran, and what it would cost a GPU.

    ``line`` and ``text`` are the PTX's. ``requests`` counts warp-wide accesses, ``lanes`` those that took part in them.
    ``sectors`` of 32 bytes are moved in global memory, ``wavefronts`` pass through shared memory; ``fewest_*`` would do
    without gaps between the addresses and without bank conflicts.
    """

    line: int
    text: str
    space: str  # "global", "shared" or "local"
    kind: str  # "load", "store" or "atomic"
    bytes: int  # of one lane
    requests: int
    lanes: int
    sectors: int
    fewest_sectors: int
    wavefronts: int
    fewest_wavefronts: int


@dataclass(frozen=True)
class Trace:
    """``instructions``: thread-instructions by kind (see ``instruction_kind``), with those that a predicate masks."""

    instructions: Counter[str]
    memory: list[MemorySite]


class _Buffer(ctypes.Structure):
    _fields_ = (("address", ctypes.c_uint64), ("bytes", ctypes.c_uint64), ("writable", ctypes.c_uint32))


class _SharedVariable(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint32), ("bytes", ctypes.c_uint32))


class _Request(ctypes.Structure):
    _fields_ = (
        ("kernel", ctypes.c_void_p),
        ("parameters", ctypes.c_void_p),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("variables", ctypes.POINTER(_SharedVariable)),
        ("buffers", ctypes.POINTER(_Buffer)),
        ("variable_count", ctypes.c_uint32),
        ("buffer_count", ctypes.c_uint32),
        ("order", ctypes.c_uint32),
        ("worst_approximations", ctypes.c_uint32),
        ("check_races", ctypes.c_uint32),
        ("trace", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
    )


class _SiteTrace(ctypes.Structure):
    _fields_ = (
        ("site", ctypes.c_int32),
        ("line", ctypes.c_int32),
        *((name, ctypes.c_uint32) for name in ("space", "kind", "bytes")),
        *((name, ctypes.c_uint64) for name in ("requests", "lanes", "sectors", "fewest_sectors")),
        *((name, ctypes.c_uint64) for name in ("wavefronts", "fewest_wavefronts")),
    )


#: The fields of both ``_SiteTrace`` and ``MemorySite`` that count.
_COUNTS = ("bytes", "requests", "lanes", "sectors", "fewest_sectors", "wavefronts", "fewest_wavefronts")


@functools.cache
def _runtime(cache: Path | None) -> ctypes.CDLL:
    sources = [build.RUNTIME / f"{name}.cpp" for name in _RUNTIME_SOURCES]
    library = build.compile_cached("runtime.so", sources, ("-O2", "-shared"), cache=cache)
    # global, so that translated modules find its functions
    runtime = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    runtime.cuda_on_cpu_error.restype = ctypes.c_char_p
    runtime.cuda_on_cpu_trace.restype = ctypes.c_uint32
    return runtime


@functools.cache
def _precompiled_header(cache: Path | None) -> Path:
    flags = (*_MODULE_FLAGS, "-x", "c++-header")
    return build.compile_cached("ptx.gch", [build.RUNTIME / "ptx.h"], flags, cache=cache)


def ptx_module(ptx: str, cache_dir: Path | None = None, kernels: Sequence[str] | None = None) -> PtxModule:
    """Translate and compile the ``kernels`` of ``ptx``, or all of them; raise ``PtxError``, with the line, where it
    is not understood. Compiled modules are kept in ``cache_dir`` (default: ``build/emulator``)."""
    return PtxModule(ptx, cache_dir, kernels)


class PtxModule:
    """The kernels of a PTX text, ready to run. ``kernels`` maps their names to what is known of them."""

    def __init__(self, ptx: str, cache_dir: Path | None = None, kernels: Sequence[str] | None = None) -> None:
        translated = translate(ptx, kernels)
        self.lines = ptx.split("\n")
        self.kernels: dict[str, TranslatedKernel] = translated.kernels
        self._mixes = translated.mixes
        self._runtime = _runtime(cache_dir)
        header = _precompiled_header(cache_dir).with_suffix("")  # g++ appends .gch again
        flags = (*_MODULE_FLAGS, "-shared", "-Wl,-Bsymbolic", "-include", str(header))
        library = build.compile_cached("module.so", (), flags, text=translated.source, cache=cache_dir)
        self._library = ctypes.CDLL(str(library))
        self._variables = [
            (ctypes.addressof(ctypes.c_char.in_dll(self._library, symbol)), variable.bytes, variable.space == "global")
            for symbol, variable in translated.variables.items()
        ]

    def launch(
        self,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        dynamic_shared: int,
        arguments: Sequence[Any],
        *,
        buffers: Sequence[torch.Tensor] = (),
        **options: Any,
    ) -> Trace | None:
        """Run kernel ``name`` on ``grid`` blocks of ``block`` threads (one to three sizes each).

        ``arguments``: for each ``.param`` a CPU tensor (passed as its address), a number, None (a null pointer), or
        ``bytes`` (a structure passed by value). The kernel may touch exactly the memory that these tensors span, and
        that of the tensors ``buffers``, whose addresses it gets in other ways. ``dynamic_shared`` is in bytes.

        ``options`` are the keyword arguments of ``launch_packed``.

        Raises ``KernelError`` for an error in the kernel, ``ValueError`` or ``TypeError`` for unfit arguments.
        """
        if name not in self.kernels:
            raise ValueError(f"name: the PTX has no kernel {name!r}; it has {', '.join(self.kernels)}")
        parameters = _pack(self.kernels[name], arguments)
        tensors = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
        memory = [_span(tensor) for tensor in (*tensors, *buffers)]
        return self.launch_packed(name, grid, block, dynamic_shared, parameters, memory, **options)

    def launch_packed(
        self,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        dynamic_shared: int,
        parameters: bytes,
        memory: Sequence[tuple[int, int]],
        *,
        order: str = "ascending",
        seed: int = 0,
        check_races: bool = False,
        worst_approximations: bool = False,
        trace: bool = False,
    ) -> Trace | None:
        """Launch with the parameters as CUDA packs them, and ``memory`` (address, bytes) that may be touched.

        ``order`` of threads and blocks between barriers is "ascending", "descending" or "random" (with ``seed``).
        ``check_races`` reports memory that two threads use without order, one of them writing.
        ``worst_approximations`` makes approximate functions (``ex2.approx`` and its like) wrong by as much as the PTX
        manual allows, instead of exact. ``trace`` returns the launch's costs to a GPU.
        """
        kernel = self.kernels[name]
        if order not in _ORDERS:
            raise ValueError(f"order: {order!r} is none of {', '.join(_ORDERS)}")
        grid_sizes, block_sizes = _three("grid", grid), _three("block", block)
        threads = block_sizes[0] * block_sizes[1] * block_sizes[2]
        if kernel.max_threads is not None and threads > kernel.max_threads:
            raise ValueError(f"block: {threads} threads, but {name} was compiled for at most {kernel.max_threads}")
        static = sum(size for _, size in kernel.static_shared)
        if static + dynamic_shared > MOST_SHARED_BYTES:
            raise ValueError(
                f"dynamic_shared: {static} static and {dynamic_shared} dynamic bytes exceed {MOST_SHARED_BYTES}"
            )
        shared = [*kernel.static_shared, (kernel.dynamic_shared_offset, dynamic_shared)]
        shared = [variable for variable in shared if variable[1]]
        aligned = _Aligned(parameters)
        ranges = [(aligned.address, len(parameters), False), *((*span, True) for span in memory), *self._variables]
        ranges = [range_ for range_ in ranges if range_[1]]
        request = _Request(
            kernel=ctypes.cast(getattr(self._library, kernel.symbol), ctypes.c_void_p),
            parameters=aligned.address,
            grid=(ctypes.c_uint32 * 3)(*grid_sizes),
            block=(ctypes.c_uint32 * 3)(*block_sizes),
            variables=(_SharedVariable * len(shared))(*(_SharedVariable(*variable) for variable in shared)),
            buffers=(_Buffer * len(ranges))(*(_Buffer(*range_) for range_ in ranges)),
            variable_count=len(shared),
            buffer_count=len(ranges),
            order=_ORDERS[order],
            worst_approximations=worst_approximations,
            check_races=check_races,
            trace=trace,
            seed=seed,
        )
        with _lock:
            counts = (ctypes.c_uint64 * len(self._mixes)).in_dll(self._library, "block_counts")
            ctypes.memset(counts, 0, ctypes.sizeof(counts))
            if self._runtime.cuda_on_cpu_launch(ctypes.byref(request)):
                raise KernelError(f"{name}: {self._with_source(self._runtime.cuda_on_cpu_error().decode())}")
            return self._trace(kernel, counts) if trace else None

    def _with_source(self, message: str) -> str:
        """Append the PTX instructions at the lines that a message names."""
        numbers = sorted({int(number) for number in re.findall(r"\bline (\d+)", message)} - {0})
        return "\n".join([message, *(f"  PTX line {number}: {self.lines[number - 1].strip()}" for number in numbers)])

    def _trace(self, kernel: TranslatedKernel, counts: Any) -> Trace:
        instructions: Counter[str] = Counter()
        for number in kernel.blocks:
            for kind, count in self._mixes[number].items():
                instructions[kind] += count * counts[number]
        rows = ctypes.POINTER(_SiteTrace)()
        row_count = self._runtime.cuda_on_cpu_trace(ctypes.byref(rows))
        memory = [
            MemorySite(
                row.line,
                self.lines[row.line - 1].strip(),
                ("global", "shared", "local")[row.space],
                ("load", "store", "atomic")[row.kind],
                *(getattr(row, name) for name in _COUNTS),
            )
            for row in rows[:row_count]
        ]
        return Trace(instructions, memory)


class _Aligned:
    """A copy of ``data`` at an address that suits any type."""

    def __init__(self, data: bytes, alignment: int = 64) -> None:
        self.memory = ctypes.create_string_buffer(len(data) + alignment)
        self.address = -(-ctypes.addressof(self.memory) // alignment) * alignment
        ctypes.memmove(self.address, data, len(data))


def _three(name: str, sizes: Sequence[int]) -> list[int]:
    if not 1 <= len(sizes) <= 3 or any(size < 1 for size in sizes):
        raise ValueError(f"{name}: {tuple(sizes)} is not one to three positive sizes")
    return [*sizes, 1, 1][:3]


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """Address and bytes of the memory from a tensor's first element to its last."""
    if tensor.device.type != "cpu":
        raise ValueError(f"arguments: a tensor on {tensor.device}, but the kernel runs on the CPU")
    if tensor.numel() == 0:
        return tensor.data_ptr(), 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), (last + 1) * tensor.element_size()


def _pack(kernel: TranslatedKernel, arguments: Sequence[Any]) -> bytes:
    if len(arguments) != len(kernel.parameters):
        raise ValueError(f"arguments: {len(arguments)} for {kernel.name}, which takes {len(kernel.parameters)}")
    size = max((parameter.offset + parameter.bytes for parameter in kernel.parameters), default=1)
    packed = bytearray(size)
    for number, (parameter, argument) in enumerate(zip(kernel.parameters, arguments, strict=True)):
        packed[parameter.offset : parameter.offset + parameter.bytes] = _encode(number, parameter, argument)
    return bytes(packed)


def _encode(number: int, parameter: Parameter, argument: Any) -> bytes:
    if isinstance(argument, bytes):
        if len(argument) != parameter.bytes:
            raise ValueError(f"arguments[{number}]: {len(argument)} bytes for a parameter of {parameter.bytes}")
        return argument
    if isinstance(argument, torch.Tensor):
        argument = argument.data_ptr()
    if argument is None:
        argument = 0
    if not isinstance(argument, (int, float)) or parameter.bytes > 8:
        given, wanted = type(argument).__name__, f".{parameter.type}, {parameter.bytes} bytes"
        raise TypeError(f"arguments[{number}]: {given} for a parameter of type {wanted}")
    code = _SCALARS.get(parameter.type) or _SCALARS[str(8 * parameter.bytes)]
    if code in "fd":
        return struct.pack(f"<{code}", argument)
    if isinstance(argument, float):
        raise TypeError(f"arguments[{number}]: a float for a parameter of type .{parameter.type}")
    return (argument & (1 << 8 * parameter.bytes) - 1).to_bytes(parameter.bytes, "little")
