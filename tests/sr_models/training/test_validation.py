"""Validation: its figures are those of the evaluation, and nothing about the model makes it fail."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import invflow
import sr_models
from sr_models.evaluation.evaluate import evaluate_model
from sr_models.evaluation.scores import mean_scores
from sr_models.flow.explosions import ExplosionError
from sr_models.flow.noise import clean_condition
from sr_models.io.images import to_tensor, to_uint8, write_image
from sr_models.io.resize import imresize
from sr_models.training.validation import MOST_CROPS, TEMPERATURE, Scores, Validation

CPU = torch.device("cpu")


def picture(seed: int, side: int = 40) -> np.ndarray:
    """A smooth picture with some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    waves = [127 + 90 * np.sin(rng.uniform(2, 9) * x + rng.uniform(2, 9) * y) for _ in range(3)]
    return np.clip(np.stack(waves, -1) + rng.normal(0, 8, (side, side, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photographs")
    for seed in range(2):
        write_image(path / f"{seed}.png", picture(seed))
    return path


@pytest.fixture(scope="module")
def validation(photographs: Path) -> Validation:
    return Validation(photographs, scale=4, crop=16, seed=3)


def tiny(name: str = "srflow-da", *, seed: int = 0) -> sr_models.SuperResolutionFlow:
    """A tiny model whose actnorms are initialised and whose networks no longer begin at zero."""
    options = {"steps": 1, "hidden_channels": 4, "features": 4, "growth": 2, "blocks": 2, "stacked_blocks": [0, 1]}
    torch.manual_seed(seed)
    model = sr_models.create(name, **options, **({"noise_steps": [0, 1, 1]} if name == "ncsr" else {}))
    lr = torch.rand(4, 3, 8, 8)
    hr = torch.nn.functional.interpolate(lr, scale_factor=4) + 0.1 * torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        model.train().encode(hr, lr, clean_condition(model, hr))
        for parameter in model.levels.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    return model.eval()


def all_crops(validation: Validation) -> tuple[Tensor, Tensor]:
    hr, lr = (torch.stack([item[name] for item in validation.crops]) for name in ("hr", "lr"))
    return hr, lr


@pytest.mark.parametrize("name", ["srflow-da", "srflow", "ncsr"])
def test_nll_is_the_mean_bits_per_dimension_of_clean_crops(validation: Validation, name: str) -> None:
    model = tiny(name)
    hr, lr = all_crops(validation)
    with torch.no_grad():
        expected = model.encode(hr, lr, clean_condition(model, hr)).bits_per_dim.mean().item()
    assert validation(model, CPU).figures["val_nll"] == pytest.approx(expected, rel=1e-5)


def test_figures_are_those_of_the_evaluation(validation: Validation, tmp_path: Path) -> None:
    model = tiny()
    for index, item in enumerate(validation.crops):
        write_image(tmp_path / f"{index}.png", to_uint8(item["hr"]))
    figures = validation(model, CPU).figures
    options = {"samples": 1, "seed": 3, "distance": lambda a, b: np.zeros(a.shape[:2])}
    mean = mean_scores(evaluate_model(model, tmp_path, temperature=0.0, **options))
    sampled = mean_scores(evaluate_model(model, tmp_path, temperature=TEMPERATURE, **options))
    # batches of other sizes may round a few pixels otherwise
    assert figures["val_psnr"] == pytest.approx(mean.psnr, abs=0.02)
    assert figures["val_lr_psnr"] == pytest.approx(sampled.lr_psnr, abs=0.02)
    assert figures["val_nll"] == pytest.approx(mean.nll, rel=1e-5)
    assert abs(mean.lr_psnr - sampled.lr_psnr) > 0.1  # the temperature matters


def test_the_same_model_has_the_same_scores_and_random_numbers_are_left_alone(
    validation: Validation, photographs: Path
) -> None:
    model = tiny()
    before = torch.get_rng_state()
    first = validation(model, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    again = Validation(photographs, scale=4, crop=16, seed=3)(model, CPU)
    assert again.figures == first.figures
    assert torch.equal(again.pictures, first.pictures)
    other = Validation(photographs, scale=4, crop=16, seed=4)(model, CPU).figures
    assert other["val_lr_psnr"] != first.figures["val_lr_psnr"]
    assert other["val_psnr"] == first.figures["val_psnr"]


def test_of_many_crops_some_of_every_image_are_taken(tmp_path: Path) -> None:
    for seed in range(12):
        write_image(tmp_path / f"{seed:02d}.png", picture(seed))
    validation = Validation(tmp_path, scale=4, crop=16, seed=0)
    assert len(validation.crops) == MOST_CROPS == 32
    assert {Path(item["path"]).stem for item in validation.crops} == {f"{seed:02d}" for seed in range(12)}
    assert len({item["hr"].numpy().tobytes() for item in validation.crops}) == 32
    assert validation.summary[0].startswith("validation: 32 crops of 12 images in ")


def test_the_first_crops_which_are_shown_are_of_different_images(validation: Validation) -> None:
    assert [Path(item["path"]).stem for item in validation.crops] == ["0", "1"] * 4


def test_summary_says_what_is_not_used(photographs: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "good.png", picture(0))
    write_image(tmp_path / "small.png", picture(0, side=12))
    first, *rest = Validation(tmp_path, scale=4, crop=16, seed=0).summary
    assert first.startswith("validation: 4 crops of 1 image in ")
    assert any("small.png" in line for line in rest)


def test_given_low_resolution_images_are_used(photographs: Path, tmp_path: Path) -> None:
    for seed in range(2):
        write_image(tmp_path / f"{seed}.png", np.full((10, 10, 3), 40 + seed, np.uint8))
    crops = Validation(photographs, scale=4, crop=16, seed=0, lr_images=tmp_path).crops
    assert {float((item["lr"] * 255).round().max()) for item in crops} == {40.0, 41.0}


class TestState:
    def test_every_module_keeps_its_mode(self, validation: Validation) -> None:
        model = tiny().train()
        model.encoder.eval()
        model.levels[1].layers[0].eval()
        before = [module.training for module in model.modules()]
        validation(model, CPU)
        assert [module.training for module in model.modules()] == before
        assert len(set(before)) == 2

    @pytest.mark.parametrize("encoder_only", [False, True])
    def test_also_after_an_exception(
        self, validation: Validation, monkeypatch: pytest.MonkeyPatch, encoder_only: bool
    ) -> None:
        model = tiny().train()
        modes = []

        def fail(*_: object, **__: object) -> None:
            modes.append(model.training)
            raise RuntimeError("no memory")

        monkeypatch.setattr(model.encoder, "_trunk", fail)
        with pytest.raises(RuntimeError, match="no memory"):
            validation(model, CPU, encoder_only=encoder_only)
        assert modes == [False]
        assert all(module.training for module in model.modules())
        assert torch.is_grad_enabled()

    @pytest.mark.parametrize("encoder_only", [False, True])
    def test_no_graph_is_recorded(
        self, validation: Validation, monkeypatch: pytest.MonkeyPatch, encoder_only: bool
    ) -> None:
        model = tiny()
        trunk, recording = model.encoder._trunk, []

        def watch(lr: Tensor) -> object:
            recording.append(torch.is_grad_enabled())
            return trunk(lr)

        monkeypatch.setattr(model.encoder, "_trunk", watch)
        validation(model, CPU, encoder_only=encoder_only)
        assert set(recording) == {False}

    def test_no_gradient_is_made_or_lost(self, validation: Validation) -> None:
        model = tiny()
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        assert not validation(model, CPU).pictures.requires_grad
        assert all(torch.equal(parameter.grad, torch.ones_like(parameter)) for parameter in model.parameters())

    def test_precision_is_float32_within_autocast(self, validation: Validation) -> None:
        model = tiny()
        expected = validation(model, CPU).figures
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert validation(model, CPU).figures == expected


class TestFailures:
    def test_no_finite_likelihood(self, validation: Validation) -> None:
        model = tiny()
        for part in model.modules():
            if isinstance(part, invflow.ActNorm):
                with torch.no_grad():
                    part.bias.fill_(math.nan)
                break
        scores = validation(model, CPU)
        assert scores.figures["val_nll"] == math.inf
        assert all(math.isfinite(scores.figures[name]) for name in ("val_psnr", "val_lr_psnr"))
        assert bool(scores.pictures.isfinite().all())
        assert scores.notes == (
            "validation: 8 of 8 crops have no finite likelihood; val_nll counts as infinite",
            "validation: 16 of 16 samples exploded; their activations were clamped",
        )

    @pytest.mark.parametrize("exploding", [(0,), (1, 6)])
    def test_samples_that_explode_are_clamped_and_counted_alone(
        self, validation: Validation, monkeypatch: pytest.MonkeyPatch, exploding: tuple[int, ...]
    ) -> None:
        model = tiny()
        expected = validation(model, CPU)
        bad = [validation.crops[index]["lr"] for index in exploding]
        sample = sr_models.SuperResolutionFlow.sample
        clamped = []

        def explode(model: sr_models.SuperResolutionFlow, lr: Tensor, **options: object) -> Tensor:
            if any(torch.equal(one, other) for one in lr for other in bad) and options["temperature"]:
                if options["on_explode"] != "clamp":
                    raise ExplosionError("sample 0 exploded")
                clamped.append(len(lr))
                return torch.zeros_like(sample(model, lr, **options))
            return sample(model, lr, **options)

        monkeypatch.setattr(sr_models.SuperResolutionFlow, "sample", explode)
        scores = validation(model, CPU)
        assert clamped == [1] * len(exploding)
        assert scores.notes == (f"validation: {len(exploding)} of 16 samples exploded; their activations were clamped",)
        assert scores.figures["val_psnr"] == expected.figures["val_psnr"]
        assert scores.figures["val_lr_psnr"] < expected.figures["val_lr_psnr"]

    def test_an_encoder_that_is_not_finite(self, validation: Validation) -> None:
        model = tiny()
        with torch.no_grad():
            model.encoder.last_conv.bias[1] = math.nan
        scores = validation(model, CPU, encoder_only=True)
        assert all(map(math.isfinite, scores.figures.values()))
        assert bool(scores.pictures.isfinite().all())
        assert scores.notes == ("validation: 8 of 8 images of the encoder are not finite",)

    def test_identical_images_do_not_make_a_mean_infinite(
        self, photographs: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        validation = Validation(photographs / "0.png", scale=4, crop=16, seed=0)
        model = tiny()
        monkeypatch.setattr(model.encoder, "image", lambda lr: all_crops(validation)[0])
        assert validation(model, CPU, encoder_only=True).figures == {"val_psnr": 100.0, "val_lr_psnr": 100.0}


def rows(scores: Scores, side: int = 16) -> list[list[Tensor]]:
    """Take a picture apart; its images have a frame of one white pixel."""
    lines = scores.pictures.split(side + 2, dim=1)
    return [[image[:, 1:-1, 1:-1] for image in line.split(side + 2, dim=2)] for line in lines]


class TestPictures:
    def test_of_a_flow(self, validation: Validation) -> None:
        model = tiny()
        scores = validation(model, CPU)
        assert scores.rows == ("bicubic", "temperature 0", "temperature 0.8", "truth")
        assert scores.pictures.shape == (3, 4 * 18, 4 * 18)
        assert scores.pictures.dtype == torch.float32
        assert scores.pictures.min() >= 0
        assert scores.pictures.max() <= 1
        hr, lr = (images[:4] for images in all_crops(validation))
        bicubic, coldest, warm, truth = rows(scores)
        for index in range(4):
            assert torch.equal(truth[index], hr[index])
            assert torch.equal(bicubic[index], to_tensor(imresize(to_uint8(lr[index]), 4)))
        assert torch.equal(torch.stack(coldest), model.sample(lr, temperature=0.0)[:, 0])
        assert torch.equal(torch.stack(warm), model.sample(lr, temperature=0.8, seed=3)[:, 0])

    def test_of_an_encoder(self, validation: Validation) -> None:
        model = sr_models.create(
            "srflow-da", steps=1, hidden_channels=4, features=4, growth=2, blocks=2, stacked_blocks=[0, 1]
        )  # its actnorms are not initialised: the flow is not asked
        scores = validation(model, CPU, encoder_only=True)
        assert scores.rows == ("bicubic", "encoder", "truth")
        assert set(scores.figures) == {"val_psnr", "val_lr_psnr"}
        _, lr = all_crops(validation)
        with torch.no_grad():
            image = model.encoder.image(lr[:4]).clamp(0, 1)
        assert torch.equal(torch.stack(rows(scores)[1]), image)

    def test_of_fewer_than_four_crops(self, tmp_path: Path) -> None:
        write_image(tmp_path / "one.png", picture(0, side=16))
        assert Validation(tmp_path, scale=4, crop=16, seed=0)(tiny(), CPU).pictures.shape == (3, 4 * 18, 18)


def test_a_bad_seed_is_refused(photographs: Path) -> None:
    with pytest.raises(ValueError, match="seed must be in 0"):
        Validation(photographs, scale=4, crop=16, seed=-1)
