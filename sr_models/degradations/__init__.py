"""Degradations: how the low-resolution image of a photograph is made for training."""

from sr_models.degradations.registry import Degradation, degrade, list_degradations, register_degradation

__all__ = ["Degradation", "degrade", "list_degradations", "register_degradation"]
