"""Devices that the user names."""

from __future__ import annotations

import pytest
import torch

from sr_models.cli import _device
from sr_models.cli._device import usable_device


def test_usable_devices() -> None:
    assert usable_device("cpu") == torch.device("cpu")
    expected = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert usable_device("auto") == expected


@pytest.mark.parametrize("name", ["hal", "mps:9", "cuda:99", "xpu:9", "meta", "cuda:-1", ""])
def test_others_are_refused_in_a_line(name: str) -> None:
    with pytest.raises(ValueError, match=f"device '{name}' cannot be used: .*; usable here: cpu") as caught:
        usable_device(name)
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


def test_a_device_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the driver is too old\nand a stack of C++ functions")

    monkeypatch.setattr(torch, "empty", broken)
    with pytest.raises(ValueError, match=r"device 'cpu' cannot be used: the driver is too old$"):
        usable_device("cpu")


def test_the_first_accelerator_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_device, "_usable", lambda: ["cpu", "cuda:1", "cuda:0"])
    assert usable_device("auto") == torch.device("cuda")


def test_another_device_of_an_accelerator_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_device, "_usable", lambda: ["cpu", "cuda:0"])
    message = "device 'cuda:1' cannot be used: not on this machine, .*; usable here: cpu, cuda:0"
    with pytest.raises(ValueError, match=message):
        usable_device("cuda:1")
