"""The training curve: read from TensorBoard logs, and drawn."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sr_models.evaluation.transparent_axes import GREY, style_axes

__all__ = ["TrainingCurve", "draw_curve", "encode_svg", "training_curve"]


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
    """Draw the pretraining on the left, if there was one, and the likelihoods on the right.

    The background is transparent and all lines are grey or coloured, so that the drawing suits a page of any colour.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    figure.patch.set_alpha(0)
    both = bool(curve.l1)
    parts = figure.subplots(1, 1 + both, width_ratios=(1, 2) if both else None, squeeze=False)[0]
    if both:
        parts[0].plot(*zip(*curve.l1, strict=True), color="tab:green")
        parts[0].set(title="encoder pretraining", xlabel="step", ylabel="L1 error", yscale="log")
    right = parts[-1]
    for values, style in (
        (curve.nll, {"color": "tab:blue", "alpha": 0.5, "label": "training batches"}),
        (curve.val_nll, {"color": "tab:red", "marker": "o", "label": "unseen photographs"}),
    ):
        if values:
            right.plot(*zip(*values, strict=True), **style)
    right.set(title="flow", xlabel="step", ylabel="bits per dimension")
    if curve.nll or curve.val_nll:
        right.legend(framealpha=0, labelcolor=GREY)
    style_axes(parts)
    return figure


def encode_svg(figure: Figure) -> str:
    """Return a figure as an SVG element, for a page of HTML."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
