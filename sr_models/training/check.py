"""Check of a run before it begins: its images, its size and its cost."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from sr_models.data.kept import DISK_CACHE
from sr_models.data.photographs import Photographs
from sr_models.evaluation.metrics.vgg import find_vgg
from sr_models.inspection.describe import Description, describe
from sr_models.io.listing import one_line
from sr_models.io.quantities import quantity
from sr_models.registry import create
from sr_models.training.config import TrainingConfig
from sr_models.training.progress import duration
from sr_models.training.summary import waste

__all__ = ["RunCheck", "check_crop"]


class RunCheck:
    """Images and costs of a run. Headers of images are read, but no image is decoded.

    Args:
        config: settings of the run.
        disk_cache: GB of decoded photographs that are kept on the disk, as in :func:`sr_models.train_model`.

    Attributes:
        photographs: those of the training, and of the validation if there is one.

    Raises:
        FileNotFoundError: no such images.
        ValueError: no image that can be used, or a crop that does not fit the model.
    """

    def __init__(self, config: TrainingConfig, disk_cache: float = DISK_CACHE) -> None:
        check_crop(config)
        if config.recipe.feature_weight:
            find_vgg(config.feature_weights)
        self.config = config
        self.photographs = [
            Photographs(
                config.images,
                scale=config.scale,
                crop=config.crop,
                lr_images=config.lr_images,
                strict=config.strict,
            )
        ]
        self._kept = self.photographs[0].keep_decoded(disk_cache)
        if config.val_images is not None:
            validation = Photographs(
                config.val_images,
                scale=config.scale,
                crop=config.crop,
                lr_images=config.val_lr_images,
                split="valid",
            )
            self.photographs.append(validation)

    def lines(self) -> list[str]:
        """Describe the images that are used and that are not, the length of the run, its files and its arithmetic."""
        config, recipe = self.config, self.config.recipe
        described = describe(config.model, scale=config.scale, preset=config.preset, **config.overrides)
        names = ("training", "validation")
        images = [
            line
            for name, photographs in zip(names, self.photographs, strict=False)
            for line in (f"{name}: {photographs.notes[0]}", *photographs.notes[1:])
        ]
        images += self._kept
        phases = f", {config.encoder_steps:,} of them pretrain the encoder" if config.encoder_steps else ""
        seen = recipe.steps * recipe.batch_size / len(self.photographs[0])
        operations = _operations(config, described)
        per_step, total = operations[-1][1], sum(steps * each for steps, each in operations)
        weights = 4 * (described.encoder_parameters + described.flow_parameters)
        # the weights, their average and two moments; two checkpoints and one that is being written; best and last model
        checkpoint = weights * (4 if config.average else 3)
        return [
            *images,
            f"{recipe.steps:,} steps of {recipe.batch_size} crops of {config.crop} x {config.crop} pixels{phases}; "
            f"{seen:,.{0 if seen > 9 else 1}f} crops of every image",
            f"files: about {quantity(3 * checkpoint + 2 * weights, 'B')}, {quantity(checkpoint, 'B')} a checkpoint",
            f"convolutions: {quantity(per_step, 'FLOP')} a step, {quantity(total, 'FLOP')} in all, which takes "
            f"{duration(total / 1e12)} at a steady 1 TFLOP/s",
            *waste(config),
        ]

    def unreadable(self, threads: int) -> Iterator[str | None]:
        """Decode every image, and yield for each ``None`` or one line that says why it cannot be used."""
        work = [(photographs, index) for photographs in self.photographs for index in range(len(photographs))]
        with ThreadPoolExecutor(max(1, threads)) as pool:
            yield from pool.map(_problem, work)


def check_crop(config: TrainingConfig) -> None:
    """Check that every level of the model can halve a crop as often as it must.

    Raises:
        ValueError: a crop of another size, in a run that trains the flow; pretraining of an encoder that is not there.
    """
    with torch.device("meta"):
        model = create(config.model, scale=config.scale, preset=config.preset, **config.overrides)
    if config.encoder_steps and model.encoder is None:
        raise ValueError(f"encoder_steps must be 0: {config.model} has no encoder, got {config.encoder_steps}")
    if config.encoder_steps == config.recipe.steps:
        return
    multiple = config.scale * model.lr_multiple
    if config.crop % multiple:
        raise ValueError(f"crop must be a multiple of {multiple} for {config.model}, got {config.crop}")


def _operations(config: TrainingConfig, described: Description) -> list[tuple[int, float]]:
    """List the phases: number of steps, and floating-point operations a step in convolutions."""
    pixels = config.crop**2 * config.recipe.batch_size
    encoder, flow = described.encoder_multiply_adds, described.flow_multiply_adds
    # a backward pass costs twice as much as a forward pass; inverting a flow costs one more of these
    passes = 3 + (config.memory == "invert")
    pretraining = 3 * (encoder + described.unused_multiply_adds)
    trained = config.recipe.steps - config.encoder_steps
    frozen = round(config.recipe.encoder_frozen * trained)
    phases = [
        (config.encoder_steps, pretraining),
        (frozen, encoder + passes * flow),
        (trained - frozen, 3 * encoder + passes * flow),
    ]
    return [(steps, 2 * pixels * multiply_adds) for steps, multiply_adds in phases if steps]


def _problem(work: tuple[Photographs, int]) -> str | None:
    photographs, index = work
    try:
        photographs.read(index)
    except (OSError, ValueError) as error:
        path = one_line(photographs.listing.paths[index])
        message = " ".join(str(error).split())
        return message if path in message else f"{path}: {message}"
    return None
