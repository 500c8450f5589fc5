"""``sr-models report``, and ``sr-models evaluate --report``: pages of what was scored."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sr_models.cli import main
from sr_models.evaluation.report.stored import checkpoint_name, read_methods


@pytest.fixture(scope="module")
def evaluated(run: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores of a model at two temperatures, with samples and a page."""
    path = tmp_path_factory.mktemp("evaluated")
    arguments = ["evaluate", "--checkpoint", str(run), "--images", str(folder), "--n", "2"]
    arguments += ["--output", str(path / "m.csv"), "--save_samples", str(path / "samples")]
    assert main([*arguments, "--temperatures", "[0,0.9]", "--report", str(path / "m.html")]) == 0
    return path


def figures(file: Path, name: str) -> list[float]:
    return [float(row[name]) for row in csv.DictReader(file.open())]


def test_a_model_has_a_page(evaluated: Path, run: Path) -> None:
    text = (evaluated / "m.html").read_text()
    assert f"{run.name}: images enlarged 4 times" in text
    for part in ("encoder&#39;s image", "bicubic, back-projected", "Hold to flicker", "temperature 0", "2 of 2 images"):
        assert part in text, part
    # numbers are those of the record
    for name, digits in (("lr_psnr", 1), ("psnr", 2), ("ssim", 3)):
        assert f">{np.mean(figures(evaluated / 'm.csv', name)):.{digits}f}" in text


def test_what_was_scored_is_read_again(evaluated: Path) -> None:
    *baselines, model = read_methods(evaluated / "m.csv")
    assert [method.name for method in baselines] == ["bicubic", "bicubic, back-projected", "encoder's image"]
    assert all(method.baseline and len(method.rows) == 2 for method in baselines)
    assert (model.name, model.n, model.temperature, model.covered) == ("m", 2, 0.9, 2)
    assert sorted(model.sweep) == [0.0, 0.9]
    assert model.sweep[0.9] == model.rows
    assert model.sweep[0.0] != model.rows
    assert model.parameters
    assert model.parameters > 100


