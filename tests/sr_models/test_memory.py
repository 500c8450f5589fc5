"""Errors that are a lack of memory, and blocks that are given back."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from sr_models.memory import is_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."),
    ],
)
def test_lack_of_memory(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shapes"), ValueError("not enough memory"), OSError(12, "x")])
def test_other_errors(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_torch_says_so_itself() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)


#: A block of 8 MiB is freed that the C library would keep: a larger one was free before, and another lies behind it.
_FREE_A_BLOCK = """
import sys
import numpy as np
from sr_models.memory import release_large_blocks

if sys.argv[1:]:
    release_large_blocks()


def resident():
    return 4096 * int(open("/proc/self/statm").read().split()[1])


np.ones(2**21)
block, behind = np.ones(2**20), np.ones(2**16)
before = resident()
del block
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
@pytest.mark.parametrize(
    ("released", "own", "given_back"),
    [(False, {}, False), (True, {}, True), (True, {"MALLOC_MMAP_THRESHOLD_": "16777216"}, False)],
)
def test_large_blocks_are_given_back(released: bool, own: dict[str, str], given_back: bool) -> None:
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), **own}
    command = [sys.executable, "-c", _FREE_A_BLOCK, *(["release"] if released else [])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 2**22) is given_back
