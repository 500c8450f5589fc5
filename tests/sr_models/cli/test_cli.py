"""The command line end to end: a tiny training, then samples and scores; and one line for every mistake."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import sr_models
from sr_models.checkpoints.files import load_model, read_file, save_model, write_file
from sr_models.cli.main import main
from sr_models.io.images import read_image, write_image
from sr_models.io.resize import imresize

TINY = "{steps: 1, hidden_channels: 4, features: 4, growth: 2, blocks: 2, stacked_blocks: [0, 1]}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        picture = imresize(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8), 4)
        write_image(path / f"{name}.png", picture)
    return path


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    arguments = f"train --model srflow-da --images {folder} --val_images {folder} --crop 16 --batch_size 2 --steps 4"
    arguments += f" --encoder_steps 1 --val_every 2 --save_every 2 --output {path} --accelerator cpu"
    assert main([*arguments.split(), "--overrides", TINY]) == 0
    return path


def test_training_leaves_a_model(run: Path) -> None:
    assert {"model.safetensors", "model.json", "training.json", "checkpoints"} <= {f.name for f in run.iterdir()}


def test_sample(run: Path, folder: Path, tmp_path: Path) -> None:
    arguments = ["sample", "--checkpoint", str(run / "model.safetensors"), "--images", str(folder), "--n", "2"]
    assert main([*arguments, "--output", str(tmp_path / "one")]) == 0
    assert main([*arguments, "--output", str(tmp_path / "two")]) == 0
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == [f"{stem}_sample{index:03d}.png" for stem in "ab" for index in range(2)]
    for name in names:
        first = read_image(tmp_path / "one" / name)
        assert first.shape == (128, 160, 3)
        assert np.array_equal(first, read_image(tmp_path / "two" / name))


def test_evaluate(run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "--checkpoint", str(run / "model.safetensors"), "--images", str(folder), "--n", "2"]
    assert main([*arguments, "--output", str(tmp_path / "scores.csv")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"image +NLL b/dim +PSNR +SSIM +LR-PSNR +worst +diversity\((lpips|mse)\)", printed)
    assert (tmp_path / "scores.csv").read_text().count("\n") == 3


def test_grey_images_and_models_in_double_precision(run: Path, tmp_path: Path) -> None:
    (tmp_path / "grey").mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (6, 8), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "grey" / "a.png")
    save_model(load_model(run / "model.safetensors").double(), tmp_path / "double.safetensors")
    for checkpoint in (run / "model.safetensors", tmp_path / "double.safetensors"):
        out = tmp_path / checkpoint.stem
        arguments = ["sample", "--checkpoint", str(checkpoint), "--images", str(tmp_path / "grey"), "--n", "1"]
        assert main([*arguments, "--output", str(out)]) == 0
        assert read_image(out / "a_sample000.png").shape == (24, 32, 3)
    first, second = (read_image(tmp_path / name / "a_sample000.png").astype(int) for name in ("model", "double"))
    assert np.abs(first - second).max() <= 1


@pytest.mark.parametrize("size", [(37, 53), (1, 1), (1, 6)])
def test_any_size(tmp_path: Path, size: tuple[int, int]) -> None:
    save_model(sr_models.create("srflow", **yaml.safe_load(TINY)), tmp_path / "model.safetensors")
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    write_image(tmp_path / "a.png", picture)
    arguments = ["--checkpoint", str(tmp_path / "model.safetensors"), "--images", str(tmp_path), "--n", "1"]
    assert main(["sample", *arguments, "--output", str(tmp_path / "out")]) == 0
    assert read_image(tmp_path / "out" / "a_sample000.png").shape == (4 * size[0], 4 * size[1], 3)


def test_describe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "--model", "srflow", "--scale", "8", "--preset", "faces"]) == 0
    assert "encoder 5,943,555, flow 33,810,400, total 39,753,955" in capsys.readouterr().out


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert "srflow-da: " in capsys.readouterr().out


def test_train_reads_a_config_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        f"model: srflow-da\nimages: {folder}\ncrop: 16\nbatch_size: 1\nsteps: 1\noverrides: {TINY}\n"
        f"output: {tmp_path / 'out'}\naccelerator: cpu\n"
    )
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 0
    assert (tmp_path / "out" / "model.safetensors").exists()


def one_line(arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments.split()) == 2
    # a progress bar may have begun before
    last = capsys.readouterr().err.rstrip("\n").splitlines()[-1]
    assert last.startswith("sr-models: error: ")
    return last


class TestMistakes:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("", "command"),
            ("fly", "'fly'"),
            ("sample --n many", "many"),
            (
                "train --model nonesuch --images {images} --output {out}",
                "model must be one of 'ncsr', 'srflow', 'srflow-da', 'srflow-da-d', 'srflow-da-r', 'srflow-da-s', got",
            ),
            ("train --model srflow-da --preset huge --images {images} --output {out}", "got 'huge'"),
            ("train --model srflow-da --scale 5 --images {images} --output {out}", "one of 4, 8, got 5"),
            ("train --model srflow-da --images {images}/none --output {out}", "none does not exist"),
            ("train --model srflow-da --images {empty} --output {out}", "holds no image"),
            ("train --model srflow-da --images {broken} --output {out}", "cannot read image"),
            ("train --model srflow-da --images {images} --crop 30 --output {out}", "multiple of the scale 4, got 30"),
            ("train --model srflow-da --images {images} --crop 64 --output {out}", "at least 64 x 64"),
            (
                "train --model srflow-da --images {images} --crop 16 --steps -1 --output {out}",
                "steps must be at least 1",
            ),
            ("sample --checkpoint {out}.safetensors --images {images} --output {out}", "does not exist"),
            ("sample --checkpoint {out}.pth --images {images} --output {out}", "sr-models convert makes one"),
            ("sample --checkpoint {model} --images {empty} --output {out}", "holds no image"),
            ("sample --checkpoint {model} --images {images} --output {out} --n 0", "n must be at least 1, got 0"),
            ("sample --checkpoint {model} --images {images} --output {out} --temperature -1", "temperature must be"),
            (
                "sample --checkpoint {model} --images {images} --output {out} --device hal",
                "device 'hal' cannot be used",
            ),
            ("evaluate --checkpoint {model} --images {images} --lr_images {images}", "times lr"),
            ("evaluate --checkpoint {model} --images {images} --output {out}/none/x.csv", "does not exist"),
            ("sample --checkpoint {model} --images {deep} --output {out}", "8 bits a channel, got Pillow mode 'I;16'"),
            ("sample --checkpoint {model} --images {nan} --output {out}", "8 bits a channel, got Pillow mode 'F'"),
            ("sample --checkpoint {model} --images {images} --output {out} --temperature nan", "nan"),
            ("sample --checkpoint {other} --images {images} --output {out}", "size mismatch"),
            (
                "sample --checkpoint {diverged} --images {images} --output {out}",
                "encoder.conv_first.bias holds values that are not finite",
            ),
            ("sample --checkpoint {encoder} --images {images} --output {out}", "it holds an encoder only"),
            (
                "train --model srflow-da --encoder {model} --images {images} --crop 16 --output {out}",
                "not hold an encoder",
            ),
            ("describe --model srflow --preset faces", "scale of srflow with preset 'faces' must be 8, got 4"),
            ("demo --steps 3 --output {out}", "steps must be at least 10, got 3"),
        ],
    )
    def test_one_line_and_nothing_left_behind(
        self, run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str
    ) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
        for name, pixels in (("deep", np.zeros((8, 8), np.uint16)), ("nan", np.full((8, 8), np.nan, np.float32))):
            (tmp_path / name).mkdir()
            Image.fromarray(pixels).save(tmp_path / name / "x.tif")
        # a checkpoint beside the description of another model, and one of an encoder alone
        other = tmp_path / "other.safetensors"
        other.write_bytes((run / "model.safetensors").read_bytes())
        other.with_suffix(".json").write_text(
            (run / "model.json").read_text().replace('"hidden_channels": 4', '"hidden_channels": 8')
        )
        write_file(tmp_path / "encoder.safetensors", {"encoder": {}}, {})
        description, tensors = read_file(run / "model.safetensors")
        tensors["encoder.conv_first.bias"][1] = np.nan
        write_file(tmp_path / "diverged.safetensors", description, tensors)
        out = tmp_path / "out"
        filled = arguments.format(
            images=folder,
            out=out,
            deep=tmp_path / "deep",
            nan=tmp_path / "nan",
            other=other,
            diverged=tmp_path / "diverged.safetensors",
            encoder=tmp_path / "encoder.safetensors",
            empty=tmp_path / "empty",
            broken=tmp_path / "broken",
            model=run / "model.safetensors",
        )
        assert message in one_line(filled, capsys)
        assert not out.exists()


def test_help_is_quick_and_complete() -> None:
    code = "import sys; from sr_models.cli.main import main; sys.argv = ['sr-models', '--help']; main()"
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0
    for command in ("list", "describe", "demo", "train", "sample", "evaluate", "convert"):
        assert f"    {command} " in result.stdout
    assert "lightning" not in result.stderr
