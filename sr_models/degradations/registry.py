"""Registry of degradations: built-in ones, and those that scripts and installed packages register.

A package adds a degradation by an entry point of the group ``sr_models.plugins``, as it adds a model. Importing the
module that it names must call :func:`register_degradation`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from sr_models._plugins import load_plugins, summary_of

if TYPE_CHECKING:
    # neither is needed to list what there is
    import numpy as np
    import torch

__all__ = ["Degradation", "degrade", "list_degradations", "register_degradation"]

#: Of (H, W, 3) uint8, the scale and a random stream; returns (H / scale, W / scale, 3) uint8.
Function: TypeAlias = "Callable[[np.ndarray, int, torch.Generator], np.ndarray]"

_BUILTIN = ("sr_models.degradations.bicubic", "sr_models.degradations.real")
_degradations: dict[str, Degradation] = {}
_loaded = False


@dataclass(frozen=True)
class Degradation:
    """One registered degradation, and a function that applies it: ``degradation(hr, scale, stream)``.

    Attributes:
        name: its name in :func:`degrade` and on the command line.
        function: makes the low-resolution image.
        summary: one line.
    """

    name: str
    function: Function
    summary: str

    def __call__(self, hr: np.ndarray, scale: int, stream: torch.Generator) -> np.ndarray:
        """Make the low-resolution image, and check what goes in and what comes out.

        Args:
            hr: array (H, W, 3), uint8; the scale divides both sides.
            scale: reduction, a positive integer.
            stream: source of all random numbers, on the CPU.

        Returns:
            Array (H / scale, W / scale, 3), uint8.

        Raises:
            TypeError: ``hr`` is no uint8 array, or the registered function returned none.
            ValueError: ``hr`` or what the registered function returned has another shape.
        """
        from sr_models.io.images import check_rgb

        check_rgb("hr", hr)
        height, width = hr.shape[:2]
        if scale < 1 or height % scale or width % scale:
            raise ValueError(f"hr must have sides that the scale {scale} divides, got {height} x {width} pixels")
        lr = self.function(hr, scale, stream)
        check_rgb(f"the result of degradation {self.name!r}", lr)
        wanted = (height // scale, width // scale, 3)
        if lr.shape != wanted:
            raise ValueError(f"the result of degradation {self.name!r} must be {wanted} at 1/{scale}, got {lr.shape}")
        return lr


def register_degradation(name: str, *, summary: str = "") -> Callable[[Function], Function]:
    """Return a decorator that registers a function as a degradation.

    The function has the arguments ``(hr, scale, stream)`` and the result of :meth:`Degradation.__call__`. It must
    draw every random number from ``stream``, or a resumed run is no longer the unbroken one. It must be importable
    by its name in other processes if data are loaded by workers that are not forked.

    Args:
        name: the degradation's name.
        summary: one line; default: the first line of the function's docstring.

    Raises:
        ValueError: if the name is taken.

    Example::

        @register_degradation("nearest", summary="Every scale-th pixel.")
        def nearest(hr, scale, stream):
            return hr[::scale, ::scale].copy()
    """

    def decorator(function: Function) -> Function:
        if name in _degradations:
            raise ValueError(f"a degradation named {name!r} is already registered")
        line = summary_of(function, summary)
        _degradations[name] = Degradation(name, function, line)
        return function

    return decorator


def _load() -> None:
    global _loaded
    if _loaded:
        return
    _loaded = True
    load_plugins(_BUILTIN)


def list_degradations() -> list[Degradation]:
    """List every registered degradation, by name."""
    _load()
    return [_degradations[name] for name in sorted(_degradations)]


def degrade(name: str) -> Degradation:
    """Return the registered degradation of that name.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    _load()
    if name not in _degradations:
        known = ", ".join(map(repr, sorted(_degradations)))
        raise ValueError(f"degradation must be one of {known}, got {name!r}")
    return _degradations[name]
