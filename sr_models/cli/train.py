"""``sr-models train``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from sr_models.cli._parser import CommandParser
    from sr_models.training.config import TrainingConfig

__all__ = ["add_arguments", "run"]


def run(
    output: str,
    device: str,
    devices: Literal["auto"] | int | list[int],
    strategy: str,
    workers: int,
    disk_cache: float,
    resume: str,
    check: bool,
    stages: list[dict[str, Any]] | None,
    config: Any,
    **settings: Any,
) -> None:
    """Train a model on photographs, or go on with the interrupted run in OUTPUT.

    OUTPUT receives the settings, logs for TensorBoard, checkpoints and, at the end, model.safetensors.
    The same command takes an interrupted run up where it stopped. With --check it trains nothing: it decodes every
    image once, lists those that are not used, and estimates what the run costs.

    Settings may stand in YAML files, in environment variables (SR_MODELS_TRAIN_BATCH_SIZE=8) and in options. Options
    win over variables, and variables over files. --print_config shows the result. Relative paths begin in the current
    folder.

    A file may hold several runs, one after another: each begins with the model of the former, has the settings of the
    file but for its own, and gets a folder of its own in OUTPUT, such as 1-encoder:

        stages:
        - {name: encoder, steps: 5000, encoder_steps: 5000}
        - {name: flow, steps: 50000}

    Example:
        sr-models train --model srflow-da --images photographs/train --val_images photographs/val --output runs/mine
        sr-models train --config run.yaml --config mine.yaml --overrides '{hidden_channels: 32}' --precision bf16
    """
    from lightning.fabric.utilities import rank_zero_only

    from sr_models.training.config import TrainingConfig
    from sr_models.training.run import train_model
    from sr_models.training.stages import plan_stages, stage_runs, train_stages

    output = os.path.expanduser(output)
    planned = plan_stages(settings, stages) if stages is not None else []
    alone = None if planned else TrainingConfig(**settings)
    if check:
        _check(stage_runs(planned, output) if alone is None else {Path(output): alone}, workers, disk_cache)
        return
    accelerator, colon, number = device.partition(":")
    if colon and devices == "auto" and number.isdecimal():
        devices = [int(number)]
    elif colon:
        raise ValueError(
            f"device must be a kind of device, or one device such as cuda:1 without devices, got {device!r}"
        )
    placement: dict[str, Any] = {
        "accelerator": accelerator,
        "devices": devices,
        "strategy": strategy,
        "workers": workers,
        "disk_cache": disk_cache,
        "resume": resume,
    }
    path = train_stages(planned, output, **placement) if alone is None else train_model(alone, output, **placement)
    rank_zero_only(print)(f"wrote {path}")


def add_arguments(parser: CommandParser) -> None:
    """Declare the settings of a training run and where and how it runs."""
    from sr_models.training.config import TrainingConfig

    parser.add_argument("--config", action="config", help="YAML file with any of these options; of several, later win")
    parser.add_argument("--output", type=str, required=True, help="folder of the run, created if needed")
    parser.add_argument(
        "--device",
        "--accelerator",
        type=str,
        default="auto",
        help="kind of device: auto, cpu, cuda, mps, or a single one: cuda:1",
    )
    parser.add_argument(
        "--devices",
        type=Literal["auto"] | int,
        default="auto",
        help="number of devices of this machine, each with a process of its own; auto: all GPUs, or one process",
    )
    parser.add_argument(
        "--strategy",
        type=Literal["auto", "ddp", "fsdp"],
        default="auto",
        help="how several processes share the model: ddp copies it, fsdp shards it, auto copies it",
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare crops, for each device")
    parser.add_argument(
        "--disk_cache",
        type=float,
        default=30.0,
        help="GB of decoded photographs that are kept in the user's cache folder, for later epochs and runs, if they "
        "take more than 128 MiB; half of the free space stays free; 0: none",
    )
    parser.add_argument(
        "--resume",
        type=Literal["auto", "never", "other_data"],
        default="auto",
        help="auto: go on with a run in OUTPUT; never: refuse a folder that holds one; other_data: go on even if the "
        "images are not those with which it began",
    )
    parser.add_argument("--check", type=bool, default=False, help="look at images and costs, and train nothing")
    parser.add_argument("--stages", type=list[dict[str, Any]] | None, help="runs one after another: see above")
    parser.add_class_arguments(TrainingConfig)
    parser.completed = _with_recipe


def _check(runs: dict[Path, TrainingConfig], threads: int, disk_cache: float) -> None:
    """Print what can be known about runs before they begin."""
    from tqdm import tqdm

    from sr_models.training.check import RunCheck

    decoded = set()
    for folder, config in runs.items():
        check = RunCheck(config, disk_cache)
        print("\n".join([f"{folder}:", *check.lines()]), flush=True)
        images = (config.images, config.lr_images, config.val_images, config.val_lr_images, config.crop)
        if images in decoded:
            continue
        decoded.add(images)
        count = sum(map(len, check.photographs))
        found = tqdm(check.unreadable(threads or os.cpu_count() or 1), "decoding", count, unit="image")
        damaged = [line for line in found if line is not None]
        print(
            "\n".join(
                [*(f"not used: {line}" for line in damaged), f"{count - len(damaged):,} of {count:,} images decode"]
            )
        )
        if damaged and config.strict:
            raise ValueError(f"{len(damaged)} of {count} images cannot be decoded; the first one: {damaged[0]}")


def _with_recipe(settings: dict[str, Any]) -> dict[str, Any]:
    """Fill in what the preset decides, once the model is known."""
    from dataclasses import asdict

    from sr_models.registry import recipe_of

    if settings["model"] is None:
        return settings
    recipe = asdict(recipe_of(settings["model"], scale=settings["scale"], preset=settings["preset"]))
    return {**settings, **{name: value for name, value in recipe.items() if settings[name] is None}}
