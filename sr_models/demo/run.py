"""The demonstration: a small SRFlow-DA trained on a handful of photographs, and a report with pictures."""

from __future__ import annotations

import os
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from tqdm import tqdm

from sr_models.checkpoints.files import load_model
from sr_models.demo.photographs import PHOTOGRAPHS, unpack_photographs
from sr_models.evaluation.baselines import baseline_images
from sr_models.evaluation.evaluate import evaluate_model, score_samples
from sr_models.evaluation.metrics import best_available_distance
from sr_models.evaluation.pairs import load_pair
from sr_models.evaluation.report.curve import training_curve
from sr_models.evaluation.report.page import write_report
from sr_models.evaluation.report.pictures import PhotographPictures
from sr_models.evaluation.scores import Scores, mean_scores, write_scores
from sr_models.io.images import find_images, write_image
from sr_models.training.config import TrainingConfig
from sr_models.training.run import train_model

__all__ = ["demo_config", "run_demo"]

TEMPERATURES = (0.0, 0.5, 0.9)


def demo_config(train: Path, test: Path, *, steps: int, seed: int) -> TrainingConfig:
    """Return the demonstration's training settings: a fifth of the steps trains the encoder, the rest the flow."""
    return TrainingConfig(
        model="srflow-da",
        scale=4,
        preset="small",
        images=str(train),
        val_images=str(test),
        crop=64,
        batch_size=6,
        steps=steps,
        lr=1e-3,
        encoder_steps=steps // 5,
        encoder_lr=2e-3,
        encoder_frozen=0.0,
        gradient_clip=10.0,
        val_every=max(1, steps // 15),
        save_every=max(1, steps // 15),
        seed=seed,
    )


def run_demo(output: str | os.PathLike[str], *, steps: int, seed: int, samples: int = 10) -> Path:
    """Train, sample, score and write ``report.html``, or go on where an interrupted run stopped.

    Args:
        output: folder of the run.
        steps: training steps, at least 10.
        seed: determines the run.
        samples: samples a photograph at temperatures other than 0.

    Returns:
        The path of the report.

    Raises:
        ValueError: too few steps, or another run in the folder.
        FileNotFoundError: a package without its photographs.
    """
    if steps < 10:
        raise ValueError(f"steps must be at least 10, got {steps}")
    output = Path(output)
    started = monotonic()
    train_folder, test_folder = unpack_photographs(output / "photographs")
    checkpoint = train_model(demo_config(train_folder, test_folder, steps=steps, seed=seed), output)
    seconds = monotonic() - started

    model = load_model(checkpoint)
    distance_name, distance = best_available_distance()
    rows: dict[str, list[Scores]] = {}
    pictures: dict[str, PhotographPictures] = {}
    for path in find_images(test_folder):
        lr, hr = load_pair(path, model.scale)
        baselines = baseline_images(lr, model.scale)
        pictures[path.stem] = PhotographPictures(path.stem, lr, baselines["bicubic"], hr, {})
        for label, image in baselines.items():
            rows.setdefault(label, []).append(score_samples(path.name, [image], hr, model.scale, distance))
    for temperature in TEMPERATURES:
        label = f"temperature {temperature:g}"

        def keep(path: Path, lr: np.ndarray, drawn: list[np.ndarray], hr: np.ndarray, label: str = label) -> None:
            pictures[path.stem].samples[label] = drawn

        rows[label] = evaluate_model(
            model,
            test_folder,
            samples=samples if temperature else 1,
            temperature=temperature,
            seed=seed,
            distance=distance,
            on_image=keep,
        )
    _write_pictures(output, list(pictures.values()))
    means = {label: mean_scores(scores, label) for label, scores in rows.items()}
    write_scores(output / "scores.csv", list(means.values()), distance_name)
    return write_report(
        output / "report.html",
        heading=f"SRFlow-DA 4x, small, trained on {sum(source.train for source in PHOTOGRAPHS)} photographs",
        curve=training_curve(output / "logs"),
        pictures=list(pictures.values()),
        scores=means,
        distance_name=distance_name,
        steps=steps,
        seconds=seconds,
        threads=torch.get_num_threads(),
        credits=[source.attribution for source in PHOTOGRAPHS],
    )


def _write_pictures(output: Path, pictures: list[PhotographPictures]) -> None:
    folder = output / "pictures"
    folder.mkdir(exist_ok=True)
    for photograph in tqdm(pictures, desc="writing pictures", unit="image"):
        write_image(folder / f"{photograph.name}_lr.png", photograph.lr)
        write_image(folder / f"{photograph.name}_bicubic.png", photograph.bicubic)
        write_image(folder / f"{photograph.name}_truth.png", photograph.hr)
        for label, samples in photograph.samples.items():
            for index, sample in enumerate(samples):
                name = label.replace("temperature ", "t")
                write_image(folder / f"{photograph.name}_{name}_sample{index:03d}.png", sample)
