"""Numbers of steps: one for every level or one a level, checked, and kept by files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sr_models
from sr_models.checkpoints.files import load_model, read_file, save_model
from sr_models.models.ncsr import NoiseConditionalStep

TINY: dict[str, Any] = {"hidden_channels": 4, "features": 4, "growth": 2, "blocks": 2, "stacked_blocks": (0, 1)}


def test_every_level_has_its_number_of_steps() -> None:
    levels = sr_models.describe("srflow", scale=4, steps=[8, 12, 16], **TINY).levels
    assert [level.steps for level in levels] == [8, 12, 16]
    assert [level.steps for level in sr_models.describe("srflow-da", scale=8, steps=(3, 1, 2), **TINY).levels] == [
        3,
        1,
        2,
    ]


def test_one_number_and_equal_numbers_are_the_same() -> None:
    with torch.device("meta"):
        one, three = (sr_models.create("srflow", steps=steps, **TINY) for steps in (2, [2, 2, 2]))
    assert one.config == three.config
    assert one.config.steps == 2
    assert one.config.level_steps == (2, 2, 2)


@pytest.mark.parametrize("steps", [(2, 1, 3), 2])
def test_files_keep_the_numbers(tmp_path: Path, steps: int | tuple[int, ...]) -> None:
    model = sr_models.create("srflow", steps=steps, **TINY)
    save_model(model, tmp_path / "model.safetensors")
    stored = read_file(tmp_path / "model.safetensors")[0]["config"]["steps"]
    assert stored == (list(steps) if isinstance(steps, tuple) else steps)
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.config == model.config
    assert loaded.config.steps == steps


def test_unequal_levels_are_invertible() -> None:
    model = sr_models.create("srflow", steps=[1, 3, 2], **TINY).double().eval()
    hr, lr = torch.rand(2, 3, 16, 16).double(), torch.rand(2, 3, 4, 4).double()
    with torch.no_grad():
        torch.testing.assert_close(model.decode(model.encode(hr, lr).latents, lr), hr)


def test_noise_conditions_the_last_steps_of_every_level() -> None:
    with torch.device("meta"):
        model = sr_models.create("ncsr", steps=[2, 3, 4], noise_steps=(0, 1, 3), **TINY)
    noisy = [
        [layer.noise is not None for layer in level if isinstance(layer, NoiseConditionalStep)]
        for level in model.levels
    ]
    assert noisy == [[], [False, False, True], [False, True, True, True]]


def test_the_variant_of_ncsr_has_the_levels_and_networks_of_srflow_da_r() -> None:
    with torch.device("meta"):
        fields = {"steps": 2, **TINY}
        shapes = {name: tensor.shape for name, tensor in sr_models.create("srflow-da-r", **fields).state_dict().items()}
        model = sr_models.create("ncsr", variant="R", noise_steps=(0, 0), **fields)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("srflow", {"steps": [8, 12]}, r"steps must be one number or 3, one a level, got 2: \[8, 12\]$"),
        ("srflow", {"steps": [8, 12, 16, 16]}, r"one number or 3, one a level, got 4: \[8, 12, 16, 16\]$"),
        ("srflow", {"steps": []}, r"one number or 3, one a level, got 0: \[\]$"),
        ("srflow", {"steps": (8, 0, 16)}, r"steps must be at least 1, got \[8, 0, 16\]$"),
        ("srflow", {"steps": -1}, r"steps must be at least 1, got -1$"),
        ("srflow", {"steps": 1.5}, r"steps must be a whole number, or 3 of them, one a level, got 1.5$"),
        ("srflow-da-s", {"steps": [6, 6]}, r"steps must be one number or 1, one a level, got 2: \[6, 6\]$"),
        ("ncsr", {"steps": 2}, r"noise_steps \(S\) must be 3 numbers in 0..2, one a level, got \(0, 16, 16\)$"),
        (
            "ncsr",
            {"steps": [1, 2, 3], "noise_steps": [0, 3, 0]},
            r"must be 3 numbers in 0..1, 0..2, 0..3, one a level, got \[0, 3, 0\]$",
        ),
        ("ncsr", {"noise_steps": 16}, r"noise_steps \(S\) must be 3 numbers in 0..16, one a level, got 16$"),
        ("ncsr", {"variant": "D"}, "variant must be one of '', 'R', got 'D'$"),
        ("ncsr", {"variant": "R"}, r"noise_steps \(S\) must be 2 numbers in 0..16, one a level, got \(0, 16, 16\)$"),
        ("srflow", {"features": 0}, "features must be a whole number of at least 1, got 0$"),
        ("srflow", {"transition_steps": -1}, "transition_steps must be a whole number of at least 0, got -1$"),
        ("srflow", {"hidden_channels": "64"}, "hidden_channels must be a whole number of at least 1, got '64'$"),
        ("srflow", {"stacked_blocks": (1, "8")}, r"stacked_blocks must be whole numbers, got \(1, '8'\)$"),
    ],
)
def test_errors(name: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sr_models.create(name, **overrides)
