"""Scores are on disk as soon as they are known, and rows of other settings are never mixed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sr_models
from sr_models.evaluation.evaluate import evaluate_model
from sr_models.evaluation.metrics import mse_distance
from sr_models.evaluation.record import ScoreRecord, read_record
from sr_models.evaluation.scores import Scores, mean_scores, read_scores, scores_table, write_scores
from sr_models.flow.explosions import ExplosionError
from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.images import write_image

TINY = {"steps": 1, "hidden_channels": 4, "features": 4, "growth": 2, "blocks": 2, "stacked_blocks": (0, 1)}
NAMES = ["a.png", "b.png", "c.png"]


@pytest.fixture(scope="module")
def model() -> SuperResolutionFlow:
    torch.manual_seed(0)
    return sr_models.create("srflow-da", scale=4, **TINY).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of different heights."""
    path = tmp_path / "truth"
    path.mkdir()
    rng = np.random.default_rng(0)
    for number, name in enumerate(NAMES):
        write_image(path / name, rng.integers(0, 256, (16 + 8 * number, 16, 3), dtype=np.uint8))
    return path


Evaluate = Callable[..., tuple[list[Scores], ScoreRecord]]


@pytest.fixture
def evaluate(model: SuperResolutionFlow, folder: Path, tmp_path: Path) -> Evaluate:
    """``evaluate(samples=1)``: evaluate into ``scores.csv``."""

    def run(overwrite: bool = False, **changes: Any) -> tuple[list[Scores], ScoreRecord]:
        record = ScoreRecord(tmp_path / "scores.csv", distance_name="mse", about={"by": "test"}, overwrite=overwrite)
        options = {
            "model": model,
            "images": folder,
            "samples": 2,
            "temperature": 0.5,
            "distance": mse_distance,
            **changes,
        }
        return evaluate_model(record=record, **options), record

    return run


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> _Heights:
    """Heights of the low-resolution images that are sampled; ``drawn.errors`` has those that raise."""
    heights = _Heights()
    original = SuperResolutionFlow.sample

    def sample(self: SuperResolutionFlow, lr: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if (error := heights.errors.get(lr.shape[2])) is not None:
            raise error
        heights.append(lr.shape[2])
        return original(self, lr, *args, **options)

    monkeypatch.setattr(SuperResolutionFlow, "sample", sample)
    return heights


class _Heights(list[int]):
    def __init__(self) -> None:
        super().__init__()
        self.errors: dict[int, BaseException] = {}


def summary(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "scores.summary.json").read_text())


@pytest.mark.parametrize("stop", [4, 6, 8])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug"), SystemExit(143)])
def test_a_stopped_evaluation_goes_on_where_it_was(
    evaluate: Evaluate, drawn: _Heights, tmp_path: Path, stop: int, error: BaseException
) -> None:
    expected, _ = evaluate()
    for path in tmp_path.glob("scores.*"):
        path.unlink()
    drawn.clear()
    drawn.errors[stop] = error
    with pytest.raises(type(error)):
        evaluate()
    before = [height for height in (4, 6, 8) if height < stop]
    assert drawn == before
    if before:
        assert [row.image for row in read_scores(tmp_path / "scores.csv", "mse")] == NAMES[: len(before)]
    assert summary(tmp_path)["scored"] == f"{len(before)} of 3 images"
    drawn.errors.clear()
    found, _ = evaluate()
    assert drawn == [4, 6, 8]
    assert found == expected
    assert read_scores(tmp_path / "scores.csv", "mse") == expected
    again, _ = evaluate()
    assert again == expected
    assert drawn == [4, 6, 8]


def test_the_summary_has_settings_and_means(evaluate: Evaluate, model: SuperResolutionFlow, tmp_path: Path) -> None:
    rows, _ = evaluate(seed=3, tile=16)
    found = summary(tmp_path)
    assert found["about"]["by"] == "test"
    settings = found["settings"]
    assert len(settings.pop("weights")) == 32
    assert settings == {
        "model": "srflow-da",
        "scale": 4,
        "n": 2,
        "temperature": 0.5,
        "seed": 3,
        "on_explode": "resample",
        "tile": 16,
        "lr_images": "reduced",
        "distance": "mse",
    }
    mean = mean_scores(rows)
    assert found["mean"]["psnr"] == mean.psnr
    assert list(found["images"]) == NAMES
    assert not found["failures"]


