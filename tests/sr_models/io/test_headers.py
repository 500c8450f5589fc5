"""Headers of many files, and the cache of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sr_models.io import headers
from sr_models.io.headers import Header, read_headers
from sr_models.io.images import write_image


def picture(height: int = 40, width: int = 50) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


class TestCache:
    @pytest.fixture(autouse=True)
    def small(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(headers, "_WORTH_KEEPING", 2)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        (tmp_path / "in").mkdir()
        for index in range(3):
            write_image(tmp_path / "in" / f"{index}.png", picture(20 + index, 30))
        (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG")
        return tmp_path / "in"

    def read(self, source: Path) -> list[Header]:
        return read_headers([(path, path.stat()) for path in sorted(source.iterdir())], source)

    def cache(self, tmp_path: Path) -> Path:
        (file,) = (tmp_path / "cache" / "sr_models" / "headers").iterdir()
        return file

    def test_each_header_is_read_once(self, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = self.read(source)
        assert [header.height for header in expected] == [20, 21, 22, 0]
        assert "PNG" in expected[3].problem
        read = []
        monkeypatch.setattr(headers, "_read", lambda path: read.append(path.name) or Header(1, 2))
        assert self.read(source)[:3] == expected[:3]
        # what cannot be used may be mended, or be readable on another machine
        assert read == ["broken.png"]
        # another size, another time
        write_image(source / "1.png", picture(33, 44))
        os.utime(source / "2.png", (1, 1))
        read.clear()
        assert self.read(source) == [expected[0], Header(1, 2), Header(1, 2), Header(1, 2)]
        assert sorted(read) == ["1.png", "2.png", "broken.png"]

    def test_a_few_headers_make_no_file(self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(headers, "_WORTH_KEEPING", 5)
        self.read(source)
        assert not (tmp_path / "cache").exists()

    @pytest.mark.parametrize(
        "content",
        [b"", b"\xff\xfe", b"null", b'"other"\n[]', b"{", b"half a line", b"\x80\x02cos\nsystem\n."],
    )
    @pytest.mark.parametrize("whole", [False, True])
    def test_a_damaged_cache_is_not_used(self, source: Path, tmp_path: Path, content: bytes, whole: bool) -> None:
        expected = self.read(source)
        file = self.cache(tmp_path)
        file.write_bytes(content if whole else file.read_bytes()[:-9] + content)
        assert self.read(source) == expected
        assert self.read(source) == expected

    def test_a_cache_of_another_version_is_not_used(self, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read(source)
        monkeypatch.setattr(headers, "_FORMAT", "later")
        monkeypatch.setattr(headers, "_read", lambda path: Header(1, 2))
        assert self.read(source) == [Header(1, 2)] * 4

    def test_a_place_that_cannot_be_written_to(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "cache").write_text("a file where the folder would be")
        assert len(self.read(source)) == 4

    def test_without_a_home(self, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("XDG_CACHE_HOME")

        def home() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", home)
        assert len(self.read(source)) == 4

    def test_it_is_made_of_lines_of_json(self, source: Path, tmp_path: Path) -> None:
        write_image(source / "öä \n.png", picture())
        Image.fromarray(picture()[..., 0].astype(np.uint16) * 257).save(source / "deep.png")
        assert self.read(source) == self.read(source)
        lines = self.cache(tmp_path).read_text().splitlines()
        assert len(lines) == 1 + 5
        assert sum(bool(json.loads(line)[5]) for line in lines[1:]) == 1
        assert {len(json.loads(line)) for line in lines[1:]} == {6}
