"""Setup of the tests of checkpoints: the folder of a run as training writes it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_runs import content_of

import sr_models
from sr_models.checkpoints.files import save_model


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[..., Path]:
    """``run_folder(last=..., previous=..., ended=...)``: a folder with these weights; its files are in this order."""

    def make(**models: sr_models.SuperResolutionFlow) -> Path:
        run = tmp_path / "run"
        (run / "checkpoints").mkdir(parents=True)
        for number, (name, model) in enumerate(models.items(), 1):
            if name == "ended":
                path = run / "model.safetensors"
                save_model(model, path)
            else:
                path = run / "checkpoints" / f"{name}.ckpt"
                torch.save(content_of(model, step=number), path)
            os.utime(path, (number, number))
        return run

    return make
