"""A training run in a folder: begun, or taken up where it stopped."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from sr_models.checkpoints.files import load_encoder, save_model
from sr_models.data.crops import FixedCrops, RandomCrops
from sr_models.data.sampler import StepSampler
from sr_models.io.files import write_text
from sr_models.openmp import unbind
from sr_models.registry import config_of, create
from sr_models.training.config import TrainingConfig
from sr_models.training.module import FlowTraining

__all__ = ["train_model"]


def train_model(
    config: TrainingConfig,
    output: str | os.PathLike[str],
    *,
    accelerator: str = "auto",
    workers: int = 0,
    callbacks: list[lightning.Callback] | None = None,
) -> Path:
    """Train a model, or go on with the interrupted run in the same folder.

    The folder receives ``training.json`` (the config), TensorBoard logs in ``logs``, ``checkpoints/last.ckpt`` to
    resume from and, at the end, ``model.safetensors`` with ``model.json``. A run that was interrupted and resumed
    equals an unbroken one.

    Args:
        config: settings of the run.
        output: folder, created if needed.
        accelerator: Lightning's name of the hardware: ``auto``, ``cpu``, ``gpu``, ...
        workers: processes that prepare crops beside the training process.
        callbacks: further Lightning callbacks.

    Returns:
        The path of ``model.safetensors``.

    Raises:
        ValueError: a config that does not fit the data or the model, or another run in the folder.
        FloatingPointError: if the likelihood stops being finite.
    """
    output, recipe = Path(output), config.recipe
    config_of(config.model, scale=config.scale, preset=config.preset, **config.overrides)
    data = RandomCrops(
        config.images,
        scale=config.scale,
        crop=config.crop,
        length=recipe.steps * recipe.batch_size,
        seed=config.seed,
    )
    validation = (
        FixedCrops(config.val_images, scale=config.scale, crop=config.crop) if config.val_images is not None else None
    )
    lightning.seed_everything(config.seed, verbose=False)
    model = create(config.model, scale=config.scale, preset=config.preset, **config.overrides)
    if config.encoder is not None:
        load_encoder(config.encoder, model.encoder)
    _claim(output, config)

    module = FlowTraining(model, config)
    checkpoint = output / "checkpoints" / "last.ckpt"
    trainer = lightning.Trainer(
        accelerator=accelerator,
        devices=1,
        max_steps=recipe.steps,
        max_epochs=-1,
        logger=TensorBoardLogger(output, name=None, version="logs"),
        callbacks=[
            ModelCheckpoint(
                checkpoint.parent,
                filename="last",
                every_n_train_steps=config.save_every,
                enable_version_counter=False,
            ),
            _ProgressBar(),
            *(callbacks or []),
        ],
        gradient_clip_val=config.gradient_clip or None,
        val_check_interval=min(config.val_every, recipe.steps) if validation else None,
        check_val_every_n_epoch=None if validation else 1,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
    )
    sampler = _RemainingSteps(recipe.batch_size, range(recipe.steps), module)
    with warnings.catch_warnings():
        _quieten_lightning()
        trainer.fit(
            module,
            DataLoader(
                data,
                batch_sampler=sampler,
                num_workers=workers,
                persistent_workers=workers > 0,
                worker_init_fn=unbind,
            ),
            DataLoader(validation, batch_size=recipe.batch_size) if validation else None,
            ckpt_path=checkpoint if checkpoint.exists() else None,
            weights_only=True,
        )
    path = output / "model.safetensors"
    save_model(model, path)
    return path


class _RemainingSteps(StepSampler):
    """The batches from the present step on, whenever the trainer begins an epoch."""

    def __init__(self, batch_size: int, steps: range, module: FlowTraining) -> None:
        super().__init__(batch_size, steps)
        self.module = module

    def __iter__(self) -> Iterator[list[int]]:
        return iter(StepSampler(self.batch_size, self.steps[self.module.global_step :]))


def _claim(output: Path, config: TrainingConfig) -> None:
    """Make the folder this run's own, or raise if another run lives in it."""
    record = output / "training.json"
    # through JSON, so that what is compared is what is stored
    settings = json.loads(json.dumps(config.settings()))
    if record.exists():
        previous = json.loads(record.read_text())
        differing = [name for name in settings if previous.get(name) != settings[name]]
        if differing:
            changes = ", ".join(f"{name} was {previous.get(name)!r}, now {settings[name]!r}" for name in differing)
            raise ValueError(f"folder {output} holds a run with other settings ({changes}); choose another folder")
    output.mkdir(parents=True, exist_ok=True)
    write_text(record, json.dumps(settings, indent=2))


class _ProgressBar(TQDMProgressBar):
    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        if pl_module.global_step > pl_module.config.encoder_steps:
            shown.pop("l1", None)
        return shown


def _quieten_lightning() -> None:
    """Silence advice that does not apply; inside ``warnings.catch_warnings``."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # a worker process would take a core from the training itself
        ".*Checkpoint directory .* exists and is not empty.*",  # that is how a run is resumed
        ".*your dataloader is not resumable.*",  # StepSampler is
        ".*have no `val_dataloader`.*",  # validation is optional
        ".*LeafSpec.*deprecated.*",  # of Lightning's own making
    ):
        warnings.filterwarnings("ignore", message)
