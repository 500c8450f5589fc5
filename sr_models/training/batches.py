"""Batches of a run, from any of its steps on, divided among its processes."""

from __future__ import annotations

from collections.abc import Generator
from itertools import islice
from typing import Any

from lightning.fabric import Fabric
from torch.utils.data import DataLoader

from sr_models.data.crops import RandomCrops
from sr_models.data.sampler import StepSampler
from sr_models.openmp import unbind
from sr_models.training.config import TrainingConfig
from sr_models.training.stopping import ignore_signals

__all__ = ["step_batches"]


def step_batches(
    data: RandomCrops, config: TrainingConfig, fabric: Fabric, *, steps: range, workers: int
) -> Generator[list[dict[str, Any]], None, None]:
    """Yield the parts of each step's batch that are this process's share.

    Args:
        data: crops of the whole run.
        config: settings of the run.
        fabric: the processes.
        steps: the steps.
        workers: processes that prepare crops beside this one. They end when the generator is closed.
    """
    parts = config.accumulate
    sampler = StepSampler(
        config.recipe.batch_size, steps, rank=fabric.global_rank, world=fabric.world_size, parts=parts
    )
    loader = DataLoader(
        data,
        batch_sampler=sampler,
        num_workers=workers,
        worker_init_fn=_begin_worker,
        pin_memory=fabric.device.type == "cuda",
    )
    numbered = zip(sampler, loader, strict=True)
    while batch := [{**part, "crops": crops} for crops, part in islice(numbered, parts)]:
        yield batch


def _begin_worker(number: int) -> None:
    unbind()
    ignore_signals()
