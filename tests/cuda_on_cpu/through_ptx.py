"""Runs the host code of a library with the kernels that nvcc made of the same sources.

    library = host_library("_CUDA", sources, include=folders)           # see source.py
    ptx = [compile_ptx(source, 80, include=folders) for source in sources]  # see nvcc.py
    with through_ptx(library, ptx) as launches:
        load_extension("_CUDA", library).flow_step(...)

The host code, with its choice of kernels, grids and shared memory, is that of the project; every launch runs the PTX of
the kernel with the same mangled name. Which memory belongs to the tensors is not known here: accesses out of their
bounds are for the library's own build under AddressSanitizer to find.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .ptx import KernelError, PtxModule, Trace, ptx_module
from .ptx_parse import kernel_names

_ANYWHERE = [(4096, (1 << 47) - 4096)]  # the addresses of a process


class _Index3(ctypes.Structure):
    _fields_ = (("x", ctypes.c_uint32), ("y", ctypes.c_uint32), ("z", ctypes.c_uint32))


_Redirect = ctypes.CFUNCTYPE(
    ctypes.c_void_p,
    *(ctypes.c_char_p, _Index3, _Index3, ctypes.c_int64, ctypes.POINTER(ctypes.c_char), ctypes.c_uint64),
)


@dataclass(frozen=True)
class HostLaunch:
    """``name`` is mangled; ``trace`` is None unless asked for."""

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
    texts = {name: text for text in ptx for name in kernel_names(text)}
    launches: list[HostLaunch] = []
    messages: list[Any] = []  # keeps alive what the library has a pointer to

    def redirect(symbol: bytes, grid: _Index3, block: _Index3, shared: int, parameters: Any, count: int) -> int | None:
        name = symbol.decode()
        try:
            sizes = (grid.x, grid.y, grid.z), (block.x, block.y, block.z)
            module = _module(texts, name)
            trace = module.launch_packed(name, *sizes, shared, parameters[:count], _ANYWHERE, **options)
            launches.append(HostLaunch(name, *sizes, shared, trace))
            return None
        except Exception as error:  # none may pass through the library's frames
            messages.append(ctypes.create_string_buffer(f"{type(error).__name__}: {error}".encode()))
            return ctypes.addressof(messages[-1])

    hook = ctypes.c_void_p.in_dll(ctypes.CDLL(str(library)), "cuda_on_cpu_redirect")
    callback = _Redirect(redirect)
    hook.value = ctypes.cast(callback, ctypes.c_void_p).value
    try:
        yield launches
    finally:
        hook.value = None


def _module(texts: dict[str, str], name: str) -> PtxModule:
    if name not in texts:
        raise KernelError(f"no PTX has a kernel {name}")
    key = texts[name], name
    if key not in _modules:
        _modules[key] = ptx_module(texts[name], kernels=[name])
    return _modules[key]
