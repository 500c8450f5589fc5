"""Options, shapes and subnets of the blocks that stand in for FrEIA's ``AllInOneBlock``."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ["OPTIONS", "SHAPES", "subnet"]

OPTIONS: dict[str, dict[str, Any]] = {
    "hard": {},
    "soft": {"permute_soft": True},
    "householder": {"learned_householder_permutation": 3},
    "reverse": {"reverse_permutation": True, "permute_soft": True},
    "gin": {"gin_block": True},
    "gin reverse": {"gin_block": True, "reverse_permutation": True, "learned_householder_permutation": 1},
    "sigmoid": {"global_affine_type": "SIGMOID", "global_affine_init": 0.7},
    "exp": {"global_affine_type": "EXP", "global_affine_init": 1.3, "affine_clamping": 1.0},
    "large clamp": {"affine_clamping": 90.0},
}
SHAPES = [(4,), (5,), (2,), (3, 4), (4, 2, 3), (5, 2, 2), (3, 2, 1, 2)]


def subnet(rank: int) -> Any:
    def make(inputs: int, outputs: int) -> nn.Module:
        if not rank:
            return nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, outputs))
        conv: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
        return nn.Sequential(conv(inputs, 8, 3, padding=1), nn.ReLU(), conv(8, outputs, 1))

    return make
