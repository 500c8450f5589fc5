"""A Triton driver without a GPU: ``kernel[grid](...)`` compiles for CUDA as ever, and runs the PTX on CPU tensors.

    with triton_on_cpu(capability=80) as launches:
        kernel[grid](x, y, x.numel(), BLOCK=1024)

Everything up to the launch is Triton's own: the specialisation of arguments, all passes of its compiler, ptxas.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver
from triton.runtime.cache import get_cache_manager

from ..ptx.module import MOST_SHARED_BYTES, PtxModule, Trace, ptx_module

WARP_SIZE = 32


@dataclass(frozen=True)
class Launch:
    """A launch that took place; ``trace`` is None unless asked for."""

    name: str
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    trace: Trace | None


@contextlib.contextmanager
def triton_on_cpu(capability: int = 80, **options: Any) -> Iterator[list[Launch]]:
    """Inside, Triton kernels are compiled for compute ``capability`` (such as 80 or 90) and run on CPU tensors.

    ``options`` are those of ``PtxModule.launch``: ``order``, ``seed``, ``check_races``, ``worst_approximations``,
    ``trace``. Yields the list to which every launch is appended. A kernel may touch the tensors among its arguments and
    nothing else. An error in a kernel raises ``KernelError``, and PTX that is not understood (``wgmma``) ``PtxError``.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: Triton would interpret its kernels instead of compiling them")
    launches: list[Launch] = []
    before = driver._active
    driver.set_active(_Driver(capability, options, launches))
    try:
        yield launches
    finally:
        driver._active = before


class _Driver(DriverBase):
    """Driver as ``JITFunction.run`` and ``CompiledKernel`` use it."""

    def __init__(self, capability: int, options: dict[str, Any], launches: list[Launch]) -> None:
        self.capability = capability
        self.utils = _Utilities()
        self.options = options
        self.launches = launches

    @staticmethod
    def is_active() -> bool:
        return True

    def get_current_device(self) -> int:
        return self.capability  # Triton keeps compiled kernels by device: each capability is one

    def set_current_device(self, device: int) -> None:
        raise RuntimeError("the device is fixed by the capability that triton_on_cpu() was given")

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, WARP_SIZE)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError("launches go through Python here")

    def get_benchmarker(self) -> Any:
        raise RuntimeError("nothing can be timed here: give the kernel a single configuration")

    @property
    def launcher_cls(self) -> Any:
        return _Launcher


class _Utilities:
    """Stands for Triton's module of CUDA driver calls."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": MOST_SHARED_BYTES, "multiprocessor_count": 1, "warpSize": WARP_SIZE}

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[Any, str, int, int, int]:
        return None, name, 0, 0, 1024  # module, function, registers, spills, most threads

    def unload_module(self, module: Any) -> None:
        pass


class _Launcher:
    """Runs one compiled kernel. It outlives the driver under which it was made, hence asks for the active one."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.signature = tuple(source.signature.values())
        self.metadata = metadata
        stem = source.name[:150]  # as in triton.compiler.compile
        files = get_cache_manager(metadata.hash).get_group(f"{stem}.json")
        self.module: PtxModule = ptx_module(Path(files[f"{stem}.ptx"]).read_text())

    def __call__(
        self,
        grid_x: int,
        grid_y: int,
        grid_z: int,
        stream: int,
        function: Any,
        packed_metadata: Any,
        launch_metadata: Any,
        enter_hook: Any,
        exit_hook: Any,
        *arguments: Any,
    ) -> None:
        metadata, active, grid = self.metadata, driver.active, (grid_x, grid_y, grid_z)
        if 0 in grid:  # Triton's launcher does nothing then
            return
        if metadata.num_ctas != 1 or metadata.profile_scratch_size:
            raise NotImplementedError("clusters of blocks and profiling are not supported")
        scratch = torch.empty(metadata.global_scratch_size * grid_x * grid_y * grid_z, dtype=torch.uint8)
        given = [*_at_run_time(self.signature, arguments), scratch if scratch.numel() else None, None]
        threads = metadata.num_warps * WARP_SIZE
        trace = self.module.launch(metadata.name, grid, (threads,), metadata.shared, given, **active.options)
        active.launches.append(Launch(metadata.name, grid, threads, metadata.shared, trace))


def _at_run_time(signature: Sequence[Any], arguments: Sequence[Any]) -> Iterator[Any]:
    """The arguments that are not compiled in, tuples flattened."""
    for kind, argument in zip(signature, arguments, strict=True):
        if isinstance(kind, tuple):
            yield from _at_run_time(kind, argument)
        elif kind.startswith("tensordesc"):
            raise NotImplementedError("tensor descriptors are not supported")
        elif kind != "constexpr":
            yield argument
