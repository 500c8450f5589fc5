"""What a user types, as arguments of a command's function; mistakes in one line."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from sr_models.cli import train
from sr_models.cli._parser import environment_prefix, parse


def paint(
    colour: str,
    wide_lines: int = 1,
    mode: Literal["fast", "slow"] = "fast",
    weight: float | None = None,
    strict: bool = False,
    sharp: bool = True,
    sizes: list[int] | None = None,
) -> None:
    """Paint."""


def parsed(*options: str) -> dict[str, Any]:
    return parse("sr-models paint", SimpleNamespace(run=paint), options)


def trained(*options: str) -> dict[str, Any]:
    return parse("sr-models train", train, ["--model", "m", "--images", "i", "--output", "o", *options])


class TestOptions:
    @pytest.mark.parametrize("given", ["--wide-lines 3", "--wide_lines 3", "--wide-lines=3", "--wide_lines=3"])
    def test_dashes_and_underscores(self, given: str) -> None:
        assert parsed("--colour", "wide-blue", *given.split())["wide_lines"] == 3
        # a value keeps its dashes
        assert parsed("--colour", "wide-blue")["colour"] == "wide-blue"

    def test_yes_and_no(self) -> None:
        assert parsed("--colour", "x")["strict"] is False
        assert parsed("--strict", "--colour", "x")["strict"] is True
        assert parsed("--colour", "x", "--strict")["strict"] is True
        assert parsed("--colour", "x", "--sharp", "false", "--strict=true")["sharp"] is False

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("--color red", "unknown option --color; did you mean --colour?"),
            ("--wide-line=3", "unknown option --wide-line; did you mean --wide_lines?"),
            ("--nonesuch", "unknown option --nonesuch; see sr-models paint --help"),
            ("-n 3", "unknown argument '-n 3'; see sr-models paint --help"),
            ("red", "unknown argument 'red'; see sr-models paint --help"),
            ("", "--colour must be given; see sr-models paint --help"),
            ("--colour", "--colour needs a value"),
            ("--colour x --wide-lines many", "wide_lines must be a whole number, got 'many'"),
            ("--colour x --mode medium", "mode must be fast or slow, got 'medium'"),
            ("--colour x --weight heavy", "weight must be a number, got 'heavy'"),
            ("--colour x --strict maybe", "strict must be true or false, got 'maybe'"),
            ("--colour x --sizes 3", "sizes must be a list such as [1,2], got '3'"),
        ],
    )
    def test_mistakes(self, given: str, message: str) -> None:
        with pytest.raises(argparse.ArgumentError) as caught:
            parsed(*given.split())
        assert str(caught.value) == message

    def test_without_files_variables_mean_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SR_MODELS_PAINT_WIDE_LINES", "7")
        assert parsed("--colour", "x")["wide_lines"] == 1
        with pytest.raises(argparse.ArgumentError, match="unknown option --config"):
            parsed("--colour", "x", "--config", "a.yaml")


class TestSources:
    def test_options_win_over_variables_and_these_over_files(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "run.yaml"
        file.write_text("seed: 1\nsteps: 1\nlr: 1e-3\naccelerator: cpu\n")
        monkeypatch.setenv("SR_MODELS_TRAIN_SEED", "2")
        monkeypatch.setenv("SR_MODELS_TRAIN_STEPS", "2")
        monkeypatch.setenv("SR_MODELS_TRAIN_STRICT", "true")
        found = trained("--seed", "3", "--config", str(file))
        assert (found["seed"], found["steps"], found["lr"]) == (3, 2, 1e-3)
        assert (found["device"], found["strict"], found["crop"]) == ("cpu", True, 160)

    def test_the_environment_may_name_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, text in (("a", "seed: 1\nsteps: 1\n"), ("b", "seed: 2\n")):
            (tmp_path / f"{name}.yaml").write_text(text)
        monkeypatch.setenv("SR_MODELS_TRAIN_CONFIG", str(tmp_path / "a.yaml"))
        found = trained("--config", str(tmp_path / "b.yaml"))
        assert (found["seed"], found["steps"]) == (2, 1)

    def test_what_must_be_given_may_stand_in_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text("model: m\nimages: 2024\noutput: ~/o\n")
        found = parse("sr-models train", train, ["--config", str(tmp_path / "a.yaml")])
        assert (found["model"], found["images"], found["output"]) == ("m", "2024", "~/o")

    @pytest.mark.parametrize("name", ["help", "print_config", "config", "stages+"])
    def test_what_cannot_stand_in_a_file(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "a.yaml").write_text(f"{name}: x\n")
        with pytest.raises(ValueError, match=f"unknown setting '{name}'".replace("+", r"\+")):
            trained("--config", str(tmp_path / "a.yaml"))

    def test_prefix(self) -> None:
        assert environment_prefix("sr-models train") == "SR_MODELS_TRAIN_"
