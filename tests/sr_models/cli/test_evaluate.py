"""``sr-models evaluate``: a table and a file of scores."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sr_models.checkpoints.files import describe_file, load_model
from sr_models.cli import main
from sr_models.evaluation.metrics import lpips_available
from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.images import read_image, write_image
from sr_models.io.resize import imresize


def test_evaluate(run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "--checkpoint", str(run / "model.safetensors"), "--images", str(folder), "--n", "2"]
    assert main([*arguments, "--output", str(tmp_path / "scores.csv")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"image +NLL b/dim +PSNR +PSNR-Y +SSIM +LR-PSNR +worst +diversity\((lpips|mse)\)", printed)
    assert (tmp_path / "scores.csv").read_text().count("\n") == 3
    distance = re.findall(r"diversity\((\w+)\)", printed)[0]
    assert f"distance: {distance}, {'weights of' if distance == 'lpips' else 'since'} " in printed
    assert json.loads((tmp_path / "scores.summary.json").read_text())["settings"]["distance"] == distance


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A number for every image that is sampled."""
    calls: list[int] = []
    original = SuperResolutionFlow.sample

    def sample(self: SuperResolutionFlow, *args: Any, **options: Any) -> torch.Tensor:
        calls.append(len(calls))
        return original(self, *args, **options)

    monkeypatch.setattr(SuperResolutionFlow, "sample", sample)
    return calls


