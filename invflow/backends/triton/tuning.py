"""Configurations of the kernels, and the choice among them.

On a GPU each kernel is timed once with each of its configurations. This happens for every number of channels,
combination of dtypes and power of two of pixels (``size``, :func:`size_of`). Triton keeps the winners on disk with its
compiled kernels. Under ``torch.use_deterministic_algorithms(True)``, and in the interpreter, nothing is timed and the
first configuration runs. Every process then adds sums in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton

from invflow.backends.triton import is_interpreting
from invflow.backends.triton.kernels import affine_coupling, flow_step_by_tiles, flow_step_in_registers, matrix_gradient

Config = Any  # triton.Config, which has no types

#: Threads that run in step: a warp, or a wavefront of AMD's compute processors.
LANES = 64 if torch.version.hip else 32
#: Pixels of a part of log_det, at most the smallest block.
GRAIN_OF_ROWS, GRAIN_OF_TILES = 128, 32
#: Channels that a step of a product sums.
BLOCK_K = 16

# Pixels of a block and threads of a program. A thread has at least four numbers of a row, because 128 bits are read at
# a time from a state that lies in memory in order.
_ROWS = [(512, 128), (128, 32), (256, 64), (1024, 256)]
_TILES = [(32, 128), (64, 128), (128, 256)]

#: Kernels with the blocks and threads between which the timing chooses; the first without it.
CONFIGS: dict[Any, list[tuple[int, int]]] = {
    affine_coupling.affine_coupling_fwd_kernel: [*_ROWS, (1024, 128), (2048, 256)],
    affine_coupling.affine_coupling_bwd_kernel: [*_ROWS, (1024, 128)],
    flow_step_in_registers.flow_step_fwd_kernel: _ROWS,
    flow_step_in_registers.flow_step_bwd_kernel: _ROWS,
    flow_step_by_tiles.flow_step_tiled_fwd_kernel: _TILES,
    flow_step_by_tiles.flow_step_output_bwd_kernel: _TILES,
    flow_step_by_tiles.flow_step_input_bwd_kernel: [(32, 128), (64, 256)],
    matrix_gradient.matrix_gradient_kernel: [(32, 128), (32, 256)],
}

#: Numbers of the result's tile that a thread may hold, by their size in bytes: more spill.
_NUMBERS_OF_THREAD = {4: 32, 8: 4}


def fitting(kernel: Any, arguments: dict[str, Any], lanes: int = LANES) -> list[Config]:
    """Return the configurations of a kernel between which a launch chooses.

    For a kernel of tiles, the channels of a tile and the dtype of a number decide. A thread must be able to hold its
    share of the result, and have four numbers of what it loads.

    Args:
        kernel: a key of :data:`CONFIGS`.
        arguments: arguments of the launch, by name.
        lanes: threads of a warp.
    """
    block_c = arguments.get("BLOCK_C")
    name, found = ("BLOCK" if block_c is None else "BLOCK_P"), []
    for block, threads in CONFIGS[kernel]:
        if threads < lanes:
            continue
        if block_c is not None:
            numbers: Any = arguments.get("matrix_ptr", arguments.get("grad_matrix_ptr"))
            rows = arguments.get("BLOCK_K", block_c)
            most = _NUMBERS_OF_THREAD[numbers.element_size()]
            if block * rows < 4 * threads or block_c * block > most * threads:
                continue
        # NVIDIA's assembler would rather spill a little than let fewer blocks run at once
        registers = 255 if block_c is not None and lanes == 32 else None
        found.append(triton.Config({name: block}, num_warps=threads // lanes, num_stages=1, maxnreg=registers))
    return found


def size_of(pixels: int) -> int:
    """Return the least power of two that is not below a number of pixels: a new size is a new choice."""
    return 1 << max(pixels - 1, 0).bit_length()


def _tuned(kernel: Any) -> Any:
    def prune(configs: Sequence[Config], named: dict[str, Any], **arguments: Any) -> list[Config]:
        return fitting(kernel, arguments)

    return triton.autotune(
        configs=fitting(kernel, {}),  # of which only those that fit a launch are timed
        key=["size", "C"],
        cache_results=True,
        prune_configs_by={"early_config_prune": prune},
    )(kernel)


_TUNED = {kernel: _tuned(kernel) for kernel in CONFIGS}


def launch(kernel: Any, grid: Callable[[dict[str, Any]], tuple[int, ...]], **arguments: Any) -> None:
    """Run a kernel on the current stream of the device of its tensors.

    Args:
        kernel: a key of :data:`CONFIGS`.
        grid: numbers of programs, from the kernel's arguments and its configuration.
        arguments: all arguments but the configuration's.
    """
    if is_interpreting() or torch.are_deterministic_algorithms_enabled():
        config = fitting(kernel, arguments)[0]
        kernel[grid](**arguments, **config.all_kwargs())
        return
    _TUNED[kernel][grid](**arguments)
