"""Files in and out of ``sr-models sample``: formats, transparency, names, standard input and output, contact sheets."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image
from small_samples import names, noisy, picture

from sr_models.cli import _drawing, _sampling, main
from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.images import read_image
from sr_models.io.sample_files import read_description

Sample = Callable[..., int]


class TestFolders:
    def test_sub_folders_on_wish(self, sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name in ("a.png", "more/b.png", "more/deep/c.png"):
            picture(tmp_path / "in" / name)
        assert sample() == 0
        assert names(tmp_path / "out") == ["a_sample000.png"]
        assert "not used: 2 images in sub-folders: more; --recursive uses them" in capsys.readouterr().err
        assert sample("--recursive") == 0
        assert names(tmp_path / "out") == [f"{name}_sample000.png" for name in ("a", "more/b", "more/deep/c")]

    def test_samples_in_a_sub_folder_are_not_asked_for(
        self, sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        picture(tmp_path / "in" / "a.png")
        for _ in range(2):
            assert sample(output=tmp_path / "in" / "samples") == 0
            assert "--recursive" not in capsys.readouterr().err
        picture(tmp_path / "in" / "more" / "b.png")
        assert sample(output=tmp_path / "in" / "samples") == 0
        assert "not used: 1 images in sub-folders: more; --recursive uses them" in capsys.readouterr().err

    def test_images_that_the_shell_lists_are_summed_up(
        self, sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        images = [noisy(tmp_path / "in" / f"{name}.png", alpha=np.full((8, 12), 99, np.uint8)) for name in "ab"]
        assert sample(images=[*images, picture(tmp_path / "in" / "sub" / "c.png"), images[0]]) == 0
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sr-models: ")]
        assert said == [f"sr-models: 3 images in {tmp_path / 'in'}", "sr-models: 2 of them: transparency is kept"]

    def test_a_link_to_the_folder_itself_is_no_sub_folder(
        self, sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in ("a.png", "more/b.png"):
            picture(tmp_path / "in" / name)
        (tmp_path / "in" / "loop").symlink_to(".")
        assert sample() == 0
        assert "not used: 1 images in sub-folders: more; --recursive uses them" in capsys.readouterr().err

    def test_images_in_sub_folders_only(
        self, sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        picture(tmp_path / "in" / "more" / "b.png")
        assert sample() == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "holds no image" in error
        assert "1 images in sub-folders: more; --recursive uses them" in error


class TestOutput:
    """Refuse an output that cannot be written before anything is drawn."""

    @pytest.fixture(autouse=True)
    def nothing_is_drawn(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        picture(tmp_path / "in" / "a.png")
        monkeypatch.setattr(_drawing._Image, "__next__", lambda self: pytest.fail("a sample was drawn"))

    @pytest.mark.parametrize("place", ["file", "file/below", "link"])
    def test_a_file_is_no_folder(
        self, sample: Sample, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").write_text("mine")
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        assert sample(output=tmp_path / place) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"error: output must be a folder, got {tmp_path / place}: " in error
        assert (tmp_path / "file").read_text() == "mine"

    def test_a_folder_without_permission(
        self, sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
        assert sample(output=tmp_path / "x" / "y") == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"output {tmp_path / 'x' / 'y'} cannot be written: no permission for {tmp_path}" in error

    @pytest.mark.parametrize("options", [(), ("--overwrite",)])
    def test_a_folder_of_a_samples_name(
        self, sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
    ) -> None:
        (tmp_path / "out" / "a_sample000.png").mkdir(parents=True)
        assert sample(*options) == 2
        assert "a_sample000.png is a folder, and naming name gives a file that name" in capsys.readouterr().err


def test_two_commands_for_one_folder(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sample that another command writes meanwhile is not lost; one that is the same may be written twice."""
    picture(tmp_path / "in" / "a.png")
    assert sample("--seed", 1, output=tmp_path / "other") == 0
    make = SuperResolutionFlow.sample

    def meanwhile(self: SuperResolutionFlow, *given: Any, **more: Any) -> torch.Tensor:
        shutil.copytree(tmp_path / "other", tmp_path / "out", dirs_exist_ok=True)
        return make(self, *given, **more)

    monkeypatch.setattr(SuperResolutionFlow, "sample", meanwhile)
    assert sample("--seed", 2) == 2
    assert "a_sample000.png was made with other settings (seed was 1, now 2)" in capsys.readouterr().err
    assert (read_description(tmp_path / "out" / "a_sample000.png") or {})["seed"] == 1
    shutil.rmtree(tmp_path / "out")
    assert sample("--seed", 1) == 0
    shutil.rmtree(tmp_path / "out")
    assert sample("--seed", 2, "--overwrite") == 0