def test_a_run_that_goes_on(run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load_model(run / "model.safetensors")
    (tmp_path / "going" / "checkpoints").mkdir(parents=True)
    content = {"format": 1, "step": 7, "description": json.dumps(describe_file(model)), "model": model.state_dict()}
    torch.save(content, tmp_path / "going" / "checkpoints" / "last.ckpt")
    output = tmp_path / "scores.csv"
    arguments = ["--images", str(folder), "--n", "1", "--output", str(output)]
    assert main(["evaluate", "--checkpoint", str(tmp_path / "going"), *arguments]) == 0
    about = json.loads(output.with_suffix(".summary.json").read_text())["about"]
    assert about["step"] == 7
    assert about["checkpoint"].endswith("going/checkpoints/last.ckpt")
    # the same weights, wherever they are
    capsys.readouterr()
    assert main(["evaluate", "--checkpoint", str(run / "model.safetensors"), *arguments]) == 0
    assert main(["evaluate", "--checkpoint", str(run / "model.safetensors"), *arguments, "--seed", "1"]) == 2
    assert "holds scores of other settings (seed was 0, now 1)" in capsys.readouterr().err


def test_an_image_that_fails_is_named_and_the_exit_code_is_one(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = shutil.copytree(folder, tmp_path / "images")
    (images / "c.png").write_bytes((images / "a.png").read_bytes()[:200])
    arguments = ["evaluate", "--checkpoint", str(run), "--images", str(images), "--n", "1"]
    assert main([*arguments, "--output", str(tmp_path / "scores.csv")]) == 1
    out, err = capsys.readouterr()
    assert re.search(r"^ *mean ", out, re.MULTILINE)
    assert re.search(r"^sr-models: not scored: c.png: ", err, re.MULTILINE)
    assert "the means are of 2 images, without 1\n" in err
    assert (tmp_path / "scores.csv").read_text().count("\n") == 3
    assert list(json.loads((tmp_path / "scores.summary.json").read_text())["failures"]) == ["c.png"]


def test_mistakes_are_found_before_anything_is_scored(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], scored: list[int]
) -> None:
    low = shutil.copytree(folder, tmp_path / "low")
    (low / "b.png").unlink()
    for arguments, message in (
        (["--lr_images", str(low)], "lr_images do not fit 2 of 2 images"),
        (["--output", str(tmp_path)], "is a folder; give a file such as"),
        (["--tile", "3"], "tile must be at least 16, got 3"),
    ):
        assert main(["evaluate", "--checkpoint", str(run), "--images", str(folder), "--n", "1", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not scored


def test_precision_of_networks(run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {}
    for precision in ("fp32", "bf16"):
        output = tmp_path / f"{precision}.csv"
        arguments = ["evaluate", "--checkpoint", str(run / "model.safetensors"), "--images", str(folder), "--n", "1"]
        assert main([*arguments, "--output", str(output), "--precision", precision]) == 0
        rows[precision] = list(csv.DictReader(output.open()))
        settings = json.loads(output.with_suffix(".summary.json").read_text())["settings"]
        assert settings.get("precision") == ("bf16" if precision == "bf16" else None)
    for exact, half in zip(rows["fp32"], rows["bf16"], strict=True):
        for name in ("nll", "psnr"):
            assert float(half[name]) == pytest.approx(float(exact[name]), rel=0.02)
    # of so few steps the networks compute little, which may round to the same number
    assert [row["nll"] for row in rows["bf16"]] != [row["nll"] for row in rows["fp32"]]
    capsys.readouterr()
    assert main([*arguments, "--output", str(tmp_path / "bf16.csv")]) == 2
    assert "holds scores of other settings (precision was bf16, now None)" in capsys.readouterr().err
    assert main([*arguments, "--precision", "fp16"]) == 2
    assert "precision fp16 is for GPUs" in capsys.readouterr().err


def test_samples_of_the_challenge_and_its_tables(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What ``sample`` writes, ``evaluate`` reads; and saving the samples of an evaluation gives the same scores."""
    if not lpips_available()[0]:
        pytest.skip(lpips_available()[1])
    low, truth = tmp_path / "low", tmp_path / "truth"
    for name in ("a", "b"):
        hr = read_image(folder / f"{name}.png")
        for place, image, file in ((low, imresize(hr, 1 / 4), f"{name}x4"), (truth, hr, name)):
            place.mkdir(exist_ok=True)
            write_image(place / f"{file}.png", image)
    common = ["--checkpoint", str(run), "--n", "2", "--temperature", "0.9"]
    sampled = tmp_path / "sampled"
    assert main(["sample", *common, "--images", str(low), "--output", str(sampled), "--naming", "ntire"]) == 0
    names = [f"00000{image}_sample0000{sample}.png" for image in (0, 1) for sample in (0, 1)]
    assert sorted(path.name for path in sampled.iterdir()) == names
    saved, table = tmp_path / "saved", tmp_path / "Mine.csv"
    scored = ["evaluate", "--images", str(truth), "--output", str(table), "--format", "ntire"]
    assert main([*scored, *common, "--lr_images", str(low), "--save_samples", str(saved)]) == 0
    assert sorted(path.name for path in saved.iterdir()) == names
    tables = sorted(path.name for path in tmp_path.glob("Mine*"))
    assert tables == ["Mine.csv", "Mine.scores.csv", "Mine.scores.summary.json", "Mine_full.csv", "Mine_mean.csv"]
    about = json.loads((tmp_path / "Mine.scores.summary.json").read_text())["about"]
    assert (about["samples"], about["device"], about["threads"]) == (str(saved), "cpu", torch.get_num_threads())
    assert about["parameters"] == sum(parameter.numel() for parameter in load_model(run).parameters())
    expected = table.read_text()
    for source in (sampled, saved):
        folder_scored = ["--samples", str(source), "--scale", "4", "--overwrite"]
        assert main([*scored, *folder_scored]) == 0
        assert table.read_text() == expected
    capsys.readouterr()
    assert main(["sample", *common, "--images", str(low), "--output", str(tmp_path / "named")]) == 0
    assert main([*scored, "--samples", str(tmp_path / "named"), "--overwrite"]) == 0
    assert table.read_text() == expected


def test_saved_samples_that_are_missing_are_drawn_again(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], scored: list[int]
) -> None:
    saved = tmp_path / "saved"
    arguments = ["evaluate", "--checkpoint", str(run), "--images", str(folder), "--n", "1"]
    arguments += ["--save_samples", str(saved), "--output", str(tmp_path / "scores.csv")]
    assert main(arguments) == 0
    assert sorted(path.name for path in saved.iterdir()) == ["000000.png", "000001.png"]
    assert len(scored) == 2
    (saved / "000001.png").unlink()
    assert main(arguments) == 0
    assert len(scored) == 3
    assert (saved / "000001.png").exists()
    assert main(arguments) == 0
    assert len(scored) == 3
    # several samples take the place of the single one, on wish
    several = [*arguments[:-1], str(tmp_path / "several.csv"), "--n", "2"]
    assert main(several) == 2
    assert main([*several, "--overwrite"]) == 0
    assert sorted(path.name for path in saved.iterdir()) == [
        f"00000{image}_sample0000{sample}.png" for image in range(2) for sample in range(2)
    ]
    assert main([*arguments, "--overwrite"]) == 0
    assert sorted(path.name for path in saved.iterdir()) == ["000000.png", "000001.png"]
    # others' files are not lost
    drawn = len(scored)
    write_image(saved / "000000.png", np.zeros((4, 4, 3), dtype=np.uint8))
    capsys.readouterr()
    assert main(arguments) == 2
    assert "000000.png is not a sample of this command" in capsys.readouterr().err
    assert len(scored) == drawn


def test_saved_samples_are_those_of_the_low_resolution_images(
    run: Path, folder: Path, tmp_path: Path, scored: list[int]
) -> None:
    """Samples that other low-resolution images gave are not taken for those of these scores."""
    for low, value in (("dark", 0), ("bright", 255)):
        (tmp_path / low).mkdir()
        for path in folder.iterdir():
            height, width = read_image(path).shape[:2]
            write_image(tmp_path / low / path.name, np.full((height // 4, width // 4, 3), value, dtype=np.uint8))
    common = ["evaluate", "--checkpoint", str(run), "--images", str(folder), "--n", "1"]
    saved = ["--save_samples", str(tmp_path / "saved")]
    dark, bright = (
        [*common, "--lr_images", str(tmp_path / low), "--output", str(tmp_path / f"{low}.csv")]
        for low in ("dark", "bright")
    )
    assert main([*dark, *saved]) == 0
    assert main(bright) == 0
    drawn = len(scored)
    assert main([*bright, *saved]) == 2
    assert main([*dark, *saved]) == 0
    assert len(scored) == drawn


@pytest.mark.parametrize("where", [".", "samples"])
def test_samples_are_not_saved_among_the_images(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    images = shutil.copytree(folder, tmp_path / "images")
    arguments = ["evaluate", "--checkpoint", str(run), "--images", str(images), "--n", "1"]
    assert main([*arguments, "--save_samples", str(images / where)]) == 2
    assert "save_samples must be outside the folder of the images" in capsys.readouterr().err
    assert len(list(images.iterdir())) == len(list(folder.iterdir()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --checkpoint, a model, or --samples, a folder of images to score; got none"),
        (["--checkpoint", "{run}", "--samples", "{folder}"], "a folder of images to score; got both"),
        (["--samples", "{folder}", "--temperature", "0.5"], "temperature belongs to --checkpoint, which is not given"),
        (["--samples", "{folder}", "--save_samples", "x"], "save_samples belongs to --checkpoint"),
        (["--checkpoint", "{run}", "--scale", "4"], "scale belongs to --samples, which is not given"),
        (["--checkpoint", "{run}", "--format", "ntire"], "format ntire needs"),
        (["--samples", "{folder}"], "scale must be given, 4 for instance"),
    ],
)
def test_options_that_do_not_fit(
    run: Path, folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    given = [argument.format(run=run, folder=folder) for argument in arguments]
    assert main(["evaluate", "--images", str(folder), *given]) == 2
    assert message in capsys.readouterr().err


def test_tables_of_others_are_left_alone(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not lpips_available()[0]:
        pytest.skip(lpips_available()[1])
    (tmp_path / "Team_mean.csv").write_text("mine")
    arguments = ["evaluate", "--samples", str(folder), "--images", str(folder), "--scale", "4", "--format", "ntire"]
    assert main([*arguments, "--output", str(tmp_path / "Team.csv")]) == 2
    assert "Team_mean.csv exists, but not Team.scores.csv, from which it was made" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["Team_mean.csv"]
