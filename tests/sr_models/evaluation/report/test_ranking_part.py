"""Ranks are the challenge's, and published methods stand apart."""

from __future__ import annotations

import dataclasses
import math

from report_methods import bicubic, model

from sr_models.evaluation.report.ranking_part import ranking_part


def test_ranks_are_ours_and_the_published_ones_among_themselves() -> None:
    part = ranking_part([bicubic(), model(), model([0.09] * 5, "n", diversity=8.0), model([math.nan] * 5, "nan")], 4)
    assert part is not None
    ours = [row for row in part["rows"] if not row["published"]]
    assert [(row["name"], *row["cells"]) for row in ours] == [
        ("n", "0.090", "exact", "8.00", "", "yes", "1", "2", ""),
        ("m", "0.110", "exact", "9.46", "", "yes", "2", "1", ""),
        ("bicubic", "0.400", "40.04", "0.00", "", "no", "", "", ""),
    ]
    published = {row["name"]: row["cells"] for row in part["rows"] if row["published"]}
    assert published["NCSR"] == ["0.117", "50.54", "26.04", "4.372", "yes", "1", "2", "1"]
    assert published["ESRGAN"][4:] == ["no", "", "", ""]
    assert len(part["headings"]) == 1 + len(published["NCSR"])
    assert "Lugmayr" in part["explanation"]
    alone = ranking_part([model()], 3)
    assert alone is not None
    assert [row["name"] for row in alone["rows"]] == ["m"]
    assert "Published" not in alone["explanation"]
    assert ranking_part([dataclasses.replace(model(), distance_name="mse")], 4) is None
