"""Coverage is on disk as soon as it is known, and results of other settings are never mixed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sr_models.evaluation.uncertainty.calibration import Calibration, calibrate_model
from sr_models.evaluation.uncertainty.record import CoverageRecord
from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.images import read_image, write_image
from tests.sr_models.evaluation.uncertainty.conftest import Drawn

Calibrate = Callable[..., Calibration]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "coverage.json"


@pytest.fixture
def calibrate(drawn: Callable[..., Drawn], output: Path) -> Calibrate:
    """``calibrate(temperatures=[0.5])``: calibrate into ``coverage.json``."""
    model, truths, low = drawn(sides=(8, 12))

    def run(overwrite: bool = False, **changes: Any) -> Calibration:
        options = {"lr_images": low, "samples": 4, "level": 0.5, "temperatures": [0.5, 0.9], **changes}
        return calibrate_model(model, truths, record=CoverageRecord(output, overwrite=overwrite), **options)

    return run


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The temperature of every call of ``sample``."""
    calls: list[float] = []
    original = SuperResolutionFlow.sample

    def sample(self: SuperResolutionFlow, *args: Any, **options: Any) -> Any:
        calls.append(options["temperature"])
        return original(self, *args, **options)

    monkeypatch.setattr(SuperResolutionFlow, "sample", sample)
    return calls


def test_it_goes_on_where_it_was_and_with_further_temperatures(
    calibrate: Calibrate, output: Path, sampled: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = CoverageRecord.add

    def interrupted(self: CoverageRecord, *args: Any) -> None:
        original(self, *args)
        if len(sampled) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CoverageRecord, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            calibrate()
    kept = json.loads(output.read_text())
    assert {name: list(image["temperatures"]) for name, image in kept["images"].items()} == {
        "0.png": ["0.5", "0.9"],
        "1.png": ["0.5"],
    }
    found = calibrate()
    assert sampled == [0.5, 0.9, 0.5, 0.9]
    more = calibrate(temperatures=[0.5, 0.7, 0.9], level=0.4)
    assert sampled[4:] == [0.7, 0.7]
    assert more.rows[0.5] == found.rows[0.5]
    content = json.loads(output.read_text())
    assert [row["temperature"] for row in content["temperatures"]] == [0.5, 0.7, 0.9]
    assert content["level"] == 0.4
    fresh = calibrate(overwrite=True)
    assert len(sampled) == 10
    assert fresh == found


def test_other_settings_are_refused(calibrate: Calibrate, output: Path, sampled: list[float]) -> None:
    calibrate()
    before = output.read_bytes()
    for message, changes in {"n was 4, now 5": {"samples": 5}, "seed was 0, now 1": {"seed": 1}}.items():
        with pytest.raises(ValueError, match=rf"holds coverage with other settings \({message}\).*--overwrite"):
            calibrate(**changes)
    image = output.parent / "truths" / "1.png"
    write_image(image, 255 - read_image(image))
    with pytest.raises(ValueError, match=r"holds coverage of '1\.png' as it was before it changed"):
        calibrate()
    image.unlink()
    with pytest.raises(ValueError, match=r"holds coverage of '1\.png', which is not among the images"):
        calibrate()
    assert output.read_bytes() == before
    assert len(sampled) == 4


@pytest.mark.parametrize("damage", ["no JSON", "[]", "{}", "figures", "samples", "numbers"])
def test_other_files_are_not_overwritten(calibrate: Calibrate, output: Path, damage: str) -> None:
    if damage in ("figures", "samples", "numbers"):
        calibrate()
        content = json.loads(output.read_text())
        scores = content["images"]["0.png"]["temperatures"]["0.5"]["all"]
        if damage == "figures":
            del scores["width"]
        else:
            scores["ranks" if damage == "samples" else "crps"] = [0.5, 0.5]
        output.write_text(json.dumps(content))
    else:
        output.write_text(damage)
    before = output.read_bytes()
    with pytest.raises(ValueError, match=r"exists, but does not hold coverage \(.*\); choose another output"):
        calibrate()
    assert output.read_bytes() == before


def test_an_image_that_fails_is_left_out_at_every_temperature(calibrate: Calibrate, output: Path) -> None:
    low = output.parent / "low"
    write_image(low / "1.png", np.full((12, 16, 3), 255, dtype=np.uint8))
    # the activations of a temperature beyond all measure
    with pytest.raises(ValueError, match=r"no image could be sampled at every temperature: 0\.png: at temperature 1e"):
        calibrate(temperatures=[0.5, 1e9])
    truths = output.parent / "truths"
    (truths / "1.png").write_bytes((truths / "1.png").read_bytes()[:150])
    found = calibrate(temperatures=[0.5, 0.9], overwrite=True)
    assert [list(images) for images in found.rows.values()] == [["0.png"], ["0.png"]]
    assert list(json.loads(output.read_text())["failures"]) == ["1.png"]


def test_places_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a folder; give a file such as .*coverage\.json"):
        CoverageRecord(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"folder of output .* does not exist"):
        CoverageRecord(tmp_path / "absent" / "coverage.json")
