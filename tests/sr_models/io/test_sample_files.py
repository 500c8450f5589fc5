"""What sample files say about themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sr_models.io import encoding
from sr_models.io.sample_files import challenge_files, check_numbering, read_description


def test_only_formats_of_samples_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lies under the name of a sample: no other decoder gets to see it."""
    asked: list[Any] = []
    original = Image.open

    def spied(file: Path, mode: str = "r", formats: Any = None) -> Image.Image:
        asked.append(formats)
        return original(file, mode, formats)

    monkeypatch.setattr(encoding.Image, "open", spied)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.gif")
    assert read_description((tmp_path / "a.gif").rename(tmp_path / "a.png")) is None
    assert asked == [("PNG", "JPEG", "WEBP")]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_one_sample_and_several_do_not_mix_in_any_format(tmp_path: Path, suffix: str) -> None:
    for there, wanted, n in ((1, 2, "1"), (2, 1, "more than 1")):
        file = challenge_files(tmp_path, 0, there, suffix)[0]
        file.touch()
        with pytest.raises(ValueError, match=f"{file.name} is a sample of a run with n {n}; choose another"):
            check_numbering(challenge_files(tmp_path, 0, wanted))
        check_numbering(challenge_files(tmp_path, 0, there))
        file.unlink()