def test_models_have_a_page(evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(evaluated, tmp_path / "copy")
    for file in ("m.csv", "m.summary.json", "m.parts"):
        (tmp_path / "copy" / file).rename(tmp_path / "copy" / file.replace("m.", "other.", 1))
    both = [str(evaluated / "m.csv"), str(tmp_path / "copy" / "other.csv")]
    capsys.readouterr()
    assert main(["report", *both, "--output", str(tmp_path / "both.html")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'both.html'}\n"
    text = (tmp_path / "both.html").read_text()
    assert "m and other: images enlarged 4 times" in text
    assert "Hold to flicker" in text
    # baselines that are the same are shown once
    assert text.count('<span class="swatch"></span>') == 5
    assert "of other" not in text


def test_pictures_that_cannot_be_shown_cost_no_page(evaluated: Path, tmp_path: Path, folder: Path) -> None:
    shutil.copytree(evaluated, tmp_path / "copy")
    summary = tmp_path / "copy" / "m.summary.json"
    content = json.loads(summary.read_text())
    target = tmp_path / "r.html"
    for images, said in ((str(tmp_path / "gone"), "There are no pictures: "), (str(folder), "Hold to flicker")):
        content["about"]["images"] = str(tmp_path / "gone")
        summary.write_text(json.dumps(content))
        assert main(["report", str(tmp_path / "copy" / "m.csv"), "--output", str(target), "--images", images]) == 0
        assert said in target.read_text()
    del content["about"]["samples"]
    summary.write_text(json.dumps(content))
    assert main(["report", str(tmp_path / "copy" / "m.csv"), "--output", str(target)]) == 0
    assert "samples were not saved" in target.read_text()


def test_parts_of_other_scores_are_not_mixed_with_new_ones(evaluated: Path, run: Path, folder: Path) -> None:
    copy = shutil.copytree(evaluated, evaluated.parent / "again")
    (copy / "m.csv").unlink()
    arguments = ["evaluate", "--checkpoint", str(run), "--images", str(folder), "--n", "1", "--temperature", "0.5"]
    assert main([*arguments, "--output", str(copy / "m.csv")]) == 0
    (model,) = read_methods(copy / "m.csv")
    assert (model.temperature, dict(model.sweep), list(model.coverage)) == (0.5, {}, [])


def test_a_method_may_be_called_like_a_baseline(run: Path, folder: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", "--samples", str(folder), "--images", str(folder), "--scale", "4"]
    arguments += ["--output", str(tmp_path / "bicubic.csv"), "--report", str(tmp_path / "r.html")]
    assert main(arguments) == 0
    text = (tmp_path / "r.html").read_text()
    assert '<span class="swatch"></span>bicubic<' in text
    assert '<span class="swatch"></span>bicubic (baseline)<' in text


def test_samples_of_other_images_are_not_shown(evaluated: Path, folder: Path, tmp_path: Path) -> None:
    """An image that was added since has shifted the numbers in the names of the samples."""
    images = shutil.copytree(folder, tmp_path / "images")
    first = min(images.iterdir())
    shutil.copy(first, images / f"0{first.name}")
    page = tmp_path / "r.html"
    assert main(["report", str(evaluated / "m.csv"), "--output", str(page), "--images", str(images)]) == 0
    text = page.read_text()
    assert "There are no pictures of m: " in text
    assert "000001_sample00000.png is not a sample of " in text


def test_a_folder_of_images_has_a_page(
    evaluated: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "--samples", str(evaluated / "samples"), "--images", str(folder), "--scale", "4"]
    assert main([*arguments, "--report", str(tmp_path / "r.html")]) == 2
    assert "the report of a folder of images needs --output" in capsys.readouterr().err
    arguments += ["--output", str(tmp_path / "theirs.csv")]
    assert main([*arguments, "--report", str(tmp_path / "r.html")]) == 0
    text = (tmp_path / "r.html").read_text()
    for part in ("theirs: images enlarged 4 times", "2 samples an image.", "Hold to flicker", ">bicubic<"):
        assert part in text, part


def test_mistakes_are_errors(evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = str(evaluated / "m.csv")
    (tmp_path / "m.csv").write_text("a,b\n")
    damaged = shutil.copytree(evaluated, tmp_path / "damaged")
    (damaged / "m.parts" / "coverage.json").write_text("{}")
    for arguments, message in (
        ([str(tmp_path / "none.csv"), "--output", "r.html"], "there is no file of scores"),
        ([str(tmp_path / "m.csv"), "--output", "r.html"], "m.summary.json"),
        ([scores, scores, "--output", str(tmp_path / "r.html")], "must have names of their own, got 'm' twice"),
        ([scores, "--output", str(tmp_path / "none" / "r.html")], "does not exist"),
        ([str(damaged / "m.csv"), "--output", str(tmp_path / "r.html")], "coverage.json cannot be read"),
        ([scores, "--output", f"{evaluated}/../{evaluated.name}/m.csv"], "output must be another file than the scores"),
    ):
        assert main(["report", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


def test_arguments_are_checked_before_anything_is_scored(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "--checkpoint", str(run), "--images", str(folder), "--output", str(tmp_path / "s.csv")]
    for more, message in (
        (["--report", str(tmp_path / "none" / "r.html")], "folder of report"),
        (["--report", str(tmp_path)], "is a folder; give a file such as"),
        (["--report", str(tmp_path / "s.csv")], "report must be another file than the output"),
        (["--temperatures", "[0]"], "give --report FILE.html too"),
    ):
        assert main([*arguments, *more]) == 2
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("srflow-da-tiny", "srflow-da-tiny"),
        ("models/a.b.safetensors", "a.b"),
        ("runs/v1.2", "v1.2"),
        ("runs/mine/model.safetensors", "mine"),
        ("runs/mine/last", "mine"),
        ("model.safetensors", "model"),
    ],
)
def test_a_model_is_named_after_its_file_or_its_folder(checkpoint: str, name: str) -> None:
    assert checkpoint_name(checkpoint) == name
