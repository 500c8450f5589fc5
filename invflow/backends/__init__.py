"""The choice of a backend, which is an implementation of the operators: ``reference`` (plain PyTorch), ``cpu`` and
``cuda`` (compiled extensions) or ``triton`` (kernels for GPUs).

``backend="auto"`` takes the first one that can run the given tensors. An explicit choice never falls back: it raises an
error that gives the reason. There is one exception, for the sake of right derivatives. Under ``torch.func`` transforms
and forward-mode differentiation the reference runs, because those transforms can see into it.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
import weakref
from contextvars import ContextVar
from types import TracebackType
from typing import NamedTuple

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


class _Choice(NamedTuple):
    name: str
    by: use_backend
    is_block: bool


#: Choices of the blocks that the present thread or task is in, and of calls inside these blocks.
_blocks: ContextVar[tuple[_Choice, ...]] = ContextVar("invflow_backend")


class _NoBlocks(tuple[_Choice, ...]):
    """The choices outside of any block: none. Its attribute ``here`` holds those of the place where it is read.

    The compilers of torch before 2.14 cannot call ``ContextVar.get``, but read and guard an attribute with a getter in
    C. The property passes the object itself to ``get``, which returns it where the variable was never set.
    """

    here = property(_blocks.get)


_no_blocks = _NoBlocks()
#: Choices of calls outside of any block. The last one counts; those before it come back if it is undone.
_calls: list[tuple[str, weakref.ref[use_backend]]] = []
_calls_lock = threading.Lock()
_from_environment = _check_name(os.environ.get("INVFLOW_BACKEND", "auto"), "environment variable INVFLOW_BACKEND")
_outside_blocks = _from_environment
#: Choices of blocks in a function that is being compiled: a compiler does not follow changes of a context variable.
_compiling: tuple[str, ...] = ()


class use_backend:
    """Choose the backend of every operator called without ``backend=``.

    As a context manager it holds for the block, in the thread or asyncio task that entered it and in tasks started
    there. Blocks of several threads may overlap. Like ``torch.no_grad``, a block in a generator that is suspended also
    holds for its caller.

    As a plain call it takes effect at once. It holds in all threads that are in no block, until the next such call.
    Inside a block it holds for the rest of the block. Inside a compiled function only blocks are allowed.

    A backward pass runs on the backend of its forward pass, wherever it is called.

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
        global _compiling
        _check_name(name, "backend")
        if name in KERNELS and (reason := KERNELS[name].unavailable()):
            raise RuntimeError(f"backend {name!r} cannot run: {reason}")
        self._name = name
        if torch.compiler.is_compiling():
            _compiling = (*_compiling, name)
        elif blocks := _no_blocks.here:
            _blocks.set((*blocks, _Choice(name, self, False)))
        else:
            self._choose_outside_blocks(chosen=True)

    def __enter__(self) -> None:
        if not torch.compiler.is_compiling():
            self._undo(is_block=False)
            _blocks.set((*_no_blocks.here, _Choice(self._name, self, True)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _compiling
        if torch.compiler.is_compiling():
            _compiling = _compiling[:-1]
        elif not self._undo(is_block=True):
            self._undo(is_block=False)

    def _undo(self, *, is_block: bool) -> bool:
        """Undo the last choice of this kind that the object made, and return whether there was one."""
        blocks: tuple[_Choice, ...] = _no_blocks.here
        for position in reversed(range(len(blocks))):
            if blocks[position].by is self and blocks[position].is_block == is_block:
                end = position + 1
                while is_block and end < len(blocks) and not blocks[end].is_block:
                    end += 1  # calls inside the block
                _blocks.set(blocks[:position] + blocks[end:] or _no_blocks)
                return True
        if not is_block:
            self._choose_outside_blocks(chosen=False)
        return False

    def _choose_outside_blocks(self, *, chosen: bool) -> None:
        global _outside_blocks
        with _calls_lock:
            _calls[:] = [call for call in _calls if call[1]() is not self]
            if chosen:
                _calls.append((self._name, weakref.ref(self)))
            # nobody can undo a call whose object is gone: those before it never come back
            del _calls[: max((i for i, call in enumerate(_calls) if call[1]() is None), default=0)]
            _outside_blocks = _calls[-1][0] if _calls else _from_environment


def current_backend() -> str:
    """Return the backend of operators called without ``backend=``: ``"auto"`` unless chosen otherwise."""
    if _compiling and torch.compiler.is_compiling():
        return _compiling[-1]
    blocks: tuple[_Choice, ...] = _no_blocks.here
    return _outside_blocks if blocks is _no_blocks else blocks[-1].name


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
    chosen = current_backend() if backend is None else _check_name(backend, "backend")
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
