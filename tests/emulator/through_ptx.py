"""Execution of a library's host code with the kernels that nvcc made of the same sources.

    library = host_library("_CUDA", sources, include=folders)           # see source.py
    ptx = [compile_ptx(source, 80, include=folders) for source in sources]  # see nvcc.py
    with through_ptx(library, ptx) as launches:
        load_extension("_CUDA", library).flow_step(...)

The host code, with its choice of kernels, grids and shared memory, is that of the project. Every launch runs the PTX of
the kernel of the same name and template arguments. The memory of the tensors is not known here, so accesses out of
their bounds pass. The library's own build under AddressSanitizer finds them.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .ptx.module import KernelError, PtxModule, Trace, ptx_module
from .ptx.parse import kernel_names

_ANYWHERE = [(4096, (1 << 47) - 4096)]  # the addresses of a process


class _Index3(ctypes.Structure):
    _fields_ = (("x", ctypes.c_uint32), ("y", ctypes.c_uint32), ("z", ctypes.c_uint32))


_Redirect = ctypes.CFUNCTYPE(
    ctypes.c_void_p,
    *(ctypes.c_char_p, _Index3, _Index3, ctypes.c_int64, ctypes.POINTER(ctypes.c_char), ctypes.c_uint64),
)


@dataclass(frozen=True)
class HostLaunch:
    """``name`` is demangled, without parameters; ``trace`` is None unless asked for."""

    name: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    trace: Trace | None


_modules: dict[tuple[str, str], PtxModule] = {}  # by PTX and kernel: compiled when first launched


@contextlib.contextmanager
def through_ptx(library: Path, ptx: Sequence[str], **options: Any) -> Iterator[list[HostLaunch]]:
    """Inside, launches of the host ``library`` run the kernels of the ``ptx`` texts; yields the list of launches.

    ``options`` are those of ``PtxModule.launch_packed``. An error in a kernel is what ``cuda_on_cpu::launch`` returns.
    """
    kernels = {plain_name(symbol): (symbol, text) for text in ptx for symbol in kernel_names(text)}
    launches: list[HostLaunch] = []

    def run(launch: HostLaunch, parameters: bytes) -> None:
        if launch.name not in kernels:
            raise KernelError(f"no PTX has a kernel {launch.name}")
        symbol, text = kernels[launch.name]
        sizes = (launch.grid, launch.block, launch.shared_bytes)
        trace = _module(symbol, text).launch_packed(symbol, *sizes, parameters, _ANYWHERE, **options)
        launches.append(replace(launch, trace=trace))

    with launches_go_to(library, run):
        yield launches


@contextlib.contextmanager
def launches_go_to(library: Path, run: Callable[[HostLaunch, bytes], None]) -> Iterator[None]:
    """Inside, ``run`` is called for every launch of the host ``library``, with its parameters as CUDA packs them,
    instead of the kernel. An exception is the error of the launch."""
    messages: list[Any] = []  # keeps alive what the library has a pointer to

    def redirect(symbol: bytes, grid: _Index3, block: _Index3, shared: int, parameters: Any, count: int) -> int | None:
        try:
            sizes = ((grid.x, grid.y, grid.z), (block.x, block.y, block.z))
            run(HostLaunch(plain_name(symbol.decode()), *sizes, shared, None), parameters[:count])
            return None
        except Exception as error:  # none may pass through the library's frames
            messages.append(ctypes.create_string_buffer(f"{type(error).__name__}: {error}".encode()))
            return ctypes.addressof(messages[-1])

    hook = ctypes.c_void_p.in_dll(ctypes.CDLL(str(library)), "cuda_on_cpu_redirect")
    callback = _Redirect(redirect)
    hook.value = ctypes.cast(callback, ctypes.c_void_p).value
    try:
        yield
    finally:
        hook.value = None


def _module(symbol: str, text: str) -> PtxModule:
    if (text, symbol) not in _modules:
        _modules[text, symbol] = ptx_module(text, kernels=[symbol])
    return _modules[text, symbol]


@functools.cache
def plain_name(symbol: str) -> str:
    """A demangled name with its template arguments. nvcc and g++ mangle the types of some parameters differently."""

    demangle = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    demangle.restype = ctypes.c_void_p
    status = ctypes.c_int()
    result = demangle(symbol.encode(), None, None, ctypes.byref(status))
    if not result:
        return symbol
    text = ctypes.string_at(result).decode()
    ctypes.CDLL(None).free(ctypes.c_void_p(result))
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            return text[:i].removeprefix("void ")
    return text
