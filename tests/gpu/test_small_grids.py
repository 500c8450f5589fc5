"""Kernels with smaller tiles, which only builds with INVFLOW_SMALL_GRIDS have, until a GPU has decided about them.

They run in processes of their own: two builds of a library in one process share what C++ has once in a process.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.emulator.drivers import cuda as cuda_driver
from tests.emulator.drivers.cuda import library

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cuda_driver.unavailable(None) is not None, reason=str(cuda_driver.unavailable(None))),
]

#: As many as an H100 has: small states leave some of them idle.
MULTIPROCESSORS = 132

BLOCKS = """
import sys
from pathlib import Path
from unittest import mock
from tests.emulator.drivers import cuda as cuda_driver
from tests.gates.launches import Call, launches_of

built = Path(sys.argv[1])
with (
    mock.patch.object(cuda_driver, "library", return_value=built),
    mock.patch("tests.gates.launches.library", return_value=built),
):
    for backward in (False, True):
        kernel = "flow_step_backward_known" if backward else "flow_step_known"
        launches = launches_of(Call(96, side=16, backward=backward), 90, multiprocessors=int(sys.argv[2]))
        print(*(launch.grid[0] for launch in launches if kernel in launch.name))
"""


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("multiprocessors", "pixels"), [(MULTIPROCESSORS, (16, 32)), (1, (64, 64))])
def test_only_small_states_are_divided_into_more_blocks(multiprocessors: int, pixels: tuple[int, int]) -> None:
    """Divide a state of 2 samples of 16 x 16 pixels and 96 channels, forward and backward."""
    built = str(library(None, "INVFLOW_SMALL_GRIDS"))
    tiles = [2 * 16 * 16 // of_tile for of_tile in pixels]
    tiles[1] = min(tiles[1], multiprocessors * (2 if multiprocessors > 1 else 1))  # further ones are taken in turn
    assert run("-c", BLOCKS, built, str(multiprocessors)).split() == [str(number) for number in tiles]


def test_results_are_right() -> None:
    built = str(library(None, "INVFLOW_SMALL_GRIDS"))
    run("-m", "tests.gates.kill_suite", built, "--multiprocessors", str(MULTIPROCESSORS))
