"""Drawing of ``sr-models sample``: interruptions, memory and tiles, smaller enlargements, frames of a film."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_samples import names, noisy, picture

from sr_models.checkpoints.files import load_model
from sr_models.cli import _drawing, _sampling, main
from sr_models.cli._drawing import _blocks
from sr_models.flow import sampling
from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.images import read_image, to_tensor
from sr_models.io.resize import imresize
from sr_models.io.sample_files import read_description

Sample = Callable[..., int]


class Killed(BaseException):
    """Exception that no handler of errors catches, as a signal."""


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three samples a block."""
    monkeypatch.setattr(
        _drawing,
        "sample_blocks",
        lambda samples, pixels, on_cpu: [range(start, min(start + 3, samples)) for start in range(0, samples, 3)],
    )


def no_memory() -> RuntimeError:
    """Return what torch raises on a CPU."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    return raised.value


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names(folder)}


@pytest.mark.usefixtures("small_blocks")
class TestInterruptions:
    @pytest.mark.parametrize("options", [(), ("--tile", "16"), ("--consistency", "exact")])
    @pytest.mark.parametrize("explode", [False, True])
    def test_finished_samples_are_kept(
        self,
        sample: Sample,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        options: tuple[str, ...],
        explode: bool,
    ) -> None:
        """Samples drawn afterwards are those that would have been drawn at once."""
        draw = sampling.draw_latents

        def outliers(shapes: Any, numbers: Any, temperature: Any, seed: int, attempt: int = 0) -> list[torch.Tensor]:
            latents = draw(shapes, numbers, temperature, seed, attempt)
            for position, number in enumerate(numbers):
                if explode and number % 2 and not attempt:
                    latents[-1][position] = 1e7
            return latents

        monkeypatch.setattr(sampling, "draw_latents", outliers)
        noisy(tmp_path / "in" / "a.png", size=(20, 24))
        assert sample("-n", 8, *options, output=tmp_path / "whole") == 0
        make = SuperResolutionFlow.sample

        def killed(self: SuperResolutionFlow, *given: Any, first: int, **more: Any) -> torch.Tensor:
            if first == 6:
                raise Killed
            return make(self, *given, first=first, **more)

        with monkeypatch.context() as patch:
            patch.setattr(SuperResolutionFlow, "sample", killed)
            with pytest.raises(Killed):
                sample("-n", 8, *options)
        assert len(names(tmp_path / "out")) == 6
        # one in the middle is lost, too
        (tmp_path / "out" / "a_sample002.png").unlink()
        assert sample("-n", 8, *options) == 0
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")

    def test_an_error_in_the_middle_costs_no_other_image(
        self, sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name, size in (("a", (8, 12)), ("b", (8, 12)), ("c", (8, 12))):
            noisy(tmp_path / "in" / f"{name}.png", size=size, seed=ord(name))
        make = SuperResolutionFlow.sample
        calls: list[int] = []

        def failing(self: SuperResolutionFlow, *given: Any, **more: Any) -> torch.Tensor:
            calls.append(more["first"])
            if len(calls) == 4:
                raise FloatingPointError("it exploded")
            return make(self, *given, **more)

        monkeypatch.setattr(SuperResolutionFlow, "sample", failing)
        assert sample("-n", 6) == 1
        assert calls == [0, 3, 0, 3, 0, 3]
        assert len(names(tmp_path / "out")) == 15
        assert "b.png: it exploded" in capsys.readouterr().err


def test_blocks_are_of_samples_that_follow_each_other() -> None:
    numbers = [0, 1, 2, 5, 7, 8, *range(10, 100)]
    for pixels in (1, 2**20, 2**24, 2**30):
        blocks = _blocks(numbers, pixels, on_cpu=True)
        assert [number for block in blocks for number in block] == numbers
        assert max(map(len, blocks)) * pixels * 12 <= max(2**30, 12 * pixels)
    assert [len(block) for block in _blocks(range(3), 2**30, on_cpu=True)] == [1, 1, 1]


class TestMemory:
    def test_an_image_that_fits_is_whole(self, sample: Sample, tmp_path: Path) -> None:
        noisy(tmp_path / "in" / "a.png", size=(40, 48))
        assert sample() == 0
        about = read_description(tmp_path / "out" / "a_sample000.png")
        assert about is not None
        assert about["tile"] is None

    def test_one_that_does_not_is_tiled(
        self, sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        noisy(tmp_path / "in" / "a.png", size=(40, 48))
        monkeypatch.setattr(_drawing, "free_memory", lambda device: 2**22)
        assert sample() == 0
        assert "a.png: decoded in tiles of 32 low-resolution pixels" in capsys.readouterr().err
        assert sample("--tile", 32, output=tmp_path / "chosen") == 0
        assert contents(tmp_path / "out") == contents(tmp_path / "chosen")
        # the samples that are there decide for those that follow, whatever memory is free now
        monkeypatch.setattr(_drawing, "free_memory", lambda device: 2**40)
        assert sample("-n", 2) == 0
        assert sample("--tile", 32, "-n", 2, output=tmp_path / "chosen") == 0
        assert contents(tmp_path / "out") == contents(tmp_path / "chosen")

    def test_what_the_measurement_takes_is_not_free(
        self, sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Weights are prepared by the first sample, and stay."""
        noisy(tmp_path / "in" / "a.png", size=(40, 48))
        measure, measured = _drawing.DecodingCost.of, []

        def of(self: _drawing.DecodingCost, samples: int) -> float:
            measured.append(samples)
            return measure(self, samples)

        monkeypatch.setattr(_drawing.DecodingCost, "of", of)
        monkeypatch.setattr(_drawing, "free_memory", lambda device: 2**22 if measured else 2**25)
        assert sample() == 0
        assert (read_description(tmp_path / "out" / "a_sample000.png") or {})["tile"] == 32

    @pytest.mark.parametrize(
        "error",
        [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
    )
    def test_tiles_get_smaller_until_they_fit(
        self, sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        noisy(tmp_path / "in" / "a.png", size=(70, 100))
        self.limited(monkeypatch, error, 40)
        assert sample() == 0
        about = read_description(tmp_path / "out" / "a_sample000.png")
        assert about is not None
        assert about["tile"] == 16

    def test_the_bar_does_not_count_a_failed_attempt(
        self, sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        noisy(tmp_path / "in" / "a.png", size=(20, 40))
        make, counts = SuperResolutionFlow.sample, []

        class Counting(_drawing.tqdm):
            def update(self, n: float | None = 1) -> bool | None:
                shown = super().update(n)
                counts.append(self.n)
                return shown

        def failing(self: SuperResolutionFlow, lr: torch.Tensor, n: int, **more: Any) -> torch.Tensor:
            if more["tile"] is None:
                more["on_progress"](0.9)
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return make(self, lr, n, **more)

        monkeypatch.setattr(_drawing, "tqdm", Counting)
        monkeypatch.setattr(SuperResolutionFlow, "sample", failing)
        assert sample() == 0
        assert 0.9 in counts
        assert max(counts) <= 1 + 1e-6

    @pytest.mark.usefixtures("small_blocks")
    def test_it_may_run_short_in_the_middle(
        self, sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The same command finds nothing left to do, and goes on with smaller tiles where samples are missing."""
        noisy(tmp_path / "in" / "a.png", size=(40, 48))
        assert sample("-n", 3) == 0
        self.limited(monkeypatch, torch.OutOfMemoryError("CUDA out of memory."), 24)
        assert sample("-n", 6) == 0
        files = sorted((tmp_path / "out").iterdir())
        assert [(read_description(file) or {})["tile"] for file in files] == [None] * 3 + [16] * 3
        before = contents(tmp_path / "out")
        assert sample("-n", 6) == 0
        files[1].unlink()
        files[5].unlink()
        assert sample("-n", 6) == 0
        after = contents(tmp_path / "out")
        assert after.keys() == before.keys()
        # tiles of other samples decide only for those that are missing
        assert {name for name in after if after[name] != before[name]} == {"a_sample001.png"}

    def test_a_line_says_what_to_choose(
        self, sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        noisy(tmp_path / "in" / "a.png", size=(70, 100))
        self.limited(monkeypatch, MemoryError(), 0)
        assert sample("--tile", 64) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "a.png: out of memory; tiles of 64 pixels do not fit; choose --tile 32" in error
        assert sample("--tile", 16) == 2
        assert "tiles of 16 pixels do not fit; choose a smaller --n" in capsys.readouterr().err.splitlines()[-1]

    @pytest.mark.parametrize(
        "error",
        [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), no_memory()],
    )
    def test_a_model_that_does_not_fit(
        self,
        sample: Sample,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        error: Exception,
    ) -> None:
        def load(path: str) -> SuperResolutionFlow:
            raise error

        noisy(tmp_path / "in" / "a.png")
        monkeypatch.setattr(_sampling, "load_model", load)
        assert sample() == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("sr-models: error: cannot load ")
        assert said.endswith("; the model itself does not fit; take a smaller one, or close other programs")
        assert "memory" in said

    @staticmethod
    def limited(monkeypatch: pytest.MonkeyPatch, error: Exception, most: int) -> None:
        """Raise the error for tiles above so many pixels."""
        make = SuperResolutionFlow.sample

        def limited(self: SuperResolutionFlow, lr: torch.Tensor, n: int, **more: Any) -> torch.Tensor:
            if (more["tile"] or max(lr.shape[2:])) > most:
                raise error
            return make(self, lr, n, **more)

        monkeypatch.setattr(SuperResolutionFlow, "sample", limited)

    def test_overlap(self, sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        noisy(tmp_path / "in" / "a.png", size=(40, 48))
        assert sample("--tile", 16) == 0
        assert sample("--tile", 16, "--overlap", 8) == 2
        assert "overlap was None, now 8" in capsys.readouterr().err
        assert sample("--tile", 16, "--overlap", 8, "--overwrite") == 0
        about = read_description(tmp_path / "out" / "a_sample000.png")
        assert about is not None
        assert about["overlap"] == 8
        for options, message in (
            (("--tile", 16, "--overlap", 9), "overlap must be in 1..8, half of tile, got 9"),
            (("--tile", 16, "--overlap", 0), "overlap must be in 1..8, half of tile, got 0"),
            (("--overlap", 4), "overlap needs a tile of your own, such as --tile 256; got overlap 4 with tile auto"),
            (("--overlap", 4, "--tile", "auto"), "overlap needs a tile of your own"),
        ):
            assert sample(*options) == 2
            assert message in capsys.readouterr().err


class TestScale:
    @pytest.mark.parametrize("scale", [1, 2, 3])
    def test_smaller_than_the_models(
        self, sample: Sample, tmp_path: Path, model: Path, scale: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source = noisy(tmp_path / "in" / "a.png", size=(9, 13))
        assert sample("--scale", scale, "--seed", 5) == 0
        printed = capsys.readouterr()
        assert (
            f"enlarges 4 times; its samples are then reduced to {scale} times, by bicubic interpolation" in printed.err
        )
        assert f"13 x 9 to {13 * scale} x {9 * scale} pixels" in printed.out
        with torch.no_grad():
            whole = load_model(model).sample(to_tensor(read_image(source))[None], seed=5)[0, 0]
        reduced = imresize(whole.permute(1, 2, 0).double().numpy(), size=(9 * scale, 13 * scale))
        expected = np.rint(reduced.clip(0, 1) * 255).astype(np.uint8)
        assert np.array_equal(read_image(tmp_path / "out" / "a_sample000.png"), expected)

    def test_the_models_own_changes_nothing(self, sample: Sample, tmp_path: Path) -> None:
        noisy(tmp_path / "in" / "a.png")
        assert sample() == 0
        assert sample("--scale", 4, output=tmp_path / "same") == 0
        assert contents(tmp_path / "out") == contents(tmp_path / "same")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--scale", 8), "scale must be at most the model's 4, got 8"),
            (("--scale", 0), "scale must be at least 1, got 0"),
            (("--scale", 2, "--consistency", "exact"), "consistency exact"),
        ],
    )
    def test_what_cannot_be_had(
        self, sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: Any, message: str
    ) -> None:
        picture(tmp_path / "in" / "a.png")
        assert sample(*options) == 2
        assert message in capsys.readouterr().err


def test_frames_of_one_size_have_the_same_latents(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = sampling.draw_latents
    drawn: list[list[torch.Tensor]] = []

    def kept(*given: Any, **options: Any) -> list[torch.Tensor]:
        drawn.append(draw(*given, **options))
        return drawn[-1]

    monkeypatch.setattr(sampling, "draw_latents", kept)
    for number in range(3):
        noisy(tmp_path / "in" / f"frame{number:04d}.png", seed=number)
    assert sample("-n", 2) == 0
    assert len(drawn) == 3
    for latents in drawn[1:]:
        for one, other in zip(drawn[0], latents, strict=True):
            assert torch.equal(one, other)


def test_numbers_of_samples(model: Path) -> None:
    """Samples are the same alone, in parts and together."""
    flow, lr = load_model(model), torch.rand(1, 3, 9, 12) * 0.2 + 0.4
    whole = flow.sample(lr, 5)
    assert torch.equal(whole[:, 3:], flow.sample(lr, 2, first=3))
    with pytest.raises(ValueError, match="first must be at least 0, got -1"):
        flow.sample(lr, first=-1)


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sample", "--help"])
    printed = capsys.readouterr().out
    for option in ("--recursive", "--overlap", "--scale", "--format", "--naming", "--sheet"):
        assert option in printed
