"""The report of models that were scored before, from their files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sr_models.checkpoints.files import create_stored, read_weights
from sr_models.evaluation.baselines import baseline_images
from sr_models.evaluation.pairs import Pair, find_pairs, load_pair, names_in_order
from sr_models.evaluation.record import StoredScores, read_record
from sr_models.evaluation.report.gallery import compared
from sr_models.evaluation.report.method import Method, on_common_images
from sr_models.evaluation.report.pictures import PhotographPictures
from sr_models.evaluation.report.stored import read_methods
from sr_models.evaluation.report.write import shown_images, write_report
from sr_models.evaluation.sample_folder import find_samples
from sr_models.evaluation.scoring import crop_alike
from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.images import read_image
from sr_models.io.listing import one_line
from sr_models.io.sample_files import describe_sample, read_description

__all__ = ["report_files"]


def report_files(scores: Sequence[str], output: str | os.PathLike[str], images: str | None = None) -> None:
    """Write a page that compares models, from the CSV files of their scores.

    Args:
        scores: at least one file of ``sr-models evaluate``.
        output: HTML file; its folder exists.
        images: the high-resolution images, if they are not where they were.

    Raises:
        FileNotFoundError: a file that is missing.
        ValueError: files of another kind, two of one name, or scores that cannot be compared.
    """
    if Path(output).resolve() in {Path(file).resolve() for file in scores}:
        raise ValueError(f"output must be another file than the scores, got {one_line(output)}")
    baselines: dict[str, Method] = {}
    models: dict[str, StoredScores] = {}
    methods: list[Method] = []
    for file in scores:
        *plain, model = read_methods(file)
        models[model.name] = read_record(file)
        methods.append(model)
        for method in plain:
            known = baselines.get(method.name)
            if known is not None and _figures(known) != _figures(method):
                # every model has its encoder
                method = replace(method, name=f"{method.name} of {model.name}")
            baselines[method.name] = method
    scales = {name: int(record.settings["scale"]) for name, record in models.items()}
    scale = next(iter(scales.values()))
    if set(scales.values()) != {scale}:
        listed = ", ".join(f"{name} of {its}" for name, its in scales.items())
        raise ValueError(f"scores must be of one scale, got {listed}")
    for name in baselines.keys() & models.keys():
        # the method of a study, for instance, scored from its images
        baselines[name] = replace(baselines[name], name=f"{name} (baseline)")
    compared_methods = on_common_images([*baselines.values(), *methods])
    photographs, notes = _photographs(compared_methods, models, scale, images)
    write_report(output, compared_methods, scale, photographs=photographs, notes=notes)


def _figures(method: Method) -> list[tuple[str, float, float, float]]:
    """Return what tells whether two baselines are the same; NaN, which differs from itself, is not among it."""
    return [(row.image, row.distance, row.psnr, row.lr_psnr) for row in method.rows]


def _photographs(
    methods: Sequence[Method], models: Mapping[str, StoredScores], scale: int, images: str | None
) -> tuple[list[PhotographPictures], list[str]]:
    """Read the samples of the images that are shown; without them, say what is missing."""
    saved = {name: folder for name, record in models.items() if (folder := record.about.get("samples"))}
    if not saved:
        return [], [
            "There are no pictures, since the samples were not saved: sr-models evaluate --save_samples FOLDER."
        ]
    about = next(iter(models.values())).about
    source = images or str(about.get("images"))
    try:
        pairs, unreadable = find_pairs(source, scale, about.get("lr_images"))
    except OSError as error:
        return [], [f"There are no pictures: {error}. Give --images."]
    names = names_in_order(pairs, unreadable)
    by_name = {pair.name: pair for pair in pairs}
    first = next(method for method in methods if method.name in models)
    shown = [by_name[name] for name in shown_images(first) if name in by_name]
    files, notes = {}, []
    for method_name, folder in saved.items():
        try:
            files[method_name] = _samples(
                folder, names, shown, drawn=models[method_name].settings.get("model") is not None
            )
        except (OSError, ValueError) as error:
            notes.append(f"There are no pictures of {method_name}: {error}.")
    encoder = _encoder(models[first.name])
    photographs = []
    for name in [pair.name for pair in shown] if files else []:
        lr, hr = load_pair(by_name[name].hr, scale, by_name[name].lr)
        samples = {
            method.name: [crop_alike(read_image(file), hr) for file in found[: method.n]]
            for method in methods
            if (found := files.get(method.name, {}).get(name))
        }
        photographs.append(compared(name, lr, hr, scale, baseline_images(lr, scale, encoder), samples))
    return photographs, notes


def _samples(folder: str, names: Sequence[str], shown: Sequence[Pair], *, drawn: bool) -> Mapping[str, Sequence[Path]]:
    """Find the samples of a method.

    Args:
        folder: where they are.
        names: names of all images.
        shown: the images that the page shows.
        drawn: whether the evaluation has drawn them; then they say of which image they are.

    Raises:
        FileNotFoundError, NotADirectoryError: no samples.
        ValueError: samples of other images.
    """
    files = find_samples(folder, names).files
    for pair in shown if drawn else ():
        for file in files.get(pair.name, ())[:1]:
            # numbers in names count the images that were there then
            if (read_description(file) or {}).get("image") != describe_sample(pair.hr, {})["image"]:
                raise ValueError(f"{one_line(file)} is not a sample of {one_line(pair.name)}; evaluate again")
    return files


def _encoder(record: StoredScores) -> SuperResolutionFlow | None:
    """Load the model that was scored, for the image of its encoder; ``None`` if it is gone or was too large."""
    file = record.about.get("checkpoint")
    if not file or not Path(file).is_file() or record.settings.get("tile") is not None:
        return None
    return create_stored(read_weights(file))
