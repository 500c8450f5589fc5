"""The demonstration's report: one HTML file with everything in it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sr_models.checkpoints.files import write_bytes, write_text
from sr_models.demo.photographs import PHOTOGRAPHS
from sr_models.evaluation.evaluate import Scores

__all__ = ["PhotographPictures", "TrainingCurve", "training_curve", "write_report"]

# Part of a photograph that is shown enlarged: (height, width) in pixels.
_DETAIL = (96, 128)

_STYLE = """
body { font-family: system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; } td, th { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; }
.row { display: flex; flex-wrap: wrap; gap: .6rem; margin: .6rem 0; } figure { margin: 0; }
.whole figure { flex: 1 1 40%; } .whole img { width: 100%; }
figcaption { font-size: .85rem; color: #555; } img { max-width: 100%; }
.pixels { image-rendering: pixelated; }
"""


@dataclass
class PhotographPictures:
    """A photograph that was not trained on, and what was made of it. Images are (H, W, 3) uint8.

    Attributes:
        name: of the photograph.
        lr: what the model saw.
        bicubic: ``lr`` enlarged without a model.
        hr: the truth.
        samples: label of a temperature -> samples.
    """

    name: str
    lr: np.ndarray
    bicubic: np.ndarray
    hr: np.ndarray
    samples: dict[str, list[np.ndarray]]


@dataclass(frozen=True)
class TrainingCurve:
    """Figures logged during training: lists of (step, value).

    Attributes:
        l1: mean absolute error of the encoder's image, pretraining only.
        nll: of the training batches, bits per dimension.
        val_nll: of fixed crops of unseen photographs; the first is that of the initialised, untrained flow.
    """

    l1: list[tuple[int, float]]
    nll: list[tuple[int, float]]
    val_nll: list[tuple[int, float]]


def training_curve(logs: Path) -> TrainingCurve:
    """Read the curve from TensorBoard logs; of steps that a resumed run repeated, the later value counts."""
    events = EventAccumulator(str(logs), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]

    def series(tag: str) -> list[tuple[int, float]]:
        return sorted({event.step: event.value for event in events.Scalars(tag)}.items()) if tag in tags else []

    return TrainingCurve(series("l1"), series("nll"), series("val_nll"))


def write_report(
    path: Path,
    *,
    curve: TrainingCurve,
    pictures: Sequence[PhotographPictures],
    scores: Mapping[str, Scores],
    distance_name: str,
    steps: int,
    seconds: float,
    threads: int,
) -> Path:
    """Write the report atomically and return its path."""
    (_, before), (_, after) = curve.val_nll[0], curve.val_nll[-1]
    names = " and ".join(picture.name for picture in pictures)
    trained = sum(source.train for source in PHOTOGRAPHS)
    overview = _png_of(_overview(pictures))
    write_bytes(path.with_name("overview.png"), overview)
    body = [
        f"<h1>SRFlow-DA 4x, small, trained on {trained} photographs</h1>",
        f"<p>{steps} training steps in all; this run took {seconds / 60:.1f} minutes for what was left of them, on "
        f"{threads} CPU thread{'s' if threads > 1 else ''}. "
        f"The model has never seen the photographs below ({names}).</p>",
        _figure(overview, "Details of photographs that were not trained on"),
        "<h2>Likelihood of unseen photographs</h2>",
        f"<p><b>{before:.3f} bits per dimension after initialisation, {after:.3f} after training: "
        f"{before - after:.3f} bits per dimension less.</b> (Density of [0, 1] images; add 8 for 8-bit values.)</p>",
        _figure(_png_of(_curve(curve)), "Training curve"),
        "<h2>Scores</h2>",
        f"<p>Means over {names}. PSNR and LR-PSNR in dB; diversity is the score of the NTIRE challenge in percent, "
        f"with the distance <b>{html.escape(distance_name)}</b>.</p>",
        _table(scores, distance_name),
    ]
    for photograph in pictures:
        body += _photograph_section(photograph)
    body += ["<h2>Photographs</h2>", "<ul>"]
    for source in PHOTOGRAPHS:
        use = "trained on" if source.train else "only tested on"
        body.append(f"<li>{source.name}: {html.escape(source.credit)}; from {source.package}, {use}</li>")
    body.append("</ul>")
    head = f"<meta charset='utf-8'><title>invflow demo</title><style>{_STYLE}</style>"
    write_text(path, f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(body)}</body></html>")
    return path


def _photograph_section(photograph: PhotographPictures) -> list[str]:
    diverse = list(photograph.samples.values())[-1]
    spread = np.stack(diverse).astype(np.float64).std(0).mean(-1)
    coldest_label, coldest = next(iter(photograph.samples.items()))
    whole = [
        _figure(
            _png(photograph.lr), f"low resolution, {photograph.lr.shape[1]} x {photograph.lr.shape[0]}", pixels=True
        ),
        _figure(_png(photograph.bicubic), "bicubic"),
        _figure(_png(coldest[0]), coldest_label),
        _figure(_png(photograph.hr), "truth"),
    ]
    details = [
        _figure(_png(image.repeat(2, 0).repeat(2, 1)), label)
        for label, image in _details(photograph, samples=3).items()
    ]
    return [
        f"<h2>{html.escape(photograph.name)}</h2>",
        f"<div class='row whole'>{''.join(whole)}</div>",
        "<p>A detail:</p>",
        f"<div class='row'>{''.join(details)}</div>",
        f"<p>Standard deviation of every pixel over {len(diverse)} samples at {list(photograph.samples)[-1]} "
        f"(of 255; brightest = {spread.max():.1f}):</p>",
        _figure(_png(_heat(spread)), "where the samples differ"),
    ]


def _details(photograph: PhotographPictures, *, samples: int) -> dict[str, np.ndarray]:
    """The same part of everything that there is of a photograph, by label."""
    scale = photograph.hr.shape[0] // photograph.lr.shape[0]
    images = {"low resolution": photograph.lr.repeat(scale, 0).repeat(scale, 1), "bicubic": photograph.bicubic}
    for label, drawn in photograph.samples.items():
        for index, sample in enumerate(drawn[:samples]):
            images[f"{label}, sample {index + 1}" if min(samples, len(drawn)) > 1 else label] = sample
    images["truth"] = photograph.hr
    top, left = _busiest(photograph.hr)
    return {label: image[top : top + _DETAIL[0], left : left + _DETAIL[1]] for label, image in images.items()}


def _overview(pictures: Sequence[PhotographPictures]) -> Figure:
    """One detail of every photograph, a row each."""
    rows = [_details(photograph, samples=1) for photograph in pictures]
    figure = Figure(figsize=(2.2 * len(rows[0]), 1.9 * len(rows)), layout="constrained")
    for line, (axes_of_row, row) in enumerate(
        zip(figure.subplots(len(rows), len(rows[0]), squeeze=False), rows, strict=True)
    ):
        for axes, (label, image) in zip(axes_of_row, row.items(), strict=True):
            axes.imshow(image, interpolation="nearest")
            axes.set_axis_off()
            if line == 0:
                axes.set_title(label, fontsize=10)
    return figure


def _busiest(image: np.ndarray) -> tuple[int, int]:
    """Top and left of the part with the most contrast among a grid of candidates."""
    height, width = image.shape[:2]
    candidates = [
        (top, left)
        for top in range(0, max(height - _DETAIL[0], 0) + 1, 16)
        for left in range(0, max(width - _DETAIL[1], 0) + 1, 16)
    ]
    return max(candidates, key=lambda c: image[c[0] : c[0] + _DETAIL[0], c[1] : c[1] + _DETAIL[1]].std())


def _heat(values: np.ndarray) -> np.ndarray:
    scaled = values / max(float(values.max()), 1e-12)
    return (matplotlib.colormaps["magma"](scaled)[..., :3] * 255).round().astype(np.uint8)


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def _curve(curve: TrainingCurve) -> Figure:
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


def _png_of(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _figure(png: bytes, caption: str, *, pixels: bool = False) -> str:
    source = base64.b64encode(png).decode()
    kind = " class='pixels'" if pixels else ""
    return (
        f"<figure><img{kind} alt='{html.escape(caption)}' src='data:image/png;base64,{source}'>"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _table(scores: Mapping[str, Scores], distance_name: str) -> str:
    headings = ["", "NLL (bits/dim)", "PSNR", "SSIM", "LR-PSNR", f"diversity ({distance_name})"]
    rows = [
        [
            label,
            "" if np.isnan(row.nll) else f"{row.nll:.3f}",
            f"{row.psnr:.2f}",
            f"{row.ssim:.3f}",
            f"{row.lr_psnr:.2f}",
            f"{row.diversity:.2f}",
        ]
        for label, row in scores.items()
    ]
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in headings)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{lines}</table>"
