"""Layers in two processes: DistributedDataParallel, fully_shard, checkpoints in place."""

from __future__ import annotations

import copy
import pickle
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from layer_cases import coupling
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from invflow import FlowSequential, FlowStep, Squeeze

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch has no gloo")


def flow(**options: Any) -> FlowSequential:
    torch.manual_seed(0)
    return FlowSequential([Squeeze(), FlowStep(12, coupling=coupling(12)), FlowStep(12)], **options)


def samples() -> Tensor:
    return (
        3
        + torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        * torch.arange(1.0, 7)[:, None, None, None]
    )


def own_part(rank: int) -> Tensor:
    """Parts of different sizes."""
    return samples()[:2] if rank == 0 else samples()[2:]


def gathered(values: Any) -> list[Any]:
    """``values`` of both processes."""
    found: list[Any] = [None, None]
    dist.all_gather_object(found, values)
    return found


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("module."): tensor.detach().clone() for name, tensor in model.state_dict().items()}


def first_batch_of_all(rank: int, folder: Path) -> None:
    expected = flow()
    expected(samples())
    for options in ({}, {"memory": "invert"}, {"empty": True}):
        empty = options.pop("empty", False)
        model = flow(**options)
        wrapped = DistributedDataParallel(model)
        part = samples() if empty and rank else samples()[:0] if empty else own_part(rank)
        z, log_det = wrapped(part)
        (z.square().sum() - log_det.sum()).backward()
        for found in gathered(state_of(model)):
            torch.testing.assert_close(found, state_of(expected), rtol=1e-5, atol=1e-5)
        before = state_of(model)
        wrapped(5 * part)
        torch.testing.assert_close(state_of(model), before, rtol=0, atol=0)


def nothing_finite_and_nothing_at_all(rank: int, folder: Path) -> None:
    model = flow()
    wrapped = DistributedDataParallel(model)
    wrapped(samples()[:0])
    assert not model[1].actnorm.initialized
    part = own_part(rank)
    if rank == 1:
        part[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        wrapped(part)
    assert not model[1].actnorm.initialized
    assert not model[1].actnorm.bias.any()


def compiled(rank: int, folder: Path) -> None:
    expected, model = flow(), flow()
    expected(samples())
    DistributedDataParallel(torch.compile(model, backend="aot_eager"))(own_part(rank))
    torch.testing.assert_close(state_of(model), state_of(expected), rtol=1e-5, atol=1e-5)


def wrapped_after_one_was_initialised(rank: int, folder: Path) -> None:
    for first in (0, 1):
        model = flow()
        if rank == first:
            model(samples())
        DistributedDataParallel(model)(own_part(rank))
        states = gathered(state_of(model))
        torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
        assert model[2].actnorm.initialized


def a_layer_outside_is_left_alone(rank: int, folder: Path) -> None:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flow = flow()

        def forward(self, x: Tensor) -> Tensor:
            if rank == 0:
                other.__call__(x)
            return self.flow(x)[1]

    other = flow()
    DistributedDataParallel(Calls())(own_part(rank))
    assert bool(other[1].actnorm.initialized) == (rank == 0)


def sharded(rank: int, folder: Path) -> None:
    for per_step in (False, True):
        fresh, model, expected = flow(), flow(), flow()
        for each in (model, expected):
            each(samples())
        for each in (fresh, model):
            for part in [*list(each)[1:]] if per_step else []:
                fully_shard(part)
                register_fsdp_forward_method(part, "inverse")
            fully_shard(each)
            register_fsdp_forward_method(each, "inverse")
        with pytest.raises(RuntimeError, match="run one batch before fully_shard is applied"):
            fresh(samples())
        optimizers = [torch.optim.Adam(each.parameters(), lr=0.01) for each in (model, expected)]
        for _ in range(2):
            for each, optimizer, x in ((model, optimizers[0], own_part(rank)[:2]), (expected, optimizers[1], None)):
                optimizer.zero_grad()
                x = torch.cat([samples()[:2], samples()[2:4]]) if x is None else x
                z, log_det = each(x)
                (z.square().sum(1).mean() - log_det.mean() / 64).backward()
                optimizer.step()
        with torch.no_grad():
            for direction in ("__call__", "inverse"):
                x = samples() if direction == "__call__" else expected(samples())[0]
                found = getattr(model, direction)(x)
                torch.testing.assert_close(found, getattr(expected, direction)(x), rtol=1e-3, atol=1e-3)


def wrapped_by_fully_sharded_data_parallel(rank: int, folder: Path) -> None:
    for use_orig_params in (False, True):
        for gradients in (False, True):
            fresh = FullyShardedDataParallel(flow(), use_orig_params=use_orig_params, device_id=torch.device("cpu"))
            with torch.set_grad_enabled(gradients), pytest.raises(RuntimeError, match="FullyShardedDataParallel wraps"):
                fresh(samples())
        for options in ({}, {"memory": "invert"}):
            model, expected = flow(**options), flow()
            for each in (model, expected):
                each(samples())
            wrapped = FullyShardedDataParallel(model, use_orig_params=use_orig_params, device_id=torch.device("cpu"))
            for each, x in ((wrapped, own_part(rank)[:2]), (expected, torch.cat([samples()[:2], samples()[2:4]]))):
                optimizer = torch.optim.SGD(each.parameters(), lr=0.01)
                z, log_det = each(x)
                (z.square().sum(1).mean() - log_det.mean() / 64).backward()
                optimizer.step()
            torch.testing.assert_close(wrapped(samples()), expected(samples()), rtol=1e-4, atol=1e-4)


def checkpoint_in_place(rank: int, folder: Path) -> None:
    trained, fresh = flow(), flow()
    trained(samples())
    dcp.save(state_of(trained), checkpoint_id=str(folder / "trained"))
    dcp.save(state_of(fresh), checkpoint_id=str(folder / "fresh"))
    loaded = flow()
    dcp.load(loaded.state_dict(), checkpoint_id=str(folder / "trained"))
    loaded(5 * samples())
    torch.testing.assert_close(state_of(loaded), state_of(trained), rtol=0, atol=0)
    # and back to where the first batch initialises
    dcp.load(loaded.state_dict(), checkpoint_id=str(folder / "fresh"))
    loaded(samples())
    torch.testing.assert_close(state_of(loaded), state_of(trained), rtol=0, atol=0)
    assert isinstance(pickle.loads(pickle.dumps(copy.deepcopy(loaded))), FlowSequential)


CASES = [
    first_batch_of_all,
    nothing_finite_and_nothing_at_all,
    compiled,
    wrapped_after_one_was_initialised,
    a_layer_outside_is_left_alone,
    sharded,
    wrapped_by_fully_sharded_data_parallel,
    checkpoint_in_place,
]


def run_all(rank: int, folder: Path) -> None:
    """Run every case and leave its traceback, or nothing, in a file of its own."""
    torch.set_num_threads(1)
    for case in CASES:
        file = folder / f"{case.__name__}-{rank}"
        # one that fails leaves the other process waiting
        limit = timedelta(seconds=60)
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/{case.__name__}", rank=rank, world_size=2, timeout=limit
        )
        try:
            case(rank, folder)
            file.write_text("")
        except BaseException:
            file.write_text(traceback.format_exc())
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of results. Not forked processes: those hang after threads have run."""
    folder = tmp_path_factory.mktemp("distributed")
    mp.start_processes(run_all, args=(folder,), nprocs=2, start_method="spawn")
    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_in_two_processes(case: Callable[[int, Path], None], outcomes: Path) -> None:
    for rank in range(2):
        assert (outcomes / f"{case.__name__}-{rank}").read_text() == ""
