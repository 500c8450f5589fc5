"""Exact limits of shared memory: what a block keeps, and how many channels it can have, one byte below and at them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from invflow._numerics import KERNEL_DTYPES
from invflow.backends import _cuda, cuda
from tests.emulator.drivers import cuda as cuda_driver
from tests.emulator.drivers.cuda import cuda_on_cpu, library
from tests.emulator.occupancy import MULTIPROCESSORS, Multiprocessor
from tests.emulator.source import load_extension
from tests.gates.launches import CHANNELS, Call, launches_of

pytestmark = pytest.mark.skipif(cuda_driver.unavailable(None) is not None, reason=str(cuda_driver.unavailable(None)))

ROOMY = MULTIPROCESSORS[90]


def shared_of(call: Call, chip: Multiprocessor) -> int:
    """The shared bytes of a backward pass on a device like that."""
    with mock.patch.dict(MULTIPROCESSORS, {1: chip}):
        (found,) = [launch for launch in launches_of(call, 1) if "flow_step_backward" in launch.name]
    return found.shared_bytes


@pytest.mark.parametrize("published", [False, True], ids=["any form", "published form"])
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("channels", CHANNELS)
def test_a_block_keeps_values_if_there_is_room_for_the_last_byte(channels: int, inverse: bool, published: bool) -> None:
    call = Call(channels, side=4, backward=True, inverse=inverse, published=published)
    keeps = shared_of(call, ROOMY._replace(shared=1 << 20, of_block=1 << 20))
    # a multiprocessor holds two blocks of up to 48 channels, and CUDA takes 1 KiB of each
    at_once = 2 if channels < 96 else 1
    chip = ROOMY._replace(shared=at_once * (keeps + 1024), of_block=keeps)
    assert shared_of(call, chip) == keeps
    below = chip._replace(shared=chip.shared - at_once, of_block=keeps if at_once > 1 else keeps - 1)
    assert shared_of(call, below) < keeps


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
def test_the_largest_number_of_channels_is_accepted_and_one_more_refused(dtype: torch.dtype) -> None:
    with cuda_on_cpu(device=75):
        extension = load_extension("_CUDA", library())
        most = extension.most_channels(0, KERNEL_DTYPES[dtype])
    with mock.patch.dict(_cuda._most_channels, {0: {dtype: most}}), mock.patch.dict(_cuda._refusals, {0: ""}):
        for channels, reason in (
            (most, ""),
            (most + 1, f"shared memory for {most} channels of {dtype}, got {most + 1}"),
        ):
            x = SimpleNamespace(device=torch.device("cuda", 0), dtype=dtype, shape=(1, channels, 2, 2), dim=lambda: 4)
            for op in ("flow_step", "channel_affine"):
                found = _cuda._refusal(extension, op, x)
                assert reason in found
                assert bool(found) == bool(reason)
            assert not _cuda._refusal(extension, "affine_coupling", x)


def test_the_limit_of_channels_is_that_of_the_memory_to_the_byte() -> None:
    """A device with a byte less than the largest number of channels needs has one channel less."""

    def most(room: int) -> int:
        with mock.patch.dict(MULTIPROCESSORS, {1: ROOMY._replace(shared=room, of_block=room)}), cuda_on_cpu(device=1):
            return load_extension("_CUDA", library()).most_channels(0, KERNEL_DTYPES[torch.float32])

    room = MULTIPROCESSORS[75].of_block
    channels = most(room)
    low, least = room // 2, room  # as few channels, and as many
    while least - low > 1:
        middle = (low + least) // 2
        low, least = (low, middle) if most(middle) == channels else (middle, least)
    assert (most(least), most(least - 1)) == (channels, channels - 1)
    calls = [Call(channels, batch=1, side=4, backward=backward) for backward in (False, True)]
    with mock.patch.dict(MULTIPROCESSORS, {1: ROOMY._replace(shared=least, of_block=least)}):
        for call in calls:
            launches_of(call, 1)
        refused = []
        for call in calls:
            try:
                launches_of(replace(call, channels=channels + 1), 1)
            except RuntimeError as error:
                refused.append(str(error))
    assert any("more shared memory than a block may have" in text for text in refused)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("channels", [12, 40])
def test_workspaces_grow_at_most_as_the_batch_and_not_from_call_to_call(channels: int, backward: bool) -> None:
    kernel = "flow_step_backward_workspace" if backward else "flow_step_workspace"
    sizes: list[int] = []
    with cuda_on_cpu():
        extension = cuda.extension
        size_of = getattr(extension, kernel)

        def noted(*arguments: object) -> int:
            sizes.append(size_of(*arguments))
            return sizes[-1]

        with mock.patch.object(extension, kernel, noted):
            for batch in (2, 2, 4, 8):
                Call(channels, batch=batch, side=32, backward=backward).run("cuda")
    assert sizes[0] == sizes[1], kernel
    assert 0 < sizes[1] <= sizes[2] <= sizes[3] <= 4 * sizes[1] + 4096, kernel
