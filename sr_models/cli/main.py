"""The command line ``sr-models``. Every command is a function here; its signature and docstring make its ``--help``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace

from sr_models.training.config import TrainingConfig

__all__ = ["main"]


def list_() -> None:
    """List the models with their scales and presets."""
    from sr_models.registry import list_models

    for plugin in list_models():
        print(f"{plugin.name}: {plugin.summary}")
        print(f"    scales {', '.join(map(str, plugin.scales))}; presets {', '.join(plugin.presets)}")


def describe(model: str, scale: int = 4, preset: str = "released") -> None:
    """Print a model's levels, number of parameters and multiply-adds.

    Args:
        model: a registered model.
        scale: enlargement.
        preset: architecture preset of the model.
    """
    import sr_models

    print(sr_models.describe(model, scale=scale, preset=preset))


def train(config: TrainingConfig, output: str, accelerator: str, workers: int) -> None:
    """Train a model on a folder of photographs, or go on with the interrupted run in OUTPUT."""
    from sr_models.training.run import train_model

    print(f"wrote {train_model(config, output, accelerator=accelerator, workers=workers)}")


def sample(
    checkpoint: str,
    images: str,
    output: str,
    n: int = 10,
    temperature: float | list[float] = 0.9,
    seed: int = 0,
    on_explode: Literal["error", "resample", "clamp"] = "resample",
    tile: int | None = None,
    device: str = "cpu",
) -> None:
    """Draw super-resolved samples of every low-resolution image in a folder.

    Args:
        checkpoint: model.safetensors with model.json beside it.
        images: folder of low-resolution images.
        output: folder that receives NAME_sample000.png, NAME_sample001.png, ...; created if needed.
        n: samples an image.
        temperature: standard deviation of the latents; 0 gives the most regular image, 0.9 is published. A list such as
            [0.9,0.5] has one for each latent, the finest first.
        seed: same seed, same samples.
        on_explode: what becomes of a sample whose activations grow beyond 1e5: an error, other latents (five times,
            then an error), or limited activations.
        tile: for images that do not fit into memory: side of overlapping tiles, in low-resolution pixels.
        device: cpu, cuda, ...
    """
    from tqdm import tqdm

    from sr_models.checkpoints.files import load_model
    from sr_models.io.images import find_images, read_image, to_tensor, to_uint8, write_image

    model = load_model(checkpoint).to(_device(device))
    paths = find_images(images)
    like = next(model.parameters())
    for path in tqdm(paths, desc="sampling", unit="image"):
        lr = to_tensor(read_image(path))[None].to(like)
        images_of_path = model.sample(lr, n, temperature=temperature, seed=seed, on_explode=on_explode, tile=tile)[0]
        Path(output).mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(images_of_path):
            write_image(Path(output) / f"{path.stem}_sample{index:03d}.png", to_uint8(image))
    print(f"wrote {n * len(paths)} images to {output}")


def evaluate(
    checkpoint: str,
    images: str,
    lr_images: str | None = None,
    output: str | None = None,
    n: int = 10,
    temperature: float = 0.9,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Score a model: likelihood, PSNR, SSIM, LR-PSNR and the NTIRE challenge's diversity.

    The diversity is measured with LPIPS if its AlexNet weights are on this machine, otherwise with the per-pixel
    squared error; the table names which.

    Args:
        checkpoint: model.safetensors with model.json beside it.
        images: folder of high-resolution images.
        lr_images: folder of low-resolution images of the same names; without it they are made by bicubic reduction.
        output: CSV file for the scores.
        n: samples an image; the challenge takes 10.
        temperature: standard deviation of the latents.
        seed: same seed, same scores.
        device: cpu, cuda, ...
    """
    from sr_models.checkpoints.files import load_model
    from sr_models.evaluation.evaluate import evaluate_model, scores_table, write_scores
    from sr_models.evaluation.metrics import best_available_distance

    model = load_model(checkpoint).to(_device(device))
    if output is not None and not Path(output).parent.is_dir():
        raise FileNotFoundError(f"folder of output {output} does not exist")
    name, distance = best_available_distance(device)
    scores = evaluate_model(
        model, images, lr_images=lr_images, samples=n, temperature=temperature, seed=seed, distance=distance
    )
    print(scores_table(scores, name))
    if output is not None:
        write_scores(Path(output), scores, name)
        print(f"wrote {output}")


