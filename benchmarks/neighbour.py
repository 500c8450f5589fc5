"""A training step on a quiet machine, and beside a process that keeps one core busy."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

import sr_models
from sr_models.openmp import unbind

__all__ = ["measure_neighbour"]

_BATCH, _CROP, _SCALE = 6, 64, 4


def measure_neighbour(rounds: int) -> tuple[float, float]:
    """Return the median seconds of a training step of the ``small`` preset: quiet, and beside a busy process.

    Args:
        rounds: timed steps of each, at least 2.
    """
    step = _training_step()
    for _ in range(3):
        step()
    quiet = _median(step, rounds)
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"], preexec_fn=unbind)
    try:
        time.sleep(0.5)
        busy = _median(step, rounds)
    finally:
        neighbour.kill()
        neighbour.wait()
    return quiet, busy


def _training_step() -> Callable[[], None]:
    torch.manual_seed(0)
    model = sr_models.create("srflow-da", scale=_SCALE, preset="small").train()
    hr, lr = torch.rand(_BATCH, 3, _CROP, _CROP), torch.rand(_BATCH, 3, _CROP // _SCALE, _CROP // _SCALE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        model.encode(hr, lr).bits_per_dim.mean().backward()
        optimizer.step()

    return step


def _median(step: Callable[[], None], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
