"""The training procedure: likelihood of random crops, optionally after L1 pretraining of the encoder."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor

from sr_models.flow.model import SuperResolutionFlow
from sr_models.flow.noise import NoisyPair, clean_condition, noisy_pair
from sr_models.randomness import random_stream
from sr_models.training.config import TrainingConfig
from sr_models.training.initialization import varied_batch

__all__ = ["FlowTraining"]

#: A colour of a crop whose standard deviation is less than a grey level carries nothing.
_BLANK = 1 / 255


class FlowTraining(lightning.LightningModule):
    """Train a model as a :class:`TrainingConfig` says, one batch of crops at a time.

    Args:
        model: receives the gradients; its encoder is trained alone first, if the config has ``encoder_steps``.
        config: settings of the run.
    """

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
        """Let the actnorms initialise, and score the flow before it has learned anything."""
        assert self.trainer.train_dataloader is not None
        batch = varied_batch(batch, self.trainer.train_dataloader.dataset)
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
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"the encoder's L1 loss is not finite at step {step}; lower encoder_lr ({self.config.encoder_lr})"
                )
            self._record("l1", loss)
            return loss
        loss = self.model.encode(*self._noisy(hr, lr)).bits_per_dim.mean()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the likelihood is not finite at step {step}; {self._advice(hr)}")
        self._record("nll", loss)
        return loss

    def _advice(self, hr: Tensor) -> str:
        """Say what to do about a likelihood that is not finite for these images."""
        noiseless = not (self.recipe.noise_std or self.model.noise_channels)
        if noiseless and bool((hr.std((2, 3), correction=0) < _BLANK).any()):
            return "the batch has a blank crop, whose likelihood has no bound without noise; set noise_std"
        if self.global_step == self.config.encoder_steps:
            return "the flow has learned nothing yet, so lr is not the reason; choose other images or another seed"
        clip = self.config.gradient_clip
        return f"lower lr ({self.recipe.lr}) or {f'lower gradient_clip ({clip})' if clip else 'set gradient_clip'}"

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
        stream = random_stream(self.config.seed, "noise", self.global_step)
        return noisy_pair(self.model, hr, lr, self.recipe.noise_std, stream)

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
