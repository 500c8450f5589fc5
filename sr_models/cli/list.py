"""``sr-models list``."""

from __future__ import annotations

__all__ = ["run"]


def run() -> None:
    """List the models with their scales and presets, and the degradations for training.

    Models that installed packages bring are listed too.
    """
    from sr_models.degradations import list_degradations
    from sr_models.registry import list_models

    for plugin in list_models():
        print(f"{plugin.name}: {plugin.summary}")
        print(f"    scales {', '.join(map(str, plugin.scales))}; presets {', '.join(plugin.presets)}")
    for degradation in list_degradations():
        print(f"degradation {degradation.name}: {degradation.summary}")
