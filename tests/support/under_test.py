"""Kernels that the tests of operators run: those of the CPU, and on a machine with a GPU its own.

Environment variables make the kernels for GPUs run on the CPU instead; only tests of kernels are then collected:

- ``TRITON_INTERPRET=1 python -m pytest`` runs them in Triton's interpreter, several thousand times slower than a GPU;
- ``INVFLOW_TEST_PTX=80 python -m pytest -k ...`` compiles them for compute capability 8.0 (or 9.0, by 90) and runs that
  machine-independent code, PTX. It is fast, but each kernel, number of channels and form takes seconds to compile.
- ``INVFLOW_TEST_CUDA=source python -m pytest`` runs the CUDA C++ kernels as g++ compiles them; ``INVFLOW_TEST_CUDA=80``
  runs the PTX that nvcc makes of them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import settings

from invflow.backends import triton

INTERPRETED = triton.is_interpreting()
PTX = int(os.environ.get("INVFLOW_TEST_PTX", 0))
CUDA = os.environ.get("INVFLOW_TEST_CUDA", "")
#: True if kernels for GPUs run on the CPU, slowly.
SLOW = bool(INTERPRETED or PTX or CUDA)


@dataclass(frozen=True)
class Kernels:
    """A backend, and the device on which its tensors are."""

    backend: str
    device: str = "cpu"


#: Backends with kernels for GPUs.
GPU_BACKENDS = ("cuda", "triton")

_ON_GPU = [pytest.param(Kernels(backend, "cuda"), marks=pytest.mark.gpu) for backend in GPU_BACKENDS]
KERNELS = [Kernels("cuda" if CUDA else "triton")] if SLOW else [Kernels("cpu"), *_ON_GPU]

#: For every test that takes ``kernels``.
each_kernels = pytest.mark.parametrize("kernels", KERNELS, ids=lambda kernels: f"{kernels.backend}-{kernels.device}")


def combined(*values: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Every combination of a value of each list; in Triton's interpreter half of them, with every pair of two values.

    For three lists or more. The interpreter reads every element by itself: no three of a layout, a dtype, an operator
    and the like decide something there together.
    """
    places = itertools.product(*(range(len(each)) for each in values))
    kept = (chosen for chosen in places if not INTERPRETED or sum(chosen) % 2 == 0)
    return [tuple(each[place] for each, place in zip(values, chosen, strict=True)) for chosen in kept]


@contextlib.contextmanager
def ptx_on_cpu(capability: int) -> Iterator[None]:
    """Inside, the backend "triton" takes tensors of the CPU and runs the PTX of its kernels on them."""
    from tests.emulator.drivers.triton import triton_on_cpu

    deterministic = torch.are_deterministic_algorithms_enabled()
    with pytest.MonkeyPatch.context() as patch, triton_on_cpu(capability):
        patch.setattr(triton, "unavailable", lambda: "")
        patch.setattr(triton, "why_not", lambda op, x: "")
        torch.use_deterministic_algorithms(True)  # there is nothing to be timed
        yield
    torch.use_deterministic_algorithms(deterministic)


@contextlib.contextmanager
def kernels_on_cpu() -> Iterator[None]:
    """Inside, the backend that an environment variable chose runs on the CPU."""
    if CUDA:
        from tests.emulator.drivers.cuda import cuda_on_cpu

        with cuda_on_cpu(None if CUDA == "source" else int(CUDA)):
            yield
    elif PTX:
        with ptx_on_cpu(PTX):
            yield
    else:
        yield


def fuzz(examples: int) -> settings:
    """The same examples in every run: a failure here is a failure everywhere. Fewer in the slow interpreter."""
    return settings(
        max_examples=examples // 6 if INTERPRETED or PTX or CUDA not in ("", "source") else examples,
        deadline=None,
        derandomize=True,
    )
