"""The demonstration in small: a real run of a few steps, and the report that it writes."""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

import sr_models
from sr_models.checkpoints.files import save_model
from sr_models.demo import run
from sr_models.demo.photographs import PHOTOGRAPHS
from sr_models.demo.run import demo_config, run_demo
from sr_models.evaluation.metrics import mse_distance
from sr_models.evaluation.scores import read_scores
from sr_models.io.images import read_image, to_tensor, to_uint8, write_image
from sr_models.training.config import TrainingConfig

TINY = {"steps": 1, "hidden_channels": 4, "features": 4, "growth": 2, "blocks": 2, "stacked_blocks": (0, 1)}


@pytest.mark.slow
def test_report(tmp_path: Path) -> None:
    report = run_demo(tmp_path, steps=20, seed=1, samples=2)
    text = report.read_text()
    assert "bits per dimension after initialisation" in text
    pictures = re.findall(r"src='data:image/png;base64,([^']+)'", text)
    # overview and curve, and for both photographs 4 whole, 8 details and the map
    assert len(pictures) == 2 + 2 * (4 + 8 + 1)
    for picture in pictures:
        assert np.array(Image.open(io.BytesIO(base64.b64decode(picture)))).std() > 1
    for label in (
        "bicubic",
        "bicubic, back-projected",
        "temperature 0",
        "temperature 0.5",
        "temperature 0.9",
        "diversity (",
    ):
        assert label in text
    assert (tmp_path / "pictures" / "chelsea_t0.9_sample001.png").exists()
    assert (tmp_path / "overview.png").exists()
    assert (tmp_path / "scores.csv").read_text().count("\n") == 6


def test_what_is_made_of_a_trained_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the training, which is replaced by a model with random weights."""
    torch.manual_seed(0)
    model = sr_models.create("srflow-da", scale=4, **TINY).eval()
    rng = np.random.default_rng(0)
    truths = {name: rng.integers(0, 256, (32, 48, 3), dtype=np.uint8) for name in ("cat", "dog")}
    configs = []

    def unpack(folder: Path) -> tuple[Path, Path]:
        for name, image in truths.items():
            (folder / "test").mkdir(parents=True, exist_ok=True)
            write_image(folder / "test" / f"{name}.png", image)
        return folder / "train", folder / "test"

    def train(config: TrainingConfig, folder: Path) -> Path:
        configs.append(config)
        with SummaryWriter(str(folder / "logs")) as writer:
            writer.add_scalar("nll", 3.0, 0)
            writer.add_scalar("val_nll", 4.25, 0)
        save_model(model, folder / "model.safetensors")
        return folder / "model.safetensors"

    monkeypatch.setattr(run, "unpack_photographs", unpack)
    monkeypatch.setattr(run, "train_model", train)
    monkeypatch.setattr(run, "best_available_distance", lambda: ("mse", mse_distance))
    photographs = tmp_path / "photographs"
    report = run_demo(tmp_path, steps=30, seed=3, samples=2)

    assert configs == [demo_config(photographs / "train", photographs / "test", steps=30, seed=3)]
    samples = ["t0_sample000", *(f"t{t}_sample00{index}" for t in ("0.5", "0.9") for index in (0, 1))]
    kinds = ["lr", "bicubic", "truth", *samples]
    names = sorted(f"{name}_{kind}.png" for name in truths for kind in kinds)
    pictures = {path.name: read_image(path) for path in (tmp_path / "pictures").iterdir()}
    assert sorted(pictures) == names
    for name, truth in truths.items():
        assert np.array_equal(pictures[f"{name}_truth.png"], truth)
        lr = pictures[f"{name}_lr.png"]
        assert lr.shape == (8, 12, 3)
        drawn = model.sample(to_tensor(lr)[None], 2, temperature=0.9, seed=3)[0]
        for index, sample in enumerate(drawn):
            assert np.array_equal(pictures[f"{name}_t0.9_sample00{index}.png"], to_uint8(sample))
        enlarged = pictures[f"{name}_bicubic.png"]
        assert enlarged.shape == truth.shape
        # the enlarged image is as bright as the small one
        assert abs(enlarged.mean() - lr.mean()) < 2
    rows = read_scores(tmp_path / "scores.csv", "mse")
    assert [row.image for row in rows] == [
        *("bicubic", "bicubic, back-projected", "temperature 0", "temperature 0.5", "temperature 0.9")
    ]
    text = report.read_text()
    trained = sum(photograph.train for photograph in PHOTOGRAPHS)
    for words in (
        f"SRFlow-DA 4x, small, trained on {trained} photographs",
        "30 training steps in all",
        "with the distance <b>mse</b>",
        "4.250 bits per dimension after initialisation",
        *(html.escape(photograph.attribution) for photograph in PHOTOGRAPHS),
    ):
        assert words in text


def test_too_few_steps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="steps must be at least 10, got 9"):
        run_demo(tmp_path, steps=9, seed=0)
    assert not list(tmp_path.iterdir())
