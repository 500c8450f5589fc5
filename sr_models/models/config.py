"""Fields that the configs of all published flows share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sr_models.flow.base import Base, check_base
from sr_models.models.assembly import NetClass
from sr_models.networks.coupling import CouplingNet, limited

__all__ = ["FlowConfig", "check_steps"]


class FlowConfig:
    """Base of the configs of flows; a subclass is a frozen dataclass that declares these fields with its own defaults.

    Attributes:
        scale: enlargement.
        steps: conditional flow steps (K): one number for every level, or one a level. A tuple of equal numbers becomes
            the number.
        transition_steps: steps of actnorm and 1x1 convolution only, at the start of a level.
        hidden_channels: width of the coupling and injector networks.
        features: channels of the encoder's trunk.
        growth: growth channels of the encoder's dense blocks.
        blocks: RRDB blocks of the encoder.
        stacked_blocks: blocks whose outputs condition every level, besides the level's own features.
        base: image that is added to what the flow models: ``"none"``, as published, ``"bicubic"``, the enlarged
            low-resolution image, or ``"image"``, that of the encoder.
        largest_gain: the most by which the inverse of a coupling or injector amplifies, more than 1; 0: no limit but
            that of the form, as published. A config may leave this field out, which means 0.
        largest_shift: their largest absolute shift, more than 0, where ``largest_gain`` is not 0.
    """

    scale: int
    steps: int | tuple[int, ...]
    transition_steps: int
    hidden_channels: int
    features: int
    growth: int
    blocks: int
    stacked_blocks: tuple[int, ...]
    base: Base
    largest_gain: float = 0.0
    largest_shift: float = 8.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stacked_blocks", tuple(self.stacked_blocks))
        object.__setattr__(self, "steps", check_steps("steps", self.steps, self.levels))
        least = {"transition_steps": 0, "hidden_channels": 1, "features": 1, "growth": 1, "blocks": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < bound:
                raise ValueError(f"{name} must be a whole number of at least {bound}, got {value!r}")
        if not all(isinstance(block, int) for block in self.stacked_blocks):
            raise ValueError(f"stacked_blocks must be whole numbers, got {self.stacked_blocks}")
        check_base(self.base)
        if not (self.largest_gain == 0 or 1 < self.largest_gain <= 1e3):
            raise ValueError(f"largest_gain must be 0 or more than 1, and at most 1000, got {self.largest_gain}")
        if not 0 < self.largest_shift < math.inf:
            raise ValueError(f"largest_shift must be finite and greater than 0, got {self.largest_shift}")

    @property
    def levels(self) -> int:
        """Number of levels (L): the last one works at half the low resolution."""
        return self.scale.bit_length()

    @property
    def level_steps(self) -> tuple[int, ...]:
        """Number of conditional steps of every level, from the first to the last."""
        return (self.steps,) * self.levels if isinstance(self.steps, int) else self.steps

    def limited(self, net: type[CouplingNet]) -> NetClass:
        """Return a network's class, or a function that builds its networks with the limits of this config."""
        return limited(net, self.largest_gain, self.largest_shift) if self.largest_gain else net


def check_steps(name: str, steps: int | Sequence[int], levels: int) -> int | tuple[int, ...]:
    """Return numbers of steps as configs hold them: one number if all levels have the same, otherwise one a level.

    Args:
        name: the argument's name in messages.
        steps: one number for every level, or one a level.
        levels: number of levels.

    Raises:
        ValueError: anything but whole numbers of at least 1, or not one a level.
    """
    counts = tuple(steps) if isinstance(steps, list | tuple) else (steps,)
    if not all(isinstance(count, int) for count in counts):
        raise ValueError(f"{name} must be a whole number, or {levels} of them, one a level, got {steps!r}")
    if isinstance(steps, list | tuple) and len(counts) != levels:
        raise ValueError(f"{name} must be one number or {levels}, one a level, got {len(counts)}: {list(counts)}")
    if min(counts) < 1:
        raise ValueError(f"{name} must be at least 1, got {steps if isinstance(steps, int) else list(counts)}")
    return counts[0] if len(set(counts)) == 1 else counts
