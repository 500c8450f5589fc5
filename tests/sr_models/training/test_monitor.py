"""Monitoring of a run: what is logged when, across interruptions, and what is said."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sr_models.evaluation.report.curve import training_curve
from sr_models.training import monitor as module
from sr_models.training.monitor import Monitor
from sr_models.training.validation import Scores
from tests.support.clock import Clock

SCALARS = ["gradient_norm", "l1", "lr", "nll", "steps_per_second", "val_nll", "val_psnr"]


class Value:
    """A number on a device that counts how often it is read."""

    def __init__(self, value: float) -> None:
        self.value, self.reads = value, 0

    def __float__(self) -> float:
        self.reads += 1
        return self.value


def scores(nll: float, *notes: str) -> Scores:
    return Scores({"val_nll": nll, "val_psnr": 20 - nll}, torch.rand(3, 8, 8), ("bicubic", "truth"), notes)


def curves(output: Path) -> dict[str, list[tuple[int, float]]]:
    """Curves as TensorBoard shows them, repeated steps included."""
    events = EventAccumulator(str(output / "logs"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return {**found, "pictures": [(image.step, 0.0) for image in events.Images("validation (bicubic, truth)")]}


def train(monitor: Monitor, first: int, last: int) -> None:
    """Steps of a run of 50, 12 of pretraining; before every 15th and the first of the flow it is scored."""
    for step in range(first, last):
        if step % 15 == 0 or step == 12:
            monitor.scores(step, scores(-step / 10))
        name = "l1" if step < 12 else "nll"
        loss = torch.tensor(100.0 - step)
        monitor.step(step, {name: loss}, lr=1 / (1 + step), gradient_norm=torch.tensor(3.0 + step))


def test_losses_of_every_tenth_step_and_all_scores_are_logged(tmp_path: Path) -> None:
    with Monitor(tmp_path, first_step=0, steps=50, encoder_steps=12) as monitor:
        train(monitor, 0, 50)
        monitor.scores(50, scores(-5.0))
    found = curves(tmp_path)
    assert sorted(found) == sorted([*SCALARS, "pictures"])
    assert found["l1"] == [(0, 100.0), (10, 90.0)]
    assert found["nll"] == [(20, 80.0), (30, 70.0), (40, 60.0)]
    assert found["gradient_norm"] == [(step, 3.0 + step) for step in (0, 10, 20, 30, 40)]
    assert found["lr"] == [(step, pytest.approx(1 / (1 + step))) for step in (0, 10, 20, 30, 40)]
    assert found["val_nll"] == [(step, pytest.approx(-step / 10)) for step in (0, 12, 15, 30, 45, 50)]
    assert [step for step, _ in found["pictures"]] == [0, 12, 15, 30, 45, 50]


@pytest.mark.parametrize("stops", [[(23, 20)], [(45, 30), (46, 45)], [(12, 12)], [(13, 0)], [(50, 50)]])
def test_a_resumed_run_has_the_curves_of_an_unbroken_one(tmp_path: Path, stops: list[tuple[int, int]]) -> None:
    """Each stop is the step at which the run is killed, and that of the checkpoint from which it goes on."""
    with Monitor(tmp_path / "unbroken", first_step=0, steps=50, encoder_steps=12) as monitor:
        train(monitor, 0, 50)
    first = 0
    for killed, checkpoint in [*stops, (50, 50)]:
        monitor = Monitor(tmp_path / "broken", first_step=first, steps=50, encoder_steps=12)
        train(monitor, first, killed)  # and never closed
        first = checkpoint
    expected, found = curves(tmp_path / "unbroken"), curves(tmp_path / "broken")
    for tag in [*SCALARS, "pictures"]:
        if tag != "steps_per_second":
            assert found[tag] == expected[tag], tag
    assert training_curve(tmp_path / "broken" / "logs") == training_curve(tmp_path / "unbroken" / "logs")


def test_reading_the_curve_of_a_resumed_run_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for first in (0, 20):
        train(Monitor(tmp_path, first_step=first, steps=50, encoder_steps=12), first, 40)
    training_curve(tmp_path / "logs")
    assert caplog.text == ""


def test_values_are_read_from_the_device_at_every_tenth_step_only(tmp_path: Path, clock: Clock) -> None:
    values = [Value(1.0) for _ in range(100)]
    with Monitor(tmp_path, first_step=40, steps=100) as monitor:
        for step in range(40, 100):
            clock.now += 1
            monitor.step(step, {"nll": values[step]}, lr=1.0, gradient_norm=values[step])
    assert [step for step, value in enumerate(values) if value.reads] == [40, 50, 60, 70, 80, 90]


def test_a_slow_run_is_looked_at_between_them_but_not_logged(
    tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Monitor(tmp_path, first_step=0, steps=100) as monitor:
        for step in range(3):
            clock.now += 40
            monitor.step(step, {"nll": 1.0 + step}, lr=1.0)
    assert curves_of(tmp_path, "nll") == [(0, 1.0)]
    assert "step 3 of 100, 40.0 s a step, 1 h 4 min left, nll=1.290" in capsys.readouterr().err


def curves_of(output: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(output / "logs"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_steps_per_second_leaves_out_first_step_and_validations(tmp_path: Path, clock: Clock) -> None:
    with Monitor(tmp_path, first_step=3, steps=40) as monitor:
        for step in range(3, 40):
            if step == 16:
                clock.now += 20
                monitor.scores(step, scores(1.0))
            clock.now += 500 if step == 3 else 0.25
            monitor.step(step, {"nll": 1.0}, lr=1.0)
    assert curves_of(tmp_path, "steps_per_second") == [(10, 4.0), (20, 4.0), (30, 4.0)]


def test_figures_that_are_not_finite_are_in_no_curve_and_no_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Monitor(tmp_path, first_step=0, steps=41) as monitor:
        for step in range(41):
            loss = math.nan if step == 20 else 2.0
            monitor.step(step, {"nll": loss}, lr=1.0, gradient_norm=loss, skipped=int(step >= 20))
        monitor.scores(41, scores(math.inf, "validation: 1 of 8 crops have no finite likelihood"))
    assert [step for step, _ in curves_of(tmp_path, "nll")] == [0, 10, 30, 40]
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    assert "val_nll" not in events.Tags()["scalars"]
    text = capsys.readouterr().err
    assert "validation: 1 of 8 crops have no finite likelihood\n" in text
    assert text.splitlines()[-1].endswith("nll=2.000, val_nll=inf, val_psnr=-inf, 1 skipped")


class TestEstimate:
    def lines(self, clock: Clock, tmp_path: Path, seconds: float, steps: int, **options: int) -> list[str]:
        said = []
        with Monitor(tmp_path, first_step=0, steps=steps, **options) as monitor:
            monitor.say = said.append
            for step in range(60):
                clock.now += 1000 if step in (0, options.get("encoder_steps")) else seconds
                monitor.step(step, {"nll": 1.0}, lr=1.0)
        return said

    def test_once_after_the_first_steps(self, clock: Clock, tmp_path: Path) -> None:
        (line,) = self.lines(clock, tmp_path, 0.5, 100_000)
        assert line == "training: 2.0 steps/s, about 13 h 53 min for the remaining 99,989 steps"

    def test_a_hopeless_run_is_warned_about(self, clock: Clock, tmp_path: Path) -> None:
        (line,) = self.lines(clock, tmp_path, 60, 200_000)
        assert line == (
            "warning: training: 60.0 s a step, about 138 d 21 h for the remaining 199,998 steps; "
            "use a faster device, a smaller preset, smaller or fewer crops, or fewer steps"
        )

    def test_each_phase_has_its_own(self, clock: Clock, tmp_path: Path) -> None:
        pretraining, training = self.lines(clock, tmp_path, 20, 10_000, encoder_steps=40)
        assert pretraining.startswith("pretraining: 20.0 s a step, about 12 min 20 s for the remaining 37 steps")
        assert training.startswith("training: 20.0 s a step, about 2 d 7 h for the remaining 9,957 steps")

    def test_a_short_run_has_none(self, clock: Clock, tmp_path: Path) -> None:
        assert self.lines(clock, tmp_path, 0.01, 100) == []


def test_phases_are_shown_one_after_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Monitor(tmp_path, first_step=0, steps=50, encoder_steps=12) as monitor:
        train(monitor, 0, 50)
    pretraining, training = capsys.readouterr().err.splitlines()
    assert re.match(r"pretraining: step 12 of 12, .*, l1=99.0000, val_nll=0.000, val_psnr=20.00$", pretraining)
    assert "l1" not in training
    assert re.match(r"training: step 50 of 50, .*, nll=82.932, val_nll=-4.500, val_psnr=24.50$", training)


@pytest.mark.parametrize("first", [12, 50])
def test_a_run_that_is_beyond_its_pretraining_or_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], first: int
) -> None:
    with Monitor(tmp_path, first_step=first, steps=50, encoder_steps=12) as monitor:
        train(monitor, first, 50)
        monitor.scores(50, scores(-5.0))
    assert "pretraining" not in capsys.readouterr().err


def test_an_encoder_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Monitor(tmp_path, first_step=0, steps=5, encoder_steps=5) as monitor:
        for step in range(5):
            monitor.step(step, {"l1": 0.5}, lr=1.0)
        monitor.scores(5, Scores({"val_psnr": 20.0}, torch.rand(3, 8, 8), ("bicubic", "encoder", "truth")))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pretraining: step 5 of 5, ")
    assert line.endswith("l1=0.5000, val_psnr=20.00")


def test_other_processes_write_and_say_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = Value(1.0)
    with Monitor(tmp_path, first_step=0, steps=20, enabled=False) as monitor:
        for step in range(20):
            monitor.step(step, {"nll": value}, lr=1.0, gradient_norm=value)
        monitor.scores(20, scores(1.0))
        monitor.say("hello")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")
    assert value.reads == 0


@pytest.mark.parametrize("moment", ["begin", "step", "scores", "close"])
def test_a_log_that_cannot_be_written_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], moment: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    method = {"begin": "__init__", "step": "add_values", "scores": "add_picture", "close": "close"}[moment]
    monkeypatch.setattr(module.CurveLog, method, fail)
    with Monitor(tmp_path, first_step=0, steps=50, encoder_steps=12) as monitor:
        train(monitor, 0, 50)
    text = capsys.readouterr().err
    assert text.count("No space left") == 1
    assert f"warning: cannot write curves to {tmp_path / 'logs'} ([Errno 28] No space left on device)" in text
    assert "training: step 50 of 50" in text


def test_close_comes_before_the_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monitor = Monitor(tmp_path, first_step=0, steps=5)
    monitor.step(0, {"nll": 1.0}, lr=1.0)
    with pytest.raises(OSError, match="broken"), monitor:
        raise OSError("broken")
    assert capsys.readouterr().err == "training: step 1 of 5, nll=1.000\n"
    monitor.close()
    assert capsys.readouterr().err == ""
