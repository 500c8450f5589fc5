"""A second kernel, which adds sums of blocks, is launched only where a sample has several."""

from __future__ import annotations

import pytest
import torch

from invflow import channel_affine
from tests.emulator.drivers import cuda as cuda_driver
from tests.emulator.drivers.cuda import cuda_on_cpu, library
from tests.emulator.through_ptx import HostLaunch, launches_go_to
from tests.gates.launches import Call, launches_of

pytestmark = pytest.mark.skipif(cuda_driver.unavailable(None) is not None, reason=str(cuda_driver.unavailable(None)))


def kernel(launch: HostLaunch) -> str:
    return launch.name.split("::")[2].partition("<")[0]


@pytest.mark.parametrize(
    ("call", "kernels"),
    [
        (Call(7, published=False), ["flow_step_kernel"]),  # a tile holds all pixels of a sample
        (Call(7, published=False, side=64), ["flow_step_kernel", "add_rows_kernel"]),
        (Call(8, step=False, published=False), ["coupling_kernel"]),
        (Call(8, step=False, published=False, side=64), ["coupling_kernel", "add_rows_kernel"]),
        (Call(12, side=8), ["flow_step_known_kernel"]),
        (Call(12, side=64), ["flow_step_known_kernel", "add_rows_kernel"]),
        (Call(12, side=4, channels_last=True), ["flow_step_last_kernel"]),
        (Call(12, side=5, step=False, channels_last=True), ["coupling_last_kernel"]),
        (Call(12, side=64, step=False, channels_last=True), ["coupling_last_kernel", "add_rows_kernel"]),
    ],
    ids=str,
)
def test_sums_of_one_block_are_those_of_the_sample(call: Call, kernels: list[str]) -> None:
    assert [kernel(launch) for launch in launches_of(call, 80)] == kernels


@pytest.mark.parametrize(("channels", "name"), [(7, "flow_step_kernel"), (12, "flow_step_known_kernel")])
def test_a_step_without_maps_is_one_launch(channels: int, name: str) -> None:
    found: list[HostLaunch] = []
    with cuda_on_cpu(device=80), launches_go_to(library(), lambda launch, parameters: found.append(launch)):
        channel_affine(torch.randn(3, channels, 40, 40), torch.eye(channels), torch.zeros(channels), backend="cuda")
    assert [kernel(launch) for launch in found] == [name]
