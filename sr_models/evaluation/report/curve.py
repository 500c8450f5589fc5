"""The training curve: read from TensorBoard logs, and drawn."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

__all__ = ["TrainingCurve", "draw_curve", "training_curve"]


@dataclass(frozen=True)
class TrainingCurve:
    """Figures logged during training, each a list of (step, value).

    Attributes:
        l1: mean absolute error of the encoder's image, pretraining only.
        nll: negative log-likelihood of the training batches, bits per dimension.
        val_nll: negative log-likelihood of fixed crops of unseen photographs, bits per dimension. The first value is
            that of the initialised, untrained flow.
    """

    l1: list[tuple[int, float]]
    nll: list[tuple[int, float]]
    val_nll: list[tuple[int, float]]


def training_curve(logs: Path) -> TrainingCurve:
    """Read the curve from a folder of TensorBoard logs. The later value counts where a resumed run repeated a step."""
    events = EventAccumulator(str(logs), size_guidance={"scalars": 0})
    # a resumed run has the steps dropped that it repeats, which is no accident
    logger = logging.getLogger("tensorboard")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        events.Reload()
    finally:
        logger.setLevel(level)
    tags = events.Tags()["scalars"]

    def series(tag: str) -> list[tuple[int, float]]:
        return sorted({event.step: event.value for event in events.Scalars(tag)}.items()) if tag in tags else []

    return TrainingCurve(series("l1"), series("nll"), series("val_nll"))


def draw_curve(curve: TrainingCurve) -> Figure:
    """Draw the pretraining on the left, if there was one, and the likelihoods on the right."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 2))
    left.plot(*zip(*curve.l1, strict=True), color="tab:green") if curve.l1 else left.set_visible(False)
    left.set(title="encoder pretraining", xlabel="step", ylabel="L1 error", yscale="log")
    right.plot(*zip(*curve.nll, strict=True), color="tab:blue", alpha=0.4, label="training batches")
    right.plot(*zip(*curve.val_nll, strict=True), "o-", color="tab:red", label="unseen photographs")
    right.set(title="flow", xlabel="step", ylabel="bits per dimension")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure
