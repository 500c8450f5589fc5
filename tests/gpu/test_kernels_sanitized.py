"""Every CUDA kernel, on tiny states, under the sanitizers and under the race detector."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.emulator.drivers import cuda as cuda_driver
from tests.emulator.drivers.cuda import cuda_on_cpu
from tests.emulator.source import run_sanitized, sanitizer_unavailable
from tests.gates.launches import Call, every_kernel
from tests.gpu.marks import takes_minutes

pytestmark = [pytest.mark.slow, takes_minutes]

#: Pixels that fill whole vectors but no whole tile.
SIDE = 4
#: Under ThreadSanitizer a step of more channels takes minutes.
MOST_CHANNELS = {"address": 192, "thread": 24}


def tiny_calls(most_channels: int) -> list[Call]:
    """Backward passes with two tiles, of which a block takes one after the other; some samples with several tiles."""
    calls = [call for call in every_kernel() if call.channels <= most_channels]
    tiny = [
        replace(call, batch=2 if call.backward else 1, side=SIDE, inverse=inverse)
        for call in calls
        for inverse in (False, True)
    ]
    # several sums of a sample, which a second kernel adds
    return tiny + [Call(3, dtype=dtype, contiguous=False, side=32) for dtype in (torch.float32, torch.float64)]


def run_tiny_calls(most_channels: int, capability: int | None = None, **options: Any) -> set[str]:
    """Run them with the shared memory of sm_90, which has room for every kernel, and with the little of sm_75, in which
    backward passes keep nothing. Return the names of the launches."""
    names = set()
    for device in (90, 75):
        with cuda_on_cpu(capability, device=device, multiprocessors=1, **options) as launches:
            for call in tiny_calls(most_channels):
                if device == 90 or call.backward:
                    call.run("cuda")
        names |= {launch.name for launch in launches}
    return names


CODE = """
import sys
sys.path.insert(0, {root!r})
import torch
from tests.gpu.test_kernels_sanitized import run_tiny_calls
torch.set_num_threads(1)
run_tiny_calls({channels}, sanitize={sanitize!r})
print("all")
"""


@pytest.mark.parametrize("order", ["ascending", "random:1"])
@pytest.mark.parametrize("sanitize", ["address", "thread"])
def test_sanitizers_are_silent(sanitize: str, order: str) -> None:
    if reason := cuda_driver.unavailable(None) or sanitizer_unavailable(sanitize):
        pytest.skip(reason)
    cuda_driver.library(sanitize)  # compiled here: the compiler is not to run under the sanitizer
    code = CODE.format(root=str(Path(__file__).parents[2]), sanitize=sanitize, channels=MOST_CHANNELS[sanitize])
    assert run_sanitized(code, sanitize, order=order).strip() == "all"


@pytest.mark.skipif(cuda_driver.unavailable(80) is not None, reason=str(cuda_driver.unavailable(80)))
def test_the_race_detector_is_silent() -> None:
    assert len(run_tiny_calls(192, 80, check_races=True)) == 198
