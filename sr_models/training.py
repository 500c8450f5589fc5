"""Training: likelihood of random crops by Lightning, optionally after L1 pretraining of the encoder."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from sr_models.checkpoint import save_model, write_text
from sr_models.data import RandomCrops, StepSampler, fixed_crops
from sr_models.model import SuperResolutionFlow
from sr_models.registry import create

__all__ = ["TrainingConfig", "train_model"]

# Dequantisation noise of the SRFlow paper: N(0, (4 / sqrt 3)^2) on the 0..255 scale.
NOISE_STD = 4 / math.sqrt(3) / 255


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that determines a training run; the defaults are SRFlow-DA's published recipe.

    Attributes:
        model: a registered model.
        scale: enlargement.
        preset: architecture preset of the model.
        overrides: single fields of the model's config.
        images: folder of training photographs.
        val_images: folder of photographs whose fixed crops are scored during training; none: no validation.
        crop: side of the high-resolution crops in pixels.
        batch_size: crops a step.
        steps: optimizer steps, pretraining included.
        lr: learning rate of Adam; halved at 50, 75, 90 and 95 % of the likelihood steps.
        encoder_steps: steps of L1 pretraining of the encoder before likelihood training; 0 for a pretrained encoder.
        encoder_lr: learning rate of the pretraining.
        encoder_frozen: share of the likelihood steps during which the encoder stays as it is.
        gradient_clip: largest norm of the gradient; 0 for no limit.
        val_every: steps between validations.
        save_every: steps between checkpoints.
        seed: determines initial weights, crops and noise.
    """

    model: str
    images: str
    scale: int = 4
    preset: str = "released"
    overrides: dict[str, Any] = field(default_factory=dict)
    val_images: str | None = None
    crop: int = 160
    batch_size: int = 12
    steps: int = 200_000
    lr: float = 2e-4
    encoder_steps: int = 0
    encoder_lr: float = 2e-4
    encoder_frozen: float = 0.5
    gradient_clip: float = 0.0
    val_every: int = 1000
    save_every: int = 1000
    seed: int = 10

    def __post_init__(self) -> None:
        for name in ("batch_size", "steps", "val_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "encoder_lr"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be finite and greater than 0, got {getattr(self, name)}")
        if not 0 <= self.encoder_steps < self.steps:
            raise ValueError(f"encoder_steps must be in 0..{self.steps - 1} for {self.steps} steps, got {self.encoder_steps}")
        if not 0 <= self.encoder_frozen <= 1:
            raise ValueError(f"encoder_frozen must be in 0..1, got {self.encoder_frozen}")
        if self.gradient_clip < 0 or self.seed < 0:
            raise ValueError(f"gradient_clip and seed must be at least 0, got {self.gradient_clip} and {self.seed}")

    def flow_progress(self, step: int) -> float:
        """Share of the likelihood steps done at ``step``; negative during pretraining."""
        return (step - self.encoder_steps) / (self.steps - self.encoder_steps)


