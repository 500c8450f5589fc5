"""Models that come with the package: their names stand for their files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sr_models
from sr_models.checkpoints import shipped
from sr_models.checkpoints.files import load_model, read_file, read_weights, save_model, write_file
from sr_models.checkpoints.initial import load_initial_weights
from sr_models.checkpoints.shipped import shipped_file, shipped_models
from sr_models.cli import main
from sr_models.evaluation.metrics import lr_psnr, psnr
from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.images import read_image, to_tensor, to_uint8, write_image
from sr_models.io.resize import imresize

NAMES = ["ncsr-tiny", "srflow-da-tiny"]
TINY: dict[str, Any] = {"steps": 1, "hidden_channels": 4, "features": 4, "growth": 2, "blocks": 2, "stacked_blocks": ()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped models that holds one, ``mine``, in half precision, and the current folder beside it."""
    torch.manual_seed(0)
    model = sr_models.create("srflow-da", base="image", **TINY)
    with torch.no_grad():
        model.encode(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 8, 8))
    monkeypatch.setattr(shipped, "_FOLDER", tmp_path / "shipped")
    (tmp_path / "shipped").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    save_model(model.half(), tmp_path / "shipped" / "mine.safetensors")
    return tmp_path / "shipped"


def _same(found: SuperResolutionFlow, folder: Path) -> bool:
    expected = load_model(folder / "mine.safetensors").float().state_dict()
    return all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())


def test_names_stand_for_files(folder: Path) -> None:
    assert shipped_models() == ["mine"]
    assert shipped_file("mine") == folder / "mine.safetensors"
    assert shipped_file("other") is None
    for model in (sr_models.load("mine"), load_model("mine")):
        assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
        assert not model.training
        assert _same(model, folder)
    assert read_weights("mine").file == folder / "mine.safetensors"


def test_the_file_names_the_temperature(folder: Path) -> None:
    assert sr_models.load("mine").temperature == 0.9
    description, tensors = read_file(folder / "mine.safetensors")
    assert "temperature" not in description
    write_file(folder / "mine.safetensors", {**description, "temperature": 0.75}, tensors)
    model = sr_models.load("mine")
    assert model.temperature == 0.75
    save_model(model, "again.safetensors")
    assert read_file("again.safetensors")[0]["temperature"] == 0.75
    assert load_model("again.safetensors").temperature == 0.75


@pytest.mark.parametrize("value", [-1, "warm", None, [], [0.5, 0.5], math.inf])
def test_a_temperature_that_is_none_is_refused(folder: Path, value: object) -> None:
    description, tensors = read_file(folder / "mine.safetensors")
    write_file(folder / "mine.safetensors", {**description, "temperature": value}, tensors)
    with pytest.raises(ValueError, match=r"cannot load model .*mine.safetensors: "):
        sr_models.load("mine")


def test_training_starts_from_a_name(folder: Path) -> None:
    model = sr_models.create("srflow-da", base="image", **TINY)
    assert load_initial_weights(model, "mine") == f"starts from {folder / 'mine.safetensors'}"
    assert _same(model, folder)


@pytest.mark.parametrize("name", ["other", "", "../shipped/mine", "mine.safetensors"])
def test_unknown_names(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"name must be one of 'mine', got '{name}'$"):
        sr_models.load(name)


def test_sampling_says_which_names_there_are(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(Path("a.png"), np.zeros((4, 4, 3), np.uint8))
    assert main(["sample", "a.png", "--checkpoint", "mine-tiny"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "sr-models: error: model mine-tiny does not exist, neither as a file nor as the folder of a run; "
        "models that come with this package: mine"
    )


def test_a_path_of_the_same_name_comes_first(folder: Path) -> None:
    Path("mine").mkdir()
    other = sr_models.create("srflow-da", **TINY)
    save_model(other, Path("mine") / "model.safetensors")
    assert torch.equal(load_model("mine").encoder.conv_first.weight, other.encoder.conv_first.weight)
    assert _same(sr_models.load("mine"), folder)


def test_a_photograph_is_all_that_the_command_needs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "mine.safetensors").rename(folder / "srflow-da-tiny.safetensors")
    image = np.random.default_rng(0).integers(0, 256, (9, 10, 3), dtype=np.uint8)
    for name in ("a", "b"):
        write_image(Path(f"{name}.png"), image)
    assert main(["sample", "a.png", "b.png", "-n", "2", "--temperature", "0.5"]) == 0
    assert sorted(path.name for path in Path("samples").glob("*_sample*.png")) == [
        f"{name}_sample00{number}.png" for name in "ab" for number in range(2)
    ]
    assert read_image(Path("samples/a_sample000.png")).shape == (36, 40, 3)
    assert main(["sample", "a.png", "-n=3"]) == 2  # other settings than the samples that are there
    assert main(["sample", "a.png", "-n=3", "--output", "more"]) == 0
    assert len(list(Path("more").glob("*.png"))) == 3


def test_the_models_of_the_package() -> None:
    assert shipped_models() == NAMES
    for name in NAMES:
        file = shipped_file(name)
        assert file is not None
        assert file.stat().st_size < 6_000_000
        model = sr_models.load(name)
        assert f"{model.name}-tiny" == name
        assert model.config == sr_models.create(model.name, preset="tiny").config
        assert (file.with_suffix(".md")).read_text().startswith(f"# {name}, 4x")


def test_the_command_samples_the_one_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lr = np.random.default_rng(0).integers(100, 140, (8, 8, 3), dtype=np.uint8)
    write_image(Path("a.png"), lr)
    for name in NAMES:
        assert main(["sample", "a.png", "--checkpoint", name, "-n", "1", "--output", name]) == 0
        expected = sr_models.load(name).sample(to_tensor(lr)[None])[0, 0]
        np.testing.assert_array_equal(read_image(Path(name) / "a_sample000.png"), to_uint8(expected))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_the_package_is_better_than_bicubic(name: str) -> None:
    skimage_data = pytest.importorskip("skimage.data")
    hr = np.ascontiguousarray(skimage_data.chelsea()[64:192, 96:224])
    lr = imresize(hr, 1 / 4)
    model = sr_models.load(name)
    image, sample = (
        to_uint8(model.sample(to_tensor(lr)[None], temperature=temperature)[0, 0]) for temperature in (0.0, 0.8)
    )
    bicubic = imresize(lr, 4)
    assert psnr(image, hr) > psnr(bicubic, hr) + 0.7
    assert lr_psnr(sample, hr, 4) > lr_psnr(bicubic, hr, 4) + 3
    assert np.abs(sample.astype(int) - image).mean() > 0.5


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_the_package_copes_with_a_sharp_photograph(name: str) -> None:
    skimage_data = pytest.importorskip("skimage.data")
    lr = np.ascontiguousarray(skimage_data.coffee()[228:260, 372:404])  # highlights on a spoon, straight from a camera
    model = sr_models.load(name)
    for seed in range(2):
        sample = to_uint8(model.sample(to_tensor(lr)[None], seed=seed, on_explode="error")[0, 0])
        error = imresize(sample, 1 / 4).astype(int) - lr
        assert np.sqrt((error**2).mean()) < 6
