"""Models whose weights come with this package."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["shipped_file", "shipped_models"]

_FOLDER = Path(__file__).parents[1] / "shipped"


def shipped_models() -> list[str]:
    """List the names of the models whose weights come with this package."""
    return sorted(file.stem for file in _FOLDER.glob("*.safetensors"))


def shipped_file(name: str | os.PathLike[str]) -> Path | None:
    """Return the file of the model of that name that comes with this package; ``None`` if there is none."""
    return _FOLDER / f"{name}.safetensors" if os.fspath(name) in shipped_models() else None
