"""``sr-models calibrate``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

__all__ = ["run"]


def run(
    checkpoint: str,
    images: str,
    lr_images: str | None = None,
    output: str | None = None,
    figure: str | None = None,
    level: float = 0.9,
    n: int = 19,
    temperatures: list[float] | None = None,
    seed: int = 0,
    on_explode: Literal["error", "resample", "clamp"] = "resample",
    tile: int | None = None,
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32",
    consistency: Literal["none", "project", "exact"] = "none",
    device: str = "cpu",
    overwrite: bool = False,
) -> int:
    """Measure how often intervals of samples hold the truth, and find the temperature at which they are right.

    The interval between the k-th smallest and the k-th largest of n samples should hold a value of the true image with
    a probability of (n + 1 - 2k) / (n + 1). The table says how often it does, at every temperature: less often where
    samples are too alike. Intervals in brackets are of a bootstrap over images.

    Give photographs that the model was not trained on. Results are written image by image. The same command goes on
    after an interruption, and with further temperatures. An image that cannot be read or sampled does not stop the
    others. It is named at the end, and the exit code is 1.

    Example:
        sr-models calibrate --checkpoint srflow-da-tiny --images photographs/crops --output coverage.json
        sr-models calibrate --checkpoint runs/mine --images DIV2K_valid_HR --level 0.8 --temperatures [0.8,0.9,1.0]

    Args:
        checkpoint: model.safetensors, a run's folder, a checkpoint in it, or the name of a model that comes with this
            package.
        images: folder of high-resolution images, a pattern such as 'photos/**/*.png', or a text file that lists them.
        lr_images: folder of low-resolution images, named like the others (0801.png or 0801x4.png for 0801.png); without
            it they are made by bicubic reduction.
        output: JSON file for the settings, the coverage at all levels and that of every image.
        figure: file for a drawing of coverage and ranks, which ends in .png, .svg or .pdf.
        level: nominal level of the temperature that is looked for, at most (n - 1) / (n + 1).
        n: samples an image and temperature; 19 reach the levels 0.5, 0.8 and 0.9 exactly.
        temperatures: standard deviations of the latents to try, as a list such as [0.8,0.9,1.0]. Default: 0.7 to 1.2
            in steps of 0.1, and the model's own.
        seed: same seed, same samples.
        on_explode: what becomes of a sample whose activations grow beyond 1e5: an error, other latents (five times,
            then an error), or limited activations.
        tile: for images that do not fit into memory: side of overlapping tiles, in low-resolution pixels.
        precision: arithmetic of the networks; the flow itself stays in float32. bf16 is faster on GPUs that have it and
            on CPUs with AMX, and slower on other CPUs. fp16 is for GPUs without bf16. auto takes the faster of bf16
            and fp32.
        consistency: agreement of samples with the low-resolution image. project moves them until their bicubic
            reduction is that image; exact goes on until the 8-bit files reduce to it in every value.
        device: cpu, cuda, cuda:1, ... or auto.
        overwrite: sample all images again, and replace what other settings or commands wrote.
    """
    from sr_models.checkpoints.files import create_stored, read_weights
    from sr_models.cli._device import check_worthwhile, usable_device
    from sr_models.cli._warnings import warnings_as_lines
    from sr_models.evaluation.uncertainty.calibration import calibrate_model
    from sr_models.evaluation.uncertainty.figure import check_figure, draw_coverage, write_figure
    from sr_models.evaluation.uncertainty.record import CoverageRecord
    from sr_models.evaluation.uncertainty.table import calibration_table, describe_calibration
    from sr_models.flow.consistency import ConsistencyWarning
    from sr_models.io.listing import one_line

    checkpoint, output = os.path.expanduser(checkpoint), output and os.path.expanduser(output)
    drawing = Path(os.path.expanduser(figure)) if figure else None
    if drawing is not None:
        check_figure(drawing)
    place = usable_device(device)
    check_worthwhile(precision, place)
    stored = read_weights(checkpoint)
    model = create_stored(stored).to(place)
    about = {"checkpoint": str(stored.file), "step": stored.step, "images": images, "lr_images": lr_images}
    record = CoverageRecord(output, about=about, overwrite=overwrite)
    with warnings_as_lines(ConsistencyWarning):
        found = calibrate_model(
            model,
            images,
            lr_images=lr_images,
            level=level,
            samples=n,
            temperatures=temperatures,
            seed=seed,
            on_explode=on_explode,
            tile=tile,
            precision=precision,
            consistency=consistency,
            record=record,
        )
    print(calibration_table(found))
    print(describe_calibration(found))
    if drawing is not None:
        write_figure(drawing, draw_coverage({f"temperature {each:g}": found.pooled(each) for each in found.rows}))
    for path in filter(None, (output, drawing)):
        print(f"wrote {path}")
    for image, reason in record.failures.items():
        print(f"sr-models: left out: {one_line(image)}: {reason}", file=sys.stderr)
    return 1 if record.failures else 0
