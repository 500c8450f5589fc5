"""What determines a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

__all__ = ["TrainingConfig"]


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
            raise ValueError(
                f"encoder_steps must be in 0..{self.steps - 1} for {self.steps} steps, got {self.encoder_steps}"
            )
        if not 0 <= self.encoder_frozen <= 1:
            raise ValueError(f"encoder_frozen must be in 0..1, got {self.encoder_frozen}")
        if not (math.isfinite(self.gradient_clip) and self.gradient_clip >= 0):
            raise ValueError(f"gradient_clip must be finite and at least 0, got {self.gradient_clip}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be in 0..2^31 - 1, got {self.seed}")

    def flow_progress(self, step: int) -> float:
        """Share of the likelihood steps done at ``step``; negative during pretraining."""
        return (step - self.encoder_steps) / (self.steps - self.encoder_steps)
