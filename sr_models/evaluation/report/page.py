"""The demonstration's report: one HTML file with everything in it."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sr_models.evaluation.report.curve import TrainingCurve, draw_curve
from sr_models.evaluation.report.pictures import (
    PhotographPictures,
    draw_overview,
    encode_figure,
    same_details,
    spread,
    spread_map,
)
from sr_models.evaluation.scores import Scores
from sr_models.io.files import write_bytes, write_text
from sr_models.io.images import encode_png

__all__ = ["write_report"]

_STYLE = """
body { font-family: system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; } td, th { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; }
.row { display: flex; flex-wrap: wrap; gap: .6rem; margin: .6rem 0; } figure { margin: 0; }
.whole figure { flex: 1 1 40%; } .whole img { width: 100%; }
figcaption { font-size: .85rem; color: #555; } img { max-width: 100%; }
.pixels { image-rendering: pixelated; }
"""


def write_report(
    path: Path,
    *,
    heading: str,
    curve: TrainingCurve,
    pictures: Sequence[PhotographPictures],
    scores: Mapping[str, Scores],
    distance_name: str,
    steps: int,
    seconds: float,
    threads: int,
    credits: Sequence[str],
) -> Path:
    """Write the report atomically, and ``overview.png`` beside it.

    Args:
        path: HTML file to write.
        heading: first line of the report.
        curve: figures logged during training, with at least one validation.
        pictures: photographs that were not trained on.
        scores: label -> mean scores over these photographs.
        distance_name: name of the distance behind ``diversity``.
        steps: training steps of the whole run.
        seconds: duration of this run.
        threads: CPU threads of this run.
        credits: for every photograph, one line that says where it comes from.

    Returns:
        ``path``.
    """
    (_, before), (_, after) = curve.val_nll[0], curve.val_nll[-1]
    names = " and ".join(picture.name for picture in pictures)
    overview = encode_figure(draw_overview(pictures))
    write_bytes(path.with_name("overview.png"), overview)
    body = [
        f"<h1>{html.escape(heading)}</h1>",
        f"<p>{steps} training steps in all; this run took {seconds / 60:.1f} minutes for what was left of them, on "
        f"{threads} CPU thread{'s' if threads > 1 else ''}. "
        f"The model has never seen the photographs below ({names}).</p>",
        _figure(overview, "Details of photographs that were not trained on"),
        "<h2>Likelihood of unseen photographs</h2>",
        f"<p><b>{before:.3f} bits per dimension after initialisation, {after:.3f} after training: "
        f"{before - after:.3f} bits per dimension less.</b> (Density of [0, 1] images; add 8 for 8-bit values.)</p>",
        _figure(encode_figure(draw_curve(curve)), "Training curve"),
        "<h2>Scores</h2>",
        f"<p>Means over {names}. PSNR and LR-PSNR in dB; diversity is the score of the NTIRE challenge in percent, "
        f"with the distance <b>{html.escape(distance_name)}</b>.</p>",
        _table(scores, distance_name),
    ]
    for photograph in pictures:
        body += _photograph_section(photograph)
    body += ["<h2>Photographs</h2>", "<ul>", *(f"<li>{html.escape(credit)}</li>" for credit in credits), "</ul>"]
    head = f"<meta charset='utf-8'><title>invflow demo</title><style>{_STYLE}</style>"
    write_text(path, f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(body)}</body></html>")
    return path


def _photograph_section(photograph: PhotographPictures) -> list[str]:
    label, diverse = list(photograph.samples.items())[-1]
    deviation = spread(diverse)
    coldest_label, coldest = next(iter(photograph.samples.items()))
    height, width = photograph.lr.shape[:2]
    whole = [
        _figure(encode_png(photograph.lr), f"low resolution, {width} x {height}", pixels=True),
        _figure(encode_png(photograph.bicubic), "bicubic"),
        _figure(encode_png(coldest[0]), coldest_label),
        _figure(encode_png(photograph.hr), "truth"),
    ]
    details = [
        _figure(encode_png(image.repeat(2, 0).repeat(2, 1)), label)
        for label, image in same_details(photograph, samples=3).items()
    ]
    return [
        f"<h2>{html.escape(photograph.name)}</h2>",
        f"<div class='row whole'>{''.join(whole)}</div>",
        "<p>A detail:</p>",
        f"<div class='row'>{''.join(details)}</div>",
        f"<p>Standard deviation of every pixel over {len(diverse)} samples at {label} "
        f"(of 255; brightest = {deviation.max():.1f}):</p>",
        _figure(encode_png(spread_map(deviation)), "where the samples differ"),
    ]


def _figure(png: bytes, caption: str, *, pixels: bool = False) -> str:
    source = base64.b64encode(png).decode()
    kind = " class='pixels'" if pixels else ""
    return (
        f"<figure><img{kind} alt='{html.escape(caption)}' src='data:image/png;base64,{source}'>"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _table(scores: Mapping[str, Scores], distance_name: str) -> str:
    headings = ["", "NLL (bits/dim)", "PSNR", "SSIM", "LR-PSNR", f"diversity ({distance_name})", distance_name]
    rows = [
        [
            label,
            "" if np.isnan(row.nll) else f"{row.nll:.3f}",
            f"{row.psnr:.2f}",
            f"{row.ssim:.3f}",
            f"{row.lr_psnr:.2f}",
            f"{row.diversity:.2f}",
            f"{row.distance:.4f}",
        ]
        for label, row in scores.items()
    ]
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in headings)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{lines}</table>"
