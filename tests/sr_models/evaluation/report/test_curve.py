"""The training curve is what was logged, and later values replace earlier ones."""

from __future__ import annotations

import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from torch.utils.tensorboard import SummaryWriter

from sr_models.evaluation.report.curve import TrainingCurve, draw_curve, encode_svg, training_curve


def log(folder: Path, tag: str, values: dict[int, float]) -> None:
    with SummaryWriter(str(folder)) as writer:
        for step, value in values.items():
            writer.add_scalar(tag, value, step)


def test_a_resumed_run_repeats_steps_and_its_values_count(tmp_path: Path) -> None:
    log(tmp_path, "nll", {0: 4.0, 10: 3.0, 20: 2.5})
    log(tmp_path, "nll", {10: 3.5, 30: 2.0})
    log(tmp_path, "val_nll", {0: 5.0})
    curve = training_curve(tmp_path)
    assert curve.l1 == []
    assert curve.nll == [(0, 4.0), (10, 3.5), (20, 2.5), (30, 2.0)]
    assert curve.val_nll == [(0, 5.0)]


def test_what_a_resumed_run_purges_does_not_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log(tmp_path, "val_nll", {0: 5.0, 15: 4.0, 30: 3.0})
    time.sleep(1.01)  # the names of the logs begin with the second
    with SummaryWriter(str(tmp_path), purge_step=20) as writer:
        writer.add_scalar("nll", 1.0, 20)
    curve = training_curve(tmp_path)
    assert curve.val_nll == [(0, 5.0), (15, 4.0)]
    assert curve.nll == [(20, 1.0)]
    assert caplog.text == ""


@pytest.mark.parametrize("l1", [[], [(0, 0.5), (10, 0.25)]])
def test_the_drawing_holds_every_value(l1: list[tuple[int, float]]) -> None:
    curve = TrainingCurve(l1, [(20, 3.0), (30, 2.0)], [(20, 4.0), (30, 2.5)])
    *left, right = draw_curve(curve).axes
    assert len(left) == bool(l1)
    labels = [(axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) for axes in (*left, right)]
    assert labels == [
        *([("encoder pretraining", "step", "L1 error", "log")] if l1 else []),
        ("flow", "step", "bits per dimension", "linear"),
    ]
    assert [text.get_text() for text in right.get_legend().texts] == ["training batches", "unseen photographs"]
    drawn = [list(zip(*line.get_data(), strict=True)) for axes in (*left, right) for line in axes.lines]
    assert drawn == [*([l1] if l1 else []), curve.nll, curve.val_nll]


def test_a_run_that_has_logged_nothing_yet_is_drawn_empty() -> None:
    [axes] = draw_curve(TrainingCurve([], [], [])).axes
    assert not axes.lines
    assert axes.get_legend() is None


def test_a_drawing_becomes_a_part_of_a_page() -> None:
    text = encode_svg(draw_curve(TrainingCurve([], [(0, 1.0), (10, 0.5)], [])))
    assert text.startswith("<svg")
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    # nothing is painted behind it: the page may be dark
    assert "fill: #ffffff" not in text
