"""Folders of known data sets, and pairs of images by name and size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sr_models.data.layouts import find_high, find_low, pair_names
from sr_models.io.images import write_image
from sr_models.io.listing import Listing


def fill(root: Path, *files: str) -> None:
    """Make files, and images of 2 x 2 pixels."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".png"):
            write_image(root / name, np.zeros((2, 2, 3), np.uint8))
        else:
            (root / name).touch()


DIV2K = (
    "DIV2K_train_HR/0001.png",
    "DIV2K_train_HR.zip",
    "DIV2K_train_HR_sub/0001_s001.png",
    "DIV2K_train_LR_bicubic/X2/0001x2.png",
    "DIV2K_train_LR_bicubic/X4/0001x4.png",
    "DIV2K_train_LR_bicubic/X4_sub/0001_s001.png",
    "DIV2K_valid_HR/0801.png",
    "DIV2K_valid_LR_bicubic/X4/0801x4.png",
    ".DS_Store",
)


class TestHigh:
    @pytest.mark.parametrize(
        ("files", "train", "valid"),
        [
            (DIV2K, "DIV2K_train_HR", "DIV2K_valid_HR"),
            (("Flickr2K_HR/000001.png", "Flickr2K_LR_bicubic/X4/000001x4.png"), "Flickr2K_HR", "Flickr2K_HR"),
            (("DIV2K_train_HR_sub/0001_s001.png",), "DIV2K_train_HR_sub", None),
            (("GTmod12/baby.png", "LRbicx4/baby.png", "original/baby.png"), "GTmod12", "GTmod12"),
            (("hr/a.png", "lr/a.png"), "hr", "hr"),
            (("GT/a.png", "LQ/a.png"), "GT", "GT"),
            (("train/a.png", "val/b.png"), "train", "val"),
            (("train/HR/a.png", "train/LR/a.png", "test/HR/b.png"), "train/HR", "test/HR"),
            # no layout: everything counts
            (("a.png", "HR/b.png"), ".", "."),
            (("cats/a.png", "dogs/b.png"), ".", "."),
            (("train/a.png", "cats/b.png"), ".", "."),
            ((), ".", "."),
        ],
    )
    def test_folders(self, tmp_path: Path, files: tuple[str, ...], train: str, valid: str | None) -> None:
        fill(tmp_path, *files)
        assert find_high(tmp_path, split="train") == tmp_path / train
        if valid is None:
            with pytest.raises(ValueError, match=f"holds {train}, which is not for valid; name the folder itself"):
                find_high(tmp_path, split="valid")
        else:
            assert find_high(str(tmp_path), split="valid") == tmp_path / valid

    def test_what_is_named_itself_is_meant(self, tmp_path: Path) -> None:
        fill(tmp_path, *DIV2K)
        for name in ("DIV2K_train_HR", "DIV2K_train_HR_sub", "DIV2K_valid_HR", "DIV2K_train_HR/0001.png", "absent"):
            assert find_high(tmp_path / name, split="train") == tmp_path / name

    def test_nothing_is_left_out_without_a_word(self, tmp_path: Path) -> None:
        fill(tmp_path, "DIV2K_train_HR/0001.png", "Flickr2K_HR/000001.png")
        message = "holds DIV2K_train_HR and Flickr2K_HR, each with high-resolution images; name one of them"
        with pytest.raises(ValueError, match=message):
            find_high(tmp_path, split="train")

    def test_databases(self, tmp_path: Path) -> None:
        fill(tmp_path, "x.lmdb/data.mdb", "x.lmdb/meta_info.txt")
        with pytest.raises(ValueError, match=r"x\.lmdb is an LMDB database; give the folder of images"):
            find_high(tmp_path / "x.lmdb", split="train")

    def test_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        fill(tmp_path, "set/HR/a.png", "set/LR/a.png")
        assert find_high("~/set", split="train") == tmp_path / "set" / "HR"
        assert find_low("~/set", scale=4, split="train", sub=False) == tmp_path / "set" / "LR"


