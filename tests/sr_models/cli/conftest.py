"""Setup of the tests of the commands: two photographs, and a tiny model trained on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

import sr_models
from sr_models.checkpoints.files import save_model
from sr_models.cli import main
from sr_models.io.images import write_image
from sr_models.io.resize import imresize

TINY = "{steps: 1, hidden_channels: 4, features: 4, growth: 2, blocks: 2, stacked_blocks: [0, 1]}"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        picture = imresize(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8), 4)
        write_image(path / f"{name}.png", picture)
    return path


@pytest.fixture(scope="session")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    arguments = f"train --model srflow-da --images {folder} --val_images {folder} --crop 16 --batch_size 2 --steps 4"
    arguments += f" --encoder_steps 1 --val_every 2 --save_every 2 --output {path} --accelerator cpu"
    assert main([*arguments.split(), "--overrides", TINY]) == 0
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(sr_models.create("srflow-da", **yaml.safe_load(TINY)), path)
    return path


@pytest.fixture
def sample(model: Path, tmp_path: Path) -> Callable[..., int]:
    """The command, one sample an image, from ``tmp_path / "in"`` to ``tmp_path / "out"`` unless told otherwise."""

    def call(*more: object, images: object = tmp_path / "in", output: Path = tmp_path / "out") -> int:
        given = images if isinstance(images, list) else [images]
        command = ["sample", "--checkpoint", model, "--images", *given, "--output", output, "--n", 1, *more]
        return main([str(part) for part in command])

    return call
