"""``sr-models sample``: images of every kind and size, the same ones for the same seed."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from small_samples import names, picture
from tiny_models import randomised
from tqdm import tqdm

import sr_models
from invflow import FlowStep
from sr_models.checkpoints.files import load_model, save_model, weights_fingerprint
from sr_models.cli import _drawing, _outputs, _sampling, main
from sr_models.flow import sampling
from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.images import read_image, write_image
from sr_models.io.sample_files import read_description

TINY = "{steps: 1, hidden_channels: 4, features: 4, growth: 2, blocks: 2, stacked_blocks: [0, 1]}"


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


def test_images_of_the_same_name(
    sample: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "a.jpg", "b.png", "b.png.bmp", "sub/a.png", "sub/b.tif"):
        picture(tmp_path / "in" / name)
    assert sample("--recursive") == 0
    expected = ["a.jpg", "a.png", "b", "b.png", "sub/a", "sub/b"]
    assert names(tmp_path / "out") == sorted(f"{name}_sample000.png" for name in expected)
    printed = capsys.readouterr()
    assert "wrote 6 images" in printed.out
    assert printed.err.count("another image has the same name") == 2


def test_images_of_every_way_to_name_them(sample: Callable[..., int], tmp_path: Path) -> None:
    one, two = picture(tmp_path / "in" / "x" / "one.png"), picture(tmp_path / "in" / "y" / "deep" / "two.png")
    assert sample(images=[one, two, one], output=tmp_path / "files") == 0
    assert names(tmp_path / "files") == ["x/one_sample000.png", "y/deep/two_sample000.png"]
    assert sample(images=one, output=tmp_path / "file") == 0
    assert names(tmp_path / "file") == ["one_sample000.png"]
    assert sample(images=tmp_path / "in" / "*" / "**" / "*.png", output=tmp_path / "pattern") == 0
    assert sorted(Path(name).name for name in names(tmp_path / "pattern")) == ["one_sample000.png", "two_sample000.png"]


def test_the_home_folder(
    sample: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "in" / "a.png")
    shutil.copytree(model.parent, tmp_path / "model")
    arguments = "sample --checkpoint ~/model/model.safetensors --images ~/in --output ~/out --n 1"
    assert main(arguments.split()) == 0
    assert names(tmp_path / "out") == ["a_sample000.png"]
    assert not (tmp_path / "~").exists()


def test_one_bad_image_does_not_stop_the_others(
    sample: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "abcde":
        picture(tmp_path / "in" / f"{name}.png", size=(64, 64))
    # found from the tail, only by decoding, and a link to nothing
    content = (tmp_path / "in" / "b.png").read_bytes()
    (tmp_path / "in" / "b.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "in" / "c.png").write_bytes(content[:60] + bytes(30) + content[90:])
    (tmp_path / "in" / "d.png").unlink()
    (tmp_path / "in" / "d.png").symlink_to(tmp_path / "nowhere.png")
    assert sample() == 1
    assert names(tmp_path / "out") == ["a_sample000.png", "e_sample000.png"]
    said = [line for line in capsys.readouterr().err.splitlines() if "not sampled: " in line]
    assert sorted(line.partition(str(tmp_path / "in"))[2][:6] for line in said) == ["/b.png", "/c.png", "/d.png"]
    # the same command tries what is missing only
    picture(tmp_path / "in" / "c.png")
    assert sample() == 1
    assert names(tmp_path / "out") == ["a_sample000.png", "c_sample000.png", "e_sample000.png"]
    assert "the samples of 2 of 3 images are in" in capsys.readouterr().err


def test_the_challenge_counts_damaged_images_too(sample: Callable[..., int], tmp_path: Path) -> None:
    """Else the samples of all later images would be scored against the images before them."""
    for name in "abc":
        picture(tmp_path / "in" / f"{name}x4.png")
    damaged = tmp_path / "in" / "bx4.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    assert sample("--naming", "ntire", "--first_index", 901) == 1
    assert names(tmp_path / "out") == ["000901.png", "000903.png"]
    assert sample("--first_index", 1, output=tmp_path / "other") == 2


@pytest.mark.parametrize("name", [b"\xff.png", b"a\nb.png"])
def test_names_of_all_bytes(
    sample: Callable[..., int], tmp_path: Path, name: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        picture(tmp_path / "in" / os.fsdecode(name))
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    assert sample() == 0
    assert len(names(tmp_path / "out")) == 1
    # a terminal in UTF-8 can show it
    capsys.readouterr().out.encode()


def test_nothing_but_bad_images(sample: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = picture(tmp_path / "in" / "a.png", size=(64, 64)).read_bytes()
    (tmp_path / "in" / "a.png").write_bytes(content[:60] + bytes(30) + content[90:])
    assert sample() == 2
    assert f"no image could be sampled: cannot read image {tmp_path / 'in' / 'a.png'}: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_explosion_names_the_image(
    sample: Callable[..., int], tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    diverged = load_model(model)
    with torch.no_grad():
        steps = [layer for layer in diverged.levels[0] if isinstance(layer, FlowStep)]
        steps[0].actnorm.bias.fill_(1e6)
    save_model(diverged, tmp_path / "model.safetensors")
    for name in ("a.png", "b.png"):
        picture(tmp_path / "in" / name)
    assert sample("--checkpoint", tmp_path / "model.safetensors", "--on_explode", "error") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    for name in ("a.png", "b.png"):
        assert f"{tmp_path / 'in' / name}: sample 0 exploded at level 1" in error
    assert sample("--checkpoint", tmp_path / "model.safetensors", "--on_explode", "clamp") == 0


def _with_outliers(monkeypatch: pytest.MonkeyPatch, draws: Callable[[int], int]) -> None:
    """Let samples explode until they were drawn so often; a sample's number decides."""
    draw = sampling.draw_latents

    def with_outliers(
        shapes: list[tuple[int, int, int]], samples: list[int], temperature: float, seed: int, attempt: int = 0
    ) -> list[torch.Tensor]:
        latents = draw(shapes, samples, temperature, seed, attempt)
        for position, sample in enumerate(samples):
            if attempt + 1 < draws(sample):
                latents[-1][position] = 1e7
        return latents

    monkeypatch.setattr(sampling, "draw_latents", with_outliers)


