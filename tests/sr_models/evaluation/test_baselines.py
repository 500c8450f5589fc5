"""Baselines: what back-projection does to an image, and their scores beside those of a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sr_models import create
from sr_models.evaluation.baselines import back_projected, baseline_images, score_baselines
from sr_models.evaluation.metrics import lr_psnr, mse_distance, psnr
from sr_models.evaluation.scores import mean_scores, scores_table
from sr_models.io.images import write_image
from sr_models.io.resize import imresize


def photograph(seed: int) -> np.ndarray:
    """A smooth image with edges."""
    rng = np.random.default_rng(seed)
    image = imresize(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), 6)
    image[10:30, 15:40] = rng.integers(0, 256, 3)
    return image


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_back_projection_agrees_with_the_low_resolution(scale: int) -> None:
    hr = photograph(0)
    lr = imresize(hr, 1 / scale)
    bicubic = imresize(lr, scale)
    projected = back_projected(bicubic, lr, scale)
    assert projected.dtype == np.uint8
    assert psnr(imresize(projected, 1 / scale), lr) > psnr(imresize(bicubic, 1 / scale), lr) + 10
    assert psnr(projected, hr) > psnr(bicubic, hr)
    np.testing.assert_array_equal(back_projected(bicubic, lr, scale, passes=0), bicubic)


def test_one_pass_adds_the_enlarged_difference() -> None:
    lr, image = photograph(1)[:12, :12], photograph(2)
    difference = lr.astype(float) - imresize(image.astype(float), 1 / 4)
    expected = np.clip(np.rint(image + imresize(difference, 4)), 0, 255)
    np.testing.assert_array_equal(back_projected(image, lr, 4, passes=1), expected)


def test_scores_of_a_folder(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_image(tmp_path / f"{name}.png", photograph(ord(name)))
    found = score_baselines(tmp_path, 4, mse_distance, names={"a.png", "c.png"})
    assert list(found) == ["bicubic", "bicubic, back-projected"]
    hr = photograph(ord("c"))
    for label, rows in found.items():
        assert [row.image for row in rows] == ["a.png", "c.png"]
        image = baseline_images(imresize(hr, 1 / 4), 4)[label]
        assert rows[1].psnr == psnr(image, hr)
        assert rows[1].lr_psnr == lr_psnr(image, hr, 4)
        assert rows[1].distance == mse_distance(image, hr).mean()
    assert len(score_baselines(tmp_path, 4, mse_distance)["bicubic"]) == 3


def test_a_model_without_an_encoder_has_no_image() -> None:
    model = create("hcflow", features=8, growth=4, steps=1).eval()
    assert model.encoder is None
    assert list(baseline_images(photograph(0)[:8, :8], 4, model)) == ["bicubic", "bicubic, back-projected"]


def test_the_table_ends_with_the_baselines(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", photograph(0))
    found = score_baselines(tmp_path, 4, mse_distance)
    means = [mean_scores(rows, label) for label, rows in found.items()]
    lines = scores_table(found["bicubic"], "mse", means).splitlines()
    assert len(lines) == 5
    for line, name in zip(lines[1:], ("a.png", "mean", "bicubic  ", "bicubic, back-projected  "), strict=True):
        assert line.strip().startswith(name)
    assert [len(line) for line in lines] == [len(lines[0])] * 5
    assert "nan" in lines[1]
    assert "nan" not in lines[3] + lines[4]
    assert f"{means[1].lr_psnr:.2f}" in lines[4]
