"""Devices that the user names."""

from __future__ import annotations

import torch

__all__ = ["check_worthwhile", "usable_device"]


def usable_device(name: str) -> torch.device:
    """Return the device of that name; of ``auto``, the machine's accelerator if torch can use one, else the CPU.

    Raises:
        ValueError: there is no such device, or torch cannot use it. The message names those that it can.
    """
    usable = _usable()
    if name == "auto":
        return torch.device(usable[-1].partition(":")[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name!r} cannot be used: unknown; usable here: {', '.join(usable)}") from None
    full = name if device.type == "cpu" or device.index is not None else f"{device.type}:0"
    if device.type != "cpu" and full not in usable:
        raise ValueError(
            f"device {name!r} cannot be used: not on this machine, or torch is not built for it; usable here: "
            f"{', '.join(usable)}"
        )
    try:
        torch.empty(1, device=device)
    # a driver that is too old, a GPU that is taken, ...
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0][:200]}") from None
    return device


def check_worthwhile(precision: str, device: torch.device) -> None:
    """Raise ``ValueError`` for float16 on a CPU, where its convolutions take twice as long as in float32 and more."""
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("precision fp16 is for GPUs, and slower than fp32 on a CPU; choose fp32, bf16 or auto")


def _usable() -> list[str]:
    """Name the devices that torch can use, the CPU first and an accelerator's first device last."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return ["cpu"]
    return ["cpu", *(f"{accelerator.type}:{index}" for index in reversed(range(torch.accelerator.device_count())))]
