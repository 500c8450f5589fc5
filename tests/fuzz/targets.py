"""Kinds of files that come from strangers: a good one of each, and what reads it."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_models import randomised
from tiny_runs import content_of, tiny_model

from sr_models.checkpoints.convert import convert_published, write_published
from sr_models.checkpoints.files import describe_file, load_model, save_model
from sr_models.cli._sources import _read as read_config
from sr_models.data.packing import PackedImages, write_pack
from sr_models.evaluation.metrics.weight_files import read_arrays, read_tensors
from sr_models.evaluation.ranking import read_opinions
from sr_models.evaluation.record import read_record
from sr_models.evaluation.report.stored import _read_coverage
from sr_models.evaluation.scores import Scores, write_scores
from sr_models.io.listing import list_images
from sr_models.io.reading import read_header, read_image
from sr_models.study.database import Database
from sr_models.study.settings import Settings
from sr_models.training.checkpoints import Checkpoints

__all__ = ["KINDS", "Kind"]


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        name: of the file that is damaged, with its suffix.
        make: writes good files into a folder, that one among them.
        read: reads the file.
    """

    name: str
    make: Callable[[Path], object]
    read: Callable[[Path], object]


def _pixels(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(np.iinfo(dtype).max, size=shape, dtype=dtype)


def _image(name: str, *, mode: str = "RGB", **options: Any) -> Kind:
    shape = (24, 20) if mode in ("L", "I;16") else (24, 20, 3)

    def make(folder: Path) -> None:
        pixels = _pixels(*shape, dtype=np.uint16 if mode == "I;16" else np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(pixels).save(folder / name, **({} if name.endswith("bmp") else {"exif": exif}), **options)

    def read(path: Path) -> None:
        read_header(path)
        read_image(path)

    return Kind(name, make, read)


def _make_checkpoint(folder: Path) -> None:
    torch.save(content_of(tiny_model()), folder / "last.ckpt")


def _read_checkpoint(path: Path) -> None:
    with contextlib.suppress(ValueError):  # both are to be tried
        load_model(path)
    Checkpoints(path.parent).newest()


def _make_pth(folder: Path) -> None:
    save_model(randomised("srflow-da", dtype=torch.float32), folder / "x.safetensors")
    write_published(folder / "x.safetensors", folder / "x.pth")


def _read_pth(path: Path) -> None:
    convert_published(path, path.with_name("out.safetensors"), blocks=(0, 1))


def _make_old_pth(folder: Path) -> None:
    _make_pth(folder)
    torch.save(torch.load(folder / "x.pth"), folder / "old.pth", _use_new_zipfile_serialization=False)


def _make_old_model(folder: Path) -> None:
    model = tiny_model()
    save_file(model.state_dict(), folder / "x.safetensors")
    (folder / "x.json").write_text(json.dumps(describe_file(model)))


def _make_pack(folder: Path) -> None:
    for name in "ab":
        Image.fromarray(_pixels(9, 8, 3)).save(folder / f"{name}.png")
    write_pack(list_images(folder), folder / "x.pack")


def _read_pack(path: Path) -> None:
    packed = PackedImages(path)
    packed.listing()
    for index in range(len(packed)):
        packed[index].sum()


def _make_scores(folder: Path) -> None:
    row = Scores("a.png", 1.0, 30.0, 0.9, 40.0, 39.0, 5.0, 0.1, sample_distances=(0.1, 0.2))
    write_scores(folder / "x.csv", [row, row], "lpips")
    summary = {
        "about": {"threads": 1},
        "settings": {"distance": "lpips", "n": 2},
        "failures": {},
        "images": {"a.png": "1"},
    }
    (folder / "x.summary.json").write_text(json.dumps(summary))


def _make_coverage(folder: Path) -> None:
    (folder / "c.json").write_text(json.dumps({"nominal and measured": [[0.5, 0.4], [0.9, 0.8]], "images": 3}))


def _make_study(folder: Path) -> None:
    settings = Settings(("A", "B"), ("a.png",), ("1", "2", "3"))
    with contextlib.closing(Database.create(folder / "x.db", settings, [(0, 0, 0, b"png"), (0, 1, 0, b"png")])) as made:
        made.store(made.enter("Eve").number, 0, (1, 0), 0)


def _read_study(path: Path) -> None:
    with contextlib.closing(Database(path, writable=False)) as found:
        found.all_answers()
        for rater in found.raters():
            found.answers(rater.number)


def _make_arrays(folder: Path) -> None:
    content = {"Conv_0": {"kernel": _pixels(3, 3, 3, 4).astype(np.float32), "bias": np.zeros(4, np.float32)}}
    (folder / "x.pkl").write_bytes(pickle.dumps(content))


def _write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def _beside(read: Callable[[Path], object], suffix: str) -> Callable[[Path], object]:
    return lambda path: read(path.with_name(f"x{suffix}"))


def _deep_png(folder: Path) -> None:
    import imagecodecs

    (folder / "deep.png").write_bytes(imagecodecs.png_encode(_pixels(24, 20, 3, dtype=np.uint16)))


def _deep_tiff(folder: Path) -> None:
    import tifffile

    buffer = io.BytesIO()
    tifffile.imwrite(buffer, _pixels(24, 20, 3, dtype=np.uint16), photometric="rgb")
    (folder / "deep.tif").write_bytes(buffer.getvalue())


_PNG = _image("x.png")
KINDS: dict[str, Kind] = {
    "safetensors": Kind("x.safetensors", lambda folder: save_model(tiny_model(), folder / "x.safetensors"), load_model),
    "config": Kind("x.json", _make_old_model, _beside(load_model, ".safetensors")),
    "checkpoint": Kind("last.ckpt", _make_checkpoint, _read_checkpoint),
    "published": Kind("x.pth", _make_pth, _read_pth),
    "published-old": Kind("old.pth", _make_old_pth, _read_pth),
    "png": _PNG,
    "png-palette": _image("x.png", mode="L"),
    "png-deep": Kind("deep.png", _deep_png, _PNG.read),
    "jpeg": _image("x.jpg"),
    "webp": _image("x.webp"),
    "gif": _image("x.gif", mode="L"),
    "bmp": _image("x.bmp"),
    "tiff": _image("x.tif"),
    "tiff-lzw": _image("x.tif", compression="tiff_lzw"),
    "tiff-deep": Kind("deep.tif", _deep_tiff, _PNG.read),
    "pack": Kind("x.pack", _make_pack, _read_pack),
    "scores": Kind("x.csv", _make_scores, read_record),
    "summary": Kind("x.summary.json", _make_scores, _beside(read_record, ".csv")),
    "coverage": Kind("c.json", _make_coverage, _read_coverage),
    "study": Kind("x.db", _make_study, _read_study),
    "opinions": Kind("x.csv", _write("x.csv", "method,mor\nA,1.5\nB,2.5\n"), read_opinions),
    "settings": Kind("x.yaml", _write("x.yaml", "steps: 10\nlr: 1e-4\noverrides: {blocks: 2}\n"), read_config),
    "weights": Kind("w.pth", lambda folder: torch.save({"a": torch.ones(3)}, folder / "w.pth"), read_tensors),
    "arrays": Kind("x.pkl", _make_arrays, read_arrays),
}
