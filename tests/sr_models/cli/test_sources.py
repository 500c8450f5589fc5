"""Settings in files and environment variables: read as options, and every mistake named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sr_models.cli._sources import from_environment, from_files, nearest, split_files

KNOWN = {"steps", "lr", "images", "val_images", "overrides", "batch_size", "strict"}


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


class TestFiles:
    def test_values_of_every_kind(self, tmp_path: Path) -> None:
        text = "steps: 10\nlr: 1e-4\nimages: straße/bild 1\nstrict: yes\noverrides: {steps: [1, 2], affine: null}\n"
        options = from_files([write(tmp_path / "a.yaml", text)], KNOWN)
        assert options[:4] == ["--steps=10", "--lr=0.0001", "--images=straße/bild 1", "--strict=true"]
        name, _, value = options[4].partition("=")
        assert (name, json.loads(value)) == ("--overrides", {"steps": [1, 2], "affine": None})

    @pytest.mark.parametrize("number", ["1e-4", "1E-4", "+1e-4", "10e-5", "0.1e-3", ".1e-3", "1.e-4", "0.0001"])
    def test_numbers_with_an_exponent(self, tmp_path: Path, number: str) -> None:
        file = write(tmp_path / "a.yaml", f"overrides: {{x: {number}}}")
        assert json.loads(from_files([file], KNOWN)[0].partition("=")[2]) == {"x": 1e-4}

    def test_the_last_file_wins_and_null_is_the_default(self, tmp_path: Path) -> None:
        first = write(tmp_path / "a.yaml", "steps: 1\nval_images: x\nlr: 1\noverrides: {a: 1}")
        second = write(tmp_path / "b.yaml", "lr: 2\nval_images: null\noverrides: {b: 2}")
        assert from_files([first, second], KNOWN) == ["--steps=1", "--lr=2", '--overrides={"b": 2}']

    def test_home_folder_dashes_and_an_empty_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        write(tmp_path / "a.yaml", "batch-size: 3")
        assert from_files(["~/a.yaml", write(tmp_path / "b.yaml", "# nothing")], KNOWN) == ["--batch_size=3"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("stps: 1", "unknown setting 'stps' in {file}; did you mean steps\\?$"),
            ("1: 1", "unknown setting '1' in {file}$"),
            ("steps: 1\n  lr: 2", "config {file} is not valid YAML: .*line 2, column 5"),
            ("x: !!python/object:os.system {}", "config {file} is not valid YAML: could not determine a constructor"),
            ("- steps", "config {file} must hold lines such as 'steps: 1000', got a list"),
            ("steps", "config {file} must hold lines such as 'steps: 1000', got a str"),
        ],
    )
    def test_mistakes(self, tmp_path: Path, text: str, message: str) -> None:
        file = write(tmp_path / "a.yaml", text)
        with pytest.raises(ValueError, match=message.format(file=file)):
            from_files([file], KNOWN)

    def test_files_that_are_none(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"config .*none.yaml does not exist"):
            from_files([str(tmp_path / "none.yaml")], KNOWN)
        (tmp_path / "image.png").write_bytes(b"\x89PNG\xff")
        with pytest.raises(ValueError, match=r"config .*image.png is no text"):
            from_files([str(tmp_path / "image.png")], KNOWN)
        with pytest.raises(IsADirectoryError):
            from_files([str(tmp_path)], KNOWN)

    def test_they_are_taken_out_of_the_options(self) -> None:
        options = ["--steps", "1", "--config", "a", "--config=b=c", "--configs", "--config", "d"]
        assert split_files(options) == (["a", "b=c", "d"], ["--steps", "1", "--configs"])
        for last in ("--config", "--config="):
            with pytest.raises(ValueError, match=r"^--config needs the name of a YAML file$"):
                split_files(["--steps", "1", last])


class TestEnvironment:
    def test_variables_with_the_prefix(self) -> None:
        variables = {"PATH": "/bin", "X_STEPS": "3", "X_BATCH_SIZE": "2", "XSTEPS": "4", "X_IMAGES": "a=b"}
        options = from_environment("X_", variables, KNOWN)
        assert options == ["--steps=3", "--batch_size=2", "--images=a=b"]

    def test_one_that_names_no_option(self) -> None:
        with pytest.raises(ValueError, match=r"environment variable X_STPES names no option; did you mean steps\?"):
            from_environment("X_", {"X_STPES": "3"}, KNOWN)


def test_suggestions() -> None:
    assert nearest("imges", KNOWN) == "; did you mean images?"
    assert nearest("val", KNOWN) == "; did you mean val_images?"
    assert nearest("zzz", KNOWN) == ""
