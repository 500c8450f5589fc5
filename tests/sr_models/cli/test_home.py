"""A leading ``~`` is the home folder in every path that a command takes."""

# fixtures are imported, and are arguments of the same names
# ruff: noqa: F811

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests_of_studies import METHODS, folders, study  # noqa: F401

from sr_models.cli import COMMANDS, main
from sr_models.io.images import read_image, write_image
from sr_models.io.resize import imresize
from sr_models.study.database import Database
from sr_models.training.config import TrainingConfig

TRAIN = ["train", "--model", "srflow-da", "--crop", "16", "--batch_size", "2", "--device", "cpu", "--steps", "1"]
TRAIN += ["--overrides", "{steps: 1, hidden_channels: 4, features: 4, growth: 2, blocks: 2, stacked_blocks: [0, 1]}"]
SAMPLE = ["sample", "--checkpoint", "~/run/model.safetensors", "--output", "~/new", "-n", "1", "--images"]
#: Commands that succeed, and what they make in the home folder.
CALLS: dict[str, tuple[list[str], list[str]]] = {
    "sample folder": ([*SAMPLE, "~/photos"], ["new/a_sample000.png"]),
    "sample pattern": ([*SAMPLE, "~/ph*/*.png"], ["new/b_sample000.png"]),
    "sample list": ([*SAMPLE, "~/list.txt"], ["new/a_sample000.png"]),
    "evaluate model": (
        [
            *("evaluate", "--checkpoint", "~/run", "--images", "~/photos", "--lr_images", "~/low", "-n", "1"),
            *("--output", "~/new.csv", "--save_samples", "~/new", "--report", "~/new.html"),
        ],
        ["new.csv", "new/000000.png", "new.html"],
    ),
    "evaluate samples": (
        [
            "evaluate",
            "--images",
            "~/photos",
            "--samples",
            "~/photos",
            "--scale",
            "4",
            *("--output", "~/n.csv", "--report", "~/n.html"),
        ],
        ["n.csv", "n.html"],
    ),
    "calibrate": (
        [
            *("calibrate", "--checkpoint", "~/run", "--images", "~/photos", "--lr_images", "~/low", "-n", "2"),
            *("--level", "0.3", "--temperatures", "[0.5]", "--output", "~/new.json", "--figure", "~/new.svg"),
        ],
        ["new.json", "new.svg"],
    ),
    "pack": (["pack", "--images", "~/photos", "--output", "~/new.pack"], ["new.pack"]),
    "convert": (["convert", "~/run", "--output", "~/new.safetensors"], ["new.safetensors"]),
    "rank": (["rank", "~/methods.csv", "--opinions", "~/opinions.csv"], []),
    "report": (["report", "~/scores.csv", "--images", "~/photos", "--output", "~/new.html"], ["new.html"]),
    "study": (
        [
            *("study", "--images", "~/truth", "--database", "~/new.db", "--port", "0"),
            *(part for name in METHODS for part in ("--method", f"{name}=~/{name}")),
        ],
        ["new.db"],
    ),
    "study results": (["study", "results", "--database", "~/study.db", "--output", "~/new.csv"], ["new.csv"]),
    "demo": (["demo", "--images", "~/truth/00.png", "--output", "~/new"], ["new/photographs/own/00.png"]),
    "train": (
        [
            *(*TRAIN, "--output", "~/new", "--images", "~/photos", "--lr_images", "~/low"),
            *("--val_images", "~/photos", "--val_lr_images", "~/low", "--init_from", "~/run"),
        ],
        ["new/model.safetensors"],
    ),
    "train config": ([*TRAIN, "--config", "~/run.yaml"], ["new/model.safetensors"]),
    "train stages": ([*TRAIN, "--config", "~/stages.yaml"], ["new/1-one/model.safetensors"]),
}
#: Options whose files are too large to be made here: an error names the file in the home folder.
MISSING = {
    "lpips": ["evaluate", "--checkpoint", "~/run", "--images", "~/photos", "--lpips", "~/none"],
    "baselines": ["study", "--images", "~/truth", "--method", "a=~/photos", "--baselines", "~/none", "--port", "0"],
    "encoder": [*TRAIN, "--images", "~/photos", "--output", "~/new", "--encoder", "~/none"],
    "feature_weights": [
        *(*TRAIN, "--images", "~/photos", "--output", "~/new", "--feature_weights", "~/none"),
        *("--feature_weight", "1"),
    ],
}
#: Options that take texts which are no paths.
NO_PATHS = {
    "sample": {"naming", "device"},
    "evaluate": {"device"},
    "calibrate": {"device"},
    "describe": {"model", "preset"},
    "convert": {"model"},
    "study": {"host", "raters"},
    "train": {"stages", "model", "preset", "degradation", "best", "device", "strategy", "resume"},
}