class _EveryStep(tqdm):
    """A bar that shows every change, not those of every tenth of a second."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, mininterval=0, miniters=0, **options)

    def update(self, n: float | None = 1) -> bool | None:
        super().update(n)
        return self.refresh()


def test_the_bar_knows_its_end_while_samples_are_drawn_again(
    sample: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _with_outliers(monkeypatch, lambda sample: 1 + sample)
    monkeypatch.setattr(_drawing, "tqdm", _EveryStep)
    for name in "ab":
        picture(tmp_path / "in" / f"{name}.png")
    assert sample("--n", 3) == 0
    bars = re.findall(r"(\d+)%\|.*?\| ([\d.-]+)/(\w+) samples", capsys.readouterr().err)
    assert {total for _, _, total in bars} == {"6"}
    assert max(float(done) for _, done, _ in bars) <= 6
    assert bars[-1] == ("100", "6.0", "6")


def test_samples_that_are_drawn_again_are_counted(
    sample: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _with_outliers(monkeypatch, lambda sample: 1 + sample)
    for name in "ab":
        picture(tmp_path / "in" / f"{name}.png")
    assert sample("--n", 2) == 0
    assert ", 2 drawn again]" in capsys.readouterr().err


def test_an_image_that_explodes_costs_no_other(
    sample: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second image's latents are those of another size, which tells it from the others."""
    draw = sampling.draw_latents

    def draws(shapes: list[tuple[int, int, int]], *given: Any, **options: Any) -> list[torch.Tensor]:
        latents = draw(shapes, *given, **options)
        if shapes[0][1] > 20:
            latents[-1][:] = 1e7
        return latents

    monkeypatch.setattr(sampling, "draw_latents", draws)
    for name, size in (("a", (8, 12)), ("b", (20, 12)), ("c", (8, 12))):
        picture(tmp_path / "in" / f"{name}.png", size=size)
    assert sample() == 1
    assert names(tmp_path / "out") == ["a_sample000.png", "c_sample000.png"]
    [line] = [line for line in capsys.readouterr().err.splitlines() if "not sampled: " in line]
    assert f"{tmp_path / 'in' / 'b.png'}: sample 0 exploded in 6 draws" in line
    for remedy in ("lower the temperature", "reduce or denoise the image first", "on_explode to 'clamp'"):
        assert remedy in line


