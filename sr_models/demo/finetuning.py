"""The demonstration's training: a model that comes with the package, trained further for some minutes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import torch

from sr_models.checkpoints.files import load_model, read_file
from sr_models.checkpoints.shipped import shipped_file
from sr_models.training.config import TrainingConfig
from sr_models.training.objective import Objective
from sr_models.training.run import train_model

__all__ = ["finetune", "finetuning_config", "steps_within"]

#: Share of the time that the steps may take: the rest is for validations and checkpoints.
_SHARE = 0.75
_LEAST, _MOST = 20, 5000
#: Seconds between two looks at the curve.
_EVERY = 5.0


def finetuning_config(name: str, train: Path, test: Path, *, steps: int, seed: int) -> TrainingConfig:
    """Return the settings of a training that begins with the weights of a shipped model."""
    file = shipped_file(name)
    assert file is not None, f"{name} does not come with the package"
    description, _ = read_file(file)
    fields = dict(description["config"])
    return TrainingConfig(
        model=description["model"],
        preset=name.rpartition("-")[2],
        scale=fields.pop("scale"),
        overrides=fields,
        init_from=name,
        images=str(train),
        val_images=str(test),
        crop=64,
        batch_size=8,
        steps=steps,
        lr=1e-4,
        warmup=10,
        noise_std=1 / 255,
        encoder_frozen=0.0,
        gradient_clip=2.0,
        val_every=steps // 6,
        save_every=10,
        seed=seed,
    )


def steps_within(config: TrainingConfig, seconds: float) -> int:
    """Return how many training steps a CPU takes in a time, at least 20 and a multiple of ten, by timing two."""
    assert config.init_from is not None
    objective = Objective(load_model(config.init_from).float().train(), config)
    hr = torch.full((config.recipe.batch_size, 3, config.crop, config.crop), 0.5)
    lr = hr[..., :: config.scale, :: config.scale]
    for _ in range(2):  # the first one prepares what later ones find
        started = monotonic()
        objective(hr, lr, range(len(hr)), "nll").mean().backward()
        step = monotonic() - started
    return min(max(int(seconds * _SHARE / step) // 10 * 10, _LEAST), _MOST)


def finetune(
    name: str,
    train: Path,
    test: Path,
    output: Path,
    *,
    minutes: float,
    seed: int,
    on_progress: Callable[[int, int], object],
) -> Path:
    """Train, or go on with the run in the folder, on the CPU.

    Args:
        name: the shipped model to begin with.
        train: folder of photographs to train on.
        test: folder of photographs whose likelihood is watched.
        output: folder of the run.
        minutes: about how long it takes from its beginning, interruptions left out.
        seed: determines the crops.
        on_progress: called with the number of finished steps and that of all, every five seconds.

    Returns:
        The path of the trained model.

    Raises:
        Stopped: a signal ended the training after its state was written.
    """
    config = finetuning_config(name, train, test, steps=_LEAST, seed=seed)
    begun = output / "training.json"
    # how many steps there are is decided once: a run goes on to the end that it had
    steps = _steps_of(begun) if begun.exists() else steps_within(config, 60 * minutes)
    config = finetuning_config(name, train, test, steps=steps, seed=seed)
    shown = monotonic()

    def show(done: int, _: Objective) -> None:
        nonlocal shown
        if monotonic() - shown >= _EVERY:
            shown = monotonic()
            on_progress(done, steps)

    return train_model(config, output, accelerator="cpu", callbacks=[show])


def _steps_of(record: Path) -> int:
    try:
        return int(json.loads(record.read_text())["settings"]["steps"])
    except (KeyError, TypeError, ValueError):
        return _LEAST  # a damaged record is refused when the run is taken up, with what to do about it
