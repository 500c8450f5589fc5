"""What is known before a run: its images, its arithmetic, and crops that do not fit."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import sr_models
from sr_models.training.check import RunCheck, check_crop
from sr_models.training.config import TrainingConfig

MakeConfig = Callable[..., TrainingConfig]


@pytest.fixture
def photographs(folder: Path, tmp_path: Path) -> Path:
    """Two good images, one damaged in the middle, one cut off, and a text."""
    good = (folder / "picture.png").read_bytes()
    half = len(good) // 2
    broken = good[:half] + bytes(byte ^ 0x5A for byte in good[half : half + 40]) + good[half + 40 :]
    contents = {"a.png": good, "b.png": good, "broken.png": broken, "cut.png": good[:half], "notes.txt": b"x"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_images_that_are_used_and_that_are_not(config: MakeConfig, photographs: Path, folder: Path) -> None:
    check = RunCheck(config(images=str(photographs)))
    lines = check.lines()
    assert lines[0].startswith(f"training: 3 images in {photographs}")
    assert any("not used" in line and "cut.png" in line for line in lines)
    assert any("not used" in line and ".txt" in line for line in lines)
    assert f"validation: 1 image in {folder}" in lines
    found = list(check.unreadable(2))
    assert len(found) == 4
    assert [line for line in found if line] == [line for line in found if line and "broken.png" in line]
    assert sum(line is None for line in found) == 3


def test_a_run_without_validation(config: MakeConfig, photographs: Path) -> None:
    lines = RunCheck(config(images=str(photographs), val_images=None)).lines()
    assert lines[0].startswith(f"training: 3 images in {photographs}")
    assert not any(line.startswith("validation") for line in lines)


def test_an_image_that_vanishes_is_named_once(config: MakeConfig, photographs: Path) -> None:
    check = RunCheck(config(images=str(photographs), val_images=None))
    os.remove(photographs / "b.png")
    found = list(check.unreadable(1))
    assert found[0] is None
    assert str(found[1]).count("b.png") == 1
    assert all("\n" not in line for line in found if line)


def test_strict_makes_an_image_that_is_not_used_an_error(config: MakeConfig, photographs: Path) -> None:
    with pytest.raises(ValueError, match=r"cut\.png"):
        RunCheck(config(images=str(photographs), strict=True))


def operations(config: TrainingConfig) -> tuple[float, float]:
    """FLOP a step and in all, as the check says them."""
    line = next(line for line in RunCheck(config).lines() if line.startswith("convolutions"))
    factors = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    found = re.findall(r"([\d.e+]+) (\w?)FLOP", line)
    return tuple(float(number) * factors[prefix] for number, prefix in found[:2])


class TestCosts:
    def test_a_pretraining_step_costs_what_torch_counts(self, config: MakeConfig) -> None:
        run = config(steps=5, encoder_steps=5)
        encoder = sr_models.create(run.model, **run.overrides).encoder
        # the gradient of the input, which the count of a backward pass includes
        lr = torch.rand(2, 3, 4, 4, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            encoder.image(lr).mean().backward()
        step, total = operations(run)
        assert step == pytest.approx(counter.get_total_flops(), rel=0.01)
        assert total == pytest.approx(5 * step, rel=0.01)

    def test_phases(self, config: MakeConfig) -> None:
        described = sr_models.describe("srflow-da", **config().overrides)
        encoder, flow = described.encoder_multiply_adds, described.flow_multiply_adds
        unit = 2 * 2 * 16**2
        step, total = operations(config(steps=10, encoder_steps=2, encoder_frozen=0.5))
        assert step == pytest.approx(unit * 3 * (encoder + flow), rel=0.01)
        pretraining = 3 * (encoder + described.unused_multiply_adds)
        expected = unit * (2 * pretraining + 4 * (encoder + 3 * flow) + 4 * 3 * (encoder + flow))
        assert total == pytest.approx(expected, rel=0.01)
        inverting = operations(config(steps=10, encoder_steps=2, memory="invert"))[0]
        assert inverting == pytest.approx(unit * (3 * encoder + 4 * flow), rel=0.01)

    def test_files_and_length(self, config: MakeConfig) -> None:
        described = sr_models.describe("srflow-da", **config().overrides)
        weights = 4 * (described.encoder_parameters + described.flow_parameters) / 1000
        for average, copies in ((0.999, 4), (0.0, 3)):
            lines = RunCheck(config(steps=100, average=average)).lines()
            # kilobytes below a thousand of them, megabytes above
            total = (3 * copies + 2) * weights
            shown = f"{total:.3g} kB" if total < 999.5 else f"{total / 1000:.3g} MB"
            assert f"files: about {shown}, {copies * weights:.3g} kB a checkpoint" in lines
            assert (
                "100 steps of 2 crops of 16 x 16 pixels, 2 of them pretrain the encoder; 200 crops of every image"
            ) in lines

    def test_steps_that_are_lost(self, config: MakeConfig) -> None:
        warning = "warning: the encoder is random and stays so for the first 4 steps"
        for changes, expected in (({}, True), ({"encoder_frozen": 0.0}, False), ({"encoder_steps": 1}, False)):
            lines = RunCheck(config(**{"encoder_steps": 0, **changes})).lines()
            assert any(line.startswith(warning) for line in lines) is expected


class TestCrops:
    @pytest.mark.parametrize(
        ("model", "scale", "multiple"),
        [("srflow", 2, 4), ("srflow-da", 2, 2), ("srflow", 4, 8), ("srflow", 8, 16), ("srflow-da", 4, 4)],
    )
    def test_every_level_can_halve_them(self, model: str, scale: int, multiple: int) -> None:
        for crop in range(scale, 4 * multiple, scale):
            run = TrainingConfig(model=model, scale=scale, images=".", crop=crop)
            if crop % multiple:
                with pytest.raises(ValueError, match=f"crop must be a multiple of {multiple} for {model}, got {crop}"):
                    check_crop(run)
            else:
                check_crop(run)

    def test_the_encoder_alone_takes_any(self) -> None:
        check_crop(TrainingConfig(model="srflow", images=".", crop=36, steps=5, encoder_steps=5))
        with pytest.raises(ValueError, match="crop must be a multiple of 8"):
            check_crop(TrainingConfig(model="srflow", images=".", crop=36, steps=6, encoder_steps=5))
