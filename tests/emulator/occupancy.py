"""Number of blocks of a kernel that a multiprocessor holds at once."""

from __future__ import annotations

from typing import NamedTuple

_REGISTERS = 65536  # of every multiprocessor from sm_75 to sm_120
_REGISTER_UNIT = 256  # in which they are given to warps
_SHARED_UNIT = 128


class Multiprocessor(NamedTuple):
    """``threads``, ``blocks`` and ``shared`` bytes that it holds, ``of_block`` the shared bytes that a block may have,
    ``reserved`` those that CUDA takes for itself in every block."""

    threads: int
    blocks: int
    shared: int
    of_block: int
    reserved: int


#: By architecture. CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
MULTIPROCESSORS = {
    75: Multiprocessor(1024, 16, 64 << 10, 64 << 10, 0),
    80: Multiprocessor(2048, 32, 164 << 10, 163 << 10, 1 << 10),
    86: Multiprocessor(1536, 16, 100 << 10, 99 << 10, 1 << 10),
    90: Multiprocessor(2048, 32, 228 << 10, 227 << 10, 1 << 10),
    100: Multiprocessor(2048, 32, 228 << 10, 227 << 10, 1 << 10),
    120: Multiprocessor(1536, 24, 100 << 10, 99 << 10, 1 << 10),
}


def resident_blocks(architecture: int, registers: int, shared: int, threads: int) -> int:
    """Return the number of blocks that a multiprocessor holds; 0 if such a block cannot be launched.

    A block has ``threads`` threads with so many ``registers`` each, and so many bytes of ``shared`` memory, static and
    dynamic together.
    """
    chip = MULTIPROCESSORS[architecture]
    if shared > chip.of_block:
        return 0
    warps = -(-threads // 32)
    registers_of_warp = _rounded(32 * registers, _REGISTER_UNIT)
    by_registers = _REGISTERS // registers_of_warp // 4 * 4 // warps  # warps are spread over four schedulers
    by_shared = chip.shared // max(_rounded(shared + chip.reserved, _SHARED_UNIT), 1)
    return min(by_registers, by_shared, chip.threads // (32 * warps), chip.blocks)


def _rounded(number: int, unit: int) -> int:
    return -(-number // unit) * unit
