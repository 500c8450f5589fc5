"""Headers: sizes and damage without decoding, and the cache of them."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from sr_models.io import headers
from sr_models.io.headers import Header, read_header, read_headers
from sr_models.io.images import IMAGE_SUFFIXES, read_image, write_image

FORMATS = {".png": {}, ".jpg": {}, ".bmp": {}, ".webp": {}, ".tif": {}, ".tiff": {"compression": "tiff_lzw"}}


def picture(height: int = 40, width: int = 50) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, **arguments: object) -> Path:
    Image.fromarray(picture()).save(path, **arguments)
    return path


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: ImageFile.ImageFile) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)


@pytest.mark.usefixtures("no_decoding")
@pytest.mark.parametrize("suffix", [*FORMATS, ".jpeg"])
def test_a_complete_file_is_not_decoded(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a{suffix}", **FORMATS.get(suffix, {}))
    assert read_header(path) == Header(40, 50)
    assert suffix in IMAGE_SUFFIXES


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("kept", [0, 1, 0.02, 0.3, 0.6, 0.9, -1])
def test_a_truncated_file_is_found(tmp_path: Path, suffix: str, kept: float) -> None:
    path = save(tmp_path / f"a{suffix}", **FORMATS[suffix])
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    try:
        read_image(path)
        readable = True  # the last bytes of some formats say nothing
    except ValueError:
        readable = False
    header = read_header(path)
    assert bool(header.problem) != readable
    assert "\n" not in header.problem
    assert kept == -1 or not readable


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_bytes_behind_an_image_are_no_damage(tmp_path: Path, suffix: str) -> None:
    """Cameras and editors append previews, films and zeros."""
    path = save(tmp_path / f"a{suffix}")
    with path.open("ab") as file:
        file.write(b"\0" * 100)
    read_image(path)
    assert read_header(path) == Header(40, 50)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "an empty file"), (b"<!DOCTYPE html>", "not an image"), (b"\x00\x05\x16\x07Mac OS X", "not an image")],
)
def test_what_is_no_image(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert problem in read_header(path).problem


def test_missing_and_deep_files(tmp_path: Path) -> None:
    assert "No such file" in read_header(tmp_path / "a.png").problem
    Image.fromarray(np.full((40, 40), 40000, np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="must have 8 bits a channel"):
        read_image(tmp_path / "b.png")
    assert "must have 8 bits a channel" in read_header(tmp_path / "b.png").problem


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a{suffix}", exif=exif)
    header = read_header(path)
    assert (header.height, header.width) == read_image(path).shape[:2]


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGBA", "LA"])
def test_modes(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(picture()).convert(mode).save(path)
    assert read_header(path) == Header(40, 50)


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
        assert expected[3].problem
        read = []
        monkeypatch.setattr(headers, "read_header", lambda path: read.append(path.name) or Header(1, 2))
        assert self.read(source) == expected
        assert not read
        # another size, another time
        write_image(source / "1.png", picture(33, 44))
        os.utime(source / "2.png", (1, 1))
        assert self.read(source) == [expected[0], Header(1, 2), Header(1, 2), expected[3]]
        assert sorted(read) == ["1.png", "2.png"]

    def test_a_few_headers_make_no_file(self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(headers, "_WORTH_KEEPING", 5)
        self.read(source)
        assert not (tmp_path / "cache").exists()

    @pytest.mark.parametrize(
        "content",
        [b"", b"\xff\xfe", b"null", b'"other"\n[]', b"{", b"half a line", b"\x80\x02cos\nsystem\n."],
        ids=repr,
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
        monkeypatch.setattr(headers, "read_header", lambda path: Header(1, 2))
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
        self.read(source)
        lines = self.cache(tmp_path).read_text().splitlines()
        assert len(lines) == 1 + 5
        assert {len(json.loads(line)) for line in lines[1:]} == {6}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_reading_a_header_of_random_bytes_never_raises(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for suffix, arguments in FORMATS.items():
        buffer = io.BytesIO()
        Image.fromarray(picture(8, 8)).save(buffer, format=Image.registered_extensions()[suffix], **arguments)
        for _ in range(30):
            content = bytearray(buffer.getvalue())
            for place in rng.integers(0, min(len(content), 200), 3).tolist():
                content[place] = rng.integers(256)
            path = tmp_path / f"a{suffix}"
            path.write_bytes(content)
            header = read_header(path)
            assert bool(header.problem) != (header.height > 0)
