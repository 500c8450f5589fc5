"""The batch that initialises a flow varies, wherever the first crops come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import sr_models
from sr_models.checkpoints.files import load_model
from sr_models.data.crops import RandomCrops
from sr_models.io.images import write_image
from sr_models.training.config import TrainingConfig
from sr_models.training.initialization import initialize_flow, varied_batch
from sr_models.training.objective import Objective
from sr_models.training.run import train_model
from sr_models.training.state import begin

MakeConfig = Callable[..., TrainingConfig]
BLANK, GRAIN, COLOURLESS = "blank", "grain", "one colour blank"


def page(kind: str) -> np.ndarray:
    """A scanned page: white, or white with a compression's grain, and a photograph in a corner."""
    rng = np.random.default_rng(0)
    image = np.full((320, 320, 3), 255, np.uint8)
    if kind == GRAIN:
        image -= (rng.random(image.shape) < 0.04).astype(np.uint8)
    if kind == COLOURLESS:
        image[..., :2] = rng.integers(0, 256, (320, 320, 2))
    image[240:, 240:] = rng.integers(0, 256, (80, 80, 3))
    return image


@pytest.fixture(params=[BLANK, GRAIN, COLOURLESS])
def scans(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    write_image(folder / "page.png", page(request.param))
    return folder


def crops(folder: Path, seed: int = 0) -> RandomCrops:
    return RandomCrops(folder, scale=4, crop=16, length=1000, seed=seed)


def batch_of(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([item[name] for item in items]) for name in ("hr", "lr")}


@pytest.mark.parametrize("size", [1, 3])
def test_blank_crops_are_replaced(scans: Path, size: int) -> None:
    for seed in range(6):
        data = crops(scans, seed)
        first = batch_of([data[index] for index in range(size)])
        copy = {name: tensor.clone() for name, tensor in first.items()}
        varied = varied_batch(first, data)
        squeezed = torch.nn.functional.pixel_unshuffle(varied["hr"], 4)
        assert (squeezed.var((2, 3)).mean(0) > 0.04**2).all()
        assert all(varied[name].shape == copy[name].shape for name in copy)
        # the batch that is trained on stays as it is, and crops keep their low-resolution images
        assert all(torch.equal(first[name], copy[name]) for name in copy)
        torch.testing.assert_close(
            torch.nn.functional.avg_pool2d(varied["hr"], 16), torch.nn.functional.avg_pool2d(varied["lr"], 4), rtol=0,
            atol=0.05,
        )  # fmt: skip
        again = varied_batch(first, crops(scans, seed))
        assert all(torch.equal(varied[name], again[name]) for name in varied)


def test_a_batch_of_photographs_stays_as_it_is(folder: Path) -> None:
    data = crops(folder)
    first = batch_of([data[index] for index in range(6)])
    varied = varied_batch(first, data)
    assert all(torch.equal(varied[name], first[name]) for name in first)


def test_the_crop_that_varies_least_goes_first(tmp_path: Path) -> None:
    write_image(tmp_path / "photograph.png", np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    data = crops(tmp_path)
    faint = 0.5 + 0.04 * torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    flat = torch.full((3, 16, 16), 0.25)
    small = torch.full((3, 4, 4), 0.5)
    varied = varied_batch({"hr": torch.stack([faint, flat]), "lr": torch.stack([small, small])}, data)
    assert torch.equal(varied["hr"][0], faint)
    assert not torch.equal(varied["hr"][1], flat)


def test_a_crop_with_a_single_column_that_varies_counts_as_blank(tmp_path: Path) -> None:
    write_image(tmp_path / "photograph.png", np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    data = crops(tmp_path)
    edge = torch.ones(3, 16, 16)
    edge[..., -1] = torch.rand(3, 16, generator=torch.Generator().manual_seed(0))
    varied = varied_batch({"hr": edge[None], "lr": torch.ones(1, 3, 4, 4)}, data)
    torch.testing.assert_close(varied["hr"].std(), torch.tensor(0.29), rtol=0, atol=0.02)


def test_the_search_ends_where_everything_is_blank(tmp_path: Path) -> None:
    write_image(tmp_path / "white.png", np.full((40, 40, 3), 255, np.uint8))
    data = crops(tmp_path)
    first = batch_of([data[0], data[1]])
    assert torch.equal(varied_batch(first, data)["hr"], first["hr"])


@torch.no_grad()
def test_the_flow_begins_with_the_batch_of_its_first_step(config: MakeConfig, folder: Path) -> None:
    run = config(encoder_steps=3, batch_size=2)
    data = crops(folder, run.seed)
    model = sr_models.create(run.model, **run.overrides)
    content = {**begin(model), "step": 3, "optimizer": {"encoder.conv_first.weight": {"step": torch.tensor(3.0)}}}
    content["average"] = {name: torch.full_like(p, 5.0) for name, p in model.named_parameters()}
    before = {name: tensor.clone() for name, tensor in content["model"].items()}

    changed = initialize_flow(content, run, data, torch.device("cpu"))

    expected = sr_models.create(run.model, **run.overrides).train()
    expected.load_state_dict(before)
    batch = batch_of([data[6], data[7]])
    Objective(expected, run)(batch["hr"], batch["lr"], [6, 7], "nll")
    assert any(not torch.equal(tensor, before[name]) for name, tensor in expected.state_dict().items())
    assert changed.keys() == {"model", "average", "optimizer"}
    for name, tensor in expected.state_dict().items():
        assert torch.equal(changed["model"][name], tensor), name
    for name, parameter in expected.named_parameters():
        average = torch.full_like(parameter, 5.0) if name.startswith("encoder.") else parameter
        assert torch.equal(changed["average"][name], average), name
    assert changed["optimizer"] == {}
    assert all(torch.equal(tensor, before[name]) for name, tensor in content["model"].items())
    assert initialize_flow({**content, "average": None}, run, data, torch.device("cpu"))["average"] is None


@pytest.mark.parametrize("model", ["srflow-da", "ncsr"])
def test_pages_train_with_every_seed(config: MakeConfig, scans: Path, tmp_path: Path, model: str) -> None:
    overrides = {**config().overrides, **({"noise_steps": [0, 1, 1], "noise_std": 0.0} if model == "ncsr" else {})}
    settings = {"model": model, "overrides": overrides, "images": str(scans), "val_images": None, "noise_std": 0.0}
    settings |= {"encoder_steps": 0, "steps": 20, "batch_size": 1, "lr": 2e-4, "crop": 32}
    for seed in range(11, 17):
        run = config(**settings, seed=seed)
        data = RandomCrops(scans, scale=4, crop=32, length=20, seed=seed)
        state = begin(sr_models.create(run.model, **run.overrides))
        flow = initialize_flow(state, run, data, torch.device("cpu"))["model"]
        # a blank crop gives 13.8 and one of grain 7 to 8; photographs give up to 5.1 with so few pixels
        assert max(float(tensor.abs().max()) for name, tensor in flow.items() if name.endswith("log_scale")) < 6
    # fails if a likelihood of it is not finite
    trained = load_model(train_model(run, tmp_path / "run", accelerator="cpu"))
    scales = [p.abs().max().item() for name, p in trained.named_parameters() if name.endswith("log_scale")]
    assert max(scales) < 6
