"""Scores of a model are those of its samples."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import sr_models
from sr_models.evaluation.evaluate import _bits_per_dim, evaluate_model
from sr_models.evaluation.metrics import diversity_score, lr_psnr, mse_distance, psnr, ssim
from sr_models.evaluation.pairs import load_pair
from sr_models.evaluation.scores import mean_scores, scores_table, write_scores
from sr_models.io.images import to_tensor, to_uint8, write_image
from sr_models.io.resize import imresize

TINY = {"steps": 1, "hidden_channels": 4, "features": 4, "growth": 2, "blocks": 2, "stacked_blocks": (0, 1)}


@pytest.fixture(scope="module")
def model() -> sr_models.SuperResolutionFlow:
    torch.manual_seed(0)
    return sr_models.create("srflow-da", scale=4, **TINY).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("truth")
    rng = np.random.default_rng(0)
    for name, shape in (("a", (24, 35)), ("b", (40, 16))):
        write_image(path / f"{name}.png", rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
    return path


@pytest.mark.parametrize("name", ["srflow", "ncsr"])
def test_likelihood_is_of_what_the_levels_can_halve(name: str) -> None:
    torch.manual_seed(0)
    model = sr_models.create(name, scale=8, **TINY, **({"noise_steps": (0, 0, 1, 1)} if name == "ncsr" else {})).eval()
    hr, lr = torch.rand(1, 3, 24, 40), torch.rand(1, 3, 3, 5)
    noise = torch.zeros(1, 1, 1, 1) if name == "ncsr" else None
    with torch.no_grad():
        expected = model.encode(hr[..., :16, :32], lr[..., :2, :4], noise).bits_per_dim.item()
        assert _bits_per_dim(model, hr, lr) == expected
        assert math.isnan(_bits_per_dim(model, hr[..., :8, :], lr[..., :1, :]))


def test_scores(model: sr_models.SuperResolutionFlow, folder: Path) -> None:
    seen = {}
    rows = evaluate_model(
        model,
        folder,
        samples=3,
        temperature=0.5,
        seed=2,
        distance=mse_distance,
        on_image=lambda path, lr, drawn, hr: seen.update({path.name: (lr, drawn, hr)}),
    )
    assert [row.image for row in rows] == ["a.png", "b.png"]
    for row in rows:
        lr, drawn, hr = seen[row.image]
        assert hr.shape[0] % 8 == hr.shape[1] % 8 == 0
        expected = model.sample(to_tensor(lr)[None], 3, temperature=0.5, seed=2)[0]
        assert all(np.array_equal(a, to_uint8(b)) for a, b in zip(drawn, expected, strict=True))
        assert row.psnr == pytest.approx(np.mean([psnr(sample, hr) for sample in drawn]))
        assert row.ssim == pytest.approx(np.mean([ssim(sample, hr) for sample in drawn]))
        lr_psnrs = [lr_psnr(sample, hr, 4) for sample in drawn]
        assert (row.lr_psnr, row.lr_psnr_worst) == pytest.approx((np.mean(lr_psnrs), min(lr_psnrs)))
        assert row.diversity == diversity_score(drawn, hr, mse_distance).score
        with torch.no_grad():
            nll = model.encode(to_tensor(hr)[None], to_tensor(lr)[None]).bits_per_dim.item()
        assert row.nll == nll
    mean = mean_scores(rows, "both")
    assert mean.image == "both"
    assert mean.psnr == pytest.approx((rows[0].psnr + rows[1].psnr) / 2)


def test_low_resolution_folder(folder: Path, tmp_path: Path) -> None:
    hr = load_pair(folder / "a.png", 4)[1]
    lr = imresize(np.ascontiguousarray(hr), 1 / 4)
    write_image(tmp_path / "a.png", np.roll(lr, 1, axis=0))
    truth = tmp_path / "truth"
    truth.mkdir()
    write_image(truth / "a.png", hr)
    assert np.array_equal(load_pair(truth / "a.png", 4, tmp_path / "a.png")[0], np.roll(lr, 1, axis=0))
    with pytest.raises(ValueError, match="2 times lr of 6x8, got 24x32"):
        load_pair(truth / "a.png", 2, tmp_path / "a.png")


def test_small_image_is_named(tmp_path: Path) -> None:
    write_image(tmp_path / "small.png", np.zeros((7, 20, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"small.png must be at least 8 x 8 pixels, got 20 x 7"):
        load_pair(tmp_path / "small.png", 4)


def test_table_and_csv_name_the_distance(model: sr_models.SuperResolutionFlow, folder: Path, tmp_path: Path) -> None:
    rows = evaluate_model(model, folder, samples=2, distance=mse_distance)
    table = scores_table(rows, "mse")
    headings = [word.strip() for word in table.splitlines()[0].split("  ") if word]
    assert headings == ["image", "NLL b/dim", "PSNR", "PSNR-Y", "SSIM", "LR-PSNR", "worst", "diversity(mse)", "mse"]
    assert [line.split()[0] for line in table.splitlines()] == ["image", "a.png", "b.png", "mean"]
    write_scores(tmp_path / "scores.csv", rows, "mse")
    with (tmp_path / "scores.csv").open() as file:
        read = list(csv.DictReader(file))
    named = ["diversity_mse" if field == "diversity" else field for field in vars(rows[0])]
    assert list(read[0]) == ["distance_mse" if field == "distance" else field for field in named]
    assert float(read[1]["diversity_mse"]) == rows[1].diversity
    assert all(math.isfinite(float(row["nll"])) for row in read)


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("size", [(5, 7), (4, 9), (8, 3)])
def test_a_folder_of_low_resolution_images_of_any_size(tmp_path: Path, scale: int, size: tuple[int, int]) -> None:
    """The model sees the whole image, given or made."""
    rng = np.random.default_rng(0)
    lr = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    hr = rng.integers(0, 256, (scale * size[0] + 1, scale * size[1], 3), dtype=np.uint8)
    for name, image in (("lr", lr), ("hr", hr)):
        (tmp_path / name).mkdir()
        write_image(tmp_path / name / "x.png", image)
    if scale * size[1] < 8:
        with pytest.raises(ValueError, match="must be at least 8 x 8 pixels"):
            load_pair(tmp_path / "hr" / "x.png", scale, tmp_path / "lr" / "x.png")
        return
    found_lr, found_hr = load_pair(tmp_path / "hr" / "x.png", scale, tmp_path / "lr" / "x.png")
    assert np.array_equal(found_hr, hr[:-1])
    assert np.array_equal(found_lr, lr)
    made_lr, made_hr = load_pair(tmp_path / "hr" / "x.png", scale)
    assert np.array_equal(made_hr, found_hr)
    assert np.array_equal(made_lr, imresize(np.ascontiguousarray(hr[:-1]), 1 / scale))


@pytest.mark.parametrize("given", [False, True])
def test_whole_images_are_enlarged_and_cropped_afterwards(
    model: sr_models.SuperResolutionFlow, tmp_path: Path, given: bool
) -> None:
    """A last row and column of the low-resolution image that the crop leaves out are seen by the model nevertheless."""
    hr = np.random.default_rng(0).integers(0, 256, (20, 28, 3), dtype=np.uint8)
    lr = imresize(hr, 1 / 4)
    assert lr.shape == (5, 7, 3)
    for name, image in (("hr", hr), ("lr", lr)):
        (tmp_path / name).mkdir()
        write_image(tmp_path / name / "x.png", image)
    options = {"lr_images": tmp_path / "lr"} if given else {}
    (row,) = evaluate_model(model, tmp_path / "hr", samples=2, temperature=0.5, distance=mse_distance, **options)
    drawn = [to_uint8(sample) for sample in model.sample(to_tensor(lr)[None], 2, temperature=0.5)[0]]
    truth = np.ascontiguousarray(hr[:16, :24])
    cropped = [np.ascontiguousarray(sample[:16, :24]) for sample in drawn]
    assert row.sample_psnrs == tuple(psnr(sample, truth) for sample in cropped)
    assert row.sample_lr_psnrs == tuple(lr_psnr(sample, truth, 4) for sample in cropped)
    with torch.no_grad():
        assert row.nll == model.encode(to_tensor(hr)[None], to_tensor(lr)[None]).bits_per_dim.item()
    assert row.seconds > 0
