"""Layouts of images: those of the fastest convolutions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from invflow._numerics import state_format
from sr_models.flow.layouts import in_fastest_layout

LAST, NCHW = torch.channels_last, torch.contiguous_format


def layout_on(device: str) -> torch.memory_format:
    # fake: no test needs the device
    with FakeTensorMode():
        return state_format(in_fastest_layout(torch.empty(1, 3, 8, 8, device=device)))


@pytest.mark.parametrize("tf32", [False, True])
def test_images_are_channels_last_where_that_is_faster(tf32: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sr_models.networks.precision.uses_tf32", lambda: tf32)
    with torch.enable_grad():
        assert (layout_on("cpu"), layout_on("cuda")) == (LAST, LAST if tf32 else NCHW)
    with torch.no_grad():
        assert (layout_on("cpu"), layout_on("cuda")) == (LAST, NCHW)


def test_newer_settings_of_tf32_are_understood(set_precision: Callable[..., None]) -> None:
    """torch refuses to read the older setting after them."""
    set_precision("tf32", "ieee")
    assert layout_on("cuda") == LAST
    set_precision("ieee", "tf32")
    assert layout_on("cuda") == NCHW
