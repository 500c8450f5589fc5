"""Settings of a training run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from sr_models.registry import recipe_of
from sr_models.seeds import check_seed
from sr_models.training.recipe import Recipe

__all__ = ["TrainingConfig"]


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training run. Unset fields fall back to the preset's recipe.

    Attributes:
        model: a registered model.
        scale: enlargement.
        preset: architecture preset of the model.
        overrides: single fields of the model's config.
        images: folder of training photographs.
        val_images: folder of photographs whose fixed crops are scored during training; none: no validation.
        crop: side of the high-resolution crops in pixels.
        batch_size: crops a step; default: the preset's.
        steps: training steps, pretraining included; default: the preset's.
        lr: learning rate of Adam, halved at 50, 75, 90 and 95 % of the likelihood steps; default: the preset's.
        noise_std: standard deviation of the noise added to high-resolution images in [0, 1]; default: the preset's. A
            model that is conditioned on noise draws its own instead.
        encoder: file of a pretrained encoder that sr-models convert wrote; none: it starts at random.
        encoder_steps: steps of L1 pretraining of the encoder before likelihood training; 0 for a pretrained encoder.
        encoder_lr: learning rate of the pretraining.
        encoder_frozen: share of the likelihood steps during which the encoder stays as it is; default: the preset's.
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
    batch_size: int | None = None
    steps: int | None = None
    lr: float | None = None
    noise_std: float | None = None
    encoder: str | None = None
    encoder_steps: int = 0
    encoder_lr: float = 2e-4
    encoder_frozen: float | None = None
    gradient_clip: float = 0.0
    val_every: int = 1000
    save_every: int = 1000
    seed: int = 10

    def __post_init__(self) -> None:
        recipe = self.recipe
        for name, count in (
            ("batch_size", recipe.batch_size),
            ("steps", recipe.steps),
            ("val_every", self.val_every),
            ("save_every", self.save_every),
        ):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        for name, rate in (("lr", recipe.lr), ("encoder_lr", self.encoder_lr)):
            if not (math.isfinite(rate) and rate > 0):
                raise ValueError(f"{name} must be finite and greater than 0, got {rate}")
        if not 0 <= self.encoder_steps < recipe.steps:
            raise ValueError(
                f"encoder_steps must be in 0..{recipe.steps - 1} for {recipe.steps} steps, got {self.encoder_steps}"
            )
        if not 0 <= recipe.encoder_frozen <= 1:
            raise ValueError(f"encoder_frozen must be in 0..1, got {recipe.encoder_frozen}")
        for name, value in (("noise_std", recipe.noise_std), ("gradient_clip", self.gradient_clip)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and at least 0, got {value}")
        object.__setattr__(self, "seed", check_seed(self.seed))

    @property
    def recipe(self) -> Recipe:
        """The preset's recipe, with the settings that the user gave instead."""
        preset = recipe_of(self.model, scale=self.scale, preset=self.preset)
        given = {name: getattr(self, name) for name in (entry.name for entry in fields(Recipe))}
        return replace(preset, **{name: value for name, value in given.items() if value is not None})

    def settings(self) -> dict[str, Any]:
        """List every setting that determines the run; none is left to the preset."""
        return {**asdict(self), **asdict(self.recipe)}

    def flow_progress(self, step: int) -> float:
        """Share of the likelihood steps that are done at ``step``; negative during pretraining."""
        return (step - self.encoder_steps) / (self.recipe.steps - self.encoder_steps)
