"""Devices that the user names."""

from __future__ import annotations

import torch

__all__ = ["usable_device"]


def usable_device(name: str) -> torch.device:
    """Return the device of that name.

    Raises:
        ValueError: there is no such device, or torch cannot use it.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device
