"""A training run in a folder: begun, or taken up where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import torch
from lightning.fabric import Fabric

from sr_models.checkpoints.files import create_described, load_encoder, save_model
from sr_models.checkpoints.initial import load_initial_weights
from sr_models.data.crops import RandomCrops
from sr_models.data.kept import DISK_CACHE
from sr_models.flow.model import SuperResolutionFlow
from sr_models.randomness import random_stream
from sr_models.registry import create
from sr_models.training.check import check_crop
from sr_models.training.config import TrainingConfig
from sr_models.training.distribution import Strategy, first_decides, start_processes
from sr_models.training.folder import RunFolder, absolute
from sr_models.training.loop import Leader, Loop
from sr_models.training.monitor import Monitor
from sr_models.training.objective import Objective
from sr_models.training.state import Content, begin, model_of
from sr_models.training.stopping import Stopped, StopSignals
from sr_models.training.summary import closing, opening
from sr_models.training.validation import Validation

__all__ = ["train_model"]


def train_model(
    config: TrainingConfig,
    output: str | os.PathLike[str],
    *,
    accelerator: str = "auto",
    devices: int | list[int] | Literal["auto"] = "auto",
    strategy: Strategy = "auto",
    workers: int = 0,
    disk_cache: float = DISK_CACHE,
    resume: Literal["auto", "never", "other_data"] = "auto",
    callbacks: Sequence[Callable[[int, Objective], object]] = (),
) -> Path:
    """Train a model, or go on with the interrupted run in the same folder.

    The folder receives ``training.json`` (the settings), ``logs`` for TensorBoard, ``checkpoints/last.ckpt`` and
    ``previous.ckpt`` to go on from, ``best.safetensors`` and, at the end, ``model.safetensors``, both with the averaged
    weights. A run that was interrupted and taken up again equals an unbroken one bit for bit on a CPU.

    Args:
        config: settings of the run.
        output: folder, created if needed.
        accelerator: Lightning's name of the hardware: ``auto``, ``cpu``, ``gpu``, ...
        devices: number of devices of this machine, or a list of GPUs, each with a process of its own; ``auto``: all
            GPUs, or one process. Under torchrun or SLURM ``auto`` is the number of processes that they have started.
        strategy: how several processes share the model: ``ddp`` copies it, ``fsdp`` shards it, ``auto`` copies it.
        workers: processes that prepare crops beside each training process.
        disk_cache: GB of decoded photographs that are kept on the disk for later epochs and runs, if there are many
            (:class:`sr_models.data.kept.KeptImages`); 0: none.
        resume: ``auto`` goes on with a run in the folder, ``never`` refuses a folder that holds one.
            ``other_data`` also goes on if the images are not those with which the run began.
        callbacks: called with the number of finished steps and the objective after every step.

    Returns:
        The path of ``model.safetensors``.

    Raises:
        ValueError: settings that do not fit the data, the model or the machine, or another run in the folder.
        FileNotFoundError: no such images.
        FloatingPointError: likelihoods or gradients that are not finite for too many steps in a row.
        Stopped: a signal ended the run after its state was written.
    """
    output, recipe = absolute(output), config.recipe
    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    check_crop(config)
    data = RandomCrops(
        config.images,
        scale=config.scale,
        crop=config.crop,
        length=recipe.steps * recipe.batch_size,
        seed=config.seed,
        lr_images=config.lr_images,
        degradation=config.degradation,
        rotate=config.rotate,
        strict=config.strict,
        disk_cache=disk_cache,
    )
    fabric = start_processes(accelerator, devices, strategy)
    with ExitStack() as stack:
        leader: Leader | None = None

        def lead() -> Content:
            nonlocal leader
            leader, content = _lead(stack, config, output, data, fabric, {"strategy": strategy}, resume)
            return content

        content = first_decides(fabric, lead)
        started, first = monotonic(), content["step"]
        with StopSignals() as signals:
            loop = Loop(
                config,
                fabric,
                strategy,
                data,
                output=output,
                workers=workers,
                signals=signals,
                callbacks=callbacks,
                leader=leader,
            )
            content = _run(loop, content)
            if content["step"] > first:
                _check_and_write(loop, content, fabric)
            best = loop.score(content)
            if best != content["best"]:
                content["best"] = best
                loop.write(content)
            if leader:
                save_model(model_of(content, average=True), output / "model.safetensors")
        if leader:
            leader.monitor.close()  # its last line comes before the summary
            for line in closing(
                output,
                steps=content["step"] - first,
                seconds=monotonic() - started,
                skipped=content["skipped"],
                best=(best["figure"], best["value"], best["step"]) if best else None,
                encoder_only=config.encoder_steps == config.recipe.steps and config.init_from is None,
            ):
                leader.monitor.say(line)
    fabric.barrier()  # no process sees a run as finished before it is
    return output / "model.safetensors"


def _run(loop: Loop, content: Content) -> Content:
    try:
        return loop.run(content)
    except (FloatingPointError, Stopped):
        if loop.leader is None:
            # all processes end together, and the first one says why; Fabric would kill it for an error in another
            raise SystemExit(0) from None
        raise


def _check_and_write(loop: Loop, content: Content, fabric: Fabric) -> None:
    """Write the last checkpoint, unless its weights turn out to be bad."""
    try:
        first_decides(fabric, lambda: loop.check_final(content))
    except FloatingPointError:
        raise
    except BaseException:
        loop.write(content)  # images that have gone, or an impatient user, say nothing against the weights
        raise
    loop.write(content)


def _lead(
    stack: ExitStack,
    config: TrainingConfig,
    output: Path,
    data: RandomCrops,
    fabric: Fabric,
    placement: dict[str, Any],
    resume: str,
) -> tuple[Leader, Content]:
    """Claim the folder, find the state from which to go on, and say what begins: the duties of the first process."""
    steps, batch_size, parts = config.recipe.steps, config.recipe.batch_size, fabric.world_size * config.accumulate
    if batch_size % parts:
        raise ValueError(
            f"batch_size must be a multiple of {parts} ({fabric.world_size} devices, accumulate {config.accumulate}), "
            f"got {batch_size}"
        )
    validation = _validation(config)
    placement = {**placement, "device": fabric.device.type, "devices": fabric.world_size}
    folder = stack.enter_context(
        RunFolder(output, config, fingerprint=data.fingerprint, resume=resume, data=data.notes[0], placement=placement)
    )
    notes: list[str] = []
    content = folder.checkpoints.newest() or begin(_initial_model(config, notes))
    first = content["step"]
    if first > steps:
        raise ValueError(f"steps must be at least {first}, which the run has already done, got {steps}")
    monitor = stack.enter_context(Monitor(output, first_step=first, steps=steps, encoder_steps=config.encoder_steps))
    images = [*data.notes, *(validation.summary if validation else [])]
    with torch.device("meta"):  # only its sizes are asked for
        model = create_described(json.loads(content["description"]))
    devices = fabric.world_size
    for line in opening(config, model, device=fabric.device, devices=devices, images=images, first_step=first):
        monitor.say(line)
    for line in [*notes, *folder.notes]:
        monitor.say(f"note: {line}")
    folder.record(first)
    return Leader(folder.checkpoints, monitor, validation), content


def _validation(config: TrainingConfig) -> Validation | None:
    if config.val_images is None:
        return None
    return Validation(
        config.val_images,
        scale=config.scale,
        crop=config.crop,
        seed=config.seed,
        lr_images=config.val_lr_images,
        degradation=config.degradation,
    )


def _initial_model(config: TrainingConfig, notes: list[str]) -> SuperResolutionFlow:
    """Create the model of a run before its first step; it depends on nothing but the settings."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(random_stream(config.seed, "weights").get_state())
        model = create(config.model, scale=config.scale, preset=config.preset, **config.overrides)
    if config.init_from is not None:
        notes.append(load_initial_weights(model, config.init_from))
    if config.encoder is not None:
        if model.encoder is None:
            raise ValueError(f"encoder must be left out: {config.model} has no encoder, got {config.encoder}")
        load_encoder(config.encoder, model.encoder)
    return model
