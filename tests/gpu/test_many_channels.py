"""The CUDA kernels with more channels than any kernel is made for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from invflow._numerics import KERNEL_DTYPES
from tests.emulator.drivers import cuda as cuda_driver
from tests.emulator.drivers.cuda import cuda_on_cpu, library
from tests.emulator.occupancy import MULTIPROCESSORS
from tests.emulator.source import load_extension
from tests.gates.launches import Call, launches_of
from tests.support.accuracy import assert_as_accurate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cuda_driver.unavailable(None) is not None, reason=str(cuda_driver.unavailable(None))),
]

#: Static shared memory of a forward kernel, for the sums of four warps.
STATIC = {dtype: 32 if dtype == torch.float64 else 16 for dtype in KERNEL_DTYPES}


def most_channels(architecture: int, dtype: torch.dtype) -> int:
    with cuda_on_cpu(device=architecture):
        return load_extension("_CUDA", library()).most_channels(0, KERNEL_DTYPES[dtype])


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("channels", [193, 256, 288, 384])
def test_results_are_right(channels: int, backward: bool) -> None:
    call = Call(channels, batch=2, side=4, backward=backward)
    with cuda_on_cpu(device=75):
        actual = call.run("cuda")
    plain, exact = call.run("reference"), call.run("reference", [tensor.double() for tensor in call.tensors()])
    for number, results in enumerate(zip(actual, plain, exact, strict=True)):
        assert_as_accurate(*results, f"result {number}", 100.0 if results[0].dim() < 4 else channels**0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("architecture", [75, 86])
def test_as_many_channels_as_are_promised_fit(architecture: int, dtype: torch.dtype) -> None:
    most, room = most_channels(architecture, dtype), MULTIPROCESSORS[architecture].of_block
    assert most > 320
    calls = [
        Call(most, dtype=dtype, batch=1, side=4, contiguous=contiguous, backward=backward, inverse=inverse)
        for contiguous in (False, True)
        for backward in (False, True)
        for inverse in (False, True)
    ]
    launches = [launch for call in calls for launch in launches_of(call, architecture)]
    static = {launch: STATIC[dtype] if "flow_step_kernel" in launch.name else 0 for launch in launches}
    assert max(launch.shared_bytes + static[launch] for launch in launches) <= room
    refused = []
    for call in calls:
        try:
            launches_of(replace(call, channels=most + 1), architecture)
        except RuntimeError as error:
            refused.append(str(error))
    assert any("more shared memory than a block may have" in text for text in refused)
