"""A package that brings its own model: installed, and used from the command line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import PATIENCE

from sr_models.io.images import read_image, write_image

SOURCE = Path(__file__).parents[1] / "data" / "plugin_example"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the package is installed in."""
    folder = tmp_path_factory.mktemp("plugin")
    # building leaves files in the source folder
    source = shutil.copytree(SOURCE, folder / "source")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", str(folder / "site"), str(source)], check=True, timeout=PATIENCE)
    return folder / "site"


def sr_models(site: Path | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if site is not None:
        environment["PYTHONPATH"] = str(site)
    command = [sys.executable, "-m", "sr_models.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_without_the_package_there_is_no_such_model() -> None:
    result = sr_models(None, "describe", "--model", "one-level", "--scale", "2")
    assert result.returncode == 2
    assert "model must be one of" in result.stderr


def test_the_model_is_listed_trained_and_sampled(site: Path, tmp_path: Path) -> None:
    listed = sr_models(site, "list")
    assert "one-level: A flow at the low resolution.\n    scales 2, 4; presets released\n" in listed.stdout
    (tmp_path / "images").mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    write_image(tmp_path / "images" / "a.png", picture)
    options = f"--images {tmp_path / 'images'} --crop 8 --batch_size 2 --steps 2 --encoder_steps 1 --accelerator cpu"
    trained = sr_models(site, *f"train --model one-level --scale 2 {options} --output {tmp_path / 'run'}".split())
    assert trained.returncode == 0, trained.stderr
    checkpoint = tmp_path / "run" / "model.safetensors"
    sampled = sr_models(
        site,
        *f"sample --checkpoint {checkpoint} --images {tmp_path / 'images'} --output {tmp_path / 'out'} --n 1".split(),
    )
    assert sampled.returncode == 0, sampled.stderr
    assert read_image(tmp_path / "out" / "a_sample000.png").shape == (48, 40, 3)
