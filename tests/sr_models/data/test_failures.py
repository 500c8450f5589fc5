"""Files that turn out bad: said once each, and too many end the run."""

from __future__ import annotations

import pytest

from sr_models.data.failures import Failures


def test_each_file_is_said_once() -> None:
    said: list[str] = []
    failures = Failures(100, say=said.append)
    failures.add(["", "a.png: truncated", ""])
    failures.add(["a.png: truncated\nb.png: gone", "b.png: gone"])
    failures.add([])
    assert said == [
        "image a.png: truncated; another one takes its place",
        "image b.png: gone; another one takes its place",
    ]
    assert failures.files == {"a.png", "b.png"}


def test_by_default_it_warns() -> None:
    with pytest.warns(UserWarning, match=r"^image a\.png: gone; another one takes its place$"):
        Failures(100).add(["a.png: gone"])


@pytest.mark.parametrize(("images", "most"), [(5, 9), (900, 9), (1000, 10), (1999, 19), (2000, 20)])
def test_too_many_end_the_run(images: int, most: int) -> None:
    said: list[str] = []
    failures = Failures(images, say=said.append)
    for index in range(most):
        failures.add([f"{index}.png: gone"])
    with pytest.raises(ValueError, match=rf"^{most + 1} of {images} images could not be read; the last one: x: gone$"):
        failures.add(["x: gone"])
    assert len(said) == most + 1


def test_strict() -> None:
    said: list[str] = []
    failures = Failures(100000, strict=True, say=said.append)
    failures.add(["", ""])
    with pytest.raises(ValueError, match=r"^image a\.png: gone \(strict\)$"):
        failures.add(["a.png: gone"])
    assert not said
