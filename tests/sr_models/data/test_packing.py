"""Packs hold what the folder holds, are shared, and are refused when they are not whole."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from processes import PATIENCE
from torch.utils.data import DataLoader

from sr_models.data import packing
from sr_models.data.crops import FixedCrops, RandomCrops
from sr_models.data.packing import MAGIC, PackedImages, check_pack_name, open_images, packing_hint, write_pack
from sr_models.io.images import read_image
from sr_models.io.listing import Listing, list_images

UNFIT = "is damaged: its index does not fit its images"
SIZES = {"b.png": (20, 31), "a/z.jpg": (40, 17), "a/grün.png": (9, 64), "c.bmp": (33, 33)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of several kinds and sizes, one in a sub-folder."""
    generator = np.random.default_rng(0)
    for name, (height, width) in SIZES.items():
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


@pytest.fixture
def pack(folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "x.pack"
    assert write_pack(list_images(folder), path) == []
    return path


def damage(path: Path) -> None:
    """Cut the middle out of a file, so that its header and its end are whole."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3] + bytes(100) + content[len(content) // 3 + 100 :])


def test_a_pack_holds_the_images_of_the_folder(folder: Path, pack: Path) -> None:
    packed, listing = PackedImages(pack), list_images(folder)
    assert packed.names == listing.names == ["a/grün.png", "a/z.jpg", "b.png", "c.bmp"]
    assert packed.sizes == listing.sizes == [SIZES[name] for name in packed.names]
    assert packed.lengths == [(folder / name).stat().st_size for name in packed.names]
    assert len(packed) == 4
    for index, name in enumerate(packed.names):
        np.testing.assert_array_equal(packed[index], read_image(folder / name))


@pytest.mark.parametrize("smallest", [1, 10, 18, 33])
def test_the_listing_is_that_of_the_folder(folder: Path, pack: Path, smallest: int) -> None:
    expected = list_images(folder, smallest=smallest)
    listing, read = open_images(str(pack), smallest=smallest)
    assert (listing.names, listing.sizes, listing.fingerprint) == (expected.names, expected.sizes, expected.fingerprint)
    assert [entry.reason for entry in listing.unused] == [entry.reason for entry in expected.unused]
    assert listing.paths == [pack / name for name in expected.names]
    for path, original in zip(listing.paths, expected.paths, strict=True):
        np.testing.assert_array_equal(read(path), read_image(original))
    if smallest == 1:
        assert PackedImages(pack).fingerprint == expected.fingerprint


def test_the_fingerprint_does_not_depend_on_empty_folders_above(folder: Path, tmp_path: Path) -> None:
    for name in ("b.png", "c.bmp"):
        (folder / name).unlink()
    write_pack(list_images(folder), tmp_path / "x.pack")
    assert PackedImages(tmp_path / "x.pack").names == ["a/grün.png", "a/z.jpg"]
    expected = [list_images(source).fingerprint for source in (folder, folder / "a")]
    assert [PackedImages(tmp_path / "x.pack").fingerprint] * 2 == expected


def test_strict_stops_at_the_first_damaged_image(folder: Path, tmp_path: Path) -> None:
    for name in ("a/grün.png", "b.png"):
        damage(folder / name)
    listing = list_images(folder)
    assert len(listing) == 4
    with pytest.raises(
        ValueError, match=r"1 image cannot be used \(strict\): not used: 1 damaged: .*grün\.png"
    ) as caught:
        write_pack(listing, tmp_path / "x.pack", strict=True)
    assert "b.png" not in str(caught.value)


def test_open_images_also_opens_folders(folder: Path) -> None:
    listing, read = open_images(folder, smallest=10)
    assert listing == list_images(folder, smallest=10)
    np.testing.assert_array_equal(read(folder / "b.png"), read_image(folder / "b.png"))
    # a folder may have any name
    folder.rename(folder.with_suffix(".pack"))
    assert len(open_images(folder.with_suffix(".pack"))[0]) == 4


def test_too_small_images(pack: Path) -> None:
    with pytest.raises(ValueError, match=r"x.pack: 1 image cannot be used \(strict\): .*too small: .*grün.png"):
        open_images(pack, smallest=10, strict=True)
    with pytest.raises(ValueError, match=r"x.pack: no image can be used: .*4 too small: .*must be at least 100 x 100"):
        open_images(pack, smallest=100)


@pytest.mark.parametrize("rotate", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_folder(folder: Path, pack: Path, workers: int, rotate: bool) -> None:
    options = {"scale": 4, "crop": 16, "length": 12, "seed": 3, "rotate": rotate}
    first, second = RandomCrops(folder, **options), RandomCrops(pack, **options)
    assert first.fingerprint == second.fingerprint
    loader = DataLoader(second, batch_size=4, num_workers=workers)
    found = [item for batch in loader for item in zip(batch["hr"], batch["lr"], batch["path"], strict=True)]
    for index, (hr, lr, path) in enumerate(found):
        assert torch.equal(hr, first[index]["hr"])
        assert torch.equal(lr, first[index]["lr"])
        assert Path(path).relative_to(pack) == Path(first[index]["path"]).relative_to(folder)
    for one, other in zip(FixedCrops(folder, scale=4, crop=16), FixedCrops(pack, scale=4, crop=16), strict=True):
        assert torch.equal(one["hr"], other["hr"])


def test_pairs_of_packs(folder: Path, pack: Path, tmp_path: Path) -> None:
    low = tmp_path / "low"
    for path in list_images(folder).paths:
        image = Image.open(path)
        target = (low / path.relative_to(folder)).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        image.resize((image.width // 4, image.height // 4)).save(target)
    write_pack(list_images(low), tmp_path / "low.pack")
    options = {"scale": 4, "crop": 8, "length": 8, "seed": 0}
    first = RandomCrops(folder, lr_images=low, **options)
    second = RandomCrops(pack, lr_images=tmp_path / "low.pack", **options)
    assert first.fingerprint == second.fingerprint
    for index in range(8):
        assert torch.equal(first[index]["hr"], second[index]["hr"])
        assert torch.equal(first[index]["lr"], second[index]["lr"])


def test_images_are_views_of_the_file_that_nobody_can_write_to(pack: Path) -> None:
    packed = PackedImages(pack)
    for index in range(len(packed)):
        image = packed[index]
        assert np.shares_memory(image, packed._pixels)
        assert not image.flags.writeable
    # sum of the images, but no copy of any: the array's owner is the map
    assert isinstance(packed._pixels.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        packed[0][0] = 1


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell what is loaded")
def test_a_crop_loads_its_rows_only(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (2000, 6000)).save(tmp_path / "images" / "a.png")
    write_pack(list_images(tmp_path / "images"), tmp_path / "x.pack")
    image = PackedImages(tmp_path / "x.pack")[0]

    def loaded() -> int:
        """Bytes of the pack in this process's memory."""
        mappings = Path("/proc/self/smaps").read_text().split(f" {tmp_path / 'x.pack'}\n")[1:]
        return sum(1024 * int(re.search(r"^Rss: +(\d+) kB", text, re.MULTILINE)[1]) for text in mappings)

    assert loaded() == 0
    assert not image[1000:1100, 500:600].copy().any()
    # the system maps blocks of up to 2 MiB if it has them in its cache
    assert 0 < loaded() < 100 * 2000 * 3 + 2 * 2**21
    assert not image.any()
    assert loaded() > 2000 * 6000 * 3 - 2**13


@pytest.mark.parametrize(
    ("size", "count", "limit", "expected"),
    [
        ((1356, 2040), 800, 2**30, "2.8 megapixels on average; sr-models pack spares that, for a file of 6.6 GB"),
        ((1356, 2040), 800, 2**33, None),  # all are kept in memory
        ((480, 480), 30_000, 2**30, None),  # decoding takes little
    ],
)
def test_a_hint_where_a_pack_would_help(
    size: tuple[int, int], count: int, limit: int, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sr_models.data.memory.LIMIT", limit)
    lines = packing_hint(Listing([Path()] * count, [size] * count))
    assert len(lines) == bool(expected)
    assert all(str(expected) in line for line in lines)


def test_the_hint_is_for_folders_in_training(folder: Path, pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sr_models.data.memory.LIMIT", 1000)
    monkeypatch.setattr(packing, "_WORTH_PACKING", 500)
    options = {"scale": 4, "crop": 8}
    hinted = [
        any("sr-models pack" in line for line in crops.notes)
        for crops in (
            RandomCrops(folder, length=1, seed=0, **options),
            RandomCrops(pack, length=1, seed=0, **options),
            FixedCrops(folder, **options),
        )
    ]
    assert hinted == [True, False, False]


def test_a_copy_in_another_process_maps_the_file(pack: Path) -> None:
    packed = PackedImages(pack)
    content = pickle.dumps(packed)
    assert len(content) < 300
    copy = pickle.loads(content)
    np.testing.assert_array_equal(copy[1], packed[1])
    assert len(pickle.dumps(RandomCrops(pack, scale=4, crop=16, length=1, seed=0)._photographs._read_high)) < 500


def test_a_pack_that_is_replaced_stays_readable(folder: Path, pack: Path) -> None:
    packed = PackedImages(pack)
    before = packed[2].copy()
    shutil.rmtree(folder / "a")
    write_pack(list_images(folder), pack)
    np.testing.assert_array_equal(packed[2], before)
    assert PackedImages(pack).names == ["b.png", "c.bmp"]
    assert os.listdir(pack.parent).count("x.pack") == 1


def test_damaged_images_are_left_out_and_named(folder: Path, tmp_path: Path) -> None:
    damage(folder / "b.png")
    listing = list_images(folder)
    assert len(listing) == 4
    unused = write_pack(listing, tmp_path / "x.pack")
    assert [(entry.path, entry.kind) for entry in unused] == [(folder / "b.png", "damaged")]
    assert "\n" not in unused[0].reason
    assert str(folder) not in unused[0].reason
    packed = PackedImages(tmp_path / "x.pack")
    assert packed.names == ["a/grün.png", "a/z.jpg", "c.bmp"]
    np.testing.assert_array_equal(packed[2], read_image(folder / "c.bmp"))
    # other images: other data
    assert packed.fingerprint != listing.fingerprint
    with pytest.raises(ValueError, match=r"1 image cannot be used \(strict\): not used: 1 damaged: .*b\.png"):
        write_pack(listing, tmp_path / "y.pack", strict=True)
    assert not (tmp_path / "y.pack").exists()


def test_no_pack_without_an_image(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "a")
    (folder / "c.bmp").unlink()
    damage(folder / "b.png")
    with pytest.raises(ValueError, match=r"no image can be used: not used: 1 damaged: .*b\.png"):
        write_pack(list_images(folder), tmp_path / "x.pack")
    assert sorted(os.listdir(tmp_path)) == ["images"]


def test_images_are_decoded_a_few_at_a_time(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = list_images(folder)
    many = listing.select([0] * 100, [])
    started, written = [], []
    monkeypatch.setattr(packing, "read_image", lambda path: started.append(path) or np.zeros((9, 64, 3), np.uint8))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})

    class Recorded:
        def __init__(self, file: object) -> None:
            self.file = file

        def write(self, content: bytes) -> None:
            written.append(content)
            # the magic is written first; those that threads have in hand, and one that waits
            assert len(started) <= len(written) - 1 + 3 + 1
            self.file.write(content)

        def tell(self) -> int:
            return self.file.tell()

    write_stream = packing.write_stream
    monkeypatch.setattr(
        packing, "write_stream", lambda path, write: write_stream(path, lambda file: write(Recorded(file)))
    )
    write_pack(many, tmp_path / "x.pack")
    assert len(started) == 100
    assert len(written) == 103


@pytest.mark.parametrize("name", ["x", "x.png", "x.pack.tmp", "images.pack", "no/x.pack"])
def test_names_of_packs(tmp_path: Path, name: str) -> None:
    (tmp_path / "images.pack").mkdir()
    error, message = (ValueError, r"output must be a file whose name ends in \.pack, got")
    if name == "no/x.pack":
        error, message = (FileNotFoundError, "cannot write .*: folder .*/no does not exist")
    with pytest.raises(error, match=message):
        check_pack_name(tmp_path / name)


def test_the_home_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_pack(list_images("~/images"), "~/y.pack")
    assert (tmp_path / "y.pack").exists()
    assert len(open_images("~/y.pack")[0]) == 4


def test_room_on_the_disk_is_checked_first(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = sum(3 * height * width for height, width in SIZES.values())
    for free, fits in ((needed - 1, False), (needed, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        if fits:
            write_pack(list_images(folder), tmp_path / "x.pack")
        else:
            monkeypatch.setattr(packing, "read_image", lambda path: pytest.fail("decoded before the room was checked"))
            with pytest.raises(OSError, match=r"cannot write .*x.pack: it needs 0.0 GB, and .* has 0.0 GB of free"):
                write_pack(list_images(folder), tmp_path / "x.pack")
            monkeypatch.undo()
            assert not (tmp_path / "x.pack").exists()


def test_a_full_disk_leaves_the_former_pack(folder: Path, pack: Path) -> None:
    before = pack.read_bytes()
    code = (
        "import resource, sys; from sr_models.io.listing import Listing, list_images\n"
        "from sr_models.data.packing import write_pack\n"
        "listing = list_images(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "write_pack(listing, sys.argv[2])"
    )
    command = [sys.executable, "-c", code, str(folder), str(pack)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert "File too large" in result.stderr
    assert pack.read_bytes() == before
    assert sorted(os.listdir(pack.parent)) == ["images", "x.pack"]


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def index_of(content: bytes) -> int:
    return content.rindex(b'{"images"')


def rewritten(content: bytes, change: Callable[[list], object]) -> bytes:
    """A pack with another index that has a right digest."""
    index = json.loads(content[index_of(content) : -packing._TRAILER.size])
    change(index["images"])
    text = json.dumps(index).encode()
    offset = index_of(content)
    trailer = packing._TRAILER.pack(offset, len(text), hashlib.sha256(text).digest(), b"pack end")
    return content[:offset] + text + trailer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: b"", "is not a pack of images; make one with sr-models pack"),
        (lambda content: b"\x89PNG" + content, "is not a pack of images"),
        (lambda content: content[:10], "is not a pack of images"),
        (lambda content: content.replace(b"pack 1", b"pack 2", 1), "has another format than this version reads"),
        (lambda content: content[: len(MAGIC)], "is damaged: its end is missing; make it anew with sr-models pack"),
        (lambda content: content[:-1], "is damaged: its end is missing"),
        (lambda content: content[:5000], "is damaged: its end is missing"),
        (lambda content: content + b"x", "is damaged: its end is missing"),
        (lambda content: content[:2000] + content[2001:], r"is damaged: it has \d+ bytes, not \d+"),
        (lambda content: content[:2000] + content[1999:], r"is damaged: it has \d+ bytes, not \d+"),
        (lambda content: flipped(content, index_of(content) + 30), "is damaged: its index was changed"),
        (lambda content: flipped(content, len(content) - 20), "is damaged: its index was changed"),
        (lambda content: flipped(content, len(content) - 50), r"is damaged: it has \d+ bytes, not \d+"),
        (
            lambda content: rewritten(content, lambda images: images.pop()),
            UNFIT,
        ),
        (
            lambda content: rewritten(content, lambda images: images[0].pop()),
            UNFIT,
        ),
        (
            lambda content: rewritten(content, lambda images: images[0].reverse()),
            UNFIT,
        ),
        (
            lambda content: rewritten(content, lambda images: images.extend([["m", -1, 5, 1], ["n", 1, 5, 1]])),
            UNFIT,
        ),
    ],
)
def test_what_is_no_whole_pack_is_refused(pack: Path, change: Callable[[bytes], bytes], message: str) -> None:
    content = pack.read_bytes()
    pack.write_bytes(change(content))
    with pytest.raises(ValueError, match=f"{pack} {message}") as caught:
        PackedImages(pack)
    assert "\n" not in str(caught.value)
    pack.write_bytes(content)
    assert len(PackedImages(pack)) == 4


def test_every_truncation_is_refused(pack: Path) -> None:
    content = pack.read_bytes()
    for size in [*range(0, len(content), 500), *range(index_of(content), len(content), 20)]:
        pack.write_bytes(content[:size])
        with pytest.raises(ValueError, match="pack"):
            PackedImages(pack)


def test_missing_packs_and_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^pack .*/x\.pack does not exist$"):
        open_images(tmp_path / "x.pack")
    (tmp_path / "x.pack").mkdir()
    with pytest.raises(ValueError, match=r"x\.pack is a folder, not a pack"):
        PackedImages(tmp_path / "x.pack")
