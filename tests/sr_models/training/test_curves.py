"""The log of curves: complete after every call, in order after a resumption, and exceptions instead of tracebacks."""

from __future__ import annotations

import math
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sr_models.training.curves import CurveLog


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def values(folder: Path, tag: str) -> list[tuple[int, float]]:
    """Values of a curve in the order in which TensorBoard shows them, repeated ones included."""
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def test_values_and_pictures_can_be_read_at_once(tmp_path: Path) -> None:
    log = CurveLog(tmp_path / "logs", 0)
    picture = torch.rand(3, 4, 6)
    for step in range(3):
        log.add_values({"nll": 1.5 * step, "lr": 0.25}, step)
        log.add_picture("validation (bicubic, truth)", picture, step)
        assert values(tmp_path / "logs", "nll") == [(past, 1.5 * past) for past in range(step + 1)]
    events = read(tmp_path / "logs")
    assert sorted(events.Tags()["scalars"]) == ["lr", "nll"]
    images = events.Images("validation (bicubic, truth)")
    assert [(image.step, image.height, image.width) for image in images] == [(step, 4, 6) for step in range(3)]
    now = time.time()
    assert all(now - 60 < event.wall_time <= now for event in events.Scalars("nll"))


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    log = CurveLog(tmp_path, 0)
    log.add_values({"a": math.nan, "b": math.inf, "c": 1.0}, 0)
    assert read(tmp_path).Tags()["scalars"] == ["c"]


def test_a_resumed_run_takes_the_place_of_what_it_repeats(tmp_path: Path) -> None:
    for first, last in ((0, 50), (20, 40), (0, 0), (30, 60)):
        log = CurveLog(tmp_path, first)  # the one before was killed: never closed
        for step in range(first, last, 10):
            log.add_values({"nll": 100 * first + step}, step)
    # the run from 0 wrote nothing, but nothing before it counts any more
    assert values(tmp_path, "nll") == [(step, 3000 + step) for step in (30, 40, 50)]


def test_a_log_cut_off_by_a_kill_does_not_hide_later_ones(tmp_path: Path) -> None:
    log = CurveLog(tmp_path, 0)
    for step in (0, 10, 20):
        log.add_values({"nll": 1.0}, step)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    CurveLog(tmp_path, 20).add_values({"nll": 2.0}, 20)
    assert values(tmp_path, "nll") == [(0, 1.0), (10, 1.0), (20, 2.0)]


@pytest.mark.parametrize("ahead", [0, 1, 1000])
def test_the_newest_log_is_the_last_by_name_whatever_the_clock_says(tmp_path: Path, ahead: int) -> None:
    stamp = int(time.time()) + ahead
    other = tmp_path / f"events.out.tfevents.{stamp:010d}.zzz.99999.0"
    log = CurveLog(tmp_path / "before", 0)
    log.add_values({"nll": 1.0}, 0)
    log.add_values({"nll": 2.0}, 10)
    (written,) = (tmp_path / "before").iterdir()
    written.rename(other)
    (tmp_path / "before").rmdir()
    for number in range(1, 12):
        CurveLog(tmp_path, 10).add_values({"nll": 10.0 * number}, 10)
        assert values(tmp_path, "nll") == [(0, 1.0), (10, 10.0 * number)]


def test_other_files_in_the_folder_do_not_disturb(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.copy").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("mine")
    CurveLog(tmp_path, 0).add_values({"nll": 1.0}, 0)
    assert values(tmp_path, "nll") == [(0, 1.0)]


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file can grow beyond 500 bytes, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_an_error_of_the_call(tmp_path: Path) -> None:
    log = CurveLog(tmp_path, 0)
    values = {f"curve{number}": 1.0 for number in range(100)}
    with pytest.raises(OSError, match="too large"):
        log.add_values(values, 0)
    with pytest.raises(OSError, match="too large"):
        log.close()  # what is left in memory does not fit either


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(FileExistsError):
        CurveLog(tmp_path / "logs", 0)
