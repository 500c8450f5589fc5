"""Names of degradations, and what is checked of every degradation."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import sr_models
from sr_models.degradations import registry
from sr_models.degradations.registry import Degradation, degrade, list_degradations, register_degradation
from sr_models.randomness import random_stream


def picture(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def stream() -> torch.Generator:
    return random_stream(0, "crops", 0)


@pytest.fixture
def own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    list_degradations()
    monkeypatch.setattr(registry, "_degradations", dict(registry._degradations))


def test_what_ships() -> None:
    assert [entry.name for entry in list_degradations()] == ["bicubic", "real"]
    assert all(entry.summary.endswith(".") and "\n" not in entry.summary for entry in list_degradations())


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"^degradation must be one of 'bicubic', 'real', got 'bicubc'$"):
        degrade("bicubc")


@pytest.mark.parametrize("entry", list_degradations(), ids=lambda entry: entry.name)
@pytest.mark.parametrize("scale", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 7), (40, 13)])
def test_the_size_is_exact(entry: Degradation, scale: int, rows: int, columns: int, stream: torch.Generator) -> None:
    hr = picture(rows * scale, columns * scale, 3)
    before = hr.copy()
    lr = entry(hr, scale, stream)
    assert lr.shape == (rows, columns, 3)
    assert lr.dtype == np.uint8
    assert lr.flags.c_contiguous
    assert lr.flags.writeable
    np.testing.assert_array_equal(hr, before)


@pytest.mark.parametrize("entry", list_degradations(), ids=lambda entry: entry.name)
def test_the_result_depends_on_stream_and_image_alone(entry: Degradation) -> None:
    hr = picture(48, 32, 3)
    first = entry(hr, 4, random_stream(3, "crops", 5))
    # other views of the same pixels, and random numbers that others draw
    torch.manual_seed(1)
    flipped = np.ascontiguousarray(hr[:, ::-1])[:, ::-1]
    np.testing.assert_array_equal(entry(flipped, 4, random_stream(3, "crops", 5)), first)
    global_state = torch.get_rng_state()
    entry(hr, 4, random_stream(3, "crops", 6))
    assert torch.equal(torch.get_rng_state(), global_state)


@pytest.mark.parametrize(
    ("hr", "scale", "error", "message"),
    [
        (picture(8, 10, 3), 4, ValueError, "hr must have sides that the scale 4 divides, got 8 x 10 pixels"),
        (picture(9, 8, 3), 4, ValueError, "hr must have sides that the scale 4 divides, got 9 x 8 pixels"),
        (picture(8, 8, 3), 0, ValueError, "hr must have sides that the scale 0 divides, got 8 x 8 pixels"),
        (picture(8, 8), 4, ValueError, r"hr must be \(H, W, 3\) and not empty, got shape \(8, 8\)"),
        (picture(8, 8, 3) / 255, 4, TypeError, "hr must be a uint8 numpy array, got dtype float64"),
    ],
)
def test_bad_arguments(hr: np.ndarray, scale: int, error: type, message: str, stream: torch.Generator) -> None:
    for entry in list_degradations():
        with pytest.raises(error, match=message):
            entry(hr, scale, stream)


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (picture(2, 3, 3), ValueError, r"the result of degradation 'own' must be \(2, 2, 3\) at 1/4, got \(2, 3, 3\)"),
        (picture(2, 2, 3) / 255, TypeError, "the result of degradation 'own' must be a uint8 .*, got dtype float64"),
        (torch.zeros(2, 2, 3), TypeError, "the result of degradation 'own' must be a uint8 numpy array, got Tensor"),
    ],
)
@pytest.mark.usefixtures("own_names")
def test_the_result_of_a_registered_function_is_checked(
    result: Any, error: type, message: str, stream: torch.Generator
) -> None:
    register_degradation("own")(lambda hr, scale, stream: result)
    with pytest.raises(error, match=message):
        degrade("own")(picture(8, 8, 3), 4, stream)


@pytest.mark.usefixtures("own_names")
def test_registration(stream: torch.Generator) -> None:
    @sr_models.register_degradation("own")
    def nearest(hr: np.ndarray, scale: int, stream: torch.Generator) -> np.ndarray:
        """Single pixels.

        And more.
        """
        return hr[::scale, ::scale].copy()

    hr = picture(8, 12, 3)
    np.testing.assert_array_equal(nearest(hr, 4, stream), sr_models.degrade("own")(hr, 4, stream))
    assert [(entry.name, entry.summary) for entry in sr_models.list_degradations()][1] == ("own", "Single pixels.")
    with pytest.raises(ValueError, match="a degradation named 'own' is already registered"):
        register_degradation("own")(nearest)
    register_degradation("other", summary="said here")(nearest)
    assert degrade("other").summary == "said here"


@pytest.mark.usefixtures("own_names")
def test_entry_points_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = SimpleNamespace(load=lambda: register_degradation("from-a-package")(lambda hr, scale, stream: hr))

    def entry_points(*, group: str) -> list[EntryPoint | SimpleNamespace]:
        return [entry] if group == "sr_models.plugins" else []

    monkeypatch.setattr("sr_models._plugins.entry_points", entry_points)
    monkeypatch.setattr(registry, "_loaded", False)
    assert "from-a-package" in [entry.name for entry in list_degradations()]