@pytest.mark.parametrize(
    "error",
    [
        ExplosionError("sample 0 exploded"),
        ValueError("cannot read image"),
        OSError("gone"),
        MemoryError("too large"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_a_bad_image_costs_only_itself_and_is_tried_again(
    evaluate: Evaluate, drawn: _Heights, tmp_path: Path, error: BaseException
) -> None:
    drawn.errors[6] = error
    rows, record = evaluate()
    assert [row.image for row in rows] == ["a.png", "c.png"]
    assert record.failures == {"b.png": str(error)}
    assert summary(tmp_path)["failures"] == {"b.png": str(error)}
    drawn.errors.clear()
    drawn.clear()
    rows, record = evaluate()
    assert [row.image for row in rows] == NAMES
    assert drawn == [6]
    assert not record.failures
    assert not summary(tmp_path)["failures"]
    assert [row.image for row in read_scores(tmp_path / "scores.csv", "mse")] == NAMES


def test_an_image_that_fails_last_is_on_disk_too(evaluate: Evaluate, drawn: _Heights, tmp_path: Path) -> None:
    drawn.errors[8] = ExplosionError("sample 0 exploded")
    evaluate()
    assert summary(tmp_path)["failures"] == {"c.png": "sample 0 exploded"}
    assert summary(tmp_path)["scored"] == "2 of 3 images"


def test_a_record_in_memory_keeps_failures_and_writes_nothing(
    model: SuperResolutionFlow, folder: Path, drawn: _Heights, tmp_path: Path
) -> None:
    drawn.errors[6] = ExplosionError("sample 0 exploded")
    record = ScoreRecord(distance_name="mse")
    rows = evaluate_model(model, folder, samples=1, distance=mse_distance, record=record)
    assert [row.image for row in rows] == ["a.png", "c.png"]
    assert record.failures == {"b.png": "sample 0 exploded"}
    assert list(tmp_path.iterdir()) == [folder]


def test_without_a_record_a_bad_image_is_an_error(model: SuperResolutionFlow, folder: Path, drawn: _Heights) -> None:
    drawn.errors[6] = ExplosionError("sample 0 exploded")
    with pytest.raises(ExplosionError, match="sample 0 exploded"):
        evaluate_model(model, folder, samples=1, distance=mse_distance)
    (folder / "c.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"image c.png cannot be used"):
        evaluate_model(model, folder, samples=1, distance=mse_distance)


def test_no_image_that_can_be_scored_is_an_error(evaluate: Evaluate, drawn: _Heights) -> None:
    drawn.errors = dict.fromkeys((4, 6, 8), ExplosionError("sample 0 exploded"))
    with pytest.raises(ValueError, match=r"no image could be scored: a.png: sample 0 exploded; b.png: "):
        evaluate()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 3}, r"scores of other settings \(n was 2, now 3\); choose another output, or replace"),
        ({"seed": 1, "temperature": 0.9}, r"seed was 0, now 1; temperature was 0.5, now 0.9"),
        ({"on_explode": "clamp"}, "on_explode was resample, now clamp"),
        ({"tile": 16}, "tile was None, now 16"),
        ({"model": sr_models.create("srflow-da", **TINY).eval()}, r"other settings \(weights was \w+, now \w+"),
    ],
)
def test_other_settings_are_refused_before_anything_is_drawn(
    evaluate: Evaluate, drawn: _Heights, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    evaluate()
    before = {path: path.read_bytes() for path in tmp_path.glob("scores.*")}
    drawn.clear()
    with pytest.raises(ValueError, match=message):
        evaluate(**changes)
    assert not drawn
    assert {path: path.read_bytes() for path in tmp_path.glob("scores.*")} == before
    evaluate(overwrite=True, **changes)
    assert drawn == [4, 6, 8]


def test_other_images_are_refused_and_further_ones_welcome(evaluate: Evaluate, folder: Path, drawn: _Heights) -> None:
    evaluate()
    drawn.clear()
    write_image(folder / "aa.png", np.full((40, 16, 3), 99, dtype=np.uint8))
    rows, _ = evaluate()
    assert drawn == [10]
    assert [row.image for row in rows] == ["a.png", "aa.png", "b.png", "c.png"]
    content = (folder / "b.png").read_bytes()
    write_image(folder / "b.png", np.full((24, 16, 3), 99, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"holds scores of b.png as it was before it changed"):
        evaluate()
    (folder / "b.png").unlink()
    with pytest.raises(ValueError, match=r"holds scores of b.png, which is not among the images"):
        evaluate()
    (folder / "b.png").write_bytes(content)
    evaluate()
    assert drawn == [10]


def test_files_of_others_are_left_alone(evaluate: Evaluate, drawn: _Heights, tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("my,own\n1,2\n")
    with pytest.raises(ValueError, match=r"scores.csv exists, but scores.summary.json, which tells its settings"):
        evaluate()
    (tmp_path / "scores.summary.json").write_text("{")
    with pytest.raises(ValueError, match=r"which tells its settings, cannot be read"):
        evaluate()
    assert not drawn
    assert (tmp_path / "scores.csv").read_text() == "my,own\n1,2\n"


@pytest.mark.parametrize("content", ["", "my,own\n1,2\n", "image,nll\n"])
def test_a_damaged_table_is_named(evaluate: Evaluate, tmp_path: Path, content: str) -> None:
    evaluate()
    (tmp_path / "scores.csv").write_text(content)
    with pytest.raises(ValueError, match=r"scores.csv does not hold scores with the distance mse"):
        evaluate()
    path = tmp_path / "scores.csv"
    write_scores(path, [Scores("a.png", 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)], "mse")
    path.write_text(path.read_text().replace("3.0", "three"))
    with pytest.raises(ValueError, match=r"scores.csv cannot be read: .*three.* in line 2"):
        evaluate()


def test_numbers_come_back_to_the_last_digit(tmp_path: Path) -> None:
    figures = (math.pi, 1 / 3, -0.0, math.inf, -1e-300, 5e-324, 1e300)
    rows = [Scores('odd, "name"\n.png', *figures, 0.1, 2.5, figures, (0.7,), (), (math.inf,), (1e-9, 2.0), (1 / 7,))]
    write_scores(tmp_path / "x.csv", rows, "lpips")
    assert read_scores(tmp_path / "x.csv", "lpips") == rows
    assert read_scores(tmp_path / "x.csv", "lpips")[0].seconds == 2.5
    with pytest.raises(ValueError, match="does not hold scores with the distance mse"):
        read_scores(tmp_path / "x.csv", "mse")
    write_scores(tmp_path / "x.csv", [Scores("a", math.nan, 1, 1, 1, 1, 1, 1)], "mse")
    assert math.isnan(read_scores(tmp_path / "x.csv", "mse")[0].nll)


def test_scores_of_an_older_version_are_named(evaluate: Evaluate, tmp_path: Path) -> None:
    """The first figures are those that there were from the beginning."""
    evaluate()
    path = tmp_path / "scores.csv"
    lines = [line.split(",")[:8] for line in path.read_text().splitlines()]
    path.write_text("".join(",".join(line) + "\n" for line in lines))
    assert lines[0][-1] == "distance_mse"
    with pytest.raises(ValueError, match=r"scores.csv was written by an older version, .* replace it with --overwrite"):
        evaluate()
    with pytest.raises(ValueError, match=r"scores.csv was written by an older version"):
        read_record(path)


def test_a_record_is_read_with_its_settings(evaluate: Evaluate, drawn: _Heights, tmp_path: Path) -> None:
    drawn.errors[6] = ExplosionError("sample 0 exploded")
    rows, _ = evaluate(seed=3)
    found = read_record(tmp_path / "scores.csv")
    assert found.rows == rows
    assert [len(row.sample_distances) for row in found.rows] == [2, 2]
    assert (found.distance_name, found.settings["seed"], found.about["by"]) == ("mse", 3, "test")
    assert found.failures == {"b.png": "sample 0 exploded"}
    with pytest.raises(FileNotFoundError, match=r"there is no file of scores .*none.csv"):
        read_record(tmp_path / "none.csv")


def test_a_file_without_its_summary_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("my,own\n1,2\n")
    with pytest.raises(ValueError, match=r"cannot be read .*; give a file that sr-models evaluate --output wrote"):
        read_record(tmp_path / "mine.csv")


@pytest.mark.parametrize("name", [b"\xff.png", "ä.png".encode("latin1"), b"a\nb.png", "\u2028.png".encode()])
def test_names_of_all_bytes(model: SuperResolutionFlow, folder: Path, tmp_path: Path, name: bytes) -> None:
    """A file system takes any bytes; so do the files of scores, and the table can be printed in UTF-8."""
    odd = os.fsdecode(name)
    try:
        (folder / "a.png").rename(folder / odd)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    options = {"samples": 1, "distance": mse_distance}
    rows = evaluate_model(model, folder, record=ScoreRecord(tmp_path / "s.csv", distance_name="mse"), **options)
    assert odd in [row.image for row in rows]
    assert evaluate_model(model, folder, record=ScoreRecord(tmp_path / "s.csv", distance_name="mse"), **options) == rows
    assert name in (tmp_path / "s.csv").read_bytes()
    assert len(scores_table(rows, "mse").encode().splitlines()) == len(scores_table(rows, "mse").splitlines()) == 5


def test_places_that_cannot_be_written_are_found_before_anything_is_drawn(
    evaluate: Evaluate, drawn: _Heights, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"output {tmp_path} is a folder; give a file such as {tmp_path}/scores.csv"):
        ScoreRecord(tmp_path, distance_name="mse")
    with pytest.raises(FileNotFoundError, match=r"folder of output .*none/x.csv does not exist"):
        ScoreRecord(tmp_path / "none" / "x.csv", distance_name="mse")
    (tmp_path / "scores.summary.json").mkdir()
    with pytest.raises(OSError, match=r"scores.summary.json"):
        evaluate()
    assert not drawn


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, "n must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be finite and at least 0, got -1"),
        ({"seed": -1}, "seed"),
        ({"on_explode": "ignore"}, "on_explode must be one of"),
        ({"tile": 4}, "tile must be at least 16, got 4"),
    ],
)
def test_mistakes_in_arguments_are_no_faults_of_images(
    evaluate: Evaluate, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(**changes)
    assert not list(tmp_path.glob("scores.*"))


def test_a_likelihood_that_does_not_fit_into_memory_is_left_out_with_tiles_only(
    evaluate: Evaluate, model: SuperResolutionFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(model), "encode", fail)
    rows, record = evaluate(tile=16)
    assert all(math.isnan(row.nll) and math.isfinite(row.psnr) for row in rows)
    assert not record.failures
    with pytest.raises(ValueError, match=r"no image could be scored: a.png: CUDA out of memory"):
        evaluate(overwrite=True)
