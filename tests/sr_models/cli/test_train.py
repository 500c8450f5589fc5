"""``sr-models train``: a model is left, wherever the settings stand, and nothing by what only looks."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch
import yaml

from sr_models.cli import main
from sr_models.data import kept
from sr_models.data.crops import RandomCrops
from sr_models.training.check import RunCheck
from sr_models.training.config import TrainingConfig
from sr_models.training.recipe import Recipe
from sr_models.training.run import train_model

TINY = "{steps: 1, hidden_channels: 4, features: 4, growth: 2, blocks: 2, stacked_blocks: [0, 1]}"


@pytest.fixture
def recipe(folder: Path, tmp_path: Path) -> Path:
    """A file with the settings of a tiny run."""
    path = tmp_path / "run.yaml"
    path.write_text(
        f"model: srflow-da\nimages: {folder}\ncrop: 16\nbatch_size: 1\nsteps: 1\noverrides: {TINY}\naccelerator: cpu\n"
    )
    return path


def failure(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["train", *map(str, arguments)]) == 2
    return capsys.readouterr().err.rstrip("\n").splitlines()[-1].removeprefix("sr-models: error: ")


def test_training_leaves_a_model(run: Path) -> None:
    assert {"model.safetensors", "training.json", "checkpoints"} <= {f.name for f in run.iterdir()}


def test_train_reads_a_config_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        f"model: srflow-da\nimages: {folder}\ncrop: 16\nbatch_size: 1\nsteps: 1\noverrides: {TINY}\n"
        f"output: {tmp_path / 'out'}\naccelerator: cpu\n"
    )
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 0
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("given", ["file", "option", "environment"])
def test_the_home_folder(
    recipe: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "photographs").symlink_to(folder)
    if given == "file":
        recipe.write_text(recipe.read_text().replace(str(folder), "~/photographs") + "output: ~/runs/x\n")
    options = {"option": ["--output=~/runs/x", "--images=~/photographs"]}.get(given, [])
    if given == "environment":
        monkeypatch.setenv("SR_MODELS_TRAIN_OUTPUT", "~/runs/x")
        monkeypatch.setenv("SR_MODELS_TRAIN_IMAGES", "~/photographs")
    assert main(["train", "--config", str(recipe), *options]) == 0
    assert (tmp_path / "home" / "runs" / "x" / "model.safetensors").exists()
    assert not (tmp_path / "~").exists()


class TestStages:
    STAGES = "stages:\n- {name: encoder, encoder_steps: 1}\n- {name: flow, steps: 2, lr: 1e-4}\n"

    def test_one_command_runs_them_all(self, recipe: Path, tmp_path: Path) -> None:
        recipe.write_text(recipe.read_text() + self.STAGES)
        out = tmp_path / "out"
        assert main(["train", "--config", str(recipe), "--output", str(out)]) == 0
        records = [json.loads((out / name / "training.json").read_text()) for name in ("1-encoder", "2-flow")]
        assert [record["settings"]["lr"] for record in records] == [2e-4, 1e-4]
        assert (out / "2-flow" / "model.safetensors").exists()

    def test_a_mistake_in_the_last_one_is_found_first(
        self, recipe: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"
        before = recipe.read_text()
        for wrong, message in (
            ("lr: 0", "stage 2 (flow): lr must be finite and greater than 0, got 0.0"),
            ("images: nowhere", "nowhere does not exist"),
            ("crop: 64", "64 x 64"),
        ):
            recipe.write_text(before + self.STAGES.replace("lr: 1e-4", wrong))
            assert message in failure(capsys, "--config", recipe, "--output", out)
            assert not out.exists()


class TestCheck:
    def test_it_trains_nothing(self, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["train", "--config", str(recipe), "--output", str(tmp_path / "out"), "--check"]) == 0
        printed = capsys.readouterr().out
        assert "training: 2 images in" in printed
        assert printed.endswith("2 of 2 images decode\n")
        assert not (tmp_path / "out").exists()

    def test_every_stage_is_described_and_images_are_decoded_once(
        self, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        recipe.write_text(recipe.read_text() + TestStages.STAGES)
        assert main(["train", "--config", str(recipe), "--output", str(tmp_path / "out"), "--check"]) == 0
        printed = capsys.readouterr().out
        assert printed.index("1-encoder:") < printed.index("images decode") < printed.index("2-flow:")
        assert printed.count("images decode") == 1
        assert "warning: the encoder is random" not in printed
        assert not (tmp_path / "out").exists()

    def test_a_damaged_image(
        self, recipe: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        images = tmp_path / "images"
        images.mkdir()
        for name in ("a.png", "b.png"):
            (images / name).write_bytes((folder / name).read_bytes())
        content = bytearray((images / "b.png").read_bytes())
        half = len(content) // 2
        content[half : half + 40] = bytes(byte ^ 0x5A for byte in content[half : half + 40])
        (images / "b.png").write_bytes(content)
        options = ("--config", recipe, "--output", tmp_path / "out", "--images", images, "--check")
        assert main(["train", *map(str, options)]) == 0
        printed = capsys.readouterr().out
        assert "not used: " in printed
        assert "b.png" in printed
        assert printed.endswith("1 of 2 images decode\n")
        assert failure(capsys, *options, "--strict").startswith("1 of 2 images cannot be decoded; the first one: ")


class TestDiskCache:
    """Decoded photographs that are kept on the disk, where there are many."""

    @pytest.fixture(autouse=True)
    def few(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(kept, "FEW", 0)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    @pytest.mark.parametrize("check", [False, True])
    def test_it_is_said_and_can_be_refused(
        self, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], check: bool
    ) -> None:
        store = tmp_path / "cache" / "sr_models" / "decoded"
        options = ["train", "--config", str(recipe), "--output", str(tmp_path / "out"), *(["--check"] * check)]
        assert main([*options, "--disk_cache", "0"]) == 0
        assert "decoded photographs" not in "".join(capsys.readouterr())
        assert not store.exists()
        options[4] = str(tmp_path / "other")
        assert main(options) == 0
        printed = "".join(capsys.readouterr())
        assert printed.count(f"decoded photographs are kept in {store}, up to 0.0 GB") == 1
        # a check decodes all of them, a step those of its crop
        assert len(list(store.iterdir())) == (2 if check else 1)

    def test_the_default_is_that_of_the_library(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["train", "--print_config"])
        shown = yaml.safe_load(capsys.readouterr().out)["disk_cache"]
        for function in (train_model, RandomCrops, RunCheck):
            assert inspect.signature(function).parameters["disk_cache"].default == shown

    def test_no_amount(self, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        options = ("--config", recipe, "--output", tmp_path / "out", "--disk_cache", "-1")
        assert failure(capsys, *options) == "disk_cache must be a number of GB of at least 0, got -1.0"
        assert not (tmp_path / "out").exists()


class TestPrintedSettings:
    def printed(self, capsys: pytest.CaptureFixture[str], *options: str) -> dict:
        with pytest.raises(SystemExit) as ended:
            main(["train", *options, "--print_config"])
        assert ended.value.code == 0
        return yaml.safe_load(capsys.readouterr().out)

    def test_what_the_preset_decides_is_shown(self, capsys: pytest.CaptureFixture[str]) -> None:
        shown = self.printed(capsys, "--model", "srflow-da", "--lr", "0.5")
        assert (shown["steps"], shown["batch_size"], shown["lr"]) == (200_000, 12, 0.5)
        assert shown["noise_std"] == pytest.approx(Recipe().noise_std)
        assert self.printed(capsys, "--model", "srflow", "--scale", "8")["batch_size"] == 16
        assert self.printed(capsys)["steps"] is None

    def test_they_are_a_config(self, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        shown = self.printed(capsys, "--config", str(recipe), "--output", str(tmp_path / "out"))
        recipe.write_text(yaml.safe_dump(shown))
        assert self.printed(capsys, "--config", str(recipe)) == shown
        assert main(["train", "--config", str(recipe)]) == 0
        stored = json.loads((tmp_path / "out" / "training.json").read_text())["settings"]
        assert {name: shown[name] for name in stored if name in shown} == stored

    def test_an_unknown_model(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert failure(capsys, "--model", "nonesuch", "--print_config").startswith("model must be one of 'hcflow',")


class TestHelp:
    def test_defaults_of_the_recipe_are_true(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["train", "--help"])
        printed = " ".join(capsys.readouterr().out.split())
        assert Recipe() == TrainingConfig(model="srflow-da", images=".").recipe
        for name in ("steps", "batch_size", "lr", "encoder_frozen"):
            option = printed.partition(f" --{name} {name.upper()} ")[2].partition(" --")[0]
            assert f"default: the preset's (of srflow-da {getattr(Recipe(), name)})" in option, name
        assert "SR_MODELS_TRAIN_BATCH_SIZE=8" in printed


class TestDevices:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ("--device cuda:x", "device must be a kind of device, or one device such as cuda:1 without devices"),
            ("--device cuda:0 --devices 2", "device must be a kind of device"),
            ("--device abacus", "'abacus'"),
            ("--devices 0", "0"),
            ("--device cpu --devices many", "devices must be auto or a whole number, got 'many'"),
        ],
    )
    def test_mistakes_leave_nothing(
        self, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
    ) -> None:
        out = tmp_path / "out"
        assert message in failure(capsys, "--config", recipe, "--output", out, *options.split())
        assert not out.exists()

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
    @pytest.mark.parametrize("device", ["gpu", "cuda", "cuda:1"])
    def test_a_gpu_that_is_not_there(
        self, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str
    ) -> None:
        out = tmp_path / "out"
        assert "cannot be used" in failure(capsys, "--config", recipe, "--output", out, "--device", device)
        assert not out.exists()
