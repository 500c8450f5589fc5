"""Processes and devices of a run: Lightning Fabric starts them, torch shares the gradients."""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar, cast

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from sr_models.networks.rrdb import RRDB
from sr_models.training.objective import Objective, Phase

__all__ = [
    "Strategy",
    "any_error",
    "collected",
    "distribute",
    "first_decides",
    "largest",
    "last_part_only",
    "mean",
    "start_processes",
]

Strategy = Literal["auto", "ddp", "fsdp"]
T = TypeVar("T")

#: Environment variable with the number of the process that started the others of this machine.
_STARTER = "SR_MODELS_STARTER"


def start_processes(accelerator: str, devices: int | list[int] | str, strategy: Strategy) -> Fabric:
    """Start one process a device, or join those that torchrun or SLURM started.

    Args:
        accelerator: Lightning's name of the hardware: ``auto``, ``cpu``, ``gpu``, ...
        devices: number of devices a machine, or a list of GPUs, or ``auto``: all GPUs, or one process without GPUs;
            under torchrun or SLURM the processes that these have started.
        strategy: ``ddp`` copies the model to every process; ``fsdp`` shards its parameters; ``auto`` is ``ddp``.

    Raises:
        ValueError: hardware or a number of devices that this machine does not have.
    """
    if strategy not in ("auto", "ddp", "fsdp"):
        raise ValueError(f"strategy must be auto, ddp or fsdp, got {strategy!r}")
    if isinstance(devices, int) and devices < 1:
        raise ValueError(f"devices must be at least 1, or auto, got {devices}")
    for package in ("fabric", "pytorch"):  # whichever was imported last
        logging.getLogger(f"lightning.{package}.utilities.rank_zero").setLevel(logging.WARNING)
    _end_with_starter()
    machines = processes = 1
    if "TORCHELASTIC_RUN_ID" in os.environ:
        processes = int(os.environ["LOCAL_WORLD_SIZE"])
        machines = int(os.environ["WORLD_SIZE"]) // processes
    elif SLURMEnvironment.detect():
        machines = int(os.environ.get("SLURM_NNODES", 1))
        processes = int(os.environ["SLURM_NTASKS"]) // machines
    if devices == "auto" and processes > 1:
        devices = processes
    try:
        # torch shards the model, so that Fabric has only to start the processes and to connect them
        fabric = Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=machines,
            strategy="auto" if strategy == "auto" else "ddp",
        )
        fabric.launch()
    except (MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        if accelerator in ("cuda", "gpu", "mps") and not torch.accelerator.is_available():
            reason = f"torch finds no {accelerator} device on this machine, only the cpu"
        raise ValueError(f"accelerator {accelerator!r} with devices {devices!r} cannot be used: {reason}") from error
    return fabric


def distribute(objective: Objective, phase: Phase, fabric: Fabric, strategy: Strategy) -> nn.Module:
    """Make an objective share its gradients with the other processes.

    Args:
        objective: on the process's device, prepared for the phase.
        phase: says which parameters learn.
        fabric: of :func:`start_processes`.
        strategy: as there.

    Returns:
        The module to call; the objective's own parameters are those that learn.
    """
    if strategy == "fsdp":
        mesh = torch.distributed.device_mesh.init_device_mesh(fabric.device.type, (fabric.world_size,))
        for block in [part for part in objective.model.modules() if isinstance(part, RRDB)]:
            fully_shard(block, mesh=mesh)
        fully_shard(objective, mesh=mesh)
        return objective
    if fabric.world_size == 1:
        return objective
    own = [fabric.device.index] if fabric.device.type == "cuda" else None
    # a likelihood leaves out the convolutions of the encoder that make an image of its features
    unused = objective.model.encoder is not None and phase.encoder and phase.flow
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")  # its new name is of torch 2.14
        # the only buffers are flags and permutations, which no step changes
        return DistributedDataParallel(
            objective, device_ids=own, broadcast_buffers=False, find_unused_parameters=unused
        )


@contextmanager
def last_part_only(module: nn.Module, last: bool) -> Iterator[None]:
    """Let processes exchange gradients only in the backward pass of a batch's last part."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
        yield
    elif isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
    else:
        yield


def mean(value: Tensor, fabric: Fabric) -> Tensor:
    """Return the mean of a scalar over the processes."""
    return value if fabric.world_size == 1 else _reduced(value, fabric, "mean")


def largest(value: int, fabric: Fabric) -> int:
    """Return the largest of a number over the processes."""
    if fabric.world_size == 1:
        return value
    return int(_reduced(torch.tensor(value, device=fabric.device), fabric, "max"))


def collected(values: list[str], fabric: Fabric) -> list[str]:
    """Return the values of all processes."""
    if fabric.world_size == 1:
        return values
    everyone: list[list[str]] = [[] for _ in range(fabric.world_size)]
    torch.distributed.all_gather_object(everyone, values)
    return [value for each in everyone for value in each]


def _reduced(value: Tensor, fabric: Fabric, operation: str) -> Tensor:
    reduced = fabric.all_reduce(value.clone(), reduce_op=operation)
    assert isinstance(reduced, Tensor)
    return reduced


def first_decides(fabric: Fabric, function: Callable[[], T]) -> T:
    """Call a function in the first process; every process gets its result.

    An exception goes on in the first process and ends the others, which would wait for ever. They end without an error
    of their own: Fabric kills the first process, perhaps before it has told the user, as soon as another one fails.
    """
    outcome: tuple[T | None, bool] = (None, False)
    if fabric.global_rank == 0:
        try:
            outcome = function(), True
        finally:
            outcome = fabric.broadcast(outcome)
    else:
        outcome = fabric.broadcast(outcome)
        if not outcome[1]:
            raise SystemExit(0)
    return cast(T, outcome[0])


def any_error(error: Exception | None, fabric: Fabric) -> Exception | None:
    """Return this process's error or, without one, that of another process, if there is any.

    Every process must take part.
    """
    if not largest(int(error is not None), fabric) or fabric.world_size == 1:
        return error
    first, *_ = collected([] if error is None else [f"process {fabric.global_rank}: {error}"], fabric)
    return error or ValueError(first)


def _end_with_starter() -> None:
    """Let a process that Fabric started end soon after the process that started it, in whatever way that one ended.

    It might wait half an hour for a process that does not live any more, and hold a GPU. Under torchrun its agent does
    this, and the variable may be one that an earlier run left in the environment.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.environ[_STARTER] = str(os.getpid())
    elif _STARTER in os.environ:
        threading.Thread(target=_watch, args=(int(os.environ[_STARTER]),), daemon=True).start()


def _watch(starter: int) -> None:
    while os.getppid() == starter:
        time.sleep(0.5)
    os._exit(1)