class FlowTraining(lightning.LightningModule):
    """The training procedure of a :class:`TrainingConfig` around a model."""

    def __init__(self, model: SuperResolutionFlow, config: TrainingConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        progress = self.config.flow_progress(self.global_step)
        self.model.encoder.requires_grad_(progress < 0 or progress >= self.config.encoder_frozen)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        hr, lr = batch["hr"], batch["lr"]
        step = self.global_step
        if step < self.config.encoder_steps:
            loss = (self.model.encoder.image(lr) - hr).abs().mean()
            self.log("l1", loss, prog_bar=True)
            return loss
        # drawn from the step's own stream, so that a resumed run draws what an unbroken one would
        generator = torch.Generator().manual_seed(self.config.seed * 2**32 + step)
        noise = NOISE_STD * torch.randn(hr.shape, generator=generator).to(hr)
        loss = self.model.encode(hr + noise, lr).bits_per_dim.mean()
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the likelihood is not finite at step {step}; lower lr ({self.config.lr}) or set gradient_clip"
            )
        self.log("nll", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        if self.global_step < self.config.encoder_steps:
            return
        nll = self.model.encode(batch["hr"], batch["lr"]).bits_per_dim
        self.log("val_nll", nll.mean(), prog_bar=True, batch_size=len(nll))

    def configure_optimizers(self) -> Any:
        config = self.config
        optimizer = torch.optim.Adam(
            [
                {"params": list(self.model.encoder.parameters()), "lr": config.encoder_lr},
                {"params": list(self.model.levels.parameters()), "lr": config.lr},
            ]
        )

        def decay(step: int) -> float:
            progress = config.flow_progress(step)
            return 0.5 ** sum(progress >= milestone for milestone in (0.5, 0.75, 0.9, 0.95))

        def encoder_decay(step: int) -> float:
            return 1.0 if step < config.encoder_steps else decay(step) * config.lr / config.encoder_lr

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [encoder_decay, decay])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def train_model(
    config: TrainingConfig,
    output: str | os.PathLike[str],
    *,
    accelerator: str = "auto",
    workers: int = 0,
    callbacks: list[lightning.Callback] | None = None,
) -> Path:
    """Train a model, or go on with the interrupted run in the same folder.

    The folder receives ``training.json`` (the config), ``metrics.csv`` and TensorBoard logs, ``checkpoints/last.ckpt`` to
    resume from and, at the end, ``model.safetensors`` with ``model.json``. A run that was interrupted and resumed equals
    an unbroken one.

    Args:
        config: the run.
        output: folder, created if needed.
        accelerator: Lightning's: ``auto``, ``cpu``, ``gpu``, ...
        workers: processes that prepare crops beside the training process.
        callbacks: further Lightning callbacks.

    Returns:
        The path of ``model.safetensors``.

    Raises:
        ValueError: a config that does not fit the data or the model, or another run in the folder.
        FloatingPointError: if the likelihood stops being finite.
    """
    output = Path(output)
    data = RandomCrops(
        config.images,
        scale=config.scale,
        crop=config.crop,
        length=config.steps * config.batch_size,
        seed=config.seed,
    )
    validation = (
        fixed_crops(config.val_images, scale=config.scale, crop=config.crop) if config.val_images is not None else None
    )
    lightning.seed_everything(config.seed, verbose=False)
    model = create(config.model, scale=config.scale, preset=config.preset, **config.overrides)
    _claim(output, config)

    module = FlowTraining(model, config)
    checkpoint = output / "checkpoints" / "last.ckpt"
    _quieten_lightning()
    trainer = lightning.Trainer(
        accelerator=accelerator,
        devices=1,
        max_steps=config.steps,
        max_epochs=-1,
        logger=[CSVLogger(output, name=None, version="logs"), TensorBoardLogger(output, name=None, version="logs")],
        callbacks=[
            ModelCheckpoint(
                checkpoint.parent,
                filename="last",
                every_n_train_steps=config.save_every,
                enable_version_counter=False,
            ),
            TQDMProgressBar(),
            *(callbacks or []),
        ],
        gradient_clip_val=config.gradient_clip or None,
        log_every_n_steps=min(10, config.steps),
        val_check_interval=min(config.val_every, config.steps) if validation else None,
        check_val_every_n_epoch=None if validation else 1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
    )
    sampler = StepSampler(config.batch_size, config.steps, lambda: module.global_step)
    trainer.fit(
        module,
        DataLoader(data, batch_sampler=sampler, num_workers=workers, persistent_workers=workers > 0),
        DataLoader(validation, batch_size=config.batch_size) if validation else None,
        ckpt_path=checkpoint if checkpoint.exists() else None,
        weights_only=True,
    )
    path = output / "model.safetensors"
    save_model(model, path)
    return path


def _claim(output: Path, config: TrainingConfig) -> None:
    """Make the folder this run's own, or raise if another run lives in it."""
    record = output / "training.json"
    # through JSON, so that what is compared is what is stored
    settings = json.loads(json.dumps(dataclasses.asdict(config)))
    if record.exists():
        previous = json.loads(record.read_text())
        differing = [name for name in settings if previous.get(name) != settings[name]]
        if differing:
            changes = ", ".join(f"{name} was {previous.get(name)!r}, now {settings[name]!r}" for name in differing)
            raise ValueError(f"folder {output} holds a run with other settings ({changes}); choose another folder")
    output.mkdir(parents=True, exist_ok=True)
    write_text(record, json.dumps(settings, indent=2))


def _quieten_lightning() -> None:
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # the crops are cheap: a worker process would take a core from the training itself
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