def test_the_default_temperature_is_that_of_the_model(
    sample: Callable[..., int], tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "in" / "a.png")
    own = load_model(model)
    own.temperature = 0.5
    (tmp_path / "own").mkdir()
    save_model(own, tmp_path / "own" / "model.safetensors")
    assert sample("--checkpoint", tmp_path / "own" / "model.safetensors") == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("temperature 0.5")
    with Image.open(tmp_path / "out" / "a_sample000.png") as image:
        about = json.loads(image.info["sr-models sample"])
    assert about["temperature"] == 0.5
    assert about["weights"] == weights_fingerprint(own)
    assert sample("--checkpoint", tmp_path / "own" / "model.safetensors", "--temperature", 0.5) == 0
    assert "wrote 0 images" in capsys.readouterr().out
    assert sample("--checkpoint", model, output=tmp_path / "other") == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("temperature 0.9")


def test_a_temperature_for_each_latent(
    sample: Callable[..., int], tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "in" / "a.png")
    count = len(load_model(model).drawn_shapes(8, 8))
    temperatures = [0.5, *[0.25] * (count - 1)]
    assert sample("--temperature", json.dumps(temperatures)) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"temperature {temperatures}")
    assert (read_description(tmp_path / "out" / "a_sample000.png") or {})["temperature"] == temperatures
    assert sample("--temperature", json.dumps([*temperatures, 0.5]), output=tmp_path / "other") == 2
    assert sample("--temperature", json.dumps([0.5] * count), output=tmp_path / "other") == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("temperature 0.5")


