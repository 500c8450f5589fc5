"""OpenMP's threads on a machine that also does something else.

The threads of a parallel operation wait for each other hundreds of times in a training step. If another process keeps a
core busy, the scheduler moves them about, and each may wait for one that is not running. Threads that are bound to
cores of their own share one core with the neighbour, and nothing else changes. Measured on two cores with one busy
neighbour: a training step took 2.1 times its quiet time instead of 5 times.

OpenMP reads its settings once, when torch is loaded. ``sr-models`` and the benchmarks therefore call
:func:`bind_threads` first. Programs that import the libraries decide for themselves.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import MutableMapping
from pathlib import Path

__all__ = ["SETTINGS", "bind_threads", "unbind"]

#: Variables by which a user decides how many threads there are, where they run and how they wait.
SETTINGS = (
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "OMP_WAIT_POLICY",
    "GOMP_CPU_AFFINITY",
    "GOMP_SPINCOUNT",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
)

#: Devices of GPU drivers. A process that feeds a GPU has one thread that matters, which must be free to move.
_GPUS = ("/dev/nvidiactl", "/dev/kfd")

#: Cores that this process may use, as long as torch has not been loaded.
_CORES = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def bind_threads(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Bind every OpenMP thread of this process to a core of its own, by ``OMP_PROC_BIND`` and ``OMP_PLACES``.

    It does nothing if the user has set one of :data:`SETTINGS`, or if torch is loaded already. The same holds if there
    is a GPU or only one core, or if the system has no affinities. The main thread is bound too, so processes that it
    starts must call :func:`unbind`. Its core is another one in every process.

    Args:
        environment: the variables to read and set.

    Returns:
        ``True`` if the threads will be bound.
    """
    if any(name in environment for name in SETTINGS) or "torch" in sys.modules or any(map(os.path.exists, _GPUS)):
        return False
    places = sorted({_siblings(core) & _CORES for core in _CORES}, key=min)
    if len(places) < 2:
        return False
    first = os.getpid() % len(places)
    rotated = places[first:] + places[:first]
    environment["OMP_PROC_BIND"] = "true"
    environment["OMP_PLACES"] = ",".join(f"{{{','.join(map(str, sorted(place)))}}}" for place in rotated)
    return True


def unbind(*_: object) -> None:
    """Let this thread run on every core again: for processes that a bound one starts, which inherit its core."""
    if _CORES:
        os.sched_setaffinity(0, _CORES)


def _siblings(core: int) -> frozenset[int]:
    """Return the hardware threads that share a core with this one, which is among them."""
    file = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    try:
        text = file.read_text()
    except OSError:
        return frozenset([core])
    found = {core}
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)
