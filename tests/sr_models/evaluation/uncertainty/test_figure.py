"""The drawing holds the curves that it was given, and goes to a file complete."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.patches import StepPatch

from sr_models.evaluation.uncertainty.coverage import score_values
from sr_models.evaluation.uncertainty.figure import check_figure, draw_coverage, write_figure


def test_curves_are_those_of_the_scores(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = {label: score_values(rng.normal(size=(9, 99)), rng.normal(size=99)) for label in ("a", "b")}
    figure = draw_coverage(scores)
    left, right = figure.axes
    lines = {line.get_label(): np.asarray(line.get_xydata()) for line in left.get_lines()}
    assert set(lines) == {"as it should be", "a", "b"}
    for label, one in scores.items():
        np.testing.assert_allclose(lines[label], 100 * np.stack([one.nominal(), one.coverage()], 1))
    heights = [patch.get_data()[0] for patch in right.patches if isinstance(patch, StepPatch)]
    np.testing.assert_allclose(heights, [10 * np.array(one.ranks) for one in scores.values()])
    for suffix, start in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        write_figure(tmp_path / f"coverage{suffix}", figure)
        assert (tmp_path / f"coverage{suffix}").read_bytes().startswith(start)


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"figure must end in \.png, \.svg, \.pdf, got coverage\.gif"):
        check_figure(Path("coverage.gif"))
    with pytest.raises(FileNotFoundError, match=r"folder of figure .* does not exist"):
        check_figure(tmp_path / "absent" / "coverage.png")
    with pytest.raises(ValueError, match="scores must hold at least one entry, got none"):
        draw_coverage({})
