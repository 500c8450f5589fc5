"""``sr-models demo``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sr_models.cli._parser import CommandParser

__all__ = ["add_arguments", "run"]


def run(images: list[str] | None = None, output: str = "runs/demo", minutes: float = 2.0, seed: int = 10) -> None:
    """Enlarge photographs with a model that comes with the package, score them, train, and write a report.

    The report is one HTML file, which grows while the command runs: open it at once. It shows the photographs enlarged
    four times, beside bicubic interpolation and the truth, then scores, maps of deviation and of agreement with the low
    resolution, several temperatures, and the curve of a short training. The first pictures take less than a minute on
    two CPU cores, all of it about five.

    Ctrl-C leaves a report that says what is missing. The same command then goes on where it was.

    Example:
        sr-models demo
        sr-models demo --images photo.jpg holiday/*.png --output runs/mine
        sr-models demo --minutes 0

    Args:
        images: photographs of your own, at most six, instead of those that come with scikit-image and scikit-learn.
            They are reduced to at most 640 pixels, which is the truth, and then by four, which the model sees.
        output: folder of the demonstration; the report is report.html in it.
        minutes: duration of the training; 0 leaves it out.
        seed: same seed, same samples and same training.
    """
    from sr_models.demo.run import run_demo

    print(f"wrote {run_demo(output, images=images or (), minutes=minutes, seed=seed)}")


def add_arguments(parser: CommandParser) -> None:
    """Declare the options; several images may follow ``--images``, as a shell writes a pattern."""
    parser.add_argument(
        "--images",
        nargs="+",
        type=str,
        help="photographs of your own, at most six, instead of those that come with scikit-image and scikit-learn. "
        "They are reduced to at most 640 pixels, which is the truth, and then by four, which the model sees.",
    )
    parser.add_function_arguments(run, as_group=False, skip={"images"})