def test_the_command_says_what_it_did(
    sample: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = picture(tmp_path / "in" / "a.png")
    assert sample("--n", 3) == 0
    first = tmp_path / "out" / "a_sample000.png"
    said = re.escape(f"{image}: 12 x 8 to 48 x 32 pixels, {first} to a_sample002.png, ") + r"\d+\.\d s"
    assert any(re.fullmatch(said, line) for line in capsys.readouterr().out.splitlines())
    assert sample(output=tmp_path / "one") == 0
    assert f"12 x 8 to 48 x 32 pixels, {tmp_path / 'one' / 'a_sample000.png'}, " in capsys.readouterr().out


def test_samples_are_not_drawn_twice(
    sample: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    draw = SuperResolutionFlow.sample

    def counted(self: SuperResolutionFlow, lr: torch.Tensor, n: int, **options: object) -> torch.Tensor:
        drawn.append(n)
        return draw(self, lr, n, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(SuperResolutionFlow, "sample", counted)
    for name in "abc":
        picture(tmp_path / "in" / f"{name}.png")
    assert sample() == 0
    assert sample() == 0
    assert drawn == [1, 1, 1]
    # an interrupted run has a part of the files
    (tmp_path / "out" / "b_sample000.png").unlink()
    before = (tmp_path / "out" / "a_sample000.png").read_bytes()
    assert sample() == 0
    assert drawn == [1, 1, 1, 1]
    # more samples begin with those that are there
    assert sample("--n", 2) == 0
    assert drawn[4:] == [1, 1, 1]
    assert (tmp_path / "out" / "a_sample000.png").read_bytes() == before
    # fewer are there, wherever the images are now
    (tmp_path / "in").rename(tmp_path / "moved")
    assert sample(images=tmp_path / "moved") == 0
    assert sample("--n", 2, "--overwrite", images=tmp_path / "moved") == 0
    assert drawn[7:] == [2, 2, 2]


def test_nothing_is_replaced_unasked(
    sample: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "in" / "a.png")
    assert sample() == 0
    content = (tmp_path / "out" / "a_sample000.png").read_bytes()

    def refused(message: str, *more: object, images: Path = tmp_path / "in") -> None:
        assert sample(*more, images=images) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert message in error
        assert error.endswith("choose another output, or replace it with --overwrite")
        assert (tmp_path / "out" / "a_sample000.png").read_bytes() == content

    refused("was made with other settings (temperature was 0.9, now 0.5)", "--temperature", 0.5)
    refused("was made with other settings (seed was 0, now 1)", "--seed", 1)
    refused("is a sample of another image", images=picture(tmp_path / "other" / "a.png", level=101).parent)
    content = picture(tmp_path / "out" / "a_sample000.png").read_bytes()
    refused("is not a sample of this command")
    assert sample("--seed", 1, "--overwrite") == 0
    with Image.open(tmp_path / "out" / "a_sample000.png") as image:
        assert json.loads(image.info["sr-models sample"])["seed"] == 1


def test_samples_are_no_images(sample: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    picture(folder / "a.png")
    folder_link = tmp_path / "link"
    folder_link.symlink_to(folder)
    for output in (folder, folder_link, folder / ".." / "in"):
        assert sample(output=output) == 2
        assert "output must be another folder than that of the images" in capsys.readouterr().err
    for _ in range(2):
        # a folder within, which the second run finds; and a pattern
        assert sample("--recursive", output=folder / "samples") == 0
        assert sample(images=folder / "*.png", output=folder) == 0
    assert names(folder) == ["a.png", "a_sample000.png", "samples/a_sample000.png"]
    assert "not used: 2 samples that this command made before" in capsys.readouterr().err
    # asked for by name in another folder they are images like others
    assert sample(images=folder / "a_sample000.png", output=tmp_path / "again") == 0
    assert names(tmp_path / "again") == ["a_sample000_sample000.png"]


def test_what_is_changed_or_left_out_is_said_once(
    sample: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "b.png", "._c.png", "notes.txt", "d.gif"):
        picture(tmp_path / "in" / name) if name.endswith(".png") else (tmp_path / "in" / name).touch()
    for name in "ab":
        Image.new("RGBA", (8, 8), (1, 2, 3, 50)).save(tmp_path / "in" / f"{name}.png")
    assert sample() == 0
    printed = capsys.readouterr()
    assert printed.err.count("2 of them: transparency is kept") == 1
    assert f"2 images in {tmp_path / 'in'}" in printed.err
    assert ".gif" in printed.err
    assert "sRGB" in printed.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--n", "0"), "n must be at least 1, got 0"),
        (("--seed", "-1"), "seed must be in 0..2^31 - 1, got -1"),
        (("--temperature", "[0.5,-1]"), "temperature must be finite and at least 0, got -1"),
        (("--tile", "3"), "tile must be at least 16, got 3"),
        (("--device", "mps:7"), "device 'mps:7' cannot be used: not on this machine"),
        (("--images", "nowhere"), "nowhere does not exist"),
    ],
)
def test_arguments_are_checked_before_the_model_is_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setattr(_sampling, "load_model", lambda path: pytest.fail("the model was read"))
    picture(tmp_path / "in" / "a.png")
    arguments = ["--checkpoint", "x.safetensors", "--images", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert main(["sample", *arguments, *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error
    assert len(error) < 300


def test_a_full_disk_ends_the_command(
    sample: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        picture(tmp_path / "in" / f"{name}.png")

    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28), str(path))

    monkeypatch.setattr(_outputs, "write_bytes", full)
    assert sample() == 2
    assert capsys.readouterr().err.splitlines()[-1].count("No space left on device") == 1


@pytest.mark.parametrize("amx", [False, True])
def test_precision_of_networks(
    sample: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    amx: bool,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    picture(tmp_path / "in" / "a.png")
    save_model(randomised("srflow-da", dtype=torch.float32), tmp_path / "model.safetensors")
    sample = functools.partial(sample, "--checkpoint", tmp_path / "model.safetensors")
    for precision in ("fp32", "bf16", "auto"):
        assert sample("--precision", precision, output=tmp_path / precision) == 0
    pictures = {name: read_image(tmp_path / name / "a_sample000.png").astype(int) for name in ("fp32", "bf16", "auto")}
    assert 0 < np.abs(pictures["bf16"] - pictures["fp32"]).max() <= 2
    assert np.array_equal(pictures["auto"], pictures["bf16" if amx else "fp32"])
    capsys.readouterr()
    # what was sampled in another precision is not taken for done
    assert sample("--precision", "auto", output=tmp_path / "bf16") == (0 if amx else 2)
    assert ("precision was bf16, now None" in capsys.readouterr().err) is not amx


def test_samples_in_float32_are_described_as_before(sample: Callable[..., int], tmp_path: Path) -> None:
    """A folder that was sampled before there was a choice is done."""
    picture(tmp_path / "in" / "a.png")
    assert sample("--precision", "fp32") == 0
    with Image.open(tmp_path / "out" / "a_sample000.png") as image:
        assert "precision" not in json.loads(image.info["sr-models sample"])


def test_half_precision_that_is_no_use_on_a_cpu_is_refused(
    sample: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "in" / "a.png")
    assert sample("--precision", "fp16") == 2
    assert "precision fp16 is for GPUs, and slower than fp32 on a CPU" in capsys.readouterr().err
    assert sample("--precision", "half") == 2
    assert "precision must be fp32 or bf16 or fp16 or auto, got 'half'" in capsys.readouterr().err
