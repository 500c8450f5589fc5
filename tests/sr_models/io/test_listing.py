"""Lists of images: what a user names is found, and what is not used is said."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sr_models.io.images import write_image
from sr_models.io.listing import Listing, fingerprint_of, list_images, one_line


def image(path: Path, height: int = 24, width: int = 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8))
    return path


def unused(listing: Listing) -> dict[str, tuple[str, str]]:
    return {entry.path.name: (entry.kind, entry.reason) for entry in listing.unused}


def test_a_folder_with_folders(tmp_path: Path) -> None:
    image(tmp_path / "b" / "c" / "1.png", 20, 30)
    image(tmp_path / "b" / "0.png")
    image(tmp_path / "z.png", 40, 50)
    Image.new("RGB", (5, 6)).save(tmp_path / "a.JPEG")
    listing = list_images(tmp_path)
    assert listing.names == ["a.JPEG", "b/0.png", "b/c/1.png", "z.png"]
    assert listing.sizes == [(6, 5), (24, 32), (20, 30), (40, 50)]
    assert listing.paths == [tmp_path / name for name in listing.names]
    assert listing == list_images(str(tmp_path))
    assert listing.summary() == [f"4 images in {tmp_path}"]
    (tmp_path / "empty").mkdir()
    flat = list_images(tmp_path, recursive=False)
    assert flat.names == ["a.JPEG", "z.png"]
    assert unused(flat) == dict.fromkeys(("0.png", "1.png"), ("images in sub-folders", "b"))
    said = "not used: 2 images in sub-folders: b; --recursive uses them"
    assert flat.summary() == [f"2 images in {tmp_path}", said]
    (tmp_path / "b" / "0.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"b holds no image; .*; not used: 1 images in sub-folders: c; --recurs"
    ):
        list_images(tmp_path / "b", recursive=False)


def test_hidden_names_and_folders_of_systems_are_passed_over(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    for name in ("._a.png", ".b.png", ".cache/c.png", "@eaDir/a.png", "__MACOSX/a.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\x00\x05\x16\x07Mac OS X")
    listing = list_images(tmp_path, strict=True)
    assert (listing.names, listing.unused) == (["a.png"], [])


def test_what_is_not_used_is_counted_with_its_reason(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    image(tmp_path / "small.png", 24, 7)
    (tmp_path / "b.jpg").write_text("<html>")
    (tmp_path / "c.gif").touch()
    (tmp_path / "notes").touch()
    for index in range(5):
        (tmp_path / f"e{index}.png").touch()
    (tmp_path / "gone.png").symlink_to("/nowhere/gone.png")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    os.mkfifo(tmp_path / "pipe.png")
    listing = list_images(tmp_path, smallest=8)
    assert listing.names == ["a.png"]
    assert unused(listing)["small.png"] == ("too small", "must be at least 8 x 8 pixels, got 24 x 7")
    assert unused(listing)["gone.png"] == ("dangling links", "a link to /nowhere/gone.png: No such file or directory")
    assert unused(listing)["self.png"][0] == "dangling links"
    assert unused(listing)["pipe.png"] == ("damaged", "not a regular file")
    first, *lines = listing.summary()
    assert first == f"1 image in {tmp_path}"
    assert "not used: 2 of other kinds: .gif, without a suffix" in lines
    assert "not used: 1 too small: small.png (must be at least 8 x 8 pixels, got 24 x 7)" in lines
    (damaged,) = [line for line in lines if "damaged" in line]
    assert re.match(r"not used: 7 damaged: b\.jpg \(.*web page", damaged)
    assert damaged.endswith("), e0.png (the file is empty), e1.png (the file is empty) and 4 more")
    with pytest.raises(ValueError, match=r"10 images cannot be used \(strict\): .* and 4 more") as error:
        list_images(tmp_path, smallest=8, strict=True)
    assert "\n" not in str(error.value)
    assert ".gif" not in str(error.value)


def test_what_reading_changes_is_counted(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    for index in range(2):
        Image.fromarray(np.full((24, 24), 9, np.uint16)).save(tmp_path / f"deep{index}.png")
    Image.new("CMYK", (24, 24)).save(tmp_path / "print.jpg")
    listing = list_images(tmp_path)
    assert listing.summary() == [
        f"4 images in {tmp_path}",
        "2 of them: 16 bits a channel are rounded to 8",
        "1 of them: CMYK colours without a profile become RGB approximately",
    ]
    assert listing.select([0, 1], []).summary()[1:] == ["1 of them: 16 bits a channel are rounded to 8"]


def test_strict_does_not_mind_other_files(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    (tmp_path / "notes.txt").touch()
    assert len(list_images(tmp_path, strict=True)) == 1


def test_links_to_folders(tmp_path: Path) -> None:
    image(tmp_path / "data" / "m" / "1.png")
    image(tmp_path / "elsewhere" / "2.png")
    (tmp_path / "data" / "m" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data" / "m")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    listing = list_images(tmp_path / "data")
    # a folder has its own name rather than that of a link to it
    assert listing.names == ["m/1.png", "more/2.png"]
    assert {path: kind for path, (kind, _) in unused(listing).items()} == {"loop": "folders", "again": "folders"}


def test_of_several_links_to_a_folder_the_first_name_counts(tmp_path: Path) -> None:
    image(tmp_path / "elsewhere" / "1.png")
    for name in ("b", "a", "c"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(tmp_path / "elsewhere")
    listing = list_images(tmp_path / "data")
    assert listing.names == ["a/1.png"]
    assert set(unused(listing)) == {"b", "c"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_listed(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    (tmp_path / "b").mkdir(mode=0)
    assert unused(list_images(tmp_path))["b"] == ("unreadable folders", "cannot be listed: Permission denied")


def test_a_pattern(tmp_path: Path) -> None:
    for name in ("x/1.png", "x/2.png", "y/3.png", "y/deep/4.png", "1[a].png"):
        image(tmp_path / name)
    assert list_images(tmp_path / "x" / "*.png").names == ["1.png", "2.png"]
    assert list_images(tmp_path / "?" / "*.png").names == ["x/1.png", "x/2.png", "y/3.png"]
    assert len(list_images(tmp_path / "**" / "*.png")) == 5
    listing = list_images(tmp_path / "y" / "*")
    assert listing.names == ["3.png"]
    assert unused(listing)["deep"][0] == "folders"
    # a name that only looks like a pattern
    assert list_images(tmp_path / "1[a].png").names == ["1[a].png"]
    with pytest.raises(FileNotFoundError, match=r"\*\.bmp holds no image"):
        list_images(tmp_path / "*.bmp")


def test_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = image(tmp_path / "a.png")
    assert list_images(path).paths == [path]
    monkeypatch.chdir(tmp_path)
    assert list_images("a.png").names == ["a.png"]
    with pytest.raises(ValueError, match=r"a.png: no image can be used: .*must be at least 30 x 30"):
        list_images(path, smallest=30)


class TestLists:
    def test_names_are_relative_to_the_list(self, tmp_path: Path) -> None:
        for name in ("a b.png", "d/c.png", "e.png"):
            image(tmp_path / name)
        other = image(tmp_path.parent / f"{tmp_path.name}-other" / "f.png")
        (tmp_path / "list.txt").write_text(f"\ufeffa b.png\n\n  d/c.png\r\nabsent.png\n{other}\na b.png\n")
        listing = list_images(tmp_path / "list.txt")
        assert sorted(listing.paths) == sorted([tmp_path / "a b.png", tmp_path / "d/c.png", other])
        assert unused(listing)["absent.png"][0] == "missing"
        assert unused(listing)["a b.png"][0] == "named twice"
        with pytest.raises(ValueError, match=r"absent\.png \(No such file or directory\)"):
            list_images(tmp_path / "list.txt", strict=True)

    @pytest.mark.parametrize("place", ["0001_s001.png", "sub/0001_s001.png"])
    def test_meta_info(self, tmp_path: Path, place: str) -> None:
        """Lists of BasicSR have sizes behind the names; some start at the folder above."""
        image(tmp_path / place)
        (tmp_path / "meta_info").mkdir()
        for file in (tmp_path / "meta_info.txt", tmp_path / "meta_info" / "sub.txt"):
            file.write_text(f"{place} (480,480,3)\n")
            assert list_images(file).paths[0].samefile(tmp_path / place)
        (tmp_path / "meta_info.txt").write_text(f"{place} (480, 480, 3) 1\n")
        assert len(list_images(tmp_path / "meta_info.txt", strict=True)) == 1

    def test_errors(self, tmp_path: Path) -> None:
        (tmp_path / "empty.txt").write_text("\n")
        with pytest.raises(FileNotFoundError, match=r"the list of images .*empty\.txt names no file"):
            list_images(tmp_path / "empty.txt")
        (tmp_path / "all.txt").write_text("a.png\nb.png")
        with pytest.raises(ValueError, match=r"all\.txt: no image can be used: not used: 2 missing: .*a\.png"):
            list_images(tmp_path / "all.txt")


class TestErrors:
    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=f"image folder {tmp_path}/absent does not exist"):
            list_images(tmp_path / "absent")
        with pytest.raises(FileNotFoundError, match=f"^image {tmp_path}/absent.png does not exist"):
            list_images(tmp_path / "absent.png")
        (tmp_path / "link").symlink_to("nowhere")
        with pytest.raises(FileNotFoundError, match=f"{tmp_path}/link is a link to nowhere, which does not exist"):
            list_images(tmp_path / "link")
        (tmp_path / "link").unlink()
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ValueError, match=f"{tmp_path}/pipe is neither a folder nor a regular file"):
            list_images(tmp_path / "pipe")
        (tmp_path / "pipe").unlink()
        with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no image; accepted suffixes: .png .jpg"):
            list_images(tmp_path)
        (tmp_path / "a.gif").touch()
        with pytest.raises(FileNotFoundError, match=r"holds no image; .*; not used: 1 of other kinds: \.gif"):
            list_images(tmp_path)

    def test_another_kind_of_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.zip").touch()
        with pytest.raises(ValueError, match=r"a\.zip is neither a folder, nor an image \(\.png .*\), nor a list"):
            list_images(tmp_path / "a.zip")

    def test_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        image(tmp_path / "in" / "a.png")
        for source in ("~/in", "~/in/*.png", "~/in/a.png"):
            assert list_images(source).paths == [tmp_path / "in" / "a.png"]

    def test_messages_are_one_line_of_what_prints(self, tmp_path: Path) -> None:
        for name in (b"new\nline.png", b"latin-\xe9.png", b"\x1b[31m.png"):
            (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))).touch()
        with pytest.raises(ValueError, match="no image can be used") as error:
            list_images(tmp_path)
        assert str(error.value).isprintable()
        str(error.value).encode()
        assert one_line("ä b.png") == "ä b.png"


class TestFingerprint:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        image(tmp_path / "in" / "a.png")
        image(tmp_path / "in" / "d" / "b.png")
        return tmp_path / "in"

    def test_it_does_not_know_the_place(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = list_images(folder).fingerprint
        shutil.copytree(folder, tmp_path / "copy")
        monkeypatch.chdir(tmp_path)
        (tmp_path / "list.txt").write_text("in/a.png\nin/d/b.png\n")
        (tmp_path / "link").symlink_to(folder)
        (folder / "notes.txt").touch()
        (folder / "broken.png").touch()
        for source in ("copy", "in", "./in/", "link", "in/**/*.png", "list.txt", "in/../copy"):
            assert list_images(source).fingerprint == expected, source

    def test_it_knows_names_and_sizes(self, folder: Path) -> None:
        seen = {list_images(folder).fingerprint}
        image(folder / "c.png")
        seen.add(list_images(folder).fingerprint)
        (folder / "c.png").rename(folder / "e.png")
        seen.add(list_images(folder).fingerprint)
        with (folder / "e.png").open("ab") as file:
            file.write(b"\0")
        seen.add(list_images(folder).fingerprint)
        (folder / "e.png").rename(folder / "d" / "e.png")
        seen.add(list_images(folder).fingerprint)
        (folder / "d" / "e.png").unlink()
        assert len(seen) == 5
        assert list_images(folder).fingerprint in seen

    def test_names_do_not_run_together(self) -> None:
        assert fingerprint_of(["a", "b"], [1, 2]) != fingerprint_of(["a1", "b"], [1, 2])
        assert fingerprint_of(["a"], [12]) != fingerprint_of(["a1"], [2])