def convert(
    file: str,
    output: str,
    model: str | None = None,
    scale: int | None = None,
    blocks: list[int] | None = None,
    to: Literal["safetensors", "official"] = "safetensors",
) -> None:
    """Convert a published checkpoint (.pth of SRFlow, SRFlow-DA, NCSR or their RRDB encoder), or convert one back."""
    from sr_models.checkpoints.convert import from_official, to_official

    if Path(file).resolve() == Path(output).resolve():
        raise ValueError(f"output must be another file than {file}")
    if to == "safetensors":
        print(from_official(file, output, model=model, scale=scale, blocks=blocks))
    else:
        print(to_official(file, output))
    print(f"wrote {output}")


def demo(output: str = "runs/demo", steps: int = 1500, seed: int = 10) -> None:
    """Train a small SRFlow-DA on photographs that come inside Python packages, and write a report with pictures.

    Takes about six minutes on two CPU cores; run it again to go on after an interruption.

    Args:
        output: folder of the run; the report is report.html in it.
        steps: optimizer steps.
        seed: determines the run.
    """
    from sr_models.demo.run import run_demo

    print(f"wrote {run_demo(output, steps=steps, seed=seed)}")


def _device(name: str) -> Any:
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def _train_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of these options")
    parser.add_class_arguments(TrainingConfig)
    parser.add_argument("--output", type=str, required=True, help="folder of the run, created if needed")
    parser.add_argument("--accelerator", type=str, default="auto", help="auto, cpu, gpu, ... (Lightning's)")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare crops")


def _convert_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", type=str, help="the checkpoint: .pth, or .safetensors with .json beside it")
    parser.add_argument("-o", "--output", type=str, required=True, help="the file to write")
    parser.add_argument("--model", type=str, help="fail unless the file holds this model")
    parser.add_argument("--scale", type=int, help="fail unless the file has this scale")
    parser.add_argument(
        "--blocks",
        type=int,
        nargs="+",
        help="RRDB blocks that condition the flow, from 0, which the file does not say; default: the preset's",
    )
    parser.add_argument(
        "--to", type=Literal["safetensors", "official"], default="safetensors", help="the kind of file to write"
    )


_FUNCTIONS: dict[str, Callable[..., None]] = {
    "list": list_,
    "describe": describe,
    "demo": demo,
    "train": train,
    "sample": sample,
    "evaluate": evaluate,
    "convert": convert,
}
#: Commands whose arguments are not simply those of the function.
_ARGUMENTS: dict[str, Callable[[ArgumentParser], None]] = {"train": _train_arguments, "convert": _convert_arguments}


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="sr-models",
        description="Super-resolution flows: train, sample and score them.",
        exit_on_error=False,
    )
    commands = parser.add_subcommands(dest="command", metavar="COMMAND")
    for name, function in _FUNCTIONS.items():
        subparser = ArgumentParser(description=_first_line(function), exit_on_error=False)
        if name in _ARGUMENTS:
            _ARGUMENTS[name](subparser)
        else:
            subparser.add_function_arguments(function)
        commands.add_subcommand(name, subparser, help=_first_line(function))
    return parser


def _first_line(function: Callable[..., None]) -> str:
    return (function.__doc__ or "").strip().split("\n")[0]


def _run(arguments: Namespace) -> None:
    options = arguments[arguments.command].as_dict() if arguments[arguments.command] else {}
    if arguments.command == "train":
        options.pop("config")
        run = {name: options.pop(name) for name in ("output", "accelerator", "workers")}
        train(TrainingConfig(**options), **run)
    else:
        _FUNCTIONS[arguments.command](**options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Bad input ends in one line on standard error and exit code 2."""
    try:
        _run(_parser().parse_args(arguments))
    except (ArgumentError, ValueError, OSError, FloatingPointError) as error:
        # the parser's messages span lines
        print(f"sr-models: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sr-models: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