class TestLow:
    @pytest.mark.parametrize(
        ("source", "split", "sub", "found"),
        [
            (".", "train", False, "DIV2K_train_LR_bicubic/X4"),
            (".", "train", True, "DIV2K_train_LR_bicubic/X4_sub"),
            (".", "valid", False, "DIV2K_valid_LR_bicubic/X4"),
            # crops of validation images do not exist: the names will tell
            (".", "valid", True, "DIV2K_valid_LR_bicubic/X4"),
            ("DIV2K_train_LR_bicubic", "train", False, "DIV2K_train_LR_bicubic/X4"),
            ("DIV2K_train_LR_bicubic", "valid", False, "DIV2K_train_LR_bicubic/X4"),
            ("DIV2K_train_LR_bicubic/X4", "train", False, "DIV2K_train_LR_bicubic/X4"),
            ("DIV2K_train_LR_bicubic/X2", "train", False, "DIV2K_train_LR_bicubic/X2"),
        ],
    )
    def test_div2k(self, tmp_path: Path, source: str, split: str, sub: bool, found: str) -> None:
        fill(tmp_path, *DIV2K)
        assert find_low(tmp_path / source, scale=4, split=split, sub=sub) == tmp_path / found

    @pytest.mark.parametrize(
        ("files", "found"),
        [
            (("GTmod12/baby.png", "LRbicx4/baby.png", "LRbicx3/baby.png"), "LRbicx4"),
            (("hr/a.png", "lr/a.png"), "lr"),
            (("train/HR/a.png", "train/LR/x4/a.png", "val/LR/x4/a.png"), "train/LR/x4"),
            (("cats/a.png",), "."),
        ],
    )
    def test_others(self, tmp_path: Path, files: tuple[str, ...], found: str) -> None:
        fill(tmp_path, *files)
        assert find_low(tmp_path, scale=4, split="train", sub=False) == tmp_path / found

    def test_errors(self, tmp_path: Path) -> None:
        fill(tmp_path, *DIV2K, "DIV2K_train_LR_unknown/X4/0001x4.png")
        with pytest.raises(ValueError, match="holds X2, X4, X4_sub but nothing of scale 8"):
            find_low(tmp_path / "DIV2K_train_LR_bicubic", scale=8, split="train", sub=False)
        with pytest.raises(ValueError, match="DIV2K_train_LR_bicubic and DIV2K_train_LR_unknown, each with low-res"):
            find_low(tmp_path, scale=4, split="train", sub=False)


def listing(root: str, **sizes: tuple[int, int]) -> Listing:
    """Names with ``__`` for ``/``, and without suffix."""
    paths = [Path(root) / f"{name.replace('__', '/')}.png" for name in sizes]
    return Listing(paths, list(sizes.values()), root=Path(root))


class TestPairs:
    def test_names(self) -> None:
        high = listing("hr", a=(40, 48), b__c=(40, 40), b__d=(80, 40), ex4=(4, 4), lost=(40, 40), m=(8, 8))
        low = listing("lr", c=(10, 10), b__cx4=(10, 10), b__d=(20, 10), ax4=(10, 12), ex4=(1, 1), mx4m=(2, 2))
        pairs, unused = pair_names(high, low, 4)
        assert [(high.names[i], low.names[j]) for i, j in pairs] == [
            ("a.png", "ax4.png"),
            ("b/c.png", "b/cx4.png"),
            ("b/d.png", "b/d.png"),
            ("ex4.png", "ex4.png"),
            ("m.png", "mx4m.png"),
        ]
        (entry,) = unused
        assert (entry.path, entry.reason) == (Path("hr/lost.png"), "no lost or lostx4 in lr")

    @pytest.mark.parametrize(
        ("high", "low", "fits"),
        [
            ((41, 43), (10, 10), True),
            ((41, 43), (11, 11), True),
            ((41, 43), (10, 11), True),
            ((41, 43), (12, 11), False),
            ((41, 43), (9, 10), False),
            ((40, 44), (10, 11), True),
            ((40, 44), (11, 11), False),
            ((44, 40), (10, 11), False),
            ((40, 40), (20, 20), False),
        ],
    )
    def test_sizes(self, high: tuple[int, int], low: tuple[int, int], fits: bool) -> None:
        pairs, unused = pair_names(listing("hr", a=high), listing("lr", a=low), 4)
        assert bool(pairs) == fits == (not unused)
        for entry in unused:
            sizes = f"{high[0]} x {high[1]} pixels, which is not 4 times the {low[0]} x {low[1]}"
            assert entry.reason == f"{sizes} of its low-resolution image"

    def test_names_that_fit_two_images(self) -> None:
        size = (4, 4)
        with pytest.raises(ValueError, match=r"lr_images: lr/a\.png and lr/ax4\.png all fit hr/a\.png; leave one"):
            pair_names(listing("hr", a=size), listing("lr", a=(1, 1), ax4=(1, 1)), 4)
        with pytest.raises(ValueError, match=r"lr_images: lr/ax4\.png fits hr/a\.png and hr/ax4\.png; rename one"):
            pair_names(listing("hr", a=size, ax4=size), listing("lr", ax4=(1, 1)), 4)
        same = Listing([Path("hr/a.png"), Path("hr/a.jpg")], [size, size], root=Path("hr"))
        with pytest.raises(ValueError, match=r"lr_images: lr/a\.png fits hr/a\.png and hr/a\.jpg; rename one"):
            pair_names(same, listing("lr", a=(1, 1)), 4)
