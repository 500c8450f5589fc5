"""The final ranking: published tables, ties, what is not ranked, and files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from sr_models.evaluation.ranking import (
    MethodScores,
    published_methods,
    rank,
    ranking_table,
    read_methods,
    read_opinions,
)
from sr_models.evaluation.record import ScoreRecord
from sr_models.evaluation.scores import Scores, write_scores


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        # by hand: ranks of opinion and diversity among those of at least 45 dB
        (
            4,
            {
                "NCSR": (1, 2, 1),
                "SRFlow": (2, 3, 2),
                "njtech&seu": (5, 1, 3),
                "SRFlow-DA": (3, 5, 4),
                "BeWater": (4, 4, 4),
            },
        ),
        (8, {"NCSR": (1, 1, 1), "SRFlow": (2, 2, 2), "SRFlow-DA": (3, 4, 3), "BeWater": (4, 3, 3)}),
    ],
)
def test_the_published_tables(scale: int, expected: dict[str, tuple[int, int, int]]) -> None:
    ranked = rank(published_methods(scale))
    assert len(ranked) == 9
    assert [row.method.name for row in ranked if row.eligible] == list(expected)
    for row in ranked:
        found = (row.opinion, row.diversity, row.final)
        assert found == expected.get(row.method.name, (None, None, None))
    # the winner of both tracks
    assert ranked[0].method.name == "NCSR"
    table = ranking_table(ranked).splitlines()
    assert table[0].split() == ["rank", "method", "MOR", "diversity", "LPIPS", "LR-PSNR", "mean", "rank"]
    assert table[1].split()[:4] == ["1", "NCSR", f"{ranked[0].method.opinion:.3f}", "(1)"]
    assert all("(below 45)" in line and line.startswith("-") for line in table[1 + len(expected) :])


def test_the_order_of_the_input_does_not_matter() -> None:
    methods = published_methods(4)
    assert rank(methods[::-1]) == rank(methods)


def test_equals_share_a_rank_and_45_decibels_are_enough() -> None:
    ranked = rank(
        [
            MethodScores("a", 0.2, 45.0, 20.0, 4.0),
            MethodScores("b", 0.1, 60.0, 20.0, 4.0),
            MethodScores("c", 0.3, math.inf, 10.0, 4.0),
            MethodScores("unseen", 0.1, 50.0, 30.0),
            MethodScores("low", 0.1, 44.999, 90.0, 1.0),
        ]
    )
    assert [(row.method.name, row.opinion, row.diversity, row.final) for row in ranked] == [
        ("b", 1, 2, 1),
        ("a", 1, 2, 1),
        ("c", 1, 4, 3),
        ("unseen", None, 1, None),
        ("low", None, None, None),
    ]


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="at least one method, got none"):
        rank([])
    with pytest.raises(ValueError, match="different names, a stands there twice"):
        rank([MethodScores("a", 0, 50, 0), MethodScores("a", 1, 50, 0)])
    with pytest.raises(ValueError, match="scores of a must be numbers, got NaN"):
        rank([MethodScores("a", math.nan, 50, 0)])
    with pytest.raises(ValueError, match="must be 4 or 8, the scales of the challenge, got 2"):
        published_methods(2)


def test_tables_are_read(tmp_path: Path) -> None:
    table = tmp_path / "methods.csv"
    table.write_text(
        "\ufeffmethod,lpips,lr_psnr,diversity,mor,more\na,0.1,50,20,4.5,x\nb, .2,inf,10,-,y\nc,.3,46,5,,z\n"
    )
    first = [MethodScores("a", 0.1, 50, 20, 4.5), MethodScores("b", 0.2, math.inf, 10), MethodScores("c", 0.3, 46, 5)]
    assert read_methods(table) == first
    study = tmp_path / "study.csv"
    study.write_text("method,mor,mor_low,mor_high,answers\nb,4.25,4,5,9\n")
    assert [method.opinion for method in read_methods(table, read_opinions(study))] == [4.5, 4.25, None]


def test_opinions_of_a_method_twice(tmp_path: Path) -> None:
    (tmp_path / "study.csv").write_text("method,mor\na,1.5\nb,2\na,2.5\n")
    with pytest.raises(ValueError, match=r"study.csv, line 4: the opinion of a stands there twice"):
        read_opinions(tmp_path / "study.csv")


def test_scores_of_evaluate_are_a_method(tmp_path: Path) -> None:
    record = ScoreRecord(tmp_path / "mine.csv", distance_name="lpips")
    record.begin({"n": 2}, [], {})
    rows = [
        Scores("a.png", 1.0, 30.0, 0.9, 50.0, 49.0, 10.0, 0.2),
        Scores("b.png", 1.0, 30.0, 0.9, 48.0, 47.0, 20.0, 0.4),
    ]
    write_scores(tmp_path / "mine.csv", rows, "lpips")
    assert read_methods(tmp_path / "mine.csv") == [MethodScores("mine", pytest.approx(0.3), 49.0, 15.0)]
    write_scores(tmp_path / "mine.csv", [], "lpips")
    with pytest.raises(ValueError, match=r"mine.csv holds no scores yet"):
        read_methods(tmp_path / "mine.csv")
    ScoreRecord(tmp_path / "mse.csv", distance_name="mse").begin({}, [], {})
    write_scores(tmp_path / "mse.csv", rows, "mse")
    with pytest.raises(ValueError, match=r"mse.csv holds scores under mse, the ranking needs LPIPS"):
        read_methods(tmp_path / "mse.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"must have the columns method, lpips, lr_psnr, diversity; method is not among none"),
        ("method,lpips,diversity\na,1,2\n", r"lr_psnr is not among method, lpips, diversity"),
        ("method,lpips,lr_psnr,diversity\na,1,2\n", r"t.csv, line 2: diversity must be a number, got None"),
        ("lpips,lr_psnr,diversity,method\n1,2,3\n", r"t.csv, line 2: method must be a name, got None"),
        ("method,lpips,lr_psnr,diversity\n ,1,2,3\n", r"t.csv, line 2: method must be a name, got ''"),
        ("method,lpips,lr_psnr,diversity,mor\na,1,2,3,four\n", r"t.csv, line 2: mor must be a number, got 'four'"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_methods(tmp_path / "t.csv")
