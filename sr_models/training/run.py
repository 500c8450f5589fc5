"""A training run in a folder: begun, or taken up where it stopped."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Literal

import torch

from sr_models.checkpoints.files import load_encoder, save_model
from sr_models.checkpoints.initial import load_initial_weights
from sr_models.data.crops import RandomCrops
from sr_models.flow.model import SuperResolutionFlow
from sr_models.randomness import random_stream
from sr_models.registry import config_of, create
from sr_models.training.config import TrainingConfig
from sr_models.training.distribution import Strategy, first_decides, start_processes
from sr_models.training.folder import RunFolder
from sr_models.training.loop import Leader, Loop
from sr_models.training.monitor import Monitor
from sr_models.training.objective import Objective
from sr_models.training.state import Content, begin, model_of
from sr_models.training.stopping import StopSignals
from sr_models.training.summary import closing, opening
from sr_models.training.validation import Validation

__all__ = ["train_model"]


def train_model(
    config: TrainingConfig,
    output: str | os.PathLike[str],
    *,
    accelerator: str = "auto",
    devices: int | Literal["auto"] = "auto",
    strategy: Strategy = "auto",
    workers: int = 0,
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
        devices: devices of this machine, each with a process of its own; ``auto``: all GPUs, or one process.
        strategy: how several processes share the model: ``ddp`` copies it, ``fsdp`` shards it, ``auto`` copies it.
        workers: processes that prepare crops beside each training process.
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
    output, recipe = Path(output).expanduser(), config.recipe
    config_of(config.model, scale=config.scale, preset=config.preset, **config.overrides)
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
    )
    fabric = start_processes(accelerator, devices, strategy)
    if recipe.batch_size % (fabric.world_size * config.accumulate):
        raise ValueError(
            f"batch_size must be a multiple of {fabric.world_size} devices times accumulate {config.accumulate}, "
            f"got {recipe.batch_size}"
        )
    with ExitStack() as stack:
        leader: Leader | None = None

        def lead() -> Content:
            nonlocal leader
            validation = _validation(config)
            images = data.notes
            folder = stack.enter_context(
                RunFolder(output, config, fingerprint=data.fingerprint, resume=resume, data=images[0])
            )
            content = folder.checkpoints.newest() or begin(_initial_model(config))
            first = content["step"]
            if first > recipe.steps:
                raise ValueError(f"steps must be at least {first}, which the run has already done, got {recipe.steps}")
            monitor = stack.enter_context(
                Monitor(output, first_step=first, steps=recipe.steps, encoder_steps=config.encoder_steps)
            )
            model, device, count = model_of(content, average=False), fabric.device, fabric.world_size
            for line in opening(config, model, device=device, devices=count, images=images, first_step=first):
                monitor.say(line)
            for line in folder.notes:
                monitor.say(line)
            folder.record(first)
            leader = Leader(folder.checkpoints, monitor, validation)
            return content

        content = first_decides(fabric, lead)
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
            started, first = monotonic(), content["step"]
            content = loop.run(content)
            content["best"] = loop.score(content)
            first_decides(fabric, lambda: _finish(content, loop))
        if leader:
            best = content["best"]
            for line in closing(
                output,
                steps=content["step"] - first,
                seconds=monotonic() - started,
                skipped=content["skipped"],
                best=(best["figure"], best["value"], best["step"]) if best else None,
            ):
                leader.monitor.say(line)
    return output / "model.safetensors"


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


def _initial_model(config: TrainingConfig) -> SuperResolutionFlow:
    """Create the model of a run before its first step; it depends on nothing but the settings."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(random_stream(config.seed, "weights").get_state())
        model = create(config.model, scale=config.scale, preset=config.preset, **config.overrides)
    if config.init_from is not None:
        load_initial_weights(model, config.init_from)
    if config.encoder is not None:
        load_encoder(config.encoder, model.encoder)
    return model


def _finish(content: Content, loop: Loop) -> None:
    """Look at the last weights, and write them if they are good."""
    assert loop.leader
    loop.check_final(content)
    loop.leader.checkpoints.write(content)
    save_model(model_of(content, average=True), loop.output / "model.safetensors")