class TestFormats:
    @pytest.mark.parametrize(("format", "suffix"), [("png16", "png"), ("jpeg", "jpg"), ("webp", "webp")])
    def test_one_is_near_the_others(self, sample: Sample, tmp_path: Path, format: str, suffix: str) -> None:
        noisy(tmp_path / "in" / "a.png")
        assert sample() == 0
        assert sample("--format", format, output=tmp_path / format) == 0
        [name] = names(tmp_path / format)
        assert name == f"a_sample000.{suffix}"
        ours, plain = (read_image(tmp_path / at).astype(int) for at in (f"{format}/{name}", "out/a_sample000.png"))
        assert np.abs(ours - plain).max() <= {"png16": 0, "jpeg": 24, "webp": 0}[format]
        assert np.abs(ours - plain).mean() < 4

    def test_16_bits_are_more_than_8(self, sample: Sample, tmp_path: Path) -> None:
        noisy(tmp_path / "in" / "a.png")
        assert sample("--format", "png16") == 0
        pixels = imagecodecs.png_decode((tmp_path / "out" / "a_sample000.png").read_bytes())
        assert pixels.dtype == np.uint16
        # the other values are black or white: this model is not trained
        assert (pixels % 257 != 0).mean() > 0.2

    @pytest.mark.parametrize("format", ["png", "png16", "jpeg", "webp"])
    def test_a_sample_is_known_again(
        self, sample: Sample, tmp_path: Path, format: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        noisy(tmp_path / "in" / "a.png")
        assert sample("--format", format) == 0
        before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert sample("--format", format) == 0
        assert "wrote 0 images" in capsys.readouterr().out
        assert sample("--format", format, "--seed", 3) == 2
        assert "seed was 0, now 3" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before

    def test_8_and_16_bits_are_not_mixed(
        self, sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        noisy(tmp_path / "in" / "a.png")
        assert sample() == 0
        assert sample("--format", "png16") == 2
        assert "format" in capsys.readouterr().err.splitlines()[-1]

    def test_a_side_too_long_for_webp(self, sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        picture(tmp_path / "in" / "long.png", size=(1, 4100))
        assert sample("--format", "webp") == 2
        assert "16400 x 4 pixels are too many for format webp, which has at most 16383" in capsys.readouterr().err

    def test_exact_values_need_a_lossless_format(
        self, sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        picture(tmp_path / "in" / "a.png")
        assert sample("--format", "jpeg", "--consistency", "exact") == 2
        assert "consistency exact" in capsys.readouterr().err


class TestTransparency:
    @pytest.mark.parametrize("format", ["png", "png16", "webp"])
    def test_it_is_kept(self, sample: Sample, tmp_path: Path, format: str) -> None:
        alpha = np.tile(np.linspace(0, 255, 12).round().astype(np.uint8), (8, 1))
        noisy(tmp_path / "in" / "a.png", alpha=alpha)
        assert sample("--format", format) == 0
        [name] = names(tmp_path / "out")
        content = (tmp_path / "out" / name).read_bytes()
        pixels = (
            imagecodecs.png_decode(content) / 257 if format == "png16" else np.asarray(Image.open(io.BytesIO(content)))
        )
        assert pixels.shape == (32, 48, 4)
        enlarged = np.tile(np.interp((np.arange(48) + 0.5) / 4 - 0.5, np.arange(12), alpha[0].astype(float)), (32, 1))
        assert np.abs(pixels[..., 3] - enlarged).max() < 8

    def test_what_is_stored_beneath_is_not_seen(self, sample: Sample, tmp_path: Path) -> None:
        """Black beneath transparent pixels must not darken the edge of a white shape."""
        alpha = np.zeros((8, 12), np.uint8)
        alpha[:, :6] = 255
        pixels = np.where(alpha[..., None] > 0, np.uint8(200), np.uint8(0)).repeat(3, 2)
        (tmp_path / "in").mkdir()
        Image.fromarray(np.dstack([pixels, alpha])).save(tmp_path / "in" / "black.png")
        pixels[...] = 200
        Image.fromarray(np.dstack([pixels, alpha])).save(tmp_path / "in" / "white.png")
        assert sample() == 0
        one, two = (read_rgba(tmp_path / "out" / f"{name}_sample000.png") for name in ("black", "white"))
        assert np.array_equal(one, two)

    def test_opaque_images_have_none(self, sample: Sample, tmp_path: Path) -> None:
        noisy(tmp_path / "in" / "a.png", alpha=np.full((8, 12), 255, np.uint8))
        assert sample() == 0
        assert Image.open(tmp_path / "out" / "a_sample000.png").mode == "RGB"

    def test_jpeg_has_a_white_background(
        self, sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        noisy(tmp_path / "in" / "a.png", alpha=np.zeros((8, 12), np.uint8))
        picture(tmp_path / "white" / "a.png", level=255)
        assert sample("--format", "jpeg", "--temperature", 0) == 0
        assert "transparent pixels become white" in capsys.readouterr().err
        assert sample("--format", "jpeg", "--temperature", 0, images=tmp_path / "white", output=tmp_path / "two") == 0
        one, two = (read_image(tmp_path / folder / "a_sample000.jpg") for folder in ("out", "two"))
        assert np.array_equal(one, two)


def read_rgba(path: Path) -> np.ndarray:
    image = Image.open(path)
    assert image.mode == "RGBA"
    return np.asarray(image)


class TestNames:
    def test_a_template(self, sample: Sample, tmp_path: Path) -> None:
        for name in ("a.png", "b.jpg"):
            picture(tmp_path / "in" / name)
        assert sample("--naming", "{number:02d}-{name}_x{scale}_s{seed}_{index}", "-n", 2, "--seed", 7) == 0
        assert names(tmp_path / "out") == [
            f"{number:02d}-{name}_x4_s7_{index}.png" for number, name in enumerate("ab") for index in range(2)
        ]

    def test_the_name_of_a_model_is_that_of_its_run(
        self, sample: Sample, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        picture(tmp_path / "in" / "a.png")
        (tmp_path / "mine").mkdir()
        shutil.copy(model, tmp_path / "mine" / "model.safetensors")
        monkeypatch.chdir(tmp_path / "mine")
        for checkpoint in (".", "model.safetensors", tmp_path / "mine"):
            assert sample("--checkpoint", checkpoint, "--naming", "{model}/{name}.png", "--overwrite") == 0
        assert names(tmp_path / "out") == ["mine/a.png"]

    @pytest.mark.parametrize(
        ("template", "message"),
        [
            ("{nmae}", "{nmae} is none of {name}, {index}"),
            ("{name.__class__}", "is none of {name}"),
            ("{name!r}", "is none of {name}"),
            ("{name:d}", "cannot be used"),
            ("{name", "cannot be used"),
            ("samples", "naming must be name, ntire, or a name with fields"),
            ("../{name}", "naming must be name, ntire, or a name with fields"),
            ("/tmp/{name}", "naming must be name, ntire, or a name with fields"),
            ("{index}", "sample 0 of a and sample 0 of b the same name '0'"),
            ("{name}", "sample 0 of a and sample 1 of a the same name 'a'"),
        ],
    )
    def test_templates_that_cannot_be_used(
        self, sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str], template: str, message: str
    ) -> None:
        for name in "ab":
            picture(tmp_path / "in" / f"{name}.png")
        assert sample("--naming", template, "-n", 2) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("options", "argument"),
        [
            ((), "naming name"),
            (("--naming", "{name:_<255}"), "naming {name:_<255}"),
            (("--naming", "{number}", "--sheet"), "sheet"),
        ],
    )
    def test_names_that_are_too_long(
        self,
        sample: Sample,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        options: tuple[str, ...],
        argument: str,
    ) -> None:
        """Names come from the image, the template and the contact sheet."""
        picture(tmp_path / "in" / f"{'ä' * 125}.png")
        assert sample(*options) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"error: {argument} gives a file a name of " in error
        assert "and there may be 255 in" in error
        assert not (tmp_path / "out").exists()
        assert sample("--naming", "{number}_{index}") == 0

    def test_one_sample_and_several_are_not_mixed(
        self, sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The challenge's toolkit would take both for samples of the first image."""
        picture(tmp_path / "in" / "a.png")
        for first, second in ((1, 2), (2, 1)):
            output = tmp_path / str(first)
            assert sample("--naming", "ntire", "-n", first, output=output) == 0
            before = names(output)
            assert sample("--naming", "ntire", "-n", second, output=output) == 2
            assert "choose another output, or replace it with --overwrite" in capsys.readouterr().err
            assert names(output) == before
            assert sample("--naming", "ntire", "-n", second, "--overwrite", output=output) == 0
            several = ["000000_sample00000.png", "000000_sample00001.png"]
            assert names(output) == (several if second == 2 else ["000000.png"])

    def test_a_file_of_the_challenges_other_name_is_kept(
        self, sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        picture(tmp_path / "in" / "a.png")
        truth = picture(tmp_path / "out" / "000000.png")
        before = truth.read_bytes()
        assert sample("--naming", "ntire", "-n", 2, "--overwrite") == 2
        assert "is none of this command; remove it, or choose another output" in capsys.readouterr().err
        assert names(tmp_path / "out") == ["000000.png"]
        assert truth.read_bytes() == before

    def test_samples_of_the_other_name_stay_until_the_new_ones_are_there(
        self, sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in "ab":
            picture(tmp_path / "in" / f"{name}.png")
        assert sample("--naming", "ntire") == 0
        write = _sampling.write_sample

        def full(file: Path, *given: object, **options: bool) -> None:
            if file.name == "000001_sample00001.png":
                raise OSError(28, os.strerror(28), str(file))
            write(file, *given, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(_sampling, "write_sample", full)
        assert sample("--naming", "ntire", "-n", 2, "--overwrite") == 2
        first = ["000000_sample00000.png", "000000_sample00001.png"]
        assert names(tmp_path / "out") == [*first, "000001.png", "000001_sample00000.png"]


class TestStandardStreams:
    def run(self, model: Path, content: bytes, *more: str, cwd: Path) -> subprocess.CompletedProcess[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "sr_models.cli", "sample", "-", "--checkpoint", str(model), *more]
        return subprocess.run(command, input=content, capture_output=True, cwd=cwd, env=environment)

    def test_an_image_goes_through(self, model: Path, sample: Sample, tmp_path: Path) -> None:
        content = noisy(tmp_path / "in" / "a.png").read_bytes()
        done = self.run(model, content, "--output", "-", "-n", "1", cwd=tmp_path)
        assert done.returncode == 0
        assert sample() == 0
        # descriptions differ in nothing either
        assert done.stdout == (tmp_path / "out" / "a_sample000.png").read_bytes()
        assert not (tmp_path / "-").exists()

    def test_into_a_folder(self, model: Path, tmp_path: Path) -> None:
        content = picture(tmp_path / "a.png").read_bytes()
        assert self.run(model, content, "-n", "2", cwd=tmp_path).returncode == 0
        assert names(tmp_path / "samples") == ["stdin_sample000.png", "stdin_sample001.png"]

    @pytest.mark.parametrize(("content", "message"), [(b"", "standard input is empty"), (b"text", "no image")])
    def test_what_is_no_image(self, model: Path, tmp_path: Path, content: bytes, message: str) -> None:
        done = self.run(model, content, "--output", "-", "-n", "1", cwd=tmp_path)
        assert done.returncode == 2
        assert not done.stdout
        assert message in done.stderr.decode().splitlines()[-1]
        assert "standard input" in done.stderr.decode().splitlines()[-1]
        assert tempfile.gettempdir() not in done.stderr.decode().replace(str(tmp_path), "")

    @pytest.mark.parametrize(("stream", "message"), [("stdin", "standard input is empty"), ("stdout", "is closed")])
    def test_closed_streams(
        self,
        sample: Sample,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        stream: str,
        message: str,
    ) -> None:
        monkeypatch.setattr(sys, stream, None)
        assert sample(images="-", output=Path("-")) == 2
        assert message in capsys.readouterr().err

    def test_messages_name_it(
        self, sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The file that keeps it has a name that nobody has given."""

        def given(content: bytes) -> None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

        content = noisy(tmp_path / "a.png", size=(40, 48), alpha=np.full((40, 48), 99, np.uint8)).read_bytes()
        given(content)
        monkeypatch.setattr(_drawing, "free_memory", lambda device: 2**22)
        assert sample(images="-") == 0
        printed = capsys.readouterr()
        lines = [line for line in (printed.err + printed.out).splitlines() if "standard input" in line]
        assert "sr-models: 1 image in standard input" in lines
        assert any("standard input: decoded in tiles of" in line for line in lines)
        assert any("standard input: 48 x 40 to 192 x 160 pixels" in line for line in lines)
        assert "sampling standard input:" in printed.err.replace("\r", "\n")
        assert "stdin.png" not in printed.err + printed.out
        # found by decoding
        given(content[:200] + bytes(30) + content[230:])
        assert sample(images="-", output=tmp_path / "other") == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "error: no image could be sampled: cannot read image standard input: " in error

    def test_one_image_only(self, sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name in "ab":
            picture(tmp_path / "in" / f"{name}.png")
        for options in (("-n", 2), ("--sheet",)):
            assert sample(*options, output=Path("-")) == 2
            assert "output - takes one sample of one image" in capsys.readouterr().err
        assert sample(output=Path("-")) == 2
        assert "output - takes one sample of one image, got 2 images" in capsys.readouterr().err
        assert sample(images=["-", "x.png"]) == 2
        assert "images must be - alone" in capsys.readouterr().err


class TestContactSheet:
    def test_it_holds_every_sample(self, sample: Sample, tmp_path: Path) -> None:
        for name in ("a", "b"):
            noisy(tmp_path / "in" / f"{name}.png", size=(20, 30))
        assert sample("-n", 5, "--sheet") == 0
        sheet = read_image(tmp_path / "out" / "a_sheet.png")
        for index in range(5):
            image = read_image(tmp_path / "out" / f"a_sample{index:03d}.png")
            views = np.lib.stride_tricks.sliding_window_view(sheet[..., 0], image.shape[:2])
            assert (views[..., ::9, ::9] == image[::9, ::9, 0]).all((2, 3)).sum() == 1
        # made anew from files, and no image to sample
        (tmp_path / "out" / "a_sheet.png").unlink()
        assert sample("-n", 5, "--sheet") == 0
        assert np.array_equal(read_image(tmp_path / "out" / "a_sheet.png"), sheet)
        assert read_description(tmp_path / "out" / "a_sheet.png") is not None

    def test_of_images_in_sub_folders(self, sample: Sample, tmp_path: Path) -> None:
        for name in ("a.png", "more/b.png"):
            noisy(tmp_path / "in" / name)
        assert sample("--sheet", "--recursive", "--naming", "ntire") == 0
        assert names(tmp_path / "out") == ["000000.png", "000001.png", "a_sheet.png", "more/b_sheet.png"]

    def test_of_many_samples(self, sample: Sample, tmp_path: Path) -> None:
        noisy(tmp_path / "in" / "a.png", size=(2, 2))
        assert sample("--sheet", "-n", 40) == 0
        assert read_image(tmp_path / "out" / "a_sheet.png").shape[0] == 9 * (8 + 20 + 8) + 8

    def test_it_is_no_sample(self, sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        noisy(tmp_path / "in" / "a.png")
        assert sample("--sheet", "--naming", "{name}_sheet") == 2
        assert "gives a sample the name of a contact sheet" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_it_replaces_no_other_file(
        self, sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        picture(tmp_path / "in" / "a.png")
        content = picture(tmp_path / "out" / "a_sheet.png").read_bytes()
        assert sample("--sheet") == 2
        assert "a_sheet.png is no contact sheet" in capsys.readouterr().err
        assert (tmp_path / "out" / "a_sheet.png").read_bytes() == content


def test_a_dash_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a.png")
    assert main(["sample", "a.png", "--checkpoint", str(model), "--output", "-"]) == 2
    assert not (tmp_path / "-").exists()
