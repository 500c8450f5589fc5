"""Lines that describe a run when it begins, and when it has ended."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import torch

from sr_models.flow.model import SuperResolutionFlow
from sr_models.networks.precision import resolved
from sr_models.training.config import TrainingConfig
from sr_models.training.progress import duration

__all__ = ["closing", "opening", "waste"]


def opening(
    config: TrainingConfig,
    model: SuperResolutionFlow,
    *,
    device: torch.device,
    images: Sequence[str],
    devices: int = 1,
    first_step: int = 0,
) -> list[str]:
    """Describe a run that begins or goes on, with a warning about settings that waste it.

    Args:
        config: settings of the run.
        model: the model, before anything wraps it.
        device: that of this process.
        images: lines about the images that are used and that are not.
        devices: number of processes, each with one device.
        first_step: number of steps that were done before.

    Returns:
        Lines to print.
    """
    recipe = config.recipe
    encoder, flow = (sum(parameter.numel() for parameter in part.values()) for part in model.parameters_of_parts())
    phases = f", {config.encoder_steps:,} of them pretrain the encoder" if config.encoder_steps else ""
    lines = [
        f"{config.model} {config.scale}x, preset {config.preset}: {encoder + flow:,} parameters "
        f"(encoder {encoder:,}, flow {flow:,})",
        f"{_hardware(device, devices)}, precision {_precision(config.precision, device)}",
        *images,
        f"{recipe.steps:,} steps of {recipe.batch_size} crops of {config.crop} x {config.crop} pixels{phases}",
    ]
    if first_step:
        lines.append(f"going on after step {first_step:,}")
    return [*lines, *waste(config)]


def waste(config: TrainingConfig) -> list[str]:
    """Warn about settings by which steps are lost; one line each."""
    frozen = round(config.recipe.encoder_frozen * config.recipe.steps)
    if not frozen or config.encoder or config.init_from or config.encoder_steps:
        return []
    return [
        f"warning: the encoder is random and stays so for the first {frozen:,} steps; "
        "set encoder, init_from or encoder_steps, or encoder_frozen 0"
    ]


def _hardware(device: torch.device, devices: int) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = torch.get_num_threads()
    return f"{name if devices == 1 else f'{devices} x {name}'}, {threads} thread{'s' if threads > 1 else ''}"


def closing(
    output: Path,
    *,
    steps: int,
    seconds: float,
    skipped: int = 0,
    best: tuple[str, float, int] | None = None,
    encoder_only: bool = False,
) -> list[str]:
    """Describe a run that has ended.

    Args:
        output: folder of the run.
        steps: steps that this process did.
        seconds: that it took.
        skipped: steps of the whole run that were skipped.
        best: name and value of the figure that decides what is best, and the number of steps done when it was measured.
        encoder_only: whether the run has trained the encoder only, so that there are no samples to draw yet.

    Returns:
        Lines to print.
    """
    lost = f"; {skipped:,} skipped, see {output / 'skipped.jsonl'}" if skipped else ""
    lines = [f"{steps:,} steps in {duration(seconds)}{lost}"]
    if best is not None:
        name, value, step = best
        lines.append(f"best {name} {value:.3f} after step {step:,}: {output / 'best.safetensors'}")
    model = shlex.quote(str(output / "model.safetensors"))
    further = f"samples: sr-models sample --checkpoint {model} --images FOLDER --output FOLDER"
    if encoder_only:
        further = f"the flow has not begun to learn: sr-models train --init_from {model} goes on"
    return [*lines, f"curves: tensorboard --logdir {shlex.quote(str(output / 'logs'))}", further]


def _precision(precision: str, device: torch.device) -> str:
    used = resolved(precision, device)
    return precision if used == precision else f"{precision} ({used})"
