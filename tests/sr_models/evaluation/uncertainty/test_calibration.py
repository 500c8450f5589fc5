"""Calibration finds the temperature that a model's own distribution has, and says where there is none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sr_models.evaluation.pairs import load_pair
from sr_models.evaluation.uncertainty.calibration import Calibration, calibrate_model, find_temperature
from sr_models.evaluation.uncertainty.coverage import pool, score_intervals
from sr_models.evaluation.uncertainty.table import calibration_table, describe_calibration
from sr_models.flow.explosions import ExplosionError
from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.images import to_tensor, to_uint8, write_image
from tests.sr_models.evaluation.uncertainty.conftest import TRUE_TEMPERATURE, Drawn

TRIED = (0.5, 0.6, 0.8, 1.0)


@pytest.mark.parametrize(
    ("deviation", "grey", "level", "tolerance"),
    [
        (0.1, 128, 0.9, 0.02),
        (0.1, 128, 0.5, 0.03),
        # half of all values are white
        (0.1, 255, 0.9, 0.03),
        # hardly more than rounding: most values are tied
        (0.006, 128, 0.8, 0.05),
    ],
)
def test_the_right_temperature_is_found(
    drawn: Callable[..., Drawn], deviation: float, grey: int, level: float, tolerance: float
) -> None:
    model, truths, low = drawn(deviation, grey)
    found = calibrate_model(model, truths, lr_images=low, level=level, temperatures=TRIED)
    assert found.temperature == pytest.approx(TRUE_TEMPERATURE, abs=tolerance)
    assert found.bracket == (0.6, 0.8)
    assert found.temperature is not None
    low_end, high_end = found.interval
    assert 0.6 < low_end <= found.temperature <= high_end < 0.8
    if grey == 255:
        saturated = found.pooled(0.8)
        assert saturated.tied > 0.5
        assert saturated.with_ends[0] > saturated.coverage_at(0.9) > saturated.without_ends[0]


def test_coverage_is_of_the_samples_that_the_model_draws(drawn: Callable[..., Drawn]) -> None:
    model, truths, low = drawn()
    found = calibrate_model(model, truths, lr_images=low, samples=9, level=0.8, temperatures=[0.9, 0.3], seed=5)
    assert sorted(found.rows) == [0.3, 0.9]
    expected = []
    for name in ("0.png", "1.png"):
        lr, hr = load_pair(truths / name, 4, low / name)
        samples = model.sample(to_tensor(lr)[None], 9, temperature=0.3, seed=5)[0]
        expected.append(score_intervals([to_uint8(sample) for sample in samples], hr, lr))
        assert found.rows[0.3][name] == expected[-1]
    assert found.pooled(0.3) == pool([one["all"] for one in expected])
    assert found.by_texture(0.3)["flat"] == pool([one["flat"] for one in expected])
    low_end, high_end = found.coverage_interval(0.3, 0.8)
    assert low_end == pytest.approx(min(one["all"].coverage_at(0.8) for one in expected))
    assert high_end == pytest.approx(max(one["all"].coverage_at(0.8) for one in expected))


def test_the_summary_is_plain(drawn: Callable[..., Drawn]) -> None:
    model, truths, low = drawn()
    found = calibrate_model(model, truths, lr_images=low, samples=4, level=0.6, temperatures=[0.5, 1.0])
    summary = json.loads(json.dumps(found.summary(), allow_nan=False))
    assert summary["calibrated"] == {
        "temperature": found.temperature,
        "interval": list(found.interval),
        "between": [0.5, 1.0],
    }
    row = summary["temperatures"][1]
    assert (row["temperature"], row["images"], row["nominal"]) == (1.0, 2, [0.6, 0.2])
    assert row["measured"] == found.pooled(1.0).coverage().tolist()
    assert np.shape(row["interval"]) == (2, 2)
    assert list(row["textures"]) == ["flat"]


class TestFindTemperature:
    def test_between_two(self) -> None:
        # normal errors, of which c is the share below a threshold that the temperature widens
        normal = [math.erf(temperature) for temperature in (0.5, 0.7, 1.0)]
        for temperature in (0.55, 0.7, 0.99):
            assert find_temperature([0.5, 0.7, 1.0], normal, math.erf(temperature)) == pytest.approx(temperature)
        # a coverage of 1 is beyond any temperature of normal errors
        ends = [find_temperature([0.5, 1.0], [0.8, 1.0], level) or 0 for level in (0.8, 0.9, 0.95, 1.0)]
        assert ends == sorted({*ends})
        assert (ends[0], ends[-1]) == (0.5, 1.0)

    def test_at_one_that_was_tried(self) -> None:
        for index, temperature in enumerate((0.5, 0.7, 1.0)):
            assert find_temperature([0.5, 0.7, 1.0], [0.8, 0.9, 0.95], [0.8, 0.9, 0.95][index]) == temperature
        assert find_temperature([0.5], [0.9], 0.9) == 0.5

    def test_nowhere(self) -> None:
        for level in (0.79, 0.96):
            assert find_temperature([0.5, 0.7, 1.0], [0.8, 0.9, 0.95], level) is None

    def test_coverage_that_falls(self) -> None:
        assert find_temperature([1, 2, 3, 4], [0.5, 0.8, 0.7, 0.9], 0.85) == pytest.approx(
            find_temperature([3, 4], [0.8, 0.9], 0.85)
        )
        assert find_temperature([1, 2, 3, 4], [0.5, 0.8, 0.7, 0.9], 0.8) == 2


def test_lines_say_what_was_found_and_what_was_not(drawn: Callable[..., Drawn]) -> None:
    model, truths, low = drawn()

    def calibrate(*temperatures: float, level: float = 0.9) -> Calibration:
        return calibrate_model(model, truths, lr_images=low, level=level, temperatures=temperatures)

    both = calibrate(0.6, 0.8)
    lines = calibration_table(both).splitlines()
    assert lines[0].split("  ")[0] == "temperature"
    assert [cell for cell in lines[0].replace("with ends", "with_ends").split() if cell != "%"] == [
        *("temperature", "50", "80", "90", "with_ends", "without", "width", "flat", "texture", "edges", "CRPS")
    ]
    assert [line.split()[0] for line in lines[1:]] == ["0.6", "0.8"]
    assert f"{100 * both.pooled(0.6).coverage_at(0.5):.1f}" == lines[1].split()[1]
    covered = [100 * both.pooled(each).coverage_at(0.9) for each in (0.6, 0.8)]
    assert describe_calibration(both) == (
        f"calibrated temperature for 90 %: {both.temperature:.3f} (95 % interval {both.interval[0]:.2f} to "
        f"{both.interval[1]:.2f}, 2 images), between 0.6 ({covered[0]:.1f} %) and 0.8 ({covered[1]:.1f} %)"
    )
    too_low = describe_calibration(calibrate(0.2, 0.5))
    assert too_low.startswith("no temperature in 0.2..0.5 has a coverage of 90 %: it is ")
    assert too_low.endswith(" % at 0.5; give higher temperatures")
    assert describe_calibration(calibrate(0.9, 1.4)).endswith(" % at 0.9; give lower temperatures")
    alone = calibrate(0.8, level=0.85)
    covered = [100 * alone.pooled(0.8).coverage_at(0.85)]
    assert describe_calibration(alone) == (
        f"coverage {covered[0]:.1f} %, nominal 85 %; give several temperatures to calibrate"
    )


def test_one_image_has_no_interval(drawn: Callable[..., Drawn]) -> None:
    model, truths, low = drawn(sides=(8,))
    found = calibrate_model(model, truths, lr_images=low, temperatures=[0.5, 0.9])
    assert all(math.isnan(end) for end in found.interval)
    assert "(one image), between" in describe_calibration(found)
    assert "[" not in calibration_table(found)
    assert found.summary()["temperatures"][0]["interval"] is None
    assert found.summary()["calibrated"]["interval"] is None


def test_mistakes_are_found_before_anything_is_sampled(
    drawn: Callable[..., Drawn], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, truths, low = drawn(sides=(8,))
    monkeypatch.setattr(SuperResolutionFlow, "sample", lambda *args, **options: pytest.fail("sampled"))
    mistakes: dict[str, dict[str, Any]] = {
        "n must be at least 2, since one sample has no interval, got 1": {"samples": 1},
        r"level must be at most 0.8 with n = 9 samples, got 0.9; it needs n of at least 19": {"samples": 9},
        "temperatures must hold at least one, got none": {"temperatures": []},
        "temperature must be finite and at least 0, got -1": {"temperatures": [0.5, -1]},
        r"seed must be in 0\.\.2\^31 - 1, got -1": {"seed": -1},
        "tile must be at least 16, got 3": {"tile": 3},
    }
    for message, changes in mistakes.items():
        with pytest.raises(ValueError, match=message):
            calibrate_model(model, truths, lr_images=low, **changes)


def test_an_image_that_explodes_is_named(drawn: Callable[..., Drawn]) -> None:
    model, truths, low = drawn()
    write_image(low / "0.png", np.zeros((12, 16, 3), dtype=np.uint8))
    with pytest.raises(ExplosionError, match="lower the temperature"):
        calibrate_model(model, truths, lr_images=low, temperatures=[1e9])
