"""The choice of a backend, which is an implementation of the operators: ``reference`` (plain PyTorch), ``cpu`` and
``cuda`` (compiled extensions) or ``triton`` (kernels for GPUs).

``backend="auto"`` takes the first one that can run the given tensors. An explicit choice never falls back: it raises an
error that gives the reason. There is one exception, for the sake of right derivatives. Under ``torch.func`` transforms
and forward-mode differentiation the reference runs, because those transforms can see into it.
"""

from __future__ import annotations

import logging
import os
import warnings
from types import TracebackType

import torch
from torch import Tensor

from invflow.backends import triton
from invflow.backends._cpu import cpu
from invflow.backends._cuda import cuda
from invflow.backends.protocol import Backend

__all__ = ["BACKENDS", "KERNELS", "OPERATORS", "can_run", "current_backend", "select_backend", "use_backend"]

#: The backends that have kernels, by name, in the order in which ``auto`` tries them.
KERNELS: dict[str, Backend] = {"cpu": cpu, "cuda": cuda, "triton": triton}

#: Every implementation; ``reference`` runs everything, and comes last.
BACKENDS: tuple[str, ...] = (*KERNELS, "reference")

#: The public operators.
OPERATORS: tuple[str, ...] = ("affine_coupling", "channel_affine", "flow_step", "gaussian_split")

_logger = logging.getLogger("invflow")
_logged: set[tuple[str, str, str]] = set()
_warned = False


def _check_name(name: str, argument: str, allowed: tuple[str, ...] = ("auto", *BACKENDS)) -> str:
    if name not in allowed:
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, allowed))}, got {name!r}")
    return name


_current = _check_name(os.environ.get("INVFLOW_BACKEND", "auto"), "environment variable INVFLOW_BACKEND")


class use_backend:
    """Choose the backend of every operator called without ``backend=``, for the whole process.

    It takes effect at once. As a context manager it restores the previous choice at the end. Like
    ``torch.set_num_threads`` it is a setting of the process, not of the thread.

    >>> import invflow
    >>> with invflow.use_backend("reference"):
    ...     invflow.current_backend()
    'reference'

    Args:
        name: ``"auto"``, ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"``.

    Raises:
        ValueError: another name.
        RuntimeError: a backend that cannot run in this installation at all.
    """

    def __init__(self, name: str) -> None:
        global _current
        _check_name(name, "backend")
        if name in KERNELS and (reason := KERNELS[name].unavailable()):
            raise RuntimeError(f"backend {name!r} cannot run: {reason}")
        self._previous = _current
        _current = name

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _current
        _current = self._previous


def current_backend() -> str:
    """Return the backend of operators called without ``backend=``: ``"auto"`` unless chosen otherwise."""
    return _current


def can_run(backend: str, op: str, x: Tensor, *, raise_error: bool = False) -> bool:
    """Tell whether a backend can run an operator on states like ``x``.

    Args:
        backend: ``"reference"``, ``"cpu"``, ``"cuda"`` or ``"triton"``.
        op: ``"affine_coupling"``, ``"channel_affine"``, ``"flow_step"`` or ``"gaussian_split"``.
        x: the state, of which dtype, device and number of channels count.
        raise_error: raise instead of returning ``False``.

    Returns:
        ``True`` if the backend can run it.

    Raises:
        ValueError: another name of a backend or an operator.
        RuntimeError: the backend cannot run it and ``raise_error`` is set; the message gives the reason.
    """
    _check_name(backend, "backend", BACKENDS)
    _check_name(op, "op", OPERATORS)
    if backend == "reference":
        return True
    reason = KERNELS[backend].why_not(op, x)
    if reason and raise_error:
        raise RuntimeError(f"backend {backend!r} cannot run {op}: {reason}")
    return not reason


def select_backend(backend: str | None, op: str, x: Tensor) -> str:
    """Return the backend that will run ``op`` on ``x``: the explicit choice if there is one, else the first that can.

    Args:
        backend: the explicit choice of this call; ``None`` for that of :class:`use_backend`.
        op: name of a public operator.
        x: the state.

    Raises:
        ValueError: an unknown name.
        RuntimeError: an explicitly chosen backend that cannot run it.
    """
    chosen = _current if backend is None else _check_name(backend, "backend")
    if chosen != "auto":
        can_run(chosen, op, x, raise_error=True)
        return chosen
    for name, kernels in KERNELS.items():
        if not kernels.why_not(op, x):
            chosen = name
            break
    else:
        chosen = "reference"
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            _warn_that_it_is_slow()
    if not torch.compiler.is_compiling() and _logger.isEnabledFor(logging.DEBUG):
        _log_choice(op, chosen, x)
    return chosen


def _warn_that_it_is_slow() -> None:
    """Warn once that plain PyTorch takes the place of the CPU kernels, if their extension is missing."""
    global _warned
    reason = cpu.unavailable()
    if _warned or not reason:
        return
    _warned = True
    folder = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    warnings.warn(
        f"invflow runs plain PyTorch, up to six times slower than its kernels: {reason}. It was imported from "
        f"{folder}. If that is a source tree, run pip install -e . there, or start Python in another folder to use an "
        'installed invflow; if not, install invflow again. use_backend("reference") silences this warning.',
        RuntimeWarning,
        stacklevel=2,
    )


def _log_choice(op: str, chosen: str, x: Tensor) -> None:
    key = (op, chosen, f"{x.dtype} on {x.device.type}")
    if key in _logged:
        return
    _logged.add(key)
    refused = [f"{name}: {KERNELS[name].why_not(op, x)}" for name in BACKENDS[: BACKENDS.index(chosen)]]
    _logger.debug("%s (%s): backend %s%s", op, key[2], chosen, f" ({'; '.join(refused)})" if refused else "")