@pytest.fixture
def home(run: Path, folder: Path, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with images, a model and more; the current folder is an empty one."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(folders, home)
    shutil.copytree(run, home / "run")
    shutil.copytree(folder, home / "photos")
    (home / "low").mkdir()
    for path in sorted((home / "photos").iterdir()):
        write_image(home / "low" / path.name, imresize(read_image(path), 1 / 4))
    (home / "list.txt").write_text("~/photos/a.png\n")
    (home / "methods.csv").write_text("method,lpips,lr_psnr,diversity\nx,0.2,50,20\ny,0.3,46,25\n")
    (home / "opinions.csv").write_text("method,mor\nx,4.1\ny,4.9\n")
    (home / "run.yaml").write_text("images: ~/photos\nval_images: ~/photos\ninit_from: ~/run\noutput: ~/new\n")
    stages = "stages: [{name: one, val_images: ~/photos, init_from: ~/run}]\n"
    (home / "stages.yaml").write_text(f"images: ~/photos\noutput: ~/new\n{stages}")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(elsewhere)
    return home


@pytest.mark.parametrize("call", CALLS)
def test_the_home_folder(
    home: Path, study: Database, call: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, made = CALLS[call]
    if call == "report":
        scored = ["evaluate", "--images", "~/photos", "--samples", "~/photos", "--output", "~/scores.csv"]
        assert main([*scored, "--scale", "4"]) == 0
    elif call == "study":
        monkeypatch.setattr("sr_models.study.serving.make_server", lambda *_, **__: SimpleNamespace(run=_end))
    elif call == "study results":
        study.store(study.enter("anna").number, 0, [2, 0, 1], 0)
        study.close()
        (home.parent / "study.db").rename(home / "study.db")
    elif call == "demo":
        monkeypatch.setattr("sr_models.demo.run._Demonstration.begin", _end)
    assert main(command) == (130 if call == "demo" else 0), capsys.readouterr().err
    for name in made:
        assert (home / name).exists(), name
    assert not list(Path.cwd().iterdir())


def _end(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("option", MISSING)
def test_missing_files_are_named_in_full(home: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(MISSING[option]) == 2
    assert str(home / "none") in capsys.readouterr().err.splitlines()[-1]
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize("command", [*COMMANDS, "study_results"])
def test_every_path_is_tried(command: str) -> None:
    """Every option that is a text is known to be a path or none, and each path is tried above."""
    hints = dict(inspect.get_annotations(importlib.import_module(f"sr_models.cli.{command}").run))
    if command == "train":
        hints |= {field.name: str(field.type) for field in dataclasses.fields(TrainingConfig)}
    texts = {
        name
        for name, hint in hints.items()
        if "str" in hint and not hint.startswith(("Literal", "dict")) and name != "return"
    }
    own = [words for words, _ in CALLS.values() if words[0] == command.partition("_")[0]]
    own += [words for words in MISSING.values() if words[0] == command]
    tried = {word[2:] for words in own for word, value in zip(words, [*words[1:], ""], strict=True) if "~" in value}
    first = getattr(importlib.import_module(f"sr_models.cli.{command}"), "FIRST_OPTION", f"--{next(iter(hints), '')}")
    tried |= {first[2:] for words in own if words[1].startswith("~")}
    assert texts - tried - NO_PATHS.get(command, set()) == set()


def test_a_home_folder_that_cannot_be_written_is_no_matter() -> None:
    """Matplotlib would tell at length that it takes a temporary folder."""
    program = "from sr_models.cli import main; main(); import matplotlib; print(matplotlib.get_cachedir())"
    done = subprocess.run(
        [sys.executable, "-c", program, "--version"],
        env={
            **os.environ,
            "HOME": "/dev/null/home",
            "MPLCONFIGDIR": "/dev/null/home",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "/dev/null" not in done.stdout
