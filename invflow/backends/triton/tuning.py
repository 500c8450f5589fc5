"""Configurations of the kernels, and which of them runs.

On a GPU each kernel is timed once with each of its configurations, for every number of channels, combination of
dtypes and power of two of pixels (``size``, :func:`size_of`); the winners are kept on disk with Triton's compiled
kernels. Under ``torch.use_deterministic_algorithms(True)`` nothing is timed and the first configuration runs, so that
sums are added in the same order by every process; so it does in the interpreter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from triton.runtime.interpreter import InterpretedFunction

from invflow.backends.triton.kernels import affine_coupling, flow_step_by_tiles, flow_step_in_registers, matrix_gradient

Config = Any  # triton.Config, which has no types

#: Pixels of a part of log_det, at most the smallest block.
GRAIN_OF_ROWS, GRAIN_OF_TILES = 128, 32
#: Channels that a step of a product sums.
BLOCK_K = 16
#: Channels of a tile of the matrix's gradient.
BLOCK_OF_MATRIX = 64


def _rows(*blocks_and_warps: tuple[int, int]) -> list[Config]:
    return [triton.Config({"BLOCK": block}, num_warps=warps) for block, warps in blocks_and_warps]


def _tiles(*blocks_and_warps: tuple[int, int]) -> list[Config]:
    return [triton.Config({"BLOCK_P": block}, num_warps=warps, num_stages=1) for block, warps in blocks_and_warps]


# The rows of a state that lies in memory in order are read 128 bits, four float32 numbers, a thread at a time.
_FOUR_A_THREAD = _rows((512, 4), (128, 1), (256, 2), (1024, 8))

#: Kernels by name, with the configurations between which the timing chooses.
CONFIGS: dict[Any, list[Config]] = {
    affine_coupling.affine_coupling_fwd_kernel: [*_FOUR_A_THREAD, *_rows((1024, 4), (2048, 8))],
    affine_coupling.affine_coupling_bwd_kernel: [*_FOUR_A_THREAD, *_rows((1024, 4))],
    flow_step_in_registers.flow_step_fwd_kernel: _FOUR_A_THREAD,
    flow_step_in_registers.flow_step_bwd_kernel: _FOUR_A_THREAD,
    flow_step_by_tiles.flow_step_tiled_fwd_kernel: _tiles((32, 4), (32, 8), (64, 4), (64, 8), (128, 4), (128, 8)),
    flow_step_by_tiles.flow_step_output_bwd_kernel: _tiles((32, 4), (32, 8), (64, 4), (64, 8), (128, 8)),
    flow_step_by_tiles.flow_step_input_bwd_kernel: _tiles((32, 4), (32, 8), (64, 4), (64, 8), (128, 8)),
    matrix_gradient.matrix_gradient_kernel: _tiles((32, 4), (16, 4), (32, 8)),
}

#: Elements of the largest tile that a thread may hold, float32: more spill.
_TILE_ELEMENTS = 32


def configs_of(kernel: Any, block_c: int, itemsize: int) -> list[Config]:
    """The configurations of a kernel that fit registers: those of tiles depend on the channels of a tile, ``block_c``,
    and on the bytes of a number, the others on nothing."""
    fitting = [
        config
        for config in CONFIGS[kernel]
        if block_c * config.kwargs.get("BLOCK_P", 0) * itemsize <= _TILE_ELEMENTS * 4 * 32 * config.num_warps
    ]
    return fitting or CONFIGS[kernel][:1]


def size_of(pixels: int) -> int:
    """The power of two at or above a number of pixels: sizes between which the choice is not made anew."""
    return 1 << max(pixels - 1, 0).bit_length()


def _fitting(kernel: Any, arguments: dict[str, Any]) -> list[Config]:
    numbers = arguments.get("matrix_ptr", arguments.get("grad_matrix_ptr"))
    return configs_of(kernel, arguments.get("BLOCK_C", 0), 0 if numbers is None else numbers.element_size())


def _prune(kernel: Any) -> Callable[..., list[Config]]:
    def prune(configs: Sequence[Config], named: dict[str, Any], **constants: Any) -> list[Config]:
        return _fitting(kernel, constants)

    return prune


_TUNED = {
    kernel: triton.autotune(
        configs=configs, key=["size", "C"], cache_results=True, prune_configs_by={"early_config_prune": _prune(kernel)}
    )(kernel)
    for kernel, configs in CONFIGS.items()
}


def is_interpreted() -> bool:
    """Whether this process runs kernels in Triton's interpreter: whether TRITON_INTERPRET=1 was set at its start."""
    return isinstance(affine_coupling.affine_coupling_fwd_kernel, InterpretedFunction)


def launch(kernel: Any, grid: Callable[[dict[str, Any]], tuple[int, ...]], **arguments: Any) -> None:
    """Run a kernel on the current stream of the device of its tensors.

    Args:
        kernel: a key of :data:`CONFIGS`.
        grid: numbers of programs, from the kernel's arguments and its configuration.
        arguments: all arguments but the configuration's.
    """
    if is_interpreted() or torch.are_deterministic_algorithms_enabled():
        config = _fitting(kernel, arguments)[0]
        kernel[grid](**arguments, **config.all_kwargs())
        return
    _TUNED[kernel][grid](**arguments)
