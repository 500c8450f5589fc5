"""Decoded photographs on the disk: each is decoded once, and nothing depends on whether they are there."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from processes import PATIENCE
from torch.utils.data import DataLoader

from sr_models.data import kept
from sr_models.data.crops import FixedCrops, RandomCrops
from sr_models.data.kept import KeptImages
from sr_models.data.packing import write_pack
from sr_models.io.images import read_image
from sr_models.io.listing import list_images

SIDES = (40, 44)
BYTES = 3 * SIDES[0] * SIDES[1]
COUNT = 5


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Even small data sets are worth keeping, in a cache folder of the test."""
    monkeypatch.setattr(kept, "FEW", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The folder of decoded photographs, which does not exist yet."""
    return tmp_path / "cache" / "sr_models" / "decoded"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "photographs"
    path.mkdir()
    generator = np.random.default_rng(0)
    for index in range(COUNT):
        picture = generator.integers(0, 256, (*SIDES, 3), dtype=np.uint8)
        Image.fromarray(picture).save(path / f"{index}.{('png', 'jpg', 'bmp')[index % 3]}")
    return path


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file is decoded."""
    count: Counter[str] = Counter()

    def counted(path: Path) -> np.ndarray:
        image = read_image(path)
        count[Path(path).name] += 1
        return image

    monkeypatch.setattr(kept, "read_image", counted)
    return count


def crops(images: Path, **changes: Any) -> RandomCrops:
    return RandomCrops(images, **{"scale": 4, "crop": 16, "length": 60, "seed": 1, **changes})


def hrs(data: RandomCrops) -> list[torch.Tensor]:
    return [data[index]["hr"] for index in range(len(data))]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def kept_images(folder: Path, limit: float = 1.0) -> KeptImages:
    return KeptImages([list_images(folder)], limit)


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(kept, "disk_usage", lambda path: SimpleNamespace(free=size))


def test_in_two_epochs_and_a_second_run_each_photograph_is_decoded_once(
    folder: Path, decoded: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = hrs(crops(folder, disk_cache=0))
    assert not decoded
    monkeypatch.setattr("sr_models.data.memory.LIMIT", 0)
    first = crops(folder)
    assert same(hrs(first), expected)
    assert same(hrs(first), expected)
    assert same(hrs(crops(folder)), expected)
    assert decoded == {path.name: 1 for path in folder.iterdir()}


def test_pixels_are_those_of_the_files_and_cannot_be_changed(folder: Path) -> None:
    images = kept_images(folder)
    for path in sorted(folder.iterdir()):
        for _ in range(2):
            found = images.read(path)
            np.testing.assert_array_equal(found, read_image(path))
            assert found.dtype == np.uint8
            assert not found.flags.writeable


def test_pairs_are_kept_both(tmp_path: Path, folder: Path, decoded: Counter[str]) -> None:
    (tmp_path / "lr").mkdir()
    for path in folder.iterdir():
        with Image.open(path) as image:
            image.resize((11, 10)).save(tmp_path / "lr" / f"{path.stem}x4.png")
    expected = crops(folder, lr_images=tmp_path / "lr", disk_cache=0)
    for _ in range(2):
        data = crops(folder, lr_images=tmp_path / "lr")
        for index in range(len(data)):
            item, other = data[index], expected[index]
            assert torch.equal(item["hr"], other["hr"])
            assert torch.equal(item["lr"], other["lr"])
    assert len(decoded) == 2 * COUNT
    assert set(decoded.values()) == {1}


def test_a_pack_needs_no_copy(tmp_path: Path, folder: Path, store: Path) -> None:
    write_pack(list_images(folder), tmp_path / "x.pack")
    data = crops(tmp_path / "x.pack")
    hrs(data)
    assert not store.exists()
    assert len(data.notes) == 1


def test_what_is_mapped_takes_no_memory_of_its_own(folder: Path) -> None:
    data = crops(folder)
    hrs(data)
    assert data._memory._bytes == 0


def test_validation_writes_nothing(folder: Path, store: Path) -> None:
    fixed = FixedCrops(folder, scale=4, crop=16)
    assert len([fixed[index] for index in range(len(fixed))]) == 4 * COUNT
    assert not store.exists()


def test_a_few_photographs_stay_in_memory_only(
    folder: Path, store: Path, decoded: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "FEW", COUNT * BYTES)
    data = crops(folder)
    hrs(data)
    assert not store.exists()
    assert data.notes == [f"{COUNT} images in {folder}"]
    assert not decoded


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_with_any_number_of_workers(folder: Path, workers: int) -> None:
    expected = hrs(crops(folder, disk_cache=0))
    data = crops(folder)
    for _ in range(2):
        found = [item["hr"][0] for item in DataLoader(data, num_workers=workers)]
        assert same(found, expected)
    assert same(hrs(pickle.loads(pickle.dumps(data))), expected)


class TestContent:
    """A photograph is known by what its file holds."""

    def test_a_copy_elsewhere_is_not_decoded_again(self, folder: Path, tmp_path: Path, decoded: Counter[str]) -> None:
        hrs(crops(folder))
        (tmp_path / "copies").mkdir()
        for path in folder.iterdir():
            (tmp_path / "copies" / path.name).write_bytes(path.read_bytes())
        hrs(crops(tmp_path / "copies"))
        assert set(decoded.values()) == {1}

    @pytest.mark.parametrize("running", [False, True])
    def test_another_picture_under_the_same_name(self, folder: Path, running: bool) -> None:
        images = kept_images(folder)
        path = folder / "2.bmp"
        before, status = images.read(path).copy(), path.stat()
        Image.fromarray(255 - before).save(path)
        assert path.stat().st_size == status.st_size
        if not running:
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            images = kept_images(folder)
        np.testing.assert_array_equal(images.read(path), 255 - before)

    def test_a_picture_that_changes_while_it_is_decoded_is_not_kept(
        self, folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = folder / "2.bmp"
        other = 255 - read_image(path)

        def replaced(path: Path) -> np.ndarray:
            Image.fromarray(other).save(path)
            return read_image(path)

        original = path.read_bytes()
        monkeypatch.setattr(kept, "read_image", replaced)
        np.testing.assert_array_equal(kept_images(folder).read(path), other)
        assert not list(store.glob("*"))
        monkeypatch.undo()
        path.write_bytes(original)
        np.testing.assert_array_equal(kept_images(folder).read(path), 255 - other)

    def test_another_decoder_does_not_take_what_this_one_made(
        self, folder: Path, decoded: Counter[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for version in ("1", "1", "2"):
            monkeypatch.setattr(kept, "_FORMAT", version)
            kept_images(folder).read(folder / "0.png")
        assert decoded["0.png"] == 2

    def test_a_photograph_that_is_gone_is_not_used(self, folder: Path) -> None:
        data = crops(folder)
        hrs(data)
        (folder / "2.bmp").unlink()
        items = [data[index] for index in range(60)]
        assert "2.bmp" not in {Path(item["path"]).name for item in items}
        failed = {line for item in items for line in item["failed"].splitlines()}
        assert failed == {f"{folder / '2.bmp'}: does not exist"}

    def test_a_pipe_in_its_place_is_not_waited_for(self, folder: Path) -> None:
        images = kept_images(folder)
        (folder / "2.bmp").unlink()
        os.mkfifo(folder / "2.bmp")
        with pytest.raises(ValueError, match="not a regular file"):
            images.read(folder / "2.bmp")


class TestRoom:
    def test_it_is_said_once_where_and_how_much(self, folder: Path, store: Path) -> None:
        (line,) = crops(folder).notes[1:]
        size = f"{COUNT * BYTES / 1e9:.1f} GB"
        assert line == (
            f"decoded photographs are kept in {store}, up to {size}, for later epochs and runs; disk_cache 0 keeps none"
        )

    def test_a_limit(self, folder: Path, store: Path, decoded: Counter[str]) -> None:
        data = crops(folder, disk_cache=2.5 * BYTES / 1e9)
        assert "for 2 of 5 images" in data.notes[1]
        expected = hrs(crops(folder, disk_cache=0))
        data._memory = SimpleNamespace(get=lambda key, make: make())  # type: ignore[assignment]
        assert same(hrs(data), expected)
        assert len(list(store.iterdir())) == 2
        assert sum(times == 1 for times in decoded.values()) == 2

    def test_none(self, folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = crops(folder, disk_cache=0)
        hrs(data)
        assert not store.exists()
        assert len(data.notes) == 1
        monkeypatch.setattr("sr_models.data.packing._WORTH_PACKING", 1)
        monkeypatch.setattr("sr_models.data.memory.LIMIT", 0)
        assert "sr-models pack spares that" in crops(folder, disk_cache=0).notes[1]
        assert not any("pack" in line for line in crops(folder).notes)

    @pytest.mark.parametrize("limit", [-1.0, float("nan"), float("inf")])
    def test_no_amount(self, folder: Path, limit: float) -> None:
        with pytest.raises(ValueError, match=r"disk_cache must be a number of GB of at least 0, got (-1.0|nan|inf)"):
            crops(folder, disk_cache=limit)

    def test_half_of_the_free_space_stays_free(
        self, folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        free(monkeypatch, 6 * BYTES)
        data = crops(folder)
        assert "for 3 of 5 images" in data.notes[1]
        # what another run keeps at the same time counts as well
        store.mkdir(parents=True)
        free(monkeypatch, 4 * BYTES - 1)
        hrs(data)
        assert not list(store.iterdir())

    def test_what_is_kept_already_counts_as_free(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        free(monkeypatch, 100 * BYTES)
        hrs(crops(folder))
        free(monkeypatch, 5 * BYTES)
        assert "of 5 images" not in crops(folder).notes[1]

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
    def test_a_disk_that_takes_no_more_gets_its_room_back(
        self, folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        expected = hrs(crops(folder, disk_cache=0))
        before = kept_images(folder)
        before.read(folder / "0.png")
        (earlier,) = store.iterdir()
        left, write = [2], kept.write_stream

        def limited(path: Path, *arguments: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(number, os.strerror(number), str(path))
            write(path, *arguments)

        monkeypatch.setattr(kept, "write_stream", limited)
        data = crops(folder)
        with pytest.warns(UserWarning, match=r"decoded photographs are not kept any more: .*; lower disk_cache"):
            found = hrs(data)
        assert same(found, expected)
        # the room may be needed for what cannot be made again
        assert list(store.iterdir()) == [earlier]
        assert left == [-1]
        assert same(hrs(data), expected)

    @pytest.mark.parametrize("place", ["a file", "no home"])
    def test_no_place(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
        expected = hrs(crops(folder, disk_cache=0))
        if place == "a file":
            (tmp_path / "cache").write_text("a file where the folder would be")
            reason = f"{tmp_path / 'cache' / 'sr_models' / 'decoded'} cannot be written to"
        else:
            monkeypatch.delenv("XDG_CACHE_HOME")

            def home() -> Path:
                raise RuntimeError("Could not determine home directory.")

            monkeypatch.setattr(Path, "home", home)
            reason = "there is no home folder"
        data = crops(folder)
        assert data.notes[1] == f"decoded photographs are not kept on the disk: {reason}; set XDG_CACHE_HOME"
        assert same(hrs(data), expected)

    def test_a_folder_that_nobody_may_write_to(
        self, folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.mkdir(parents=True)
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != store)
        assert f"{store} cannot be written to" in crops(folder).notes[1]

    def test_others_may_not_look_into_it(self, folder: Path, store: Path) -> None:
        hrs(crops(folder))
        assert store.stat().st_mode & 0o077 == 0


class TestDamage:
    @pytest.mark.parametrize(
        "content",
        [
            lambda whole: b"",
            lambda whole: whole[:100],
            lambda whole: whole[:-1],
            lambda whole: b"\x80\x04cos\nsystem\n." + whole,
            lambda whole: b"PK\x03\x04" + whole,
            lambda whole: whole.replace(b"|u1", b"|i1"),
            lambda whole: whole.replace(b"|u1", b"|O "),
            lambda whole: whole.replace(b"(40, 44, 3)", b"(44, 3, 40)"),
        ],
        ids=["empty", "header", "cut off", "pickle", "zip", "type", "objects", "shape"],
    )
    def test_a_damaged_file_is_made_anew(self, folder: Path, store: Path, decoded: Counter[str], content: Any) -> None:
        path = folder / "0.png"
        expected = kept_images(folder).read(path).copy()
        (file,) = store.iterdir()
        whole = file.read_bytes()
        assert content(whole) != whole
        file.write_bytes(content(whole))
        np.testing.assert_array_equal(kept_images(folder).read(path), expected)
        assert file.read_bytes() == whole
        assert decoded["0.png"] == 2

    def test_the_folder_may_be_deleted_at_any_time(self, folder: Path, store: Path) -> None:
        expected = hrs(crops(folder, disk_cache=0))
        data = crops(folder)
        mapped = data._photographs.read(0)[0]
        for file in store.iterdir():
            file.unlink()
        store.rmdir()
        np.testing.assert_array_equal(mapped, read_image(data.listing.paths[0]))
        assert same(hrs(data), expected)
        assert len(list(store.iterdir())) == COUNT

    def test_a_killed_process_leaves_whole_files_only(self, folder: Path, store: Path) -> None:
        """Killed at the end of a write: the next run finds nothing wrong, and removes the rest when it is old."""
        code = (
            "import os, sys; from pathlib import Path; from sr_models.data import kept; kept.FEW = 0\n"
            "from sr_models.io import files; replace = os.replace; done = []\n"
            "def killed(*names):\n"
            "    if done: os.kill(os.getpid(), 9)\n"
            "    done.append(replace(*names))\n"
            "os.replace = killed\n"
            "from sr_models.data.crops import RandomCrops\n"
            "data = RandomCrops(sys.argv[1], scale=4, crop=16, length=60, seed=1)\n"
            "for index in range(60): data[index]\n"
        )
        ended = subprocess.run([sys.executable, "-c", code, folder], timeout=PATIENCE, check=False)
        assert ended.returncode == -signal.SIGKILL
        (leftover,) = store.glob(".*.tmp")
        assert len(list(store.glob("*.npy"))) == 1
        data = crops(folder)
        assert leftover.exists()  # another process may be writing it
        assert same(hrs(data), hrs(crops(folder, disk_cache=0)))
        os.utime(leftover, (1, 1))
        crops(folder)
        assert not leftover.exists()


class TestAge:
    def test_what_no_run_has_used_for_a_week_goes(self, folder: Path, store: Path, decoded: Counter[str]) -> None:
        data = crops(folder)
        hrs(data)
        files = sorted(store.iterdir())
        strange = store / "notes.txt"
        strange.write_text("not ours")
        now = files[0].stat().st_mtime
        for file in (files[0], strange):
            os.utime(file, (now - 8 * 86400,) * 2)
        os.utime(files[1], (now - 6 * 86400,) * 2)
        crops(folder)
        assert sorted(store.iterdir()) == sorted([*files[1:], strange])
        # no run that wants to keep nothing takes away what others keep
        os.utime(files[1], (now - 8 * 86400,) * 2)
        crops(folder, disk_cache=0)
        assert files[1].exists()

    def test_use_makes_it_young_again(self, folder: Path, store: Path) -> None:
        hrs(crops(folder))
        now = next(store.iterdir()).stat().st_mtime
        for file in store.iterdir():
            os.utime(file, (now - 6 * 86400,) * 2)
        hrs(crops(folder))
        assert all(file.stat().st_mtime > now - 86400 for file in store.iterdir())
