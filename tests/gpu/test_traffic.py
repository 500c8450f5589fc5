"""Memory that a flow step moves, in nvcc's PTX run on the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.emulator.drivers import cuda as cuda_driver
from tests.gates.launches import CHANNELS, Call, every_kernel, launches_of
from tests.gates.traffic import SIDES, floor_of, floor_table, full_blocks, main, table, traffic_of, violations
from tests.gpu.marks import takes_minutes

pytestmark = [
    pytest.mark.slow,
    takes_minutes,
    pytest.mark.skipif(cuda_driver.unavailable(80) is not None, reason=str(cuda_driver.unavailable(80))),
]


def test_the_floor_is_every_tensor_once() -> None:
    call = Call(12, batch=3, side=8)
    x, coupling, _, _, injector = call.tensors()
    assert floor_of(call) == 2 * x.nbytes + coupling.nbytes + injector.nbytes
    assert floor_of(replace(call, backward=True)) == 3 * x.nbytes + 2 * (coupling.nbytes + injector.nbytes)


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("channels", CHANNELS)
def test_a_step_moves_little_more_than_it_must(channels: int, inverse: bool) -> None:
    traffic = traffic_of(Call(channels, inverse=inverse, side=SIDES[channels]))
    assert violations(traffic) == []
    assert 1 <= traffic.ratio <= 1.15
    # the tensors' sectors, and one number for each tile
    assert traffic.sectors_per_request > 13
    assert traffic.of_matrix >= 4 * channels**2


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("channels", CHANNELS)
def test_a_backward_pass_moves_little_more_than_it_must(channels: int, inverse: bool) -> None:
    call = full_blocks(channels, inverse)
    traffic = traffic_of(call, full_blocks=True)
    assert violations(traffic) == []
    assert 1 <= traffic.ratio <= 1.15
    assert traffic_of(call).ratio > traffic.ratio  # the more blocks, the more partial sums


@pytest.mark.parametrize("channels", CHANNELS)
def test_full_blocks_are_full(channels: int) -> None:
    call = full_blocks(channels, inverse=False)
    grids = []
    for batch in (call.batch, 2 * call.batch):
        launches = launches_of(replace(call, batch=batch), 80, multiprocessors=1)
        (grid,) = (launch.grid[0] for launch in launches if "flow_step_backward" in launch.name)
        grids.append(grid)
    assert grids == [1 + (channels < 96), 2 + 2 * (channels < 96)]


def test_wasted_traffic_is_seen() -> None:
    """Sliced channels are read one by one, and every other number is read for nothing."""
    traffic = traffic_of(Call(12, contiguous=False))
    assert traffic.ratio > 1.5
    assert traffic.narrow
    wrong = violations(traffic)
    assert wrong[-1] == f"forward, 2 x 12 x 16 x 16: {traffic.ratio:.3f} times the floor is moved, more than 1.15"
    assert len(wrong) == 1 + len(traffic.narrow)


def test_every_launch_is_recorded_with_its_shape() -> None:
    names = {launch.name for call in every_kernel() for launch in launches_of(call, 90)}
    assert len(names) == 198
    (step, sums) = launches_of(Call(48, side=40, published=False), 80)
    assert step.name == "invflow::cuda::flow_step_kernel<invflow::cuda::Vectors<4, 4>, 48>"
    assert (step.block, step.trace) == ((128, 1, 1), None)
    assert sums.grid == (2, 1, 1)  # samples


def test_tables() -> None:
    traffic = traffic_of(Call(12, side=80))
    (line,) = table([traffic]).splitlines()[2:]
    assert line.startswith("| forward, 2 x 12 x 80 x 80 | 3.07 | 3.08 | 1.0")
    assert sum(traffic.instructions.values()) > torch.Size((2, 12, 80, 80)).numel()
    (line,) = floor_table([traffic]).splitlines()[2:]
    # 3.072 MB at 616, 2039 and 3350 GB/s; 2 * 12 * 12 * 12800 operations at 13.45, 19.5 and 66.9 TFLOP/s
    assert line == "| forward, 2 x 12 x 80 x 80 | 3.1 | 0.00 | 5.0 | 0.3 | 1.5 | 0.2 | 0.9 | 0.1 |"


def test_arguments_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--batch", "0"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "traffic: --batch must be positive, got 0\n"
