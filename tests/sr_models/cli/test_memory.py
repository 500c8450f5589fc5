"""Tiles that fit into the memory that is free."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import randomised

import sr_models
from sr_models.cli import _memory, _memory_cost
from sr_models.cli._memory import fitting_tile, free_memory, smaller_tile, surely_fits
from sr_models.cli._memory_cost import DecodingCost
from sr_models.flow.model import SuperResolutionFlow


@given(
    height=st.integers(1, 10_000),
    width=st.integers(1, 10_000),
    samples=st.integers(1, 40),
    scale=st.sampled_from([2, 4, 8]),
    free=st.integers(0, 2**45),
    pixel=st.floats(2**10, 2**18),
)
def test_tiles_can_be_used_and_grow_with_memory(
    height: int, width: int, samples: int, scale: int, free: int, pixel: float
) -> None:
    tile = fitting_tile(height, width, samples, scale, free, pixel)
    more = fitting_tile(height, width, samples, scale, 4 * free, pixel)
    assert tile is None or (tile % 16 == 0 and 16 <= tile <= 1024)
    assert more is None or (tile is not None and more >= tile)
    assert fitting_tile(height, width, samples, scale, 2**60, pixel) is None
    # what takes more gets no larger tiles
    dearer = fitting_tile(height, width, samples, scale, free, 2 * pixel)
    assert tile is None or (dearer is not None and dearer <= tile)


def test_large_images_are_not_decoded_whole() -> None:
    assert fitting_tile(3000, 4000, 1, 4, 16 * 2**30, 7 * 2**10) == 1024
    assert fitting_tile(3000, 4000, 1, 4, 8 * 2**30, 7 * 2**10) == 528
    assert fitting_tile(500, 500, 10, 4, 16 * 2**30, 9 * 2**10) is None


def test_small_images_are_not_measured() -> None:
    assert surely_fits(128, 128, 10, 4, 2 * 2**30)
    assert not surely_fits(512, 512, 10, 4, 2 * 2**30)
    assert not surely_fits(128, 128, 10, 8, 2 * 2**30)
    assert surely_fits(10_000, 10_000, 1, 4, None)


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


class TestCost:
    @pytest.mark.parametrize("samples", [1, 2, 7])
    @pytest.mark.parametrize("name", ["srflow", "srflow-da-r", "ncsr", "hcflow"])
    def test_it_is_that_of_a_larger_image(self, name: str, samples: int) -> None:
        """A small image tells what a larger one takes, by more than a tenth neither too low nor by half too high."""
        model = small(name)
        cost = DecodingCost(model, {"precision": "fp32"}).of(samples) - _memory_cost._BESIDES
        lr = torch.full((1, 3, 64, 96), 0.5)
        with torch.no_grad():
            taken = _memory_cost._peak(lambda: model.sample(lr, samples, temperature=0.0)) / (64 * 96)
        assert 0.9 * taken <= cost <= 1.5 * taken

    def test_models_differ(self) -> None:
        """Levels that see each other have conditions of every sample, others have them once."""
        options = {"precision": "fp32"}
        growths = []
        for name in ("srflow", "hcflow"):
            cost = DecodingCost(small(name), options)
            growths.append(cost.of(10) / cost.of(2))
        assert growths[1] > 1.5 * growths[0]

    def test_each_is_measured_once_and_in_silence(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        drawn = []
        make = SuperResolutionFlow.sample

        def counted(self: SuperResolutionFlow, lr: torch.Tensor, n: int, **more: Any) -> torch.Tensor:
            drawn.append(n)
            return make(self, lr, n, **more)

        monkeypatch.setattr(SuperResolutionFlow, "sample", counted)
        cost = DecodingCost(small("srflow"), {"precision": "fp32"})
        for samples in (1, 1, 3, 8):
            cost.of(samples)
        assert drawn == [1, 1, 2, 4]
        assert capfd.readouterr() == ("", "")


def small(name: str) -> SuperResolutionFlow:
    if name != "hcflow":
        return randomised(name, dtype=torch.float32)
    sizes = {"steps": 1, "conditional_steps": 1, "hidden_channels": 4, "conditional_hidden_channels": 4}
    return sr_models.create(name, scale=4, **sizes, features=4, growth=2, blocks=(1, 1)).eval()


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
