"""One line for every mistake and every missing package, and help that loads nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from missing_packages import run_without
from PIL import Image

import invflow
from sr_models._extras import EXTRAS
from sr_models.checkpoints.files import read_file, write_file
from sr_models.cli import COMMANDS, main


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
            ("fly", "'fly'; see sr-models --help"),
            ("sampel", "got 'sampel'; did you mean sample?"),
            ("convert", "file and --output must be given"),
            ("train", "--output, --model and --images must be given"),
            ("sample --n many", "many"),
            (
                "train --model nonesuch --images {images} --output {out}",
                "model must be one of 'hcflow', 'hcflow-rescaling', 'ncsr', 'srflow', 'srflow-da', 'srflow-da-d', "
                "'srflow-da-r', 'srflow-da-s', got",
            ),
            ("train --model srflow-da --preset huge --images {images} --output {out}", "got 'huge'"),
            ("train --model srflow-da --scale 5 --images {images} --output {out}", "one of 2, 4, 8, got 5"),
            ("train --model srflow-da --images {images}/none --output {out}", "none does not exist"),
            ("train --model srflow-da --images {empty} --output {out}", "holds no image"),
            ("train --model srflow-da --images {broken} --output {out}", "no image that can be read, or damaged"),
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
            ("evaluate --checkpoint {model} --images {images} --lr_images {images}", "which is not 4 times the"),
            ("evaluate --checkpoint {model} --images {images} --output {out}/none/x.csv", "does not exist"),
            ("sample --checkpoint {model} --images {deep} --output {out}", "got Pillow mode 'I' of 32 bits"),
            ("sample --checkpoint {model} --images {nan} --output {out}", "got Pillow mode 'F' of 32 bits"),
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
            ("demo --minutes -1 --output {out}", "minutes must be in 0..600, got -1.0"),
        ],
    )
    def test_one_line_and_nothing_left_behind(
        self, run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str
    ) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
        for name, pixels in (("deep", np.zeros((8, 8), np.int32)), ("nan", np.full((8, 8), np.nan, np.float32))):
            (tmp_path / name).mkdir()
            Image.fromarray(pixels).save(tmp_path / name / "x.tif")
        # a checkpoint beside the description of another model, and one of an encoder alone
        other = tmp_path / "other.safetensors"
        description, tensors = read_file(run / "model.safetensors")
        write_file(other, {**description, "config": {**description["config"], "hidden_channels": 8}}, tensors)
        write_file(tmp_path / "encoder.safetensors", {"encoder": {}}, {})
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
    code = "import sys; from sr_models.cli import main; sys.argv = ['sr-models', '--help']; main()"
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0
    for command in ("list", "describe", "demo", "train", "sample", "evaluate", "convert"):
        assert f"    {command} " in result.stdout
    assert "lightning" not in result.stderr


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sr-models {invflow.__version__}\n"


def call(*arguments: str) -> str:
    """Code that is the process ``sr-models`` with these arguments."""
    return f"import sys; from sr_models.cli import main; sys.argv = ['sr-models', *{arguments}]; sys.exit(main())"


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "sr_models.cli", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("usage: sr-models COMMAND [options]\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_no_library(command: str) -> None:
    heavy = {"torch", "numpy", "scipy", *EXTRAS} - {"jsonargparse", "yaml"}
    assert run_without(heavy, call(command, "--help")).returncode == 0


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        ("list", ["Models that installed packages bring are listed too."]),
        ("describe", ["usage: sr-models describe --model MODEL [options]", "sr-models list shows them (required)"]),
        ("demo", ["report.html in it (default: runs/demo)", "(default: 2.0)"]),
        ("train", ["--config run.yaml", "halved at the milestones", "--images IMAGES", "seed", "(default: 160)"]),
        (
            "sample",
            ["\n    sr-models sample --checkpoint model.safetensors", "{error,resample,clamp}", "the model's file"],
        ),
        ("evaluate", ["LPIPS if its AlexNet weights are on this machine", "the challenge takes 10 (default: 10)"]),
        ("pack", ["usage: sr-models pack --images IMAGES --output OUTPUT [options]", "--strict [{true,false}]"]),
        ("study", ["sr-models study --database study.db", "--method METHOD", "--no_reference", "(default: 8000)"]),
        ("convert", ["usage: sr-models convert -o OUTPUT file [options]", "--blocks BLOCKS"]),
    ],
)
def test_help_of_every_command(command: str, parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    for part in (f"usage: sr-models {command} ", *parts):
        assert part in " ".join(printed.split()) or part in printed, part
    for line in printed.splitlines():
        assert "null" not in line
        assert "type:" not in line


class TestMissingPackages:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_without_the_extra(self, command: str) -> None:
        result = run_without(EXTRAS, call(command))
        assert result.returncode == 2
        assert result.stderr == "sr-models: error: jsonargparse is not installed: pip install 'invflow[sr]'\n"

    def test_the_overview_needs_none(self) -> None:
        result = run_without({"torch", "numpy", *EXTRAS}, call("--help"))
        assert result.returncode == 0
        assert "    convert " in result.stdout

    @pytest.mark.parametrize(
        ("package", "extra", "arguments"),
        [
            ("lightning", "sr", "train --model srflow-da --images {folder} --output {out}"),
            ("sklearn", "demo", "demo --minutes 0 --output {out}"),
        ],
    )
    def test_without_one_package(self, folder: Path, tmp_path: Path, package: str, extra: str, arguments: str) -> None:
        out = tmp_path / "out"
        filled = arguments.format(folder=folder, out=out)
        result = run_without({package}, call(*filled.split()))
        assert result.returncode == 2
        assert result.stderr == f"sr-models: error: {package} is not installed: pip install 'invflow[{extra}]'\n"
        assert not out.exists()

    def test_a_missing_module_of_our_own_is_a_fault_of_ours(self) -> None:
        code = "import sys; sys.modules['sr_models.registry'] = None\n" + call("list")
        result = run_without((), code)
        assert result.returncode == 1
        assert "Traceback" in result.stderr
