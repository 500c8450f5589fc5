"""Training: likelihood of random crops by Lightning, optionally after L1 pretraining of the encoder."""

from __future__ import annotations

import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from sr_models.checkpoints.files import load_encoder, save_model, write_text
from sr_models.flow.model import SuperResolutionFlow
from sr_models.flow.noise import NoisyPair, clean_condition, noisy_pair
from sr_models.registry import config_of, create
from sr_models.training.config import TrainingConfig
from sr_models.training.data import FixedCrops, RandomCrops, StepSampler

__all__ = ["FlowTraining", "train_model"]


class FlowTraining(lightning.LightningModule):
    """The training procedure of a :class:`TrainingConfig` around a model."""

    def __init__(self, model: SuperResolutionFlow, config: TrainingConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.recipe = config.recipe

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        progress = self.config.flow_progress(self.global_step)
        self.model.encoder.requires_grad_(progress < 0 or progress >= self.recipe.encoder_frozen)
        if self.global_step == self.config.encoder_steps:
            self._initialize_flow(batch)

    @torch.no_grad()
    def _initialize_flow(self, batch: dict[str, Tensor]) -> None:
        """Let the actnorms initialise, and score that state: what the flow is before it has learned anything."""
        self.model.encode(*self._noisy(batch["hr"], batch["lr"]))
        loader = self.trainer.val_dataloaders
        if loader is None:
            return
        self.model.eval()
        scores = [self._clean_nll(pairs["hr"].to(self.device), pairs["lr"].to(self.device)) for pairs in loader]
        self.model.train()
        self._write({"val_nll": torch.cat(scores).mean().item()})

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        hr, lr = batch["hr"], batch["lr"]
        step = self.global_step
        if step < self.config.encoder_steps:
            loss = (self.model.encoder.image(lr) - hr).abs().mean()
            self._record("l1", loss)
            return loss
        loss = self.model.encode(*self._noisy(hr, lr)).bits_per_dim.mean()
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the likelihood is not finite at step {step}; lower lr ({self.recipe.lr}) or set gradient_clip"
            )
        self._record("nll", loss)
        return loss

    def _record(self, name: str, loss: Tensor) -> None:
        """Show a loss, and write every tenth to the log under the step that it belongs to."""
        self.log(name, loss, prog_bar=True, logger=False)
        if self.global_step % 10 == 0:
            self._write({name: loss.item()})

    def _write(self, values: dict[str, float]) -> None:
        for logger in self.loggers:
            logger.log_metrics(values, step=self.global_step)

    def _noisy(self, hr: Tensor, lr: Tensor) -> NoisyPair:
        # drawn from the step's own stream, so that a resumed run draws what an unbroken one would
        generator = torch.Generator().manual_seed(self.config.seed * 2**32 + self.global_step)
        return noisy_pair(self.model, hr, lr, self.recipe.noise_std, generator)

    def _clean_nll(self, hr: Tensor, lr: Tensor) -> Tensor:
        return self.model.encode(hr, lr, clean_condition(self.model, hr)).bits_per_dim

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        if self.global_step <= self.config.encoder_steps:
            return  # the flow does not exist yet: its actnorms are not initialised
        nll = self._clean_nll(batch["hr"], batch["lr"])
        self.log("val_nll", nll.mean(), prog_bar=True, batch_size=len(nll))

    def configure_optimizers(self) -> Any:
        config, lr = self.config, self.recipe.lr
        optimizer = torch.optim.Adam(
            [
                {"params": list(self.model.encoder.parameters()), "lr": config.encoder_lr},
                {"params": list(self.model.levels.parameters()), "lr": lr},
            ]
        )

        def decay(step: int) -> float:
            progress = config.flow_progress(step)
            return 0.5 ** sum(progress >= milestone for milestone in (0.5, 0.75, 0.9, 0.95))

        def encoder_decay(step: int) -> float:
            return 1.0 if step < config.encoder_steps else decay(step) * lr / config.encoder_lr

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [encoder_decay, decay])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class _ProgressBar(TQDMProgressBar):
    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        if pl_module.global_step > pl_module.config.encoder_steps:
            shown.pop("l1", None)
        return shown


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
    sampler = StepSampler(recipe.batch_size, recipe.steps, lambda: module.global_step)
    with warnings.catch_warnings():
        _quieten_lightning()
        trainer.fit(
            module,
            DataLoader(data, batch_sampler=sampler, num_workers=workers, persistent_workers=workers > 0),
            DataLoader(validation, batch_size=recipe.batch_size) if validation else None,
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
    settings = json.loads(json.dumps(config.settings()))
    if record.exists():
        previous = json.loads(record.read_text())
        differing = [name for name in settings if previous.get(name) != settings[name]]
        if differing:
            changes = ", ".join(f"{name} was {previous.get(name)!r}, now {settings[name]!r}" for name in differing)
            raise ValueError(f"folder {output} holds a run with other settings ({changes}); choose another folder")
    output.mkdir(parents=True, exist_ok=True)
    write_text(record, json.dumps(settings, indent=2))


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
