"""The picture in the documentation: the shipped models beside bicubic interpolation and the encoder's image."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from tests_of_studies import running

import sr_models
from sr_models.demo.photographs import unpack_photographs
from sr_models.io.images import read_image, to_tensor, to_uint8, write_image
from sr_models.io.resize import imresize
from sr_models.study.crops import cut_crops, find_source
from sr_models.study.database import Database

pytestmark = pytest.mark.browser


def test_screenshot_of_the_shipped_models(page: Any, screenshot: Any, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    _, test = unpack_photographs(tmp_path)
    # the cat's face
    truth = read_image(test / "chelsea.png")[20:228, 96:352]
    lr = to_tensor(imresize(truth, 0.25))[None]
    models = {name: sr_models.load(name) for name in ("srflow-da-tiny", "ncsr-tiny")}
    images = {name: to_uint8(model.sample(lr, n=1, seed=0)[0, 0]) for name, model in models.items()}
    for name, image in {"truth": truth, **images}.items():
        (tmp_path / name).mkdir()
        write_image(tmp_path / name / "chelsea.png", image)
    source = find_source(
        tmp_path / "truth", {name: tmp_path / name for name in models}, baselines=models["srflow-da-tiny"], seed=0
    )
    assert source.settings.methods == ("srflow-da-tiny", "ncsr-tiny", "bicubic", "encoder's image")
    study = Database.create(tmp_path / "study.db", source.settings, cut_crops(source))
    with contextlib.closing(study), running(study) as port:
        page.goto(f"http://127.0.0.1:{port}/rate/{study.enter('anna').token}/")
        page.locator("button.card").nth(3).wait_for()
        for key in ("1", "ArrowLeft", "2"):
            page.keyboard.press(key)
        assert page.locator("#cards img").count() == 15
        screenshot("study")
