"""Samples of anyone are found under every name, and what does not fit is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sr_models.evaluation.folder import evaluate_samples
from sr_models.evaluation.metrics import mse_distance
from sr_models.evaluation.record import ScoreRecord
from sr_models.evaluation.sample_folder import find_samples
from sr_models.io.images import write_image
from sr_models.io.sample_files import challenge_files, challenge_numbers

TWO = ["0801.png", "0802.png"]


def picture(height: int = 16, width: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def fill(folder: Path, *names: str, size: tuple[int, int] = (16, 16)) -> Path:
    for number, name in enumerate(names):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, picture(*size, seed=number))
    return folder


@pytest.mark.parametrize(
    ("files", "scale"),
    [
        (["0801_sample000", "0801_sample001", "0802_sample000", "0802_sample001"], None),
        (["0801x4_sample000", "0801x4_sample001", "0802x4_sample000", "0802x4_sample001"], 4),
        (["000000_sample00000", "000000_sample00001", "000001_sample00000", "000001_sample00001"], None),
        (["000901_sample00000", "000901_sample00001", "000902_sample00000", "000902_sample00001"], None),
        (["0801", "0802"], None),
        (["0801x4", "0802x4"], 4),
        (["000000", "000001"], None),
        (["000801", "000802"], None),
    ],
)
def test_names(tmp_path: Path, files: list[str], scale: int | None) -> None:
    names = ["0901.png", "0902.png"] if files[0].startswith("0009") else TWO
    found = find_samples(fill(tmp_path, *files), names)
    half = len(files) // 2
    assert {name: [path.stem for path in paths] for name, paths in found.files.items()} == {
        names[0]: files[:half],
        names[1]: files[half:],
    }
    assert (found.failures, found.unused, found.scale) == ({}, [], scale)


def test_names_in_folders_and_with_suffixes(tmp_path: Path) -> None:
    files = ["a/x_sample000", "b/x_sample000", "b/y.jpg_sample000", "b/y.png_sample000"]
    found = find_samples(fill(tmp_path, *files), ["a/x.png", "b/x.png", "b/y.jpg", "b/y.png"])
    assert [path.relative_to(tmp_path).with_suffix("").as_posix() for (path,) in found.files.values()] == files


def test_numbers_that_are_names_too(tmp_path: Path) -> None:
    """Six digits are names if all of them are, and numbers from 0 otherwise, lest every image be its neighbour."""
    names = [f"{number:06d}.png" for number in (1, 2, 3)]
    by_name = find_samples(fill(tmp_path / "names", "000001", "000002", "000003"), names)
    assert [path.name for (path,) in by_name.files.values()] == names
    by_number = find_samples(fill(tmp_path / "numbers", "000000", "000001", "000002"), names)
    assert [path.stem for (path,) in by_number.files.values()] == ["000000", "000001", "000002"]


def test_the_first_number_may_be_given(tmp_path: Path) -> None:
    folder = fill(tmp_path / "numbers", "000001", "000002")
    assert [path.stem for (path,) in find_samples(folder, ["a.png", "b.png"], first_index=1).files.values()] == [
        "000001",
        "000002",
    ]
    assert list(find_samples(folder, ["000001.png", "000002.png", "a.png"], first_index=0).files) == [
        "000002.png",
        "a.png",
    ]
    fill(tmp_path / "named", "a", "b")
    with pytest.raises(ValueError, match=r"first_index is for files such as 000000_sample00000.png .* got a.png"):
        find_samples(tmp_path / "named", ["a.png", "b.png"], first_index=0)
    folder = fill(tmp_path / "numbered", "000001", "000002")
    with pytest.raises(ValueError, match=r"000002.png belongs to none of the 2 images, whose numbers begin with 0; "):
        find_samples(folder, ["a.png", "b.png"])


def test_what_is_missing_costs_one_image(tmp_path: Path) -> None:
    folder = fill(tmp_path, "a_sample000", "a_sample002", "b_sample000", "c_sample000", "c", "notes", "e_sample000")
    (folder / "e_sample001.png").write_bytes((folder / "e_sample000.png").read_bytes()[:90])
    found = find_samples(folder, [f"{name}.png" for name in "abcde"])
    assert list(found.files) == ["b.png"]
    assert found.failures["a.png"] == f"sample 1 of 2 is missing in {folder}"
    assert found.failures["c.png"] == f"c.png and c_sample000.png are one sample twice in {folder}"
    assert found.failures["d.png"] == f"no sample in {folder}"
    assert found.failures["e.png"].startswith("e_sample001.png: ")
    assert [path.name for path in found.unused] == ["notes.png"]


def test_names_that_are_not_unique(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ax2.png and .*ax4.png are both samples of a.png; leave one kind"):
        find_samples(fill(tmp_path / "both", "ax4", "ax2"), ["a.png"])
    with pytest.raises(ValueError, match=r"a_sample000.png may be a sample of a.jpg and a.png; rename one"):
        find_samples(fill(tmp_path / "kinds", "a_sample000"), ["a.jpg", "a.png"])
    with pytest.raises(ValueError, match="must be of one enlargement, their names tell 2 and 4"):
        find_samples(fill(tmp_path / "scales", "ax4", "bx2"), ["a.png", "b.png"])
    with pytest.raises(
        FileNotFoundError, match=r"holds no sample of the 1 images; samples of b.png are named b_sample0"
    ):
        find_samples(tmp_path / "kinds", ["b.png"])
    with pytest.raises(FileNotFoundError, match="none does not exist"):
        find_samples(tmp_path / "none", ["b.png"])
    with pytest.raises(NotADirectoryError, match="samples must be a folder"):
        find_samples(tmp_path / "kinds" / "a_sample000.png", ["b.png"])


def test_files_of_the_challenge(tmp_path: Path) -> None:
    assert [path.name for path in challenge_files(tmp_path, 3, 2)] == [
        "000003_sample00000.png",
        "000003_sample00001.png",
    ]
    assert [path.name for path in challenge_files(tmp_path, 901, 1)] == ["000901.png"]
    paths = [tmp_path / name for name in ("abx4.png", "ax4.png", "a-bx4.png", "z/ax4.png")]
    numbers = challenge_numbers(paths, tmp_path, 4)
    assert sorted(numbers, key=numbers.__getitem__) == [paths[2], paths[1], paths[0], paths[3]]


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    return fill(tmp_path / "truth", "0801", "0802", size=(20, 24))


def test_scores_of_a_folder(truth: Path, tmp_path: Path) -> None:
    theirs = fill(tmp_path / "theirs", "0801x4_sample000", "0801x4_sample001", "0802x4_sample000", size=(20, 24))
    record = ScoreRecord(tmp_path / "scores.csv", distance_name="mse")
    (row,) = evaluate_samples(theirs, truth, distance=mse_distance, record=record)
    assert row.image == "0801.png"
    assert row.sample_psnrs[0] == np.inf
    assert record.failures == {"0802.png": f"1 samples of 2 in {theirs}"}
    # the first samples only, and the record refuses to mix
    with pytest.raises(ValueError, match=r"n was 2, now 1"):
        evaluate_samples(
            theirs, truth, n=1, distance=mse_distance, record=ScoreRecord(tmp_path / "scores.csv", distance_name="mse")
        )
    assert len(evaluate_samples(theirs, truth, n=1, distance=mse_distance)) == 2
    write_image(theirs / "0801x4_sample001.png", picture(20, 24, seed=9))
    with pytest.raises(ValueError, match=r"holds scores of 0801.png as it was before it changed"):
        evaluate_samples(theirs, truth, distance=mse_distance, record=ScoreRecord(record.path, distance_name="mse"))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (
            (16, 20),
            r"samples must have at least the 24 x 16 pixels of the truth, cropped to multiples of 8, got 20 x 16",
        ),
        ((40, 48), r"0801.png has 48 x 40 pixels, the truth only 24 x 20: it is another image, or of another scale"),
    ],
)
def test_sizes(truth: Path, tmp_path: Path, size: tuple[int, int], message: str) -> None:
    theirs = fill(tmp_path / "theirs", "0801", "0802", size=size)
    write_image(theirs / "0802.png", picture(16, 24))
    with pytest.raises(ValueError, match=message):
        evaluate_samples(theirs, truth, scale=4, distance=mse_distance)
    record = ScoreRecord(distance_name="mse")
    assert [row.image for row in evaluate_samples(theirs, truth, scale=4, distance=mse_distance, record=record)] == TWO[
        1:
    ]
    assert list(record.failures) == TWO[:1]


def test_the_scale_is_known(truth: Path, tmp_path: Path) -> None:
    theirs = fill(tmp_path / "theirs", "0801", "0802", size=(20, 24))
    with pytest.raises(ValueError, match=r"scale must be given, 4 for instance: names in .*theirs do not tell it"):
        evaluate_samples(theirs, truth, distance=mse_distance)
    theirs = fill(tmp_path / "scaled", "0801x8", "0802x8", size=(20, 24))
    with pytest.raises(ValueError, match=r"scale is 4, but the names in .*scaled tell 8"):
        evaluate_samples(theirs, truth, scale=4, distance=mse_distance)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        evaluate_samples(theirs, truth, n=0, distance=mse_distance)
