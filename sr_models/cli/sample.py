"""``sr-models sample``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from sr_models.cli._parser import CommandParser

__all__ = ["FIRST_OPTION", "add_arguments", "run"]

#: What the user need not type if it comes first.
FIRST_OPTION = "--images"


def run(
    images: list[str],
    checkpoint: str = "srflow-da-tiny",
    output: str = "samples",
    recursive: bool = False,
    n: int = 10,
    temperature: float | list[float] | None = None,
    seed: int = 0,
    on_explode: Literal["error", "resample", "clamp"] = "resample",
    tile: int | Literal["auto"] = "auto",
    overlap: int | None = None,
    scale: int | None = None,
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32",
    consistency: Literal["none", "project", "exact"] = "none",
    device: str = "cpu",
    overwrite: bool = False,
    format: Literal["png", "png16", "jpeg", "webp"] = "png",
    naming: str = "name",
    first_index: int = 0,
    sheet: bool = False,
) -> int:
    """Draw super-resolved samples of low-resolution images.

    Samples are files in sRGB: NAME_sample000.png, NAME_sample001.png, ... Sub-folders become sub-folders of the
    output. Colour profiles are converted, EXIF orientation is applied, transparency is kept.

    The same command goes on after an interruption: samples that are there are not drawn again. An image that cannot be
    read or sampled does not stop the others. It is named at the end, and the exit code is 1. A noisy image, or one that
    is sharp from pixel to pixel, may explode: a lower temperature, or reducing the image first, helps.

    Images of one size have the same latents, so frames of a film do not flicker more than they must.

    Example:
        sr-models sample photo.jpg -n 4 --sheet
        sr-models sample --checkpoint model.safetensors --images low_resolution --output samples --n 4
        sr-models sample --checkpoint runs/mine --images a.png 'scans/**/*.tif' --output samples --format webp
        sr-models sample - --output - -n 1 < small.png > large.png

    Args:
        images: images, folders, patterns such as 'photos/**/*.png', or text files that list images; - is an image from
            standard input.
        checkpoint: model.safetensors, a run's folder, a checkpoint in it, or the name of a model that comes with this
            package.
        output: folder for the samples, created if needed; - writes a single sample to standard output.
        recursive: look into sub-folders of folders.
        n: samples an image.
        temperature: standard deviation of the latents; 0 gives the most regular image, more gives more detail, which is
            invented. A list such as [0.9,0.5] has one for each latent, the finest first. Default: what the model's file
            says, of the models that come with this package; 0.9 for others, which is published.
        seed: same seed, same samples.
        on_explode: what becomes of a sample whose activations grow beyond 1e5: an error, other latents (five times,
            then an error), or limited activations, which may leave spots.
        tile: side of overlapping tiles, in low-resolution pixels, in which an image is decoded. auto decodes the whole
            if memory has room for it, and else takes the largest tiles that fit.
        overlap: low-resolution pixels that two tiles share, at most half of one, with a tile of your own; default: a
            quarter.
        scale: enlargement. Below the model's own, samples are reduced by bicubic interpolation.
        precision: arithmetic of the networks; the flow itself stays in float32. bf16 is faster on GPUs that have it and
            on CPUs with AMX, and slower on other CPUs. fp16 is for GPUs without bf16. auto takes the faster of bf16
            and fp32.
        consistency: agreement of samples with the low-resolution image. project moves them until their bicubic
            reduction is that image; exact goes on until the 8-bit files reduce to it in every value, and says
            where some values differ.
        device: cpu, cuda, cuda:1, ... or auto.
        overwrite: draw all samples again, and replace files that other settings or commands wrote. Where n was 1 and is
            more now, or the other way round, naming ntire has other names; samples of these are removed.
        format: of the files. png16 has 16 bits a channel, jpeg quality 95 and no transparency, webp is lossless.
        naming: of the samples. name: see above. ntire numbers the images in the order of their names, as the
            challenge's toolkit reads them: 000000_sample00000.png, 000000_sample00001.png, ..., and 000000.png if n is
            1. Or a template such as '{name}_x{scale}_{index:02d}', of name, index (of the sample), number (of the
            image), seed, temperature, model and scale.
        first_index: number of the first image for naming ntire; 2022's test images begin with 901.
        sheet: also write NAME_sheet.png, a contact sheet of the image's samples.
    """
    from sr_models.cli._sample_options import Options
    from sr_models.cli._sampling import sample_images

    options = Options(
        recursive=recursive,
        n=n,
        temperature=temperature,
        seed=seed,
        on_explode=on_explode,
        tile=tile,
        overlap=overlap,
        scale=scale,
        precision=precision,
        consistency=consistency,
        device=device,
        overwrite=overwrite,
        format=format,
        naming=naming,
        first_index=first_index,
        sheet=sheet,
    )
    return sample_images(images, checkpoint, output, options)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options; several images may follow ``--images``, as a shell writes a pattern."""
    parser.add_argument(
        "--images",
        nargs="+",
        type=str,
        required=True,
        help="images, folders, patterns such as 'photos/**/*.png', or text files that list images; - is an image from "
        "standard input",
    )
    parser.add_function_arguments(run, as_group=False, skip={"images"})
