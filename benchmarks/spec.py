"""Description of a case of the benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["Case", "Spec"]


@dataclass(frozen=True)
class Spec:
    """The name of a case, in parts.

    Attributes:
        operator: a key of :data:`benchmarks.cases.IMPLEMENTATIONS`.
        shape: shape of the state.
        direction: one of :data:`benchmarks.cases.DIRECTIONS`.
        steps: flow steps; 1 except for "training".
        device: "cpu" or "cuda".
    """

    operator: str
    shape: tuple[int, int, int, int]
    direction: str
    steps: int = 1
    device: str = "cpu"

    @property
    def name(self) -> str:
        steps = f" {self.steps} steps" if self.operator == "training" else ""
        device = "" if self.device == "cpu" else f" on {self.device}"
        return f"{self.operator} {'x'.join(map(str, self.shape))} {self.direction}{steps}{device}"


@dataclass(frozen=True)
class Case:
    """One operator at one size.

    Attributes:
        name: name in tables.
        device: device that computes it.
        implementations: name -> function without arguments that computes the case once and returns its results.
        exact: function that computes the case in float64.
        exact_of: the same for implementations of another map, by name.
        bytes: least traffic to and from memory, inputs read once and outputs written once; 0 if no roof is known.
        flops: operations of the matrix product.
    """

    name: str
    implementations: dict[str, Callable[[], list[Tensor]]]
    exact: Callable[[], list[Tensor]]
    bytes: int = 0
    flops: int = 0
    device: str = "cpu"
    exact_of: dict[str, Callable[[], list[Tensor]]] = field(default_factory=dict)
