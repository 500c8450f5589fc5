"""Tiles that fit into the memory that is free."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sr_models.cli import _memory
from sr_models.cli._memory import fitting_tile, free_memory, smaller_tile


@given(
    height=st.integers(1, 10_000),
    width=st.integers(1, 10_000),
    samples=st.integers(1, 40),
    scale=st.sampled_from([2, 4, 8]),
    free=st.one_of(st.none(), st.integers(0, 2**45)),
)
def test_tiles_can_be_used_and_grow_with_memory(
    height: int, width: int, samples: int, scale: int, free: int | None
) -> None:
    tile = fitting_tile(height, width, samples, scale, free)
    if free is None:
        assert tile is None
        return
    more = fitting_tile(height, width, samples, scale, 4 * free)
    assert tile is None or (tile % 16 == 0 and 16 <= tile <= 1024)
    assert more is None or (tile is not None and more >= tile)
    assert fitting_tile(height, width, samples, scale, 2**60) is None


def test_large_images_are_not_decoded_whole() -> None:
    assert fitting_tile(3000, 4000, 1, 4, 16 * 2**30) == 592
    assert fitting_tile(500, 500, 10, 4, 16 * 2**30) is None


@given(height=st.integers(1, 3000), width=st.integers(1, 3000))
def test_tiles_get_smaller_and_end(height: int, width: int) -> None:
    sides = [max(height, width)]
    tile = smaller_tile(height, width, None)
    while tile is not None:
        assert 16 <= tile < sides[-1]
        assert tile <= max(sides[-1] / 2, 16)
        sides.append(tile)
        tile = smaller_tile(height, width, tile)
    assert sides[-1] == 16 or len(sides) == 1


def test_free_memory() -> None:
    free = free_memory(torch.device("cpu"))
    if free is None:
        pytest.skip("this system does not say")
    assert 2**20 < free < 2**50


def test_samples_that_are_drawn_together_count() -> None:
    """As measured: 32 samples of 256 x 256 pixels take 1438 MiB, and 10 take 855 MiB."""
    assert fitting_tile(256, 256, 32, 4, 1438 * 2**20) is not None
    assert fitting_tile(256, 256, 10, 4, 1438 * 2**20) is None


class TestLimitsOfGroups:
    """Files that a group keeps in memory are free."""

    #: What a system shows: the processes' groups, and the names of a group's files.
    OWN: ClassVar = {1: "12:pids:/\n5:cpu,memory:/job/task\n0::/other\n", 2: "0::/job/task\n"}
    NAMES: ClassVar = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}

    @pytest.fixture(autouse=True)
    def system(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_memory, "_GROUPS", tmp_path / "groups")
        monkeypatch.setattr(_memory, "_OWN_GROUPS", tmp_path / "own")

    def group(self, folder: Path, version: int, limit: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        limit_name, used_name = self.NAMES[version]
        (folder / limit_name).write_text(f"{limit}\n")
        (folder / used_name).write_text("900000\n")
        # version 1 has the group's own, and those of the groups within it, too
        stat = "inactive_file 3\ntotal_inactive_file 600000" if version == 1 else "anon 1\ninactive_file 600000"
        (folder / "memory.stat").write_text(f"{stat}\nactive_file 5\n")

    @pytest.mark.parametrize(("version", "none"), [(1, "9223372036854771712"), (2, "max")])
    @pytest.mark.parametrize("place", ["", "job", "job/task"])
    def test_the_tightest_counts(self, tmp_path: Path, version: int, none: str, place: str) -> None:
        """The limit is of the container, which may not know its name outside, or of the job, or of its task."""
        (tmp_path / "own").write_text(self.OWN[version])
        root = tmp_path / "groups" / ("memory" if version == 1 else "")
        self.group(root / "job" / "task", version, none)
        self.group(root / "job", version, "5000000")
        self.group(root / place, version, "1000000")
        assert free_memory(torch.device("cpu")) == 700_000
        self.group(root / place, version, "100000")
        assert free_memory(torch.device("cpu")) == 0

    @pytest.mark.parametrize("version", [1, 2])
    def test_a_container_that_does_not_know_its_name_inside(self, tmp_path: Path, version: int) -> None:
        (tmp_path / "own").write_text(self.OWN[version].replace("/job", "/containers/1234"))
        self.group(tmp_path / "groups" / ("memory" if version == 1 else ""), version, "1000000")
        assert free_memory(torch.device("cpu")) == 700_000
        (tmp_path / "own").unlink()
        assert free_memory(torch.device("cpu")) == 700_000

    @pytest.mark.parametrize(("version", "none"), [(1, "9223372036854771712"), (2, "max")])
    def test_none(self, tmp_path: Path, version: int, none: str, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "own").write_text(self.OWN[version])
        without = free_memory(torch.device("cpu"))
        self.group(tmp_path / "groups" / ("memory" if version == 1 else ""), version, none)
        free = free_memory(torch.device("cpu"))
        assert free is None or without is None or abs(free - without) < 2**30
