"""``sr-models describe``."""

from __future__ import annotations

__all__ = ["run"]


def run(model: str, scale: int = 4, preset: str = "released") -> None:
    """Print a model's levels, number of parameters and multiply-adds.

    Example:
        sr-models describe --model srflow --scale 8 --preset faces

    Args:
        model: a registered model; sr-models list shows them.
        scale: enlargement.
        preset: architecture preset of the model.
    """
    from sr_models.inspection.describe import describe

    print(describe(model, scale=scale, preset=preset))
