"""The one operator that every backend implements, and the description of a call.

Everything between two coupling networks of a flow is one pass over the state, with parts that may be left out:

====================  ============================================================
``inverse=False``     coupling, then :math:`M x + v`, then injector
``inverse=True``      inverse coupling, then inverse injector, then :math:`M x + v`
====================  ============================================================

A channel map is this without coupling and injector. An affine coupling, an affine injector and a Gaussian split are the
coupling alone, without a matrix.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

__all__ = ["Backend", "Call", "Form", "Gradients", "Settings"]


class Form(NamedTuple):
    """Rule by which a network's output becomes an elementwise map (see :class:`invflow.AffineForm`)."""

    scale: str
    parameter: float
    order: str
    packing: str

    @property
    def outputs(self) -> int:
        """Channels of the network's output for each transformed one: shift and raw scale, or the shift alone."""
        return 1 if self.scale == "none" else 2


class Settings(NamedTuple):
    """Everything about a call but its tensors.

    Attributes:
        coupling: form of the coupling; ignored without a coupling.
        injector: form of the injector; ignored without an injector.
        start: first channel that the coupling transforms.
        inverse: takes the second order, and inverts coupling and injector.
    """

    coupling: Form
    injector: Form
    start: int
    inverse: bool


class Call(NamedTuple):
    """A call of the operator.

    Attributes:
        x: state (B, C, H, W).
        matrix: M (C, C) or ``None``; without it there is only a coupling.
        shift: v (C,) or ``None``, like the matrix.
        coupling: raw output (B', 2C', H, W) of the coupling's network or ``None``; (B', C', H, W) without a scale.
        injector: raw output (B', 2C, H, W) of the injector's network or ``None``, likewise.
        settings: all but the tensors.
    """

    x: Tensor
    matrix: Tensor | None
    shift: Tensor | None
    coupling: Tensor | None
    injector: Tensor | None
    settings: Settings


#: Gradients of x, matrix, shift, coupling and injector; ``None`` for those that a call leaves out.
Gradients = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class Backend(Protocol):
    """An implementation of the operator. It checks nothing: the public functions validate their arguments."""

    def unavailable(self) -> str:
        """Return why the backend cannot run here at all; empty if it can."""

    def why_not(self, op: str, x: Tensor) -> str:
        """Return why the backend cannot run ``op`` on states like ``x``; empty if it can."""

    def build_facts(self) -> dict[str, str]:
        """Return what the kernels were built with and run on, for ``python -m invflow.info``."""

    def flow_step(self, call: Call) -> tuple[Tensor, Tensor]:
        """Return y and the log-determinant (B,) of coupling and injector."""

    def flow_step_backward(self, grad_y: Tensor, grad_log_det: Tensor, call: Call) -> Gradients:
        """Return the gradients of the call's tensors, given those of y and the log-determinant."""
